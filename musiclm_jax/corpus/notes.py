"""L4. What a piece of music is here: tracks of notes in beats, and a tempo curve into seconds."""

import dataclasses
from typing import NamedTuple

import numpy as np

from musiclm_jax.corpus import harmony, instruments


class Note(NamedTuple):
  start: float  # beats
  duration: float  # beats
  pitch: int  # MIDI number
  velocity: int  # 1..127


@dataclasses.dataclass
class Track:
  """The notes of one player. `role`: lead, counter, comp, comp2, pad, bass, drums."""

  role: str
  instrument: instruments.Instrument
  notes: list[Note]
  pan: int = 64
  level: float = 1.0
  bends: tuple[tuple[float, float], ...] = ()  # (second, semitones away from the written pitch)


@dataclasses.dataclass(frozen=True)
class Section:
  name: str  # intro, verse, chorus, bridge, outro
  start: float  # beats
  end: float
  level: float  # 0 quiet .. 1 full


@dataclasses.dataclass
class Piece:
  """A composition or an arrangement, before it is heard."""

  genre: str
  mood: str
  tonic: int | None  # pitch class, None when not known for certain
  mode: str | None
  bpm: float
  metre: int
  tracks: list[Track]
  sections: list[Section]
  beat_times: np.ndarray  # float64[num_beats + 1], seconds at every beat
  drum_feel: str = ''
  effects: tuple[str, ...] = ()
  source: str = 'own composition'
  licence: str = 'CC0-1.0'
  credits: tuple[str, ...] = ()
  chords: tuple[harmony.Chord, ...] = ()  # in order, one a bar or more; () when not known

  def seconds(self, beats) -> np.ndarray:
    """Returns float64 seconds at `beats`; past the last beat the last tempo goes on."""
    beats = np.asarray(beats, np.float64)
    last = len(self.beat_times) - 1
    step = self.beat_times[-1] - self.beat_times[-2]
    inside = np.interp(beats, np.arange(last + 1), self.beat_times)
    return np.where(beats > last, self.beat_times[-1] + (beats - last) * step, inside)

  def chord_labels(self, start: float, stop: float) -> list[list]:
    """Returns [start, end, root, quality] of the chords of seconds `start`..`stop`, from `start`.

    Chords change on whole beats, which swing does not move. Neighbours that are the same chord stay
    apart, as written.
    """
    starts = self.seconds([c.start for c in self.chords])
    stops = self.seconds([c.start + c.duration for c in self.chords])
    labels = []
    for chord, a, b in zip(self.chords, starts, stops, strict=True):
      a, b = round(max(a, start) - start, 3), round(min(b, stop) - start, 3)
      if a < b:
        labels.append([a, b, chord.root, chord.quality])
    return labels


def tempo_curve(bpm: float, num_beats: int, rubato: float, rng: np.random.Generator) -> np.ndarray:
  """Returns float64[num_beats + 1] seconds; `rubato` 0.05 lets the tempo breathe by about 5 %."""
  beat = 60.0 / bpm
  if rubato <= 0:
    return np.arange(num_beats + 1) * beat
  x = np.arange(num_beats)
  waves = sum(np.sin(2 * np.pi * (x / period + rng.random())) for period in (8.0, 16.0, 5.3)) / 3.0
  factors = 1.0 + rubato * (waves + 0.4 * rng.standard_normal(num_beats))
  return np.concatenate([[0.0], np.cumsum(beat * np.clip(factors, 0.7, 1.4))])
