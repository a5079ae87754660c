"""L1. ResNet-50 over a spectrogram seen as a picture (MuLan 2208.12415; He et al. 1512.03385).

Axes: B batch, T frames, F mel bands, C channels.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

NORMS = ('batch', 'group')


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """Defaults are ResNet-50; a block is 1x1 -> 3x3 -> 1x1 with `expansion` times `width` out."""

  stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
  widths: tuple[int, ...] = (64, 128, 256, 512)
  expansion: int = 4
  stem_width: int = 64
  stem_kernel: int = 7
  # 'batch': running statistics in collection 'batch_stats'; under jit over a sharded batch the
  # mean is the global one. 'group': no state, the same in training and after.
  norm: str = 'batch'
  batch_norm_momentum: float = 0.9
  norm_groups: int = 16
  remat: bool = False
  dtype: str = 'float32'

  def __post_init__(self):
    if self.norm not in NORMS:
      raise ValueError(f'norm {self.norm!r}: one of {NORMS} wanted')
    if len(self.stage_sizes) != len(self.widths):
      raise ValueError(f'stage_sizes {self.stage_sizes} and widths {self.widths} differ in length')


class Norm(nn.Module):
  """f32[B, T, F, C] normalised as `config.norm` says; `zero` starts the scale at 0."""

  config: ResNetConfig
  zero: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    init = nn.initializers.zeros if self.zero else nn.initializers.ones
    common = {
        'dtype': self.config.dtype,
        'scale_init': nn.with_logical_partitioning(init, ('conv_out',)),
        'bias_init': nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',)),
    }
    if self.config.norm == 'group':
      groups = min(self.config.norm_groups, x.shape[-1])
      return nn.GroupNorm(num_groups=groups, name='group', **common)(x)
    return nn.BatchNorm(use_running_average=not train, epsilon=1e-5, name='batch',
                        momentum=self.config.batch_norm_momentum, **common)(x)


class Conv(nn.Module):
  """f32[B, T, F, C] -> f32[B, T / stride, F / stride, features]: no bias, (k - 1) / 2 padding.

  A 1x1 convolution is written as the matrix product it is: its gradient by XLA's convolution takes
  ten times as long on CPU.
  """

  config: ResNetConfig
  features: int
  kernel: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
    kernel = self.param('kernel', nn.with_logical_partitioning(
        init, ('kernel', None, 'conv_in', 'conv_out')), shape).astype(self.config.dtype)
    if self.kernel == 1:
      return jnp.einsum('BTFC,CD->BTFD', x[:, ::self.stride, ::self.stride], kernel[0, 0])
    padding = [((self.kernel - 1) // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (self.stride, self.stride), padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def max_pool(x: jax.Array) -> jax.Array:
  """Returns f32[B, T / 2, F / 2, C], the largest of each 3x3 neighbourhood, of x >= 0.

  [3 1 4 1 5] along one axis, zeros beyond the ends: [3 4 5]. The maximum of shifted slices, whose
  gradient on CPU is an order of magnitude faster than reduce_window's.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    padded = jnp.pad(x, [(1, 2) if i == axis else (0, 0) for i in range(x.ndim)])
    shifted = [jax.lax.slice_in_dim(padded, i, i + size, 2, axis) for i in range(3)]
    x = functools.reduce(jnp.maximum, shifted)
  return x


class Bottleneck(nn.Module):
  """f32[B, T, F, C] -> f32[B, T / stride, F / stride, width * expansion]."""

  config: ResNetConfig
  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    cfg, out = self.config, self.width * self.config.expansion
    y = nn.relu(Norm(cfg, name='norm_0')(Conv(cfg, self.width, 1, name='conv_0')(x), train))
    y = Conv(cfg, self.width, 3, self.stride, name='conv_1')(y)
    y = nn.relu(Norm(cfg, name='norm_1')(y, train))
    y = Norm(cfg, zero=True, name='norm_2')(Conv(cfg, out, 1, name='conv_2')(y), train)
    if x.shape != y.shape:
      x = Conv(cfg, out, 1, self.stride, name='conv_skip')(x)
      x = Norm(cfg, name='norm_skip')(x, train)
    x = nn.with_logical_constraint(x, ('batch', 'length', None, None))
    return nn.relu(x + y)


class ResNet(nn.Module):
  """Spectrogram f32[B, T, F] -> f32[B, C], the mean over frames and bands of the last stage."""

  config: ResNetConfig

  @nn.compact
  def __call__(self, spectrogram: jax.Array, train: bool = False) -> jax.Array:
    cfg = self.config
    x = spectrogram[..., None].astype(cfg.dtype)
    x = Conv(cfg, cfg.stem_width, cfg.stem_kernel, 2, name='stem')(x)
    x = nn.relu(Norm(cfg, name='stem_norm')(x, train))
    x = max_pool(x)
    block = nn.remat(Bottleneck, static_argnums=(2,)) if cfg.remat else Bottleneck
    for stage, (size, width) in enumerate(zip(cfg.stage_sizes, cfg.widths, strict=True)):
      for i in range(size):
        stride = 2 if stage > 0 and i == 0 else 1
        x = block(cfg, width, stride, name=f'stage_{stage}_block_{i}')(x, train)
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
