"""L1. SoundStream: waveform to codes and back, every convolution causal.  Axes: B S T C D Q.

B batch, S samples, T frames (S = T * hop), C channels, D dim of the quantized vector, Q levels.
Encoder: conv 7 -> per stride: residual units, strided conv -> conv 3.  The decoder mirrors it.
SoundStream sections III-A to III-C, and III-F for denoising.

Streaming: every convolution keeps the inputs its next output needs in the collection 'past'.  Chunks
of whole frames then give what the whole file gives; without 'past' a call starts after silence:

  past = {}
  for chunk in chunks:  # f32[B, n * hop], any n
    codes, past = model.apply({**variables, **past}, chunk, method='encode', mutable=['past'])
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.models import quantizers

_PAPER_DILATIONS = ((1, 3, 9),) * 4
_DENOISING = ('off', 'encoder', 'decoder')


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
  denoising: str = 'off'  # or the side of the quantizer where FiLM is applied: 'encoder', 'decoder'
  dtype: str = 'float32'

  def __post_init__(self):
    if self.denoising not in _DENOISING:
      raise ValueError(f'denoising is {self.denoising!r}, wanted one of {", ".join(_DENOISING)}')
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
  def latency(self) -> float:
    """Seconds from a sample going in to the last sample that waits for it: one frame.

    The encoder needs the whole of a frame for its codes, the decoder no later one.
    """
    return self.hop_length / self.sample_rate

  def kbps(self, num_quantizers: int) -> float:
    """Returns the bitrate of that many levels, in thousands of bits a second."""
    return self.frame_rate * num_quantizers * self.bits_per_code / 1000

  @property
  def encoding_params(self) -> tuple[str, ...]:
    """Returns the top-level parameters that codes depend on, beside the codebooks."""
    return ('encoder', 'film') if self.denoising == 'encoder' else ('encoder',)

  @property
  def bits_per_code(self) -> int:
    return max(1, (self.codebook_size - 1).bit_length())

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
        padding='VALID',
        dtype=self.dtype,
        kernel_init=_init(self.init_scale),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',)),
        name='conv',
    )(_after_past(self, x, padding))


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
        padding='VALID',
        use_bias=False,
        dtype=self.dtype,
        kernel_init=_init(1.0),
        name='conv',
    )(_after_past(self, x, 1))
    bias = self.param(
        'bias',
        nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',)),
        (self.features,),
    )
    return phases.reshape(x.shape[0], -1, self.features) + bias.astype(phases.dtype)


def _after_past(module: nn.Module, x: jax.Array, length: int) -> jax.Array:
  """Returns f32[B, length + S, C]: x after the `length` inputs that came before it.

  Those are zeros, unless the caller asked for the collection 'past': then they are what the call
  before left there, and the last ones of this call take their place.
  """
  zeros = jnp.zeros((x.shape[0], length, x.shape[2]), x.dtype)
  if not length or module.is_initializing() or not module.is_mutable_collection('past'):
    return jnp.concatenate([zeros, x], axis=1)
  past = module.variable('past', 'inputs', lambda: zeros)
  x = jnp.concatenate([past.value, x], axis=1)
  past.value = x[:, -length:]
  return x


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


class FiLM(nn.Module):
  """f32[B, T, D] -> gamma * x + beta, both linear in the one-hot of `denoise` bool[B] or [B, T]."""

  @nn.compact
  def __call__(self, x: jax.Array, denoise: jax.Array) -> jax.Array:
    one_hot = jax.nn.one_hot(denoise.astype(jnp.int32), 2, dtype=x.dtype)
    one_hot = one_hot.reshape(one_hot.shape[0], -1, 2)  # [B, 1 or T, 2]
    kernel_init = nn.with_logical_partitioning(nn.initializers.zeros, (None, 'conv_out'))
    # Starts as the identity: gamma is 1 more than what is learned.
    films = nn.Dense(2 * x.shape[-1], use_bias=False, kernel_init=kernel_init, name='dense')(one_hot)
    gamma, beta = jnp.split(films, 2, axis=-1)
    return x * (1.0 + gamma) + beta


class SoundStream(nn.Module):
  """The codec: `encode` to int32 codes, `decode` back; `__call__` for training.

  `denoise` bool[B], or bool[B, T] to change it over time, is for a config with `denoising`: True
  takes background noise out, False (as None) keeps it.
  """

  config: SoundStreamConfig

  def setup(self):
    self.encoder = Encoder(self.config)
    self.quantizer = quantizers.ResidualVectorQuantizer(self.config.quantizer)
    self.decoder = CodeDecoder(self.config)
    if self.config.denoising != 'off':
      self.film = FiLM()

  def _filmed(self, side: str, x: jax.Array, denoise: jax.Array | None) -> jax.Array:
    """Returns x f32[B, T, D], modulated when this is the side of the quantizer that does it."""
    if self.config.denoising == 'off' and denoise is not None:
      raise ValueError("denoise is given, but the config's denoising is 'off'")
    if self.config.denoising != side:
      return x
    return self.film(x, jnp.zeros(x.shape[:1], bool) if denoise is None else denoise)

  def _padded(self, waveform: jax.Array) -> jax.Array:
    """Returns f32[B, T * hop]: zeros after the last sample, to whole frames."""
    return jnp.pad(waveform, ((0, 0), (0, -waveform.shape[1] % self.config.hop_length)))

  def encode(
      self,
      waveform: jax.Array,
      num_quantizers: int | None = None,
      denoise: jax.Array | None = None,
  ) -> jax.Array:
    """Returns int32[B, T, Q] of f32[B, S]; T = ceil(S / hop); Q is `num_quantizers` or all."""
    return self.quantizer.encode(self.embed(waveform, denoise), num_quantizers)

  def embed(self, waveform: jax.Array, denoise: jax.Array | None = None) -> jax.Array:
    """Returns f32[B, T, D], what is quantized, of f32[B, S]."""
    return self._filmed('encoder', self.encoder(self._padded(waveform)), denoise)

  def decode(self, codes: jax.Array, denoise: jax.Array | None = None) -> jax.Array:
    """Returns f32[B, T * hop] of int32[B, T, q], q <= Q levels; a code of -1 is not heard."""
    return self.decoder(self._filmed('decoder', self.quantizer.decode(codes), denoise))

  def __call__(
      self,
      waveform: jax.Array,
      train: bool = False,
      num_quantizers: jax.Array | None = None,
      denoise: jax.Array | None = None,
  ) -> tuple[jax.Array, dict]:
    """Returns (f32[B, S] reconstruction, {'commitment': f32[], 'codes': int32[B, T, Q],
    'metrics': {...}}) of f32[B, S]; `num_quantizers` int32[B] as the quantizer's."""
    vectors = self.embed(waveform, denoise)
    quantized, codes, commitment, metrics = self.quantizer(vectors, train, num_quantizers)
    reconstruction = self.decoder(self._filmed('decoder', quantized, denoise))
    aux = {'commitment': commitment, 'codes': codes, 'metrics': metrics}
    return reconstruction[:, : waveform.shape[1]], aux
