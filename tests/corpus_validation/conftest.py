"""What these tests share: pieces of made-up music, alike in style and different in notes."""

import numpy as np
import pytest


def _piece(seed: int, seconds: float = 8, rate: int = 24_000) -> np.ndarray:
  """Returns float32[S]: four voices that change notes several times a second, over soft noise."""
  random = np.random.RandomState(seed)
  time = np.arange(round(seconds * rate)) / rate
  waveform = 0.003 * random.randn(len(time))
  for voice in range(4):
    at = 0.0
    while at < seconds:
      length = random.choice([0.2, 0.3, 0.45, 0.6])
      hertz = 110 * 2 ** (random.randint(0, 24) / 12 + voice / 2)
      part = slice(round(at * rate), round((at + length) * rate))
      local = time[part] - at
      waveform[part] += np.exp(-3 * local) * np.minimum(1, local / 0.005) * sum(
          np.sin(2 * np.pi * hertz * k * local) / k for k in range(1, 6))
      at += length
  return (0.5 * waveform / np.abs(waveform).max()).astype(np.float32)


@pytest.fixture(scope='session')
def piece():
  """Returns a function of a seed and a length in seconds: float32[S] at 24 kHz."""
  return _piece
