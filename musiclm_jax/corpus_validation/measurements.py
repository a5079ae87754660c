"""What one recording is like: length, loudness, peaks, silence, offset; and its fingerprint.

Axes: S samples, C channels.
"""

import dataclasses
import os
import stat
from collections.abc import Iterable

import numpy as np

from musiclm_jax import audio, errors, prepare_audio
from musiclm_jax.corpus_validation import fingerprints, loudness

RATES = (1_000, 768_000)  # Hz; beyond, a header is wrong
SILENCE = -60.0  # dBFS, of the loudest channel over 100 ms
CLIPPED_RUN = 3  # samples in a row at full scale
_FULL_SCALE = {'PCM_S8': 8, 'PCM_U8': 8, 'ULAW': 8, 'ALAW': 8}  # bits; others clip as 16 bits do


@dataclasses.dataclass
class Measurements:
  """Of one recording; shares are of its length, levels are in dB of full scale."""

  seconds: float
  rate: int
  channels: int
  encoding: str
  loudness: float | None  # LUFS
  peak: float | None  # dBFS; None of digital silence
  clipped: float  # share of samples, of all channels
  silence: float  # share
  dc_offset: float  # of the worst channel, 1 is full scale
  missing: float = 0.0  # share of what the header promises that could not be decoded


def measure_file(path: str, name: str) -> tuple[Measurements, np.ndarray]:
  """Returns (measurements, fingerprint uint32[T]) of an audio file called `name`."""
  if prepare_audio.undecodable(name):
    raise errors.UserError('the file name is not UTF-8, rename it')
  if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would keep its reader waiting
    raise errors.UserError(f'{path} is not a regular file')
  with audio.recorded(path) as (recording, blocks):
    return measure(recording, blocks)


def measure(recording: audio.Recording, blocks: Iterable[np.ndarray]
            ) -> tuple[Measurements, np.ndarray]:
  """Returns (measurements, fingerprint uint32[T]) of float32[S, C], ..; memory is constant."""
  rate, channels = recording.rate, recording.channels
  if not RATES[0] <= rate <= RATES[1]:
    raise errors.UserError(f'its sample rate is {rate} Hz, wanted {RATES[0]} to {RATES[1]}')
  meter = loudness.Meter(rate, channels) if rate >= loudness.MIN_RATE else None
  printer, powers = fingerprints.Fingerprinter(rate), loudness.Steps(rate)
  clipping = _Clipping(recording.encoding, channels)
  count, peak, sums = 0, 0.0, np.zeros(channels)
  for block in blocks:
    columns = np.ascontiguousarray(block.T)  # sums along the longer axis are several times faster
    count += len(block)
    peak = max(peak, float(columns.max()), -float(columns.min()))
    sums += columns.sum(axis=1, dtype=np.float64)
    clipping.add(columns)
    powers.add(np.square(block))
    printer.add(columns.mean(axis=0))
    if meter:
      meter.add(block)
  steps = powers.means().reshape(-1, channels)
  silent = steps.max(axis=1) < 10 ** (SILENCE / 10) if len(steps) else np.array([peak < 1e-3])
  return Measurements(
      seconds=count / rate, rate=rate, channels=channels, encoding=recording.encoding,
      loudness=meter.integrated() if meter else None,
      peak=20 * float(np.log10(peak)) if peak else None,
      clipped=clipping.samples / (count * channels), silence=float(silent.mean()),
      dc_offset=float(np.abs(sums / count).max()),
      missing=max(0.0, 1 - count / recording.frames) if recording.frames else 0.0,
  ), printer.finish()


class _Clipping:
  """Counts samples in runs at full scale, which a recording that was not cut off hardly has."""

  def __init__(self, encoding: str, channels: int):
    bits = _FULL_SCALE.get(encoding.split()[-1] if encoding else '', 16)
    self._level = 1 - 1.5 * 2.0 ** (1 - bits)
    self._tail = np.zeros((channels, 0), bool)
    self.samples = 0

  def add(self, columns: np.ndarray) -> None:
    """Takes float32[C, S]; runs go on over pieces."""
    cut = np.concatenate([self._tail, (columns >= self._level) | (columns <= -self._level)], axis=1)
    known = self._tail.shape[1]
    self._tail = cut[:, -2 * (CLIPPED_RUN - 1):]
    if cut.any():
      counted = np.zeros_like(cut)
      counted[:, :known] = _in_runs(cut[:, :known])
      self.samples += int((_in_runs(cut) & ~counted).sum())


def _in_runs(cut: np.ndarray) -> np.ndarray:
  """Returns bool[C, S]: which of bool[C, S] are true in a run of at least CLIPPED_RUN."""
  found = np.zeros_like(cut)
  if cut.shape[1] >= CLIPPED_RUN:
    runs = np.lib.stride_tricks.sliding_window_view(cut, CLIPPED_RUN, axis=1).all(axis=-1)
    for i in range(CLIPPED_RUN):
      found[:, i:i + runs.shape[1]] |= runs
  return found
