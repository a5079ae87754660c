"""L1. Conformer blocks (Gulati et al. 2020) without running statistics.

Axes: B batch, T frames, D emb_dim, N heads, H head_dim, F mlp_dim, K kernel, L layers.

Departures from the paper: LayerNorm in the convolution module instead of BatchNorm, so that a
clip's output does not depend on its batch; rotary positions instead of Transformer-XL's: they need
no parameters, keep fused attention possible and depend on relative distance alone.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.models import layers

REMAT = ('none', 'full')
# Of the last kernel of every branch, so that a block starts as a LayerNorm.  At full scale the six
# blocks of gin/models/w2v_bert_tiny.gin mixed a frame with so many others that training stayed at
# the codes' entropy.
_BRANCH_END = nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class ConformerConfig:
  """Sizes of one stack; the defaults are half of w2v-BERT XL."""
  num_layers: int = 12
  emb_dim: int = 1024
  num_heads: int = 8
  head_dim: int = 128
  mlp_dim: int = 4096
  kernel_size: int = 5  # frames seen by the depthwise convolution, centred
  dropout_rate: float = 0.0
  scan_layers: bool = False
  rotary_max_wavelength: float = 10_000.0  # 0: attention does not know positions
  remat: str = 'none'  # 'full': recompute each block in the backward pass
  dtype: str = 'float32'

  def __post_init__(self):
    if self.remat not in REMAT:
      raise ValueError(f'remat {self.remat!r} is not one of {REMAT}')
    if self.rotary_max_wavelength and self.head_dim % 2:
      raise ValueError(f'head_dim {self.head_dim} is odd: rotary positions turn pairs')


def _kernel(*axes: str, init=None):
  """Returns an initializer whose parameters carry logical axis names."""
  return nn.with_logical_partitioning(init or nn.initializers.xavier_uniform(), axes)


def layer_norm(config, name: str) -> nn.LayerNorm:
  """Returns a LayerNorm computed in float32 whatever `config.dtype`."""
  return nn.LayerNorm(
      name=name,
      dtype=jnp.float32,
      scale_init=_kernel('embed', init=nn.initializers.ones),
      bias_init=_kernel('embed', init=nn.initializers.zeros),
  )


class FeedForward(nn.Module):
  """LayerNorm, Dense, swish, Dense."""
  config: ConformerConfig

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    cfg = self.config
    x = layer_norm(cfg, 'norm')(x)
    x = nn.Dense(cfg.mlp_dim, dtype=cfg.dtype, kernel_init=_kernel('embed', 'mlp'), name='wi',
                 bias_init=_kernel('mlp', init=nn.initializers.zeros))(x)
    x = nn.Dropout(cfg.dropout_rate)(nn.swish(x), deterministic)
    x = nn.Dense(cfg.emb_dim, dtype=cfg.dtype, name='wo',
                 kernel_init=_kernel('mlp', 'embed', init=_BRANCH_END),
                 bias_init=_kernel('embed', init=nn.initializers.zeros))(x)
    return nn.Dropout(cfg.dropout_rate)(x, deterministic)


class SelfAttention(nn.Module):
  """LayerNorm, then every frame looks at every frame; rotary positions, or none."""
  config: ConformerConfig

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    cfg = self.config
    x = layer_norm(cfg, 'norm')(x)

    x = x.astype(cfg.dtype)
    shape, axes = (cfg.emb_dim, cfg.num_heads, cfg.head_dim), ('embed', 'heads', 'kv')
    query, key, value = (
        jnp.einsum('BTD,DNH->BTNH', x,
                   layers.kernel(self, name, shape, axes, cfg.emb_dim).astype(cfg.dtype))
        for name in ('query', 'key', 'value'))
    if cfg.rotary_max_wavelength:
      positions = jnp.arange(x.shape[1])
      query, key = (layers.rotate(y, positions, cfg.rotary_max_wavelength) for y in (query, key))
    x = jax.nn.dot_product_attention(query, key, value)
    x = nn.with_logical_constraint(x, ('batch', 'length', 'heads', 'kv'))
    out = self.param('out', _kernel('heads', 'kv', 'embed', init=_BRANCH_END),
                     (cfg.num_heads, cfg.head_dim, cfg.emb_dim))
    x = jnp.einsum('BTNH,NHD->BTD', x, out.astype(cfg.dtype))
    return nn.Dropout(cfg.dropout_rate)(x, deterministic)


class ConvModule(nn.Module):
  """LayerNorm, gated Dense, depthwise convolution, LayerNorm, swish, Dense.

  The depthwise convolution is a sum of K shifted products: XLA fuses it, where a grouped
  convolution runs 10 to 25 times slower on CPU.
  """
  config: ConformerConfig

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    cfg = self.config
    x = layer_norm(cfg, 'norm')(x)
    x = nn.glu(nn.Dense(2 * cfg.emb_dim, use_bias=False, dtype=cfg.dtype, name='wi',
                        kernel_init=_kernel('embed', 'mlp'))(x))
    depthwise = self.param(
        'depthwise', _kernel('kernel', 'embed', init=nn.initializers.normal(cfg.kernel_size**-0.5)),
        (cfg.kernel_size, cfg.emb_dim)).astype(x.dtype)
    length, before = x.shape[1], (cfg.kernel_size - 1) // 2
    x = jnp.pad(x, ((0, 0), (before, cfg.kernel_size - 1 - before), (0, 0)))
    x = sum(x[:, k:k + length] * depthwise[k] for k in range(cfg.kernel_size))
    x = nn.swish(layer_norm(cfg, 'depthwise_norm')(x))
    x = nn.Dense(cfg.emb_dim, use_bias=False, dtype=cfg.dtype, name='wo',
                 kernel_init=_kernel('mlp', 'embed', init=_BRANCH_END))(x)
    return nn.Dropout(cfg.dropout_rate)(x, deterministic)


class ConformerBlock(nn.Module):
  """Half a feed-forward, attention, convolution, half a feed-forward, LayerNorm."""
  config: ConformerConfig

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
    """Returns [B, T, D] in `config.dtype`."""
    cfg = self.config
    x = x + 0.5 * FeedForward(cfg, name='mlp_in')(x, deterministic)
    x = x + SelfAttention(cfg, name='attention')(x, deterministic)
    x = x + ConvModule(cfg, name='conv')(x, deterministic)
    x = x + 0.5 * FeedForward(cfg, name='mlp_out')(x, deterministic)
    x = layer_norm(cfg, 'norm')(x).astype(cfg.dtype)
    return nn.with_logical_constraint(x, ('batch', 'length', 'embed'))


class _ScanBody(nn.Module):
  """One block as `nn.scan` wants it; `keep` False passes the carry through untouched."""
  config: ConformerConfig
  deterministic: bool

  @nn.compact
  def __call__(self, x, keep):
    block = nn.remat(ConformerBlock, static_argnums=(2,)) if self.config.remat == 'full' \
        else ConformerBlock
    y = block(self.config, name='block')(x, self.deterministic)
    return jnp.where(keep, y, x), None


class ConformerStack(nn.Module):
  """`num_layers` blocks, in a Python loop or under `nn.scan` (parameters stacked on 'layers')."""
  config: ConformerConfig

  @nn.compact
  def __call__(
      self, x: jax.Array, deterministic: bool = True, num_layers: int | None = None) -> jax.Array:
    """Returns [B, T, D], the output of block `num_layers` (the last by default; 0 returns x)."""
    cfg = self.config
    num_layers = cfg.num_layers if num_layers is None else num_layers
    if not 0 <= num_layers <= cfg.num_layers:
      raise ValueError(f'layer {num_layers} is not in 0 to {cfg.num_layers}')
    x = x.astype(cfg.dtype)
    if cfg.scan_layers:
      stack = nn.scan(
          _ScanBody, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True},
          length=cfg.num_layers, metadata_params={nn.PARTITION_NAME: 'layers'})
      keep = jnp.arange(cfg.num_layers) < num_layers
      return stack(cfg, deterministic, name='layers')(x, keep)[0]
    block = nn.remat(ConformerBlock, static_argnums=(2,)) if cfg.remat == 'full' else ConformerBlock
    for i in range(num_layers):
      x = block(cfg, name=f'layer_{i}')(x, deterministic)
    return x
