"""L1. Melody embedding (MusicLM, 2301.11325, appendix C): 4 s of sound to a unit vector.

The same melody gives near vectors, whoever sings or plays it.  A ViT whose patches are single mel
frames.  Axes: B batch, S samples, T frames, F mel bands, D emb_dim, E embedding.

The paper gives neither the mel settings nor how frames become one vector (here: their mean).  Its
6 heads do not divide its width of 512, so the width of a head is a field, 64.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.models import mulan, spectrogram


@dataclasses.dataclass(frozen=True)
class MelodyConfig:
  """The encoder and its input; the defaults are the paper's size."""

  encoder: mulan.EncoderConfig = mulan.EncoderConfig(
      num_layers=12, emb_dim=512, num_heads=6, head_dim=64, mlp_dim=1024, norm_first=True)
  sample_rate: int = 24_000  # of the input; resampled to mel.sample_rate
  mel: spectrogram.MelConfig = spectrogram.MelConfig(  # long windows: neighbouring notes apart
      sample_rate=24_000, n_fft=4096, win_length=3072, hop_length=480, num_mels=128,
      fmin=60.0, fmax=4_000.0)
  mel_mean: float = 0.0  # of the log-mel values of a waveform of unit loudness
  mel_scale: float = 4.0
  window_seconds: float = 4.0
  hop_seconds: float = 3.0  # between windows of a longer clip: 3 windows in 10 s
  embedding_dim: int = 192

  def __post_init__(self):
    if not (self.window_seconds > 0 and self.hop_seconds > 0):
      raise ValueError(f'window_seconds {self.window_seconds}, hop_seconds {self.hop_seconds}: '
                       'wanted both above 0')

  @property
  def window_samples(self) -> int:
    return round(self.window_seconds * self.sample_rate)

  @property
  def num_frames(self) -> int:
    return int(self.window_seconds * self.mel.sample_rate) // self.mel.hop_length


def _init(*axes: str, init=None):
  return nn.with_logical_partitioning(init or nn.initializers.truncated_normal(0.02), axes)


def _dense(features: int, name: str, dtype: str, *axes: str) -> nn.Dense:
  return nn.Dense(
      features, dtype=dtype, kernel_init=_init(*axes, init=nn.initializers.lecun_normal()),
      bias_init=_init(axes[-1], init=nn.initializers.zeros), name=name)


class Melody(nn.Module):
  """Waveforms of one window to unit vectors; the nearer, the more alike the melodies."""

  config: MelodyConfig

  def log_mel(self, waveform: jax.Array) -> jax.Array:
    """Returns f32[B, T, F] of f32[B, S]: scaled log-mel, a frame each hop; loudness has no effect."""
    cfg = self.config
    rms = jnp.sqrt(jnp.mean(jnp.square(waveform), axis=1, keepdims=True))
    waveform = waveform / jnp.maximum(rms, 1e-5)
    waveform = spectrogram.resample(waveform, cfg.sample_rate, cfg.mel.sample_rate)
    mel = spectrogram.log_mel(waveform, cfg.mel)[:, :cfg.num_frames]
    return (mel - cfg.mel_mean) / cfg.mel_scale

  @nn.compact
  def __call__(self, waveform: jax.Array, train: bool = False) -> jax.Array:
    """Returns f32[B, E], unit vectors, of f32[B, window_seconds at sample_rate]."""
    cfg, encoder = self.config, self.config.encoder
    if waveform.shape[1] != cfg.window_samples:
      raise ValueError(f'melody got {waveform.shape[1]} samples, wanted {cfg.window_samples}: '
                       f'{cfg.window_seconds} s at {cfg.sample_rate} Hz')
    x = _dense(encoder.emb_dim, 'frames', encoder.dtype, 'mel', 'embed')(self.log_mel(waveform))
    x += self.param('positions', _init('length', 'embed'), (cfg.num_frames, encoder.emb_dim))
    x = nn.Dropout(encoder.dropout_rate)(x, deterministic=not train).astype(encoder.dtype)
    x = mulan.Encoder(encoder, name='encoder')(x, None, train).mean(axis=1).astype(jnp.float32)
    return mulan.unit(_dense(cfg.embedding_dim, 'projection', 'float32', 'embed', 'joint')(x))

  def embed(self, waveform: jax.Array) -> jax.Array:
    """Returns f32[B, E], unit vectors, of f32[B, window_seconds at sample_rate]; deterministic."""
    return self(waveform)
