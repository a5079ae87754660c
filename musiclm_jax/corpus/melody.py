"""L4. Melodies: a rhythmic motif with a contour, varied and answered over the chords."""

import dataclasses

import numpy as np

from musiclm_jax.corpus import harmony
from musiclm_jax.corpus.notes import Note

# Two-beat rhythm cells, (start, length) in beats, by how busy they are.
_CELLS = {
  0: (((0, 2),), ((0, 1.5), (1.5, 0.5)), ((0.5, 1.5),)),
  1: (((0, 1), (1, 1)), ((0, 1.5), (1.5, 0.5)), ((0, 0.5), (0.5, 1.5)), ((0.5, 0.5), (1, 1))),
  2: (
    ((0, 0.5), (0.5, 0.5), (1, 1)),
    ((0, 1), (1, 0.5), (1.5, 0.5)),
    ((0, 0.75), (0.75, 0.75), (1.5, 0.5)),
    ((0.5, 0.5), (1, 0.5), (1.5, 0.5)),
    ((0, 0.5), (0.5, 1), (1.5, 0.5)),
  ),
  3: (
    ((0, 0.5), (0.5, 0.5), (1, 0.5), (1.5, 0.5)),
    ((0, 0.25), (0.25, 0.25), (0.5, 0.5), (1, 0.5), (1.5, 0.5)),
    ((0, 0.5), (0.5, 0.25), (0.75, 0.25), (1, 0.75), (1.75, 0.25)),
    ((0, 0.75), (0.75, 0.25), (1, 0.5), (1.5, 0.5)),
  ),
}
_FLOW = ((0, 0.5), (0.5, 0.5), (1, 0.5), (1.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Motif:
  """One bar: onsets with lengths, and the scale steps between them."""

  onsets: tuple[tuple[float, float], ...]
  steps: tuple[int, ...]


def make_motif(metre: int, density: float, kind: str, rng: np.random.Generator) -> Motif:
  """Returns a bar-long motif; `density` is about notes per beat."""
  onsets = []
  for half in range((metre + 1) // 2):
    busy = int(np.clip(round(density * 1.7 + rng.normal(0, 0.6) - (half % 2) * 0.4), 0, 3))
    cell = (
      _FLOW
      if kind == 'bebop' and rng.random() < 0.75
      else _CELLS[busy][rng.integers(len(_CELLS[busy]))]
    )
    onsets += [(2 * half + s, d) for s, d in cell if 2 * half + s < metre]
  onsets = [(s, min(d, metre - s)) for s, d in onsets]
  if kind in ('bebop', 'blues_lead') and len(onsets) > 3 and rng.random() < 0.5:
    onsets = onsets[1:] if rng.random() < 0.5 else onsets[:-1]
  leap = 0.12 if kind != 'riff' else 0.3
  steps = [0]
  direction = rng.choice([-1, 1])
  for _ in onsets[1:]:
    if rng.random() < 0.3:
      direction = -direction
    size = rng.choice([2, 3, 4]) if rng.random() < leap else rng.choice([0, 1, 1, 1, 2])
    steps.append(int(direction * size))
  return Motif(tuple(onsets), tuple(steps))


def vary(motif: Motif, how: str, rng: np.random.Generator) -> Motif:
  """Returns `motif` inverted, with a new ending, simpler, or as it is."""
  if how == 'invert':
    return Motif(motif.onsets, tuple(-s for s in motif.steps))
  if how == 'ending' and len(motif.steps) > 2:
    steps = list(motif.steps)
    steps[-1], steps[-2] = int(rng.integers(-2, 3)), int(rng.integers(-2, 3))
    return Motif(motif.onsets, tuple(steps))
  if how == 'simpler' and len(motif.steps) > 2:
    keep = [i for i in range(len(motif.onsets)) if i % 2 == 0]
    onsets = [motif.onsets[i] for i in keep]
    ends = [o[0] for o in onsets[1:]] + [motif.onsets[-1][0] + motif.onsets[-1][1]]
    return Motif(
      tuple((o[0], e - o[0]) for o, e in zip(onsets, ends, strict=True)),
      tuple(motif.steps[i] for i in keep),
    )
  return motif


class Singer:
  """Writes one melodic part bar by bar; remembers its motifs and where it is."""

  PLANS = (
    ('a', 'a', 'b', 'end'),
    ('a', 'b', 'a', 'end'),
    ('a', 'a:ending', 'a:invert', 'end'),
    ('a', 'a:simpler', 'b', 'end'),
    ('a', 'b', 'a:invert', 'end'),
  )

  def __init__(self, kind, metre, density, low, high, tonic, mode, rng):
    self.kind, self.metre, self.rng = kind, metre, rng
    self.low, self.high, self.tonic, self.mode = low, high, tonic, mode
    self.motifs = {
      (section, letter): make_motif(metre, density * boost, kind, rng)
      for section, boost in (('verse', 1.0), ('chorus', 1.15), ('bridge', 0.8))
      for letter in 'ab'
    }
    self.plans = {
      s: self.PLANS[rng.integers(len(self.PLANS))] for s in ('verse', 'chorus', 'bridge')
    }
    self.home = (low + high) / 2
    self.position = self.home

  def bar(self, chords, section: str, index: int, lift: float, velocity: int) -> list[Note]:
    """Returns the notes of bar `index` of a section; `lift` moves the register."""
    section = {'intro': 'verse', 'outro': 'verse', 'solo': 'bridge'}.get(section, section)
    word = self.plans[section][index % 4]
    if self.kind == 'riff':
      word = 'a' if index % 4 != 3 else 'b'
    letter, _, how = word.partition(':')
    start = chords[0].start
    if word == 'end':
      return self._ending(chords, start, lift, velocity)
    motif = vary(self.motifs[section, letter], how, self.rng)
    if index % 4 == 0 or self.kind == 'riff':
      self.position = self.home + lift + self.rng.normal(0, 1.0 if self.kind == 'riff' else 2.0)
      if self.kind == 'riff':
        self.position = harmony.nearest(self.home + lift, [chords[0].root])
    return self._realise(motif, chords, start, lift, velocity)

  def _realise(self, motif, chords, start, lift, velocity):
    notes = []
    for (onset, length), step in zip(motif.onsets, motif.steps, strict=True):
      beat = start + onset
      harm = next((c for c in reversed(chords) if c.start <= beat + 1e-6), chords[0])
      scale = harmony.scale_over(harm, self.tonic, self.mode)
      if self.kind == 'blues_lead':
        scale = np.array(sorted({(self.tonic + s) % 12 for s in (0, 3, 5, 6, 7, 10)}))
      if self.kind == 'bebop' and self.rng.random() < 0.12:
        scale = np.arange(12)
      pitch = self._walk(step, scale, lift)
      strong = onset % 2 == 0 and length >= 0.5
      if strong and self.kind != 'blues_lead':
        pitch = harmony.nearest(pitch, harm.pitch_classes)
      self.position = pitch
      accent = (6 if onset % 1 == 0 else 0) + (5 if onset == 0 else 0) + int(self.rng.normal(0, 3))
      gate = 0.6 if self.kind == 'riff' else 0.93
      notes.append(Note(beat, length * gate, int(pitch), velocity + accent))
    return notes

  def _walk(self, step: int, scale, lift: float) -> int:
    ladder = np.array([p for p in range(self.low - 7, self.high + 8) if p % 12 in scale])
    at = int(np.argmin(np.abs(ladder - self.position))) + step
    pitch = int(ladder[np.clip(at, 0, len(ladder) - 1)])
    centre, reach = self.home + lift, (self.high - self.low) / 2
    if abs(pitch - centre) > reach:  # turn back towards the middle
      at = int(np.argmin(np.abs(ladder - self.position))) - 2 * int(np.sign(pitch - centre))
      pitch = int(ladder[np.clip(at, 0, len(ladder) - 1)])
    return int(np.clip(pitch, self.low, self.high))

  def _ending(self, chords, start, lift, velocity):
    """A phrase end: perhaps two notes leading in, then a long chord tone and a breath."""
    notes, at = [], start
    if self.rng.random() < 0.6:
      scale = harmony.scale_over(chords[0], self.tonic, self.mode)
      for k in range(2):
        pitch = self._walk(int(self.rng.choice([-1, 1])), scale, lift)
        self.position = pitch
        notes.append(Note(start + k * 0.5, 0.45, pitch, velocity))
      at = start + 1
    harm = next((c for c in reversed(chords) if c.start <= at + 1e-6), chords[0])
    pitch = int(np.clip(harmony.nearest(self.position, harm.pitch_classes), self.low, self.high))
    self.position = pitch
    stop = start + self.metre
    if len(chords) > 1 and chords[-1].start > at:
      stop = chords[-1].start
    length = max(0.5, min(stop - at, self.metre - 1.0) - 0.15)
    return notes + [Note(at, length, pitch, velocity + 3)]


def sparse(chords, low, high, rng, velocity, metre) -> list[Note]:
  """Returns a few scattered chord tones, for ambient music."""
  notes = []
  for harm in chords:
    for _ in range(1 + int(rng.random() < 0.5)):
      start = harm.start + float(rng.choice(np.arange(0, max(0.5, harm.duration - 0.5), 0.5)))
      pitch = harmony.nearest(rng.uniform(low + 6, high - 6), harm.pitch_classes)
      notes.append(
        Note(start, float(rng.uniform(1.0, metre)), pitch, int(velocity + rng.normal(0, 6)))
      )
  return sorted(notes)


def harmonise(notes: list[Note], chord_at, tonic: int, mode: str) -> list[Note]:
  """Returns a second voice about a third below each note, on chord tones where they are near."""
  second = []
  for note in notes:
    harm = chord_at(note.start)
    scale = harmony.scale_over(harm, tonic, mode)
    below = harmony.nearest(note.pitch - 4, harm.pitch_classes if note.duration >= 0.9 else scale)
    second.append(note._replace(pitch=min(below, note.pitch - 2), velocity=note.velocity - 10))
  return second
