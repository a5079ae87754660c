"""L1. Spectrograms and resampling in JAX, equal to librosa, Kaldi and scipy.  Axes: B S T F M.

B batch, S samples, T frames, F = n_fft // 2 + 1 frequency bins, M mel bands.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

FRONT_ENDS = ('librosa', 'kaldi')


@dataclasses.dataclass(frozen=True)
class MelConfig:
  """One mel spectrogram: framing, filters, and the floor below which the log stops.

  Front end 'librosa': windows of n_fft samples, Slaney's scale, triangles of equal area. 'kaldi',
  what public AST models hear: windows of win_length samples from t * hop_length on, each less its
  mean, with preemphasis, under a symmetric Hann window, zeros behind it up to n_fft; triangles of
  equal height, drawn over mel and not over Hz.
  """

  sample_rate: int = 24_000
  n_fft: int = 1024
  win_length: int = 1024
  hop_length: int = 240
  num_mels: int = 64
  fmin: float = 0.0
  fmax: float = 0.0  # 0 is half the sample rate
  power: float = 2.0  # 1: magnitudes, 2: energies
  center: bool = True  # frame t is centred on sample t * hop_length
  log_floor: float = 1e-5
  front_end: str = 'librosa'
  preemphasis: float = 0.0  # of 'kaldi': x[s] - preemphasis * x[s - 1]

  def __post_init__(self):
    if self.front_end not in FRONT_ENDS:
      raise ValueError(f'front_end {self.front_end!r}: one of {FRONT_ENDS} wanted')
    if self.front_end == 'kaldi' and self.center:
      raise ValueError("front_end 'kaldi' starts its frames at t * hop_length: center is True, "
                       'wanted False')
    if self.front_end != 'kaldi' and self.preemphasis:
      raise ValueError(f"preemphasis {self.preemphasis} belongs to front_end 'kaldi', "
                       f'not {self.front_end!r}')


def _frames(waveform: jax.Array, length: int, hop: int) -> jax.Array:
  """Returns f32[B, T, length] windows of f32[B, S] every `hop` samples, no gather.

  Chunks of `hop` samples are cut once and laid side by side, shifted by one chunk each:
  hop 2, length 4:  [0 1 2 3 4 5] -> [[0 1 2 3], [2 3 4 5]]
  """
  batch, samples = waveform.shape
  num_frames = 1 + (samples - length) // hop
  pieces = -(-length // hop)
  padding = max(0, (num_frames - 1 + pieces) * hop - samples)
  waveform = jnp.pad(waveform, ((0, 0), (0, padding)))[:, : (num_frames - 1 + pieces) * hop]
  chunks = waveform.reshape(batch, -1, hop)
  frames = [chunks[:, i : i + num_frames] for i in range(pieces)]
  return jnp.concatenate(frames, axis=-1)[..., :length]


def hann_window(win_length: int, n_fft: int) -> np.ndarray:
  """Returns f32[n_fft]: the periodic Hann window, centred between zeros."""
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
  left = (n_fft - win_length) // 2
  return np.pad(window, (left, n_fft - win_length - left)).astype(np.float32)


def stft(
    waveform: jax.Array, n_fft: int, win_length: int, hop_length: int, center: bool = True
) -> jax.Array:
  """Returns complex64[B, T, F] of f32[B, S]; T = 1 + S // hop when centred."""
  if center:
    waveform = jnp.pad(waveform, ((0, 0), (n_fft // 2, n_fft // 2)))
  if waveform.shape[1] < n_fft:
    raise ValueError(f'stft got {waveform.shape[1]} samples, wanted at least n_fft={n_fft}')
  frames = _frames(waveform.astype(jnp.float32), n_fft, hop_length)
  return jnp.fft.rfft(frames * hann_window(win_length, n_fft))


def kaldi_spectrum(waveform: jax.Array, config: MelConfig) -> jax.Array:
  """Returns complex64[B, T, F] of f32[B, S]; T = 1 + (S - win_length) // hop_length."""
  length = config.win_length
  if waveform.shape[1] < length:
    raise ValueError(f'kaldi_spectrum got {waveform.shape[1]} samples, wanted at least '
                     f'win_length={length}')
  frames = _frames(waveform.astype(jnp.float32), length, config.hop_length)
  frames -= jnp.mean(frames, axis=-1, keepdims=True)
  before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
  frames -= config.preemphasis * before
  return jnp.fft.rfft(frames * np.hanning(length).astype(np.float32), config.n_fft)


def _hz_to_mel(hz):
  """Returns Slaney's mel scale: linear to 1 kHz, logarithmic above."""
  hz = np.asarray(hz, np.float64)
  log_part = 15.0 + np.log(np.maximum(hz, 1.0) / 1000.0) * (27.0 / np.log(6.4))
  return np.where(hz < 1000.0, hz * 3.0 / 200.0, log_part)


def _mel_to_hz(mel):
  mel = np.asarray(mel, np.float64)
  return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))


@functools.lru_cache(maxsize=64)
def mel_filters(
    sample_rate: int, n_fft: int, num_mels: int, fmin: float = 0.0, fmax: float = 0.0
) -> np.ndarray:
  """Returns f32[F, M] triangles of equal area (librosa's `norm='slaney'`)."""
  fmax = fmax or sample_rate / 2
  bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
  edges = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(fmax), num_mels + 2))
  return (_triangles(bins, edges) * 2.0 / (edges[2:] - edges[:-2])).astype(np.float32)


@functools.lru_cache(maxsize=64)
def kaldi_filters(
    sample_rate: int, n_fft: int, num_mels: int, fmin: float = 0.0, fmax: float = 0.0
) -> np.ndarray:
  """Returns f32[F, M] triangles of height one over Kaldi's mel, 1127 ln(1 + Hz / 700)."""
  mel = lambda hz: 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)
  bins = mel(np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1))
  edges = np.linspace(mel(fmin), mel(fmax or sample_rate / 2), num_mels + 2)
  return _triangles(bins, edges).astype(np.float32)


def _triangles(bins: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """Returns f64[F, M]: triangle m rises from edges[m] to 1 at edges[m + 1], falls to edges[m + 2]."""
  rising = (bins[:, None] - edges[None, :-2]) / np.diff(edges)[None, :-1]
  falling = (edges[None, 2:] - bins[:, None]) / np.diff(edges)[None, 1:]
  return np.maximum(0.0, np.minimum(rising, falling))


@functools.lru_cache(maxsize=64)
def most_mels(sample_rate: int, n_fft: int, wanted: int) -> int:
  """Returns the largest number of bands, at most `wanted`, that leaves no filter empty.

  A 64-sample window has 33 bins: 64 triangles would fall between them.
  """
  for num_mels in range(wanted, 1, -1):
    if (mel_filters(sample_rate, n_fft, num_mels).max(axis=0) > 0).all():
      return num_mels
  return 1


def mel_spectrogram(waveform: jax.Array, config: MelConfig) -> jax.Array:
  """Returns f32[B, T, M] mel energies (power 2) or magnitudes (power 1) of f32[B, S]."""
  if config.front_end == 'kaldi':
    spectrum, make_filters = kaldi_spectrum(waveform, config), kaldi_filters
  else:
    spectrum, make_filters = stft(
        waveform, config.n_fft, config.win_length, config.hop_length, center=config.center
    ), mel_filters
  energy = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  if config.power != 2.0:  # the small constant keeps the gradient finite in silence
    energy = (energy + 1e-10) ** (config.power / 2.0)
  filters = make_filters(
      config.sample_rate, config.n_fft, config.num_mels, config.fmin, config.fmax
  )
  return energy @ filters


def log_mel(waveform: jax.Array, config: MelConfig) -> jax.Array:
  """Returns f32[B, T, M]: log(max(mel, log_floor)) of f32[B, S]."""
  return jnp.log(jnp.maximum(mel_spectrogram(waveform, config), config.log_floor))


@functools.lru_cache(maxsize=16)
def _resampling_kernel(up: int, down: int) -> tuple[np.ndarray, int]:
  """Returns (f32[K, 1, up] polyphase taps, i0): output up*j + r reads x[down*j + i0 + k].

  The filter is scipy.signal.resample_poly's: a Kaiser(5) windowed sinc of 20 zero crossings.
  """
  half = 10 * max(up, down)
  n = np.arange(-half, half + 1)
  taps = np.sinc(n / max(up, down)) * np.kaiser(2 * half + 1, 5.0)
  taps *= up / taps.sum()
  first = -(half // up)
  last = ((up - 1) * down + half) // up
  index = np.arange(up)[None, :] * down + half - np.arange(first, last + 1)[:, None] * up
  inside = (index >= 0) & (index <= 2 * half)
  kernel = np.where(inside, taps[np.clip(index, 0, 2 * half)], 0.0)
  return kernel[:, None, :].astype(np.float32), first


def resample(waveform: jax.Array, from_rate: int, to_rate: int) -> jax.Array:
  """Returns f32[B, ceil(S * to_rate / from_rate)], equal to scipy.signal.resample_poly."""
  divisor = math.gcd(from_rate, to_rate)
  up, down = to_rate // divisor, from_rate // divisor
  if up == down:
    return waveform
  batch, samples = waveform.shape
  length = -(-samples * up // down)
  kernel, first = _resampling_kernel(up, down)
  steps = -(-length // up)
  right = max(0, (steps - 1) * down + kernel.shape[0] + first - samples)
  output = jax.lax.conv_general_dilated(
      waveform[..., None],
      kernel.astype(waveform.dtype),
      window_strides=(down,),
      padding=((-first, right),),
      dimension_numbers=('NWC', 'WIO', 'NWC'),
  )
  return output[:, :steps].reshape(batch, steps * up)[:, :length]
