"""L4. Keys, modes and chords.  A progression is written in scale degrees.

'1 5 6 4'         four bars, one chord each, built from the scale
'2,5 1'           two chords share the first bar
'5:7 b7:maj'      a quality after the colon; b and # move the root by a semitone
"""

import dataclasses

import numpy as np

MODES = {
  'major': (0, 2, 4, 5, 7, 9, 11),
  'minor': (0, 2, 3, 5, 7, 8, 10),
  'dorian': (0, 2, 3, 5, 7, 9, 10),
  'mixolydian': (0, 2, 4, 5, 7, 9, 10),
  'lydian': (0, 2, 4, 6, 7, 9, 11),
  'phrygian': (0, 1, 3, 5, 7, 8, 10),
}
MAJOR_LIKE = ('major', 'mixolydian', 'lydian')
NOTE_NAMES = ('C', 'C sharp', 'D', 'E flat', 'E', 'F', 'F sharp', 'G', 'A flat', 'A', 'B flat', 'B')
QUALITIES = {
  'maj': (0, 4, 7),
  'm': (0, 3, 7),
  '7': (0, 4, 7, 10),
  'm7': (0, 3, 7, 10),
  'maj7': (0, 4, 7, 11),
  'dim': (0, 3, 6),
  'sus': (0, 5, 7),
  '5': (0, 7),
  '9': (0, 4, 7, 10, 14),
  'm9': (0, 3, 7, 10, 14),
  'maj9': (0, 4, 7, 11, 14),
  '6': (0, 4, 7, 9),
  'dim7': (0, 3, 6, 9),
  'm7b5': (0, 3, 6, 10),
}
# Krumhansl and Kessler (1982), probe-tone profiles.
_PROFILES = {
  'major': (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
  'minor': (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}


@dataclasses.dataclass(frozen=True)
class Chord:
  root: int  # pitch class
  intervals: tuple[int, ...]  # semitones above the root
  start: float  # beats
  duration: float

  @property
  def pitch_classes(self) -> tuple[int, ...]:
    return tuple((self.root + i) % 12 for i in self.intervals)

  @property
  def quality(self) -> str:
    """Returns its name in QUALITIES."""
    return next(name for name, intervals in QUALITIES.items() if intervals == self.intervals)


def _scale_chord(scale: tuple[int, ...], degree: int, size: int) -> tuple[int, ...]:
  """Returns the intervals of `size` stacked thirds on `degree` (0 = tonic)."""
  steps = [scale[(degree + 2 * k) % 7] + 12 * ((degree + 2 * k) // 7) for k in range(size)]
  return tuple(step - steps[0] for step in steps)


def chord(token: str, tonic: int, mode: str, size: int, start: float, duration: float) -> Chord:
  """Returns the chord that `token` ('6', 'b7:maj') means in this key."""
  degree_text, _, quality = token.partition(':')
  shift = {'b': -1, '#': 1}.get(degree_text[0], 0)
  degree = int(degree_text[-1]) - 1
  scale = MODES[mode]
  root = (tonic + scale[degree] + shift) % 12
  if quality:
    return Chord(root, QUALITIES[quality], start, duration)
  if shift:
    return Chord(root, QUALITIES['maj'] if size < 4 else QUALITIES['maj7'], start, duration)
  if size == 2:
    return Chord(root, QUALITIES['5'], start, duration)
  return Chord(root, _scale_chord(scale, degree, size), start, duration)


def bar_chords(bar_token: str, tonic: int, mode: str, size: int, start: float, metre: int):
  """Returns the chords of one bar; '2,5' gives two, the first the longer in 3/4."""
  tokens = bar_token.split(',')
  edges = [round(metre * i / len(tokens) + 1e-6) for i in range(len(tokens) + 1)]
  return [
    chord(t, tonic, mode, size, start + a, b - a)
    for t, a, b in zip(tokens, edges[:-1], edges[1:], strict=True)
  ]


def scale_over(harmony: Chord, tonic: int, mode: str) -> np.ndarray:
  """Returns int[7 or so] sorted pitch classes: the scale, bent to hold the chord's tones."""
  scale = {(tonic + s) % 12 for s in MODES[mode]}
  for tone in harmony.pitch_classes:
    if tone not in scale:
      scale -= {(tone + 1) % 12, (tone - 1) % 12} - set(harmony.pitch_classes)
      scale.add(tone)
  return np.array(sorted(scale))


def nearest(pitch: float, pitch_classes) -> int:
  """Returns the pitch nearest to `pitch` whose class is allowed."""
  candidates = np.arange(int(pitch) - 12, int(pitch) + 13)
  allowed = candidates[np.isin(candidates % 12, list(pitch_classes))]
  return int(allowed[np.argmin(np.abs(allowed - pitch))])


def voicing(harmony: Chord, centre: float, previous: list[int] | None) -> list[int]:
  """Returns the chord's pitches near `centre`, in the inversion closest to `previous`."""
  best, best_cost = [], np.inf
  tones = sorted({(harmony.root + i) % 12 for i in harmony.intervals})
  for turn in range(len(tones)):
    order = tones[turn:] + tones[:turn]
    pitches = [nearest(centre - 5, [order[0]])]
    for tone in order[1:]:
      pitches.append(pitches[-1] + (tone - pitches[-1] - 1) % 12 + 1)
    mean = float(np.mean(pitches))
    cost = abs(mean - centre)
    if previous:
      cost = (
        0.4 * cost + abs(mean - float(np.mean(previous))) + 0.3 * abs(pitches[-1] - previous[-1])
      )
    if cost < best_cost:
      best, best_cost = pitches, cost
  return best


def estimate_key(weights: np.ndarray) -> tuple[int, str, float]:
  """Returns (tonic, mode, margin) from float[12] pitch-class weights; margin over the next best."""
  scores = []
  for mode, profile in _PROFILES.items():
    for tonic in range(12):
      rolled = np.roll(np.array(profile), tonic)
      scores.append((float(np.corrcoef(rolled, weights)[0, 1]), tonic, mode))
  scores.sort(reverse=True)
  return scores[0][1], scores[0][2], scores[0][0] - scores[1][0]
