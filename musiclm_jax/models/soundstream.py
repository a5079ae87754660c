"""L1. SoundStream: waveform to codes and back, every convolution causal.  Axes: B S T C D Q.

B batch, S samples, T frames (S = T * hop), C channels, D dim of the quantized vector, Q levels.
Encoder: conv 7 -> per stride: residual units, strided conv -> conv 3.  The decoder mirrors it.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.models import quantizers

_PAPER_DILATIONS = ((1, 3, 9),) * 4


@dataclasses.dataclass(frozen=True)
class SoundStreamConfig:
  """Strides and multipliers run from the waveform to the code; the decoder reads them backwards.

  Block i of the encoder: residual units with `dilations[i]` at `channels * (1, *m)[i]` channels,
  then down by `strides[i]` to `channels * channel_multipliers[i]`.
  """

  sample_rate: int = 24_000
  channels: int = 32
  strides: tuple[int, ...] = (3, 4, 5, 8)
  channel_multipliers: tuple[int, ...] = (2, 4, 8, 16)
  dilations: tuple[tuple[int, ...], ...] = _PAPER_DILATIONS
  kernel_size: int = 7
  dim: int = 256  # not stated in the papers
  num_quantizers: int = 12
  codebook_size: int = 1024
  decay: float = 0.99
  dead_code_threshold: float = 2.0
  kmeans_iterations: int = 10
  quantizer_dropout: bool = True
  dtype: str = 'float32'

  def __post_init__(self):
    # JSON gives lists; a config must stay hashable.
    as_tuple = {
        'strides': tuple(self.strides),
        'channel_multipliers': tuple(self.channel_multipliers),
        'dilations': tuple(tuple(block) for block in self.dilations),
    }
    for name, value in as_tuple.items():
      object.__setattr__(self, name, value)
      if len(value) != len(self.strides):
        raise ValueError(f'{name} has {len(value)} blocks, wanted {len(self.strides)} as strides')

  @property
  def hop_length(self) -> int:
    return math.prod(self.strides)

  @property
  def frame_rate(self) -> float:
    rate = self.sample_rate / self.hop_length
    return int(rate) if rate.is_integer() else rate

  @property
  def widths(self) -> tuple[int, ...]:
    """Channels at each rate, from the waveform's to the code's."""
    return (self.channels, *(self.channels * m for m in self.channel_multipliers))

  @property
  def quantizer(self) -> quantizers.ResidualVectorQuantizerConfig:
    fields = dataclasses.fields(quantizers.ResidualVectorQuantizerConfig)
    return quantizers.ResidualVectorQuantizerConfig(
        **{field.name: getattr(self, field.name) for field in fields}
    )


class CausalConv(nn.Module):
  """f32[B, S, C] -> f32[B, S / stride, features]; output t sees inputs up to (t + 1) * stride - 1.

  Left padding is dilation * (kernel - 1) + 1 - stride, so that the window of output t ends
  with the last sample of stride t.
  """

  features: int
  kernel_size: int
  stride: int = 1
  dilation: int = 1
  init_scale: float = 1.0  # of the kernel's variance
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    padding = self.dilation * (self.kernel_size - 1) + 1 - self.stride
    return nn.Conv(
        self.features,
        (self.kernel_size,),
        strides=self.stride,
        kernel_dilation=self.dilation,
        padding=((padding, 0),),
        dtype=self.dtype,
        kernel_init=_init(self.init_scale),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',)),
        name='conv',
    )(x)


class CausalConvTranspose(nn.Module):
  """f32[B, T, C] -> f32[B, T * stride, features]; output t * stride + i sees inputs to t.

  A transposed convolution with kernel 2 * stride, its last `stride` outputs cut off.  Written
  as a convolution with kernel 2 that gives all `stride` phases at once: the same sums, and
  several times faster than one over an input stuffed with zeros.
  """

  features: int
  stride: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    phases = nn.Conv(
        self.features * self.stride,
        (2,),
        padding=((1, 0),),
        use_bias=False,
        dtype=self.dtype,
        kernel_init=_init(1.0),
        name='conv',
    )(x)
    bias = self.param(
        'bias',
        nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',)),
        (self.features,),
    )
    return phases.reshape(x.shape[0], -1, self.features) + bias.astype(phases.dtype)


def _init(scale: float):
  return nn.with_logical_partitioning(
      nn.initializers.variance_scaling(scale, 'fan_in', 'truncated_normal'),
      ('kernel', 'conv_in', 'conv_out'),
  )


class ResidualUnit(nn.Module):
  """x + conv1(elu(dilated conv(elu(x)))); conv1 starts small, so that depth adds no loudness."""

  dilation: int
  kernel_size: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features = x.shape[-1]
    y = CausalConv(
        features, self.kernel_size, dilation=self.dilation, dtype=self.dtype, name='dilated'
    )(nn.elu(x))
    y = CausalConv(features, 1, init_scale=0.1, dtype=self.dtype, name='pointwise')(nn.elu(y))
    return x + y


class Encoder(nn.Module):
  """f32[B, S] -> f32[B, T, D]."""

  config: SoundStreamConfig

  @nn.compact
  def __call__(self, waveform: jax.Array) -> jax.Array:
    c = self.config
    x = waveform[..., None].astype(c.dtype)
    x = CausalConv(c.widths[0], c.kernel_size, dtype=c.dtype, name='first')(x)
    for i, (stride, width) in enumerate(zip(c.strides, c.widths[1:], strict=True)):
      for dilation in c.dilations[i]:
        x = ResidualUnit(dilation, c.kernel_size, c.dtype, name=f'block{i}_unit{dilation}')(x)
      x = CausalConv(width, 2 * stride, stride, dtype=c.dtype, name=f'block{i}_down')(nn.elu(x))
    return CausalConv(c.dim, 3, dtype=c.dtype, name='last')(nn.elu(x))


class CodeDecoder(nn.Module):
  """f32[B, T, D] -> f32[B, T * hop]."""

  config: SoundStreamConfig

  @nn.compact
  def __call__(self, codes: jax.Array) -> jax.Array:
    c = self.config
    x = codes.astype(c.dtype)
    x = CausalConv(c.widths[-1], c.kernel_size, dtype=c.dtype, name='first')(x)
    for i in reversed(range(len(c.strides))):
      x = CausalConvTranspose(c.widths[i], c.strides[i], c.dtype, name=f'block{i}_up')(nn.elu(x))
      for dilation in c.dilations[i]:
        x = ResidualUnit(dilation, c.kernel_size, c.dtype, name=f'block{i}_unit{dilation}')(x)
    # Starts at about the loudness of music: the first steps need not learn to be quiet.
    x = CausalConv(1, c.kernel_size, init_scale=0.05, dtype=c.dtype, name='last')(nn.elu(x))
    return x[..., 0].astype(jnp.float32)


class SoundStream(nn.Module):
  """The codec: `encode` to int32 codes, `decode` back; `__call__` for training."""

  config: SoundStreamConfig

  def setup(self):
    self.encoder = Encoder(self.config)
    self.quantizer = quantizers.ResidualVectorQuantizer(self.config.quantizer)
    self.decoder = CodeDecoder(self.config)

  def _padded(self, waveform: jax.Array) -> jax.Array:
    """Returns f32[B, T * hop]: zeros after the last sample, to whole frames."""
    return jnp.pad(waveform, ((0, 0), (0, -waveform.shape[1] % self.config.hop_length)))

  def encode(self, waveform: jax.Array, num_quantizers: int | None = None) -> jax.Array:
    """Returns int32[B, T, Q] of f32[B, S]; T = ceil(S / hop)."""
    return self.quantizer.encode(self.encoder(self._padded(waveform)), num_quantizers)

  def decode(self, codes: jax.Array) -> jax.Array:
    """Returns f32[B, T * hop] of int32[B, T, q], q <= Q levels."""
    return self.decoder(self.quantizer.decode(codes))

  def __call__(
      self, waveform: jax.Array, train: bool = False, num_quantizers: jax.Array | None = None
  ) -> tuple[jax.Array, dict]:
    """Returns (f32[B, S] reconstruction, {'commitment': f32[], 'codes': int32[B, T, Q],
    'metrics': {...}}) of f32[B, S]; `num_quantizers` int32[B] as the quantizer's."""
    vectors = self.encoder(self._padded(waveform))
    quantized, codes, commitment, metrics = self.quantizer(vectors, train, num_quantizers)
    reconstruction = self.decoder(quantized)[:, : waveform.shape[1]]
    return reconstruction, {'commitment': commitment, 'codes': codes, 'metrics': metrics}
