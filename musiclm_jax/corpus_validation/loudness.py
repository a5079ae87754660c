"""Integrated loudness of ITU-R BS.1770-4, in constant memory but for a number per 100 ms.

Axes: S samples, C channels, N steps of 100 ms.
"""

import numpy as np

STEPS_PER_SECOND = 10  # gating blocks of 400 ms overlap by 75%
BLOCK_STEPS = 4
MIN_RATE = 4_000  # Hz; below, the filter's shelf at 1.7 kHz lies outside what there is
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # LUFS, LU
# Weights of the standard's channels in the order of WAVE files: L R C LFE, then back and side.
_WEIGHTS = {4: (1, 1, 1.41, 1.41), 5: (1, 1, 1, 1.41, 1.41), 6: (1, 1, 1, 0, 1.41, 1.41),
            8: (1, 1, 1, 0, 1, 1, 1.41, 1.41)}


class Meter:
  """Takes a recording piece by piece; `integrated()` is then its loudness in LUFS."""

  def __init__(self, rate: int, channels: int):
    self.rate = rate
    self.weights = np.asarray(_WEIGHTS.get(channels, [1] * channels), np.float64)
    self._filter = k_weighting(rate)
    self._state = np.zeros((len(self._filter), channels, 2))
    self._steps = Steps(rate)

  def add(self, block: np.ndarray) -> None:
    """Takes float[S, C], what follows the pieces before."""
    import scipy.signal
    weighted, self._state = scipy.signal.sosfilt(
        self._filter, block.astype(np.float64).T, zi=self._state)
    self._steps.add(self.weights @ np.square(weighted))

  def integrated(self) -> float | None:
    """Returns LUFS; None of what lasts less than 400 ms or is silent throughout."""
    steps = self._steps.means()
    if len(steps) < BLOCK_STEPS:
      return None
    sums = np.cumsum(np.concatenate([[0.0], steps]))
    power = np.maximum(sums[BLOCK_STEPS:] - sums[:-BLOCK_STEPS], 0) / BLOCK_STEPS
    power = power[power > _power(_ABSOLUTE_GATE)]
    if not len(power):
      return None
    return _lufs(power[power > _power(_lufs(power.mean()) + _RELATIVE_GATE)].mean())


class Steps:
  """Means of a signal over steps of 100 ms, of pieces of any length."""

  def __init__(self, rate: int):
    self.rate, self._count = rate, 0
    self._rest = np.zeros(0)
    self._means = []

  def add(self, values: np.ndarray) -> None:
    """Takes float[S] or float[S, C]."""
    values = np.concatenate([self._rest, values]) if len(self._rest) else values
    start = self._count - len(self._rest)  # of `values` in the recording
    self._count = start + len(values)
    first, last = (-(-at * STEPS_PER_SECOND // self.rate) for at in (start, self._count + 1))
    edges = np.arange(first, last, dtype=np.int64) * self.rate // STEPS_PER_SECOND - start
    edges = edges[edges <= len(values)]
    if len(edges) > 1:
      lengths = np.diff(edges).reshape(-1, *[1] * (values.ndim - 1))
      sums = np.add.reduceat(values[:edges[-1]], edges[:-1], axis=0)
      self._means.append(np.asarray(sums / lengths, np.float64))
    self._rest = np.array(values[edges[-1]:]) if len(edges) else values

  def means(self) -> np.ndarray:
    """Returns float64[N] or float64[N, C]; a last step that is not whole is left out."""
    return np.concatenate(self._means) if self._means else np.zeros(0)


def k_weighting(rate: int) -> np.ndarray:
  """Returns float64[2, 6], second-order sections: the shelf of the head, then the high pass.

  The standard gives coefficients at 48 kHz alone; these are of the analogue filters that they were
  made from by the bilinear transform (De Man 2014), and equal the standard's at 48 kHz.
  """
  gain, quality, corner = 3.999843853973347, 0.7071752369554196, 1681.974450955533
  k = np.tan(np.pi * corner / rate)
  high = 10 ** (gain / 20)
  middle = high ** 0.4996667741545416
  scale = 1 + k / quality + k * k
  shelf = [(high + middle * k / quality + k * k) / scale, 2 * (k * k - high) / scale,
           (high - middle * k / quality + k * k) / scale,
           1, 2 * (k * k - 1) / scale, (1 - k / quality + k * k) / scale]
  quality, corner = 0.5003270373238773, 38.13547087602444
  k = np.tan(np.pi * corner / rate)
  scale = 1 + k / quality + k * k
  high_pass = [1, -2, 1, 1, 2 * (k * k - 1) / scale, (1 - k / quality + k * k) / scale]
  return np.array([shelf, high_pass])


def _lufs(power: float) -> float:
  return float(-0.691 + 10 * np.log10(power))


def _power(lufs: float) -> float:
  return 10 ** ((lufs + 0.691) / 10)
