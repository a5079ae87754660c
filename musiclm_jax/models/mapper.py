"""L1. From the text tower's vectors towards those of the audio they describe.

A quantizer fitted to audio finds text vectors far from all it knows (the gap between the towers of a
contrastive model).  MusicLM does without a mapper; it is an option here, off by default.
Axes: N vectors, E embedding.
"""

import dataclasses

import flax.linen as nn
import jax

from musiclm_jax.models import mulan


@dataclasses.dataclass(frozen=True)
class MapperConfig:
  dim: int = 128
  hidden_dim: int = 256
  dropout_rate: float = 0.3

  def __post_init__(self):
    if min(self.dim, self.hidden_dim) < 1 or not 0 <= self.dropout_rate < 1:
      raise ValueError(f'dim {self.dim}, hidden_dim {self.hidden_dim}, dropout_rate '
                       f'{self.dropout_rate}: wanted at least 1, 1, and 0 to below 1')


class Mapper(nn.Module):
  """Unit vectors f32[..., E] to unit vectors f32[..., E]: unit(x + f(x)); at first they are the same."""

  config: MapperConfig

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    c = self.config

    def dense(features, name, init, *axes):
      return nn.Dense(
          features, name=name, kernel_init=nn.with_logical_partitioning(init, axes),
          bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]))

    hidden = dense(c.hidden_dim, 'wi', nn.initializers.lecun_normal(), 'joint', 'mlp')(x)
    hidden = nn.Dropout(c.dropout_rate, deterministic=not train)(nn.gelu(hidden))
    return mulan.unit(x + dense(c.dim, 'wo', nn.initializers.zeros, 'mlp', 'joint')(hidden))
