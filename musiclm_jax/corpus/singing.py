"""L4. Voices: pitch that slides and wavers, for a sampled voice and for a hum made of partials."""

import dataclasses
from typing import NamedTuple

import numpy as np

from musiclm_jax.audio import SAMPLE_RATE
from musiclm_jax.corpus import render

CONTROL_RATE = 100  # pitch values a second


class SungNote(NamedTuple):
  start: float  # seconds
  stop: float
  pitch: float  # MIDI number, with a fraction when out of tune


@dataclasses.dataclass(frozen=True)
class Manner:
  """How a voice moves; `draw` gives a trained singer's or a careless hummer's."""

  glide: float  # seconds in which most of an interval is crossed
  vibrato: float  # semitones
  vibrato_rate: float  # Hz
  mistuning: float  # standard deviation of a note, semitones
  offset: float  # of the whole melody, semitones
  wander: float  # slow drift, semitones


def draw_manner(careless: bool, rng: np.random.Generator) -> Manner:
  """Returns a manner of singing: careless ones slide more, waver and miss the pitch."""
  if careless:
    return Manner(rng.uniform(0.03, 0.12), rng.uniform(0, 0.25), rng.uniform(4, 6),
                  rng.uniform(0.08, 0.35), rng.uniform(-0.5, 0.5), rng.uniform(0.05, 0.25))
  return Manner(rng.uniform(0.015, 0.06), rng.uniform(0.1, 0.5), rng.uniform(4.8, 6.4),
                rng.uniform(0.0, 0.08), 0.0, rng.uniform(0.0, 0.06))


def pitch_curve(notes: list[SungNote], seconds: float, manner: Manner,
                rng: np.random.Generator) -> np.ndarray:
  """Returns float64[seconds * CONTROL_RATE], the sung pitch; between notes the last one is held.

  Each note is approached from the one before; vibrato grows from 0.15 s into a note.
  """
  time = np.arange(round(seconds * CONTROL_RATE)) / CONTROL_RATE
  pitches = np.array([n.pitch for n in notes]) + rng.normal(0, manner.mistuning, len(notes))
  starts = np.array([n.start for n in notes])
  index = np.maximum(np.searchsorted(starts, time, 'right') - 1, 0)
  # Smoothed by a causal kernel: the slide begins where the written note begins.
  steps = np.arange(round(6 * manner.glide * CONTROL_RATE) + 1) / CONTROL_RATE
  kernel = np.exp(-steps / manner.glide)
  padded = np.concatenate([np.full(len(kernel), pitches[0]), pitches[index]])
  curve = np.convolve(padded, kernel / kernel.sum())[len(kernel):len(kernel) + len(time)]
  depth = manner.vibrato * np.clip((time - starts[index] - 0.15) / 0.25, 0, 1)
  curve += depth * np.sin(2 * np.pi * (manner.vibrato_rate * time + rng.random()))
  points = rng.normal(0, manner.wander, 2 + int(2 * seconds))
  curve += np.interp(time, np.arange(len(points)) / 2, points)
  return curve + manner.offset


def bends(notes: list[SungNote], curve: np.ndarray) -> tuple[tuple[float, float], ...]:
  """Returns (second, semitones from the written pitch) of a voice whose samples are at hand."""
  time = np.arange(len(curve)) / CONTROL_RATE
  starts = np.array([n.start for n in notes])
  written = np.array([n.pitch for n in notes])
  index = np.maximum(np.searchsorted(starts, time, 'right') - 1, 0)
  found = [(n.start, float(np.interp(n.start, time, curve)) - n.pitch) for n in notes]
  found += zip(time.tolist(), (curve - written[index]).tolist(), strict=True)
  return tuple(sorted(found))


def hum(notes: list[SungNote], seconds: float, manner: Manner,
        rng: np.random.Generator) -> np.ndarray:
  """Returns float32[seconds * 24000]: a hum, from nearly a sine to an open vowel, with breath."""
  samples = round(seconds * SAMPLE_RATE)
  time = np.arange(samples) / SAMPLE_RATE
  control = np.arange(round(seconds * CONTROL_RATE)) / CONTROL_RATE
  curve = np.interp(time, control, pitch_curve(notes, seconds, manner, rng))
  hertz = 440.0 * 2.0 ** ((curve - 69.0) / 12.0)
  phase = 2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE
  slope, formant = rng.uniform(1.0, 4.0), rng.uniform(400, 1200)
  voice = np.zeros(samples)
  for k in range(1, 13):
    # A hump near `formant`, the resonance of the mouth, on a falling spectrum.
    gain = k ** -slope * (1 + 2 * np.exp(-((k * hertz - formant) / 300) ** 2))
    voice += gain * (k * hertz < 10_000) * np.sin(k * phase + 2 * np.pi * rng.random())
  loudness = np.interp(time, control, _loudness(notes, control, rng))
  voice *= loudness / (np.sqrt(np.mean(voice ** 2)) + 1e-9)
  return (0.1 * (voice + _breath(loudness, rng))).astype(np.float32)


def _loudness(notes, control, rng) -> np.ndarray:
  """Returns float64 in [0, 1] at CONTROL_RATE: each note swells and sinks; 'm' dips or full stops."""
  loud = np.zeros(len(control))
  for note in notes:
    inside = (control >= note.start) & (control < note.stop)
    loud[inside] = rng.uniform(0.7, 1.0)
  kernel = np.hanning(round(rng.uniform(0.04, 0.12) * CONTROL_RATE) + 2)
  return np.convolve(loud, kernel / kernel.sum(), 'same')


def _breath(loudness: np.ndarray, rng) -> np.ndarray:
  """Returns float64[S] noise, dull, louder where nothing is sung: air through the nose."""
  cutoff = rng.uniform(1_500, 5_000)
  noise = render.shape_spectrum(
    rng.standard_normal(len(loudness)), lambda hertz: 1 / (1 + (hertz / cutoff) ** 2))
  noise /= noise.std() + 1e-9
  return noise * 10 ** (rng.uniform(-40, -24) / 20) * (1.0 + 1.5 * (1 - loudness))
