"""A number of 32 bits for every 24 ms of a recording, which coding and gain leave nearly alone.

Haitsma and Kalker, A Highly Robust Audio Fingerprinting System (ISMIR 2002): bit b of frame t says
whether the difference of bands b and b + 1 grew.  Departures: the frames compared are `_LAG`
apart instead of adjacent, a step is 24 ms instead of 11.6, and a silent frame is 0, which nothing
matches.

Axes: S samples at `RATE`, T frames, F frequencies.
"""

import numpy as np

RATE = 8_000
HOP = 192  # samples, 24 ms
FRAMES_PER_SECOND = RATE / HOP
_WINDOW = 3072  # 0.38 s: half a hop of misalignment is little beside it
_LAG = 4
_NUM_BANDS = 33
_BAND_EDGES = 300 * (2000 / 300) ** (np.arange(_NUM_BANDS + 1) / _NUM_BANDS)  # Hz
_SILENCE = 1e-6  # of the loudest frame's power


class Fingerprinter:
  """Takes a recording piece by piece; `finish()` is then its fingerprint."""

  def __init__(self, rate: int):
    import soxr
    self._stream = soxr.ResampleStream(rate, RATE, 1, dtype='float32') if rate != RATE else None
    self._samples = np.zeros(0, np.float32)
    self._differences = np.zeros((0, _NUM_BANDS - 1), np.float32)
    self._words, self._powers = [], []

  def add(self, mono: np.ndarray, last: bool = False) -> None:
    """Takes float32[S], what follows the pieces before."""
    if self._stream:
      mono = self._stream.resample_chunk(mono.astype(np.float32), last=last)
    self._samples = np.concatenate([self._samples, mono])
    count = max(0, (len(self._samples) - _WINDOW) // HOP + 1)
    for start in range(0, count, 512):
      self._add_frames(start, min(512, count - start))
    self._samples = self._samples[count * HOP:]

  def finish(self) -> np.ndarray:
    """Returns uint32[T], empty of what is shorter than half a second or silent."""
    self.add(np.zeros(0, np.float32), last=True)
    if not self._words:
      return np.zeros(0, np.uint32)
    words, powers = np.concatenate(self._words), np.concatenate(self._powers)[_LAG:]
    words[words == 0] = 1  # 0 is for silence
    words[powers <= _SILENCE * powers.max(initial=0)] = 0
    return words

  def _add_frames(self, start: int, count: int) -> None:
    import scipy.fft
    samples = self._samples[start * HOP:(start + count - 1) * HOP + _WINDOW]
    frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::HOP]
    spectrum = scipy.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32), axis=1)
    power = spectrum.real ** 2 + spectrum.imag ** 2
    edges = np.round(_BAND_EDGES * _WINDOW / RATE).astype(int)
    bands = np.add.reduceat(power[:, :edges[-1]], edges[:-1], axis=1)
    differences = np.concatenate([self._differences, bands[:, :-1] - bands[:, 1:]])
    self._powers.append(bands.sum(axis=1))
    self._differences = differences[-_LAG:]
    if len(differences) > _LAG:
      bits = differences[_LAG:] > differences[:-_LAG]
      self._words.append(np.packbits(bits, axis=1).view('>u4')[:, 0].astype(np.uint32))


def bit_error_rate(first: np.ndarray, second: np.ndarray) -> tuple[float, int]:
  """Returns (share of bits that differ, frames compared) of uint32[T] each; silence is out."""
  heard = (first != 0) & (second != 0)
  count = int(heard.sum())
  if not count:
    return 1.0, 0
  return int(np.bitwise_count((first ^ second)[heard]).sum()) / (32 * count), count
