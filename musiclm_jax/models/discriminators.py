"""L1. SoundStream's discriminators: of the waveform at several rates, and of its complex STFT.

SoundStream section III-D.  Axes: B S T F C.  B batch, S samples, T frames, F frequency bins,
C channels.  The papers give neither the kernel sizes of the wave discriminators nor the slope of
the activations: the kernels are those of MelGAN, which the paper refers to.  Departure: no weight
normalisation.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.models import spectrogram

_WAVE_KERNELS = (15, 41, 41, 41, 41, 5)
_WAVE_STRIDE = 4
# Residual units of the STFT discriminator: channels of the first and of the second convolution, as
# multiples of `stft_channels`, and the strides of the second in (time, frequency).
_STFT_UNITS = (
    (1, 2, (1, 2)), (2, 4, (2, 2)), (4, 4, (1, 2)), (4, 8, (2, 2)), (8, 8, (1, 2)), (8, 16, (2, 2)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DiscriminatorsConfig:
  wave_scales: int = 3  # the waveform at its rate, half of it, a quarter of it ..
  wave_channels: int = 16  # each of four strided convolutions has 4 times more, up to:
  wave_max_channels: int = 1024
  wave_group_size: int = 4  # input channels that an output channel of those sees; at most all
  stft_window: int = 1024
  stft_hop: int = 256
  stft_channels: int = 32
  slope: float = 0.2  # of the leaky ReLU below zero
  dtype: str = 'float32'

  def __post_init__(self):
    bins, least = self.stft_window // 2, 2 ** len(_STFT_UNITS)
    if bins % least:
      raise ValueError(f'stft_window is {self.stft_window}, wanted a multiple of {2 * least}')
    small, large = sorted((self.wave_channels, self.wave_group_size))
    if large % small:
      raise ValueError(
          f'wave_channels is {self.wave_channels}, wanted a multiple or a part of wave_group_size,'
          f' {self.wave_group_size}'
      )


class Judgement(NamedTuple):
  """What one discriminator says of a waveform.

  logits: f32[B, ...], one for each stretch of time: above 0 it is held to be real.
  features: the activations of its internal layers, f32[B, ..., C] each.
  """

  logits: jax.Array
  features: tuple[jax.Array, ...]


class WaveDiscriminator(nn.Module):
  """f32[B, S] -> Judgement: plain convolution, four grouped strided ones, two plain ones."""

  config: DiscriminatorsConfig

  @nn.compact
  def __call__(self, waveform: jax.Array) -> Judgement:
    c = self.config
    x, features = waveform[..., None].astype(c.dtype), []
    width = c.wave_channels
    for i, kernel in enumerate(_WAVE_KERNELS):
      strided = 0 < i < len(_WAVE_KERNELS) - 1
      groups = max(1, width // c.wave_group_size) if strided else 1
      width = min(4 * width, c.wave_max_channels) if strided else width
      x = _conv(width, (kernel,), (_WAVE_STRIDE if strided else 1,), c.dtype, groups, f'conv{i}')(x)
      x = nn.leaky_relu(x, c.slope)
      features.append(x)
    logits = _conv(1, (3,), (1,), c.dtype, name='logits')(x)[..., 0]
    return Judgement(logits.astype(jnp.float32), tuple(features))


class STFTDiscriminator(nn.Module):
  """f32[B, S] -> Judgement, logits f32[B, S / (8 * hop)], of the real and imaginary STFT.

  Six residual units take the frequency axis down by 2 each, and time by 2 in every second one;
  the last convolution spans what is left of the frequencies.
  """

  config: DiscriminatorsConfig

  @nn.compact
  def __call__(self, waveform: jax.Array) -> Judgement:
    c = self.config
    spectrum = spectrogram.stft(waveform, c.stft_window, c.stft_window, c.stft_hop)
    spectrum = spectrum[..., :-1]  # without the last bin their number is a power of 2
    x = jnp.stack([spectrum.real, spectrum.imag], axis=-1).astype(c.dtype)
    x = nn.leaky_relu(_conv(c.stft_channels, (7, 7), (1, 1), c.dtype, name='first')(x), c.slope)
    features = [x]
    for i, (first, second, strides) in enumerate(_STFT_UNITS):
      y = _conv(first * c.stft_channels, (3, 3), (1, 1), c.dtype, name=f'unit{i}_conv')(x)
      y = nn.leaky_relu(y, c.slope)
      out, kernel = second * c.stft_channels, (strides[0] + 2, strides[1] + 2)
      y = _conv(out, kernel, strides, c.dtype, name=f'unit{i}_down')(y)
      skip = _conv(out, (1, 1), strides, c.dtype, name=f'unit{i}_skip')(x)
      x = nn.leaky_relu(y + skip, c.slope)
      features.append(x)
    logits = nn.Conv(
        1, (1, x.shape[2]), padding='VALID', dtype=c.dtype, kernel_init=_init(2), name='logits'
    )(x)[..., 0, 0]
    return Judgement(logits.astype(jnp.float32), tuple(features))


class Discriminators(nn.Module):
  """f32[B, S] -> a Judgement of each wave discriminator and of the STFT discriminator."""

  config: DiscriminatorsConfig

  @nn.compact
  def __call__(self, waveform: jax.Array) -> tuple[Judgement, ...]:
    judgements = []
    x = waveform
    for scale in range(self.config.wave_scales):
      if scale:
        x = nn.avg_pool(
            x[..., None], (4,), strides=(2,), padding=((1, 1),), count_include_pad=False
        )[..., 0]
      judgements.append(WaveDiscriminator(self.config, name=f'wave{scale}')(x))
    judgements.append(STFTDiscriminator(self.config, name='stft')(waveform))
    return tuple(judgements)


def _conv(features, kernel, strides, dtype, groups=1, name=None):
  return nn.Conv(
      features, kernel, strides=strides, padding='SAME', feature_group_count=groups, dtype=dtype,
      kernel_init=_init(len(kernel), groups), name=name,
      bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',)),
  )  # fmt: skip


def _init(dimensions, groups=1):
  """He initialisation; the few input channels of a group are not worth sharding."""
  axes = (None,) * dimensions + (None if groups > 1 else 'conv_in', 'conv_out')
  return nn.with_logical_partitioning(nn.initializers.he_normal(), axes)
