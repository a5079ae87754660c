"""L4. Melodies to make versions of: a few bars of a composition's lead or of a score's voice.

All times are in beats from the first note of the excerpt.
"""

import dataclasses

import numpy as np

from musiclm_jax import errors
from musiclm_jax.corpus import compose, harmony, parts, scores, styles
from musiclm_jax.corpus.notes import Note

SECONDS = 6.0  # of an excerpt at its own tempo
_MIN_NOTES, _MIN_PITCHES, _MAX_REST = 7, 4, 1.6  # the last in seconds
_SINGING = tuple(  # genres with a melody that one player can take over
  name for name, style in styles.STYLES.items()
  if any(f'/{kind}' in style.parts.get('lead', (0, ''))[1] for kind in ('melody', 'blues_lead'))
)
_TRIADS = [
  (root, quality, np.isin(np.arange(12), [(root + i) % 12 for i in harmony.QUALITIES[quality]]))
  for root in range(12) for quality in ('maj', 'm')
]


@dataclasses.dataclass(frozen=True)
class Excerpt:
  """A melody of single notes, what accompanied it, and where it is from."""

  melody: tuple[Note, ...]
  backing: tuple[tuple[Note, ...], ...]
  beats: float
  bpm: float
  metre: int
  source: str
  licence: str

  def chords(self) -> list[list[harmony.Chord]]:
    """Returns, for each bar, its chords: the triads that fit each half (or all of three beats)."""
    span = self.metre if self.metre == 3 else 2
    voices = (self.melody, *self.backing)
    found, lowest = [], min(n.pitch for voice in voices for n in voice)
    for start in np.arange(0, self.beats, span):
      weights = np.full(12, 1e-3)
      for note in (n for voice in voices for n in voice):
        shared = min(note.start + note.duration, start + span) - max(note.start, start)
        if shared > 0:
          weights[note.pitch % 12] += shared * (2.0 if note.pitch < lowest + 7 else 1.0)
      fits = [weights[tones].sum() + 0.5 * weights[root] for root, _, tones in _TRIADS]
      root, quality, _ = _TRIADS[int(np.argmax(fits))]
      found.append(harmony.Chord(root, harmony.QUALITIES[quality], float(start), float(span)))
    per_bar = self.metre // span
    return [found[i:i + per_bar] for i in range(0, len(found), per_bar)]

  def accompany(self, name: str, is_bass: bool, rng: np.random.Generator) -> list[Note]:
    """Returns another accompaniment: the pattern parts.PATTERNS[name] over the chords."""
    pattern, bars = parts.PATTERNS[name], self.chords()
    written = pattern.bars[int(rng.integers(len(pattern.bars)))]
    notes, previous = [], None
    for bar, following in zip(bars, [*bars[1:], bars[-1]], strict=True):
      made, previous = parts.play(pattern, written, bar, following[0].root, pattern.centre,
                                  previous, self.metre, is_bass)
      notes += made
    return notes


def from_composition(rng: np.random.Generator) -> Excerpt:
  """Returns an excerpt of a new composition's lead."""
  while True:  # a few of ten compositions have no lead, or one that rests too much
    genre = _SINGING[int(rng.integers(len(_SINGING)))]
    piece = compose.compose(genre, 40.0, rng)
    lead = next((t for t in piece.tracks if t.role == 'lead'), None)
    others = [t.notes for t in piece.tracks if t.role not in ('lead', 'drums')]
    melody = _one_voice(lead.notes) if lead else None
    start = _find(melody, piece.bpm, piece.metre, rng) if melody else None
    if start is not None:
      return _cut(melody, others, start, piece.bpm, piece.metre, piece.source, piece.licence)


def from_score(source: scores.Source, rng: np.random.Generator) -> Excerpt:
  """Returns an excerpt of a score's first voice, the singer's in a song."""
  midi, tracks = scores.read_midi(source)
  voices = [notes for notes in tracks.values() if len(notes) >= 12]
  melody = _one_voice(voices[0]) if voices else None
  bpm, metre = float(np.clip(scores.read_tempo(midi), 60, 150)), scores.read_metre(midi)
  start = _find(melody, bpm, metre, rng) if melody else None
  if start is None:
    raise errors.UserError(f'{source.name!r} holds no melody of single notes')
  return _cut(melody, voices[1:], start, bpm, metre, scores.title(source), scores.licence(source))


def _one_voice(notes: list[Note]) -> list[Note] | None:
  """Returns the notes, each ending where the next begins; None when many sound together."""
  together = sum(b.start - a.start < 0.06 for a, b in zip(notes, notes[1:], strict=False))
  if together > 0.05 * len(notes):
    return None
  notes = [a for a, b in zip(notes, [*notes[1:], None], strict=True)
           if b is None or b.start - a.start >= 0.06]
  return [a if b is None else a._replace(duration=min(a.duration, b.start - a.start))
          for a, b in zip(notes, [*notes[1:], None], strict=True)]


def _find(melody: list[Note], bpm: float, metre: int, rng: np.random.Generator) -> float | None:
  """Returns the beat of a note from which SECONDS are well filled; phrase starts come first."""
  length = SECONDS * bpm / 60
  starts = np.array([n.start for n in melody])
  good, best = [], []
  for i, note in enumerate(melody):
    if note.start + length > melody[-1].start + melody[-1].duration:
      break
    inside = melody[i:int(np.searchsorted(starts, note.start + length))]
    rests = np.diff([*(n.start for n in inside), note.start + length]) * 60 / bpm
    if (len(inside) < _MIN_NOTES or len({n.pitch for n in inside}) < _MIN_PITCHES
        or rests.max() > _MAX_REST):
      continue
    good.append(note.start)
    gap = note.start - melody[i - 1].start - melody[i - 1].duration if i else 1.0
    if gap > 0.4 or note.start % metre < 0.1:
      best.append(note.start)
  choices = best or good
  return float(choices[int(rng.integers(len(choices)))]) if choices else None


def _cut(melody, others, start, bpm, metre, source, licence) -> Excerpt:
  beats = SECONDS * bpm / 60

  def inside(notes):
    return tuple(
      n._replace(start=n.start - start, duration=min(n.duration, start + beats - n.start))
      for n in notes if start - 0.05 <= n.start < start + beats - 0.05)

  backing = tuple(cut for cut in map(inside, others) if cut)
  return Excerpt(inside(melody), backing, beats, bpm, metre, source, licence)
