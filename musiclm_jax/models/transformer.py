"""L1. ONE decoder-only Transformer for the semantic, coarse and fine stages.

Axes: B batch, T tokens of this call, S slots of the cache, H heads, D head_dim, E emb_dim, V vocab.

Flat ids in, logits out; cache in, cache out. Training, prefill and decoding are the same code:

  decoder.apply(p, tokens)                      T = the whole sequence, no cache
  decoder.apply(p, tokens[:, :8], cache=cache)  prefill: T = 8, slots 0..7 of the cache are written
  decoder.apply(p, tokens[:, 8:9], cache=cache) decode:  T = 1, slot 8
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from musiclm_jax.models import attention, layers

Array = jax.Array


def _dots_and_cudnn(primitive, *args, **params) -> bool:
  return ('dot_product_attention' in primitive.name
          or jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims(primitive, *args, **params))


REMAT_POLICIES = {
    'none': None,
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    'dots_attention': _dots_and_cudnn,
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Hyperparameters; the defaults are MusicLM's (430M parameters a stage).

  vocab_size: 0 until a stage is known; the objective fills it in.
  position: 'relative_bias' (T5, one table shared by all layers) or 'rotary'.
  clock: positions count tokens ('index', the papers), or moments of the stage ('time', see
    StageLayout.times), which puts aligned tokens of different streams at distance 0.
  attention: 'xla'; 'fused', in training the cuDNN kernel on NVIDIA GPUs in bfloat16, elsewhere plain
    XLA (attention.fused_attention has the rule); or 'splash', the TPU kernel, for training with
    rotary positions. Of the last two neither has dropout of attention weights, nor query_chunk.
    Sampling is always 'xla'.
  query_chunk: 0, or how many queries attend at once in training: saves the upper triangle.
  remat: what the backward pass computes again. 'full': each layer, from what goes into it; 'dots': all
    but matrix products with weights; 'dots_attention': nor the cuDNN kernel of 'fused', for GPUs
    with the memory (semantic stage, base size: 0.5 GiB a sequence, 'full' 0.04), without that kernel
    the same as 'dots'; 'none': nothing.
  dtype: what matrix products compute in.
  """

  vocab_size: int = 0
  num_layers: int = 24
  emb_dim: int = 1024
  num_heads: int = 16
  head_dim: int = 64
  mlp_dim: int = 4096
  dropout_rate: float = 0.1
  position: str = 'relative_bias'
  clock: str = 'index'
  relative_num_buckets: int = 32
  relative_max_distance: int = 128
  rotary_max_wavelength: float = 10_000.0
  tie_embeddings: bool = False
  attention: str = 'xla'
  query_chunk: int = 0
  scan_layers: bool = True
  remat: str = 'none'
  dtype: str = 'float32'

  def __post_init__(self):
    for name, legal in (('position', ('relative_bias', 'rotary')), ('clock', ('index', 'time')),
                        ('attention', ('xla', 'fused', 'splash')),
                        ('remat', tuple(REMAT_POLICIES))):
      if getattr(self, name) not in legal:
        raise ValueError(f'{name} is {getattr(self, name)!r}, wanted one of {list(legal)}')
    if self.attention != 'xla' and self.query_chunk:
      raise ValueError(
          f'query_chunk is {self.query_chunk}, wanted 0 with attention {self.attention!r}')
    if self.attention == 'splash' and self.position != 'rotary':
      raise ValueError(f"position is {self.position!r}, wanted 'rotary' with attention 'splash'")


@struct.dataclass
class Cache:
  """Keys and values of the tokens so far. All shapes are static; only `index` tells how full."""

  index: Array  # int32[]: the slot the next token goes to
  positions: Array  # int32[S]: the position of each slot's token
  layers: Any  # per layer {'key' [.., D, S], 'value' [.., S, D]}, '..' is B H; see init_cache


def init_cache(config: DecoderConfig, batch_size: int, length: int, dtype: str | None = None,
               shard_heads: bool = False) -> Cache:
  """Returns an empty cache of `length` slots, of `dtype` or the config's.

  Batch and heads are one axis, over which the batch's sharding can go; or, to shard both, two.
  """
  stacked = (config.num_layers,) if config.scan_layers else ()
  heads = (batch_size, config.num_heads) if shard_heads else (batch_size * config.num_heads,)
  names = ('layers',) * len(stacked) + (('batch', 'heads') if shard_heads else ('batch',))
  zeros = lambda *shape: nn.with_logical_constraint(
      jnp.zeros((*stacked, *heads, *shape), dtype or config.dtype), (*names, None, None))
  layer = lambda: {'key': zeros(config.head_dim, length), 'value': zeros(length, config.head_dim)}
  stack = layer() if config.scan_layers else tuple(layer() for _ in range(config.num_layers))
  return Cache(jnp.zeros((), jnp.int32), jnp.zeros(length, jnp.int32), stack)


def grow_cache(cache: Cache, length: int) -> Cache:
  """Returns the cache with empty slots added up to `length`."""
  more = length - cache.positions.shape[0]
  if not more:
    return cache

  def pad(path, x):
    slots = x.ndim - (1 if path[-1].key == 'key' else 2)
    return jnp.pad(x, [(0, more if axis == slots else 0) for axis in range(x.ndim)])

  return Cache(cache.index, jnp.pad(cache.positions, (0, more)),
               jax.tree_util.tree_map_with_path(pad, cache.layers))


class Decoder(nn.Module):
  """Pre-norm Transformer; see DecoderConfig."""

  config: DecoderConfig

  def setup(self):
    c = self.config
    table = (c.vocab_size, c.emb_dim)
    self.embedding = layers.kernel(self, 'embedding', table, ('vocab', 'embed'), c.emb_dim)
    if not c.tie_embeddings:
      self.output_embedding = layers.kernel(
          self, 'output_embedding', table, ('vocab', 'embed'), c.emb_dim)
    if c.position == 'relative_bias':
      init = nn.with_logical_partitioning(
          nn.initializers.normal(1 / c.emb_dim), ('kv', 'heads'))
      self.relative_bias = self.param(
          'relative_bias', init, (c.relative_num_buckets, c.num_heads), jnp.float32)
    block = layers.Block
    if c.remat != 'none':
      block = nn.remat(block, policy=REMAT_POLICIES[c.remat], prevent_cse=not c.scan_layers,
                       static_argnums=(7,))
    if c.scan_layers:
      self.layers = nn.scan(
          block, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True},
          in_axes=(0, *[nn.broadcast] * 5), out_axes=0, length=c.num_layers,
          metadata_params={nn.PARTITION_NAME: 'layers'})(c)
    else:
      self.layers = [block(c, name=f'layers_{i}') for i in range(c.num_layers)]
    self.final_norm = layers.RMSNorm()

  def __call__(self, tokens: Array, cache: Cache | None = None, positions: Array | None = None,
               deterministic: bool = True) -> tuple[Array, Cache | None]:
    """Returns (logits float32[B, T, V], cache) for tokens int32[B, T]; see `hidden`."""
    x, cache = self.hidden(tokens, cache, positions, deterministic)
    return self.logits(x), cache

  def hidden(self, tokens: Array, cache: Cache | None = None, positions: Array | None = None,
             deterministic: bool = True) -> tuple[Array, Cache | None]:
    """Returns ([B, T, E], cache): what the head reads.

    positions int32[T] are the moments of these tokens; None counts on from the cache's index.
    """
    c = self.config
    length, index = tokens.shape[1], 0 if cache is None else cache.index
    if positions is None:
      if c.clock == 'time' and not self.is_initializing():
        raise ValueError("clock is 'time': pass positions=StageLayout.times of these tokens")
      positions = index + jnp.arange(length, dtype=jnp.int32)
    slots, key_positions = length, positions
    if cache is not None:
      slots = cache.positions.shape[0]
      key_positions = jax.lax.dynamic_update_slice(cache.positions, positions, (index,))
    mask = jnp.arange(slots) <= index + jnp.arange(length)[:, None]
    # Each device looks up its part of 'embed' for the rows of all its fsdp peers, which then swap.
    tokens = nn.with_logical_constraint(tokens, ('lookup_batch', 'length'))
    table = nn.with_logical_constraint(self.embedding, (None, 'embed'))
    x = (jnp.take(table, tokens, axis=0) * c.emb_dim ** 0.5).astype(c.dtype)
    x = nn.with_logical_constraint(x, ('lookup_batch', 'length', 'embed'))
    x = nn.with_logical_constraint(x, ('batch', 'length', 'embed'))
    x = layers.dropout(self, x, c.dropout_rate, deterministic)
    x, layer_caches = self._run(x, None if cache is None else cache.layers, positions, index, mask,
                                self._bias(positions, key_positions), deterministic)
    x = layers.dropout(self, self.final_norm(x), c.dropout_rate, deterministic)
    return x, cache and Cache(index + length, key_positions, layer_caches)

  def _run(self, x, caches, *args):
    if self.config.scan_layers:
      return self.layers(x, caches, *args)
    new_caches = []
    for i, layer in enumerate(self.layers):
      x, new_cache = layer(x, None if caches is None else caches[i], *args)
      new_caches.append(new_cache)
    return x, tuple(new_caches)

  def _bias(self, positions, key_positions):
    """Returns float32[N, H, T, S], or None for rotary positions; N is over how many devices B goes.

    The table is scaled like the token embedding: Adam moves an entry by about the learning rate a
    step, and unscaled it would take thousands of steps to single out a distance.

    Each device makes its own from the table, so that gradients are summed over devices as entries
    of the table, not as [H, T, S].
    """
    c = self.config
    if c.position == 'rotary':
      return None
    buckets = layers.relative_buckets(
        key_positions - positions[:, None], c.relative_num_buckets, c.relative_max_distance,
        bidirectional=c.clock == 'time')
    look_up = lambda table: jnp.moveaxis(jnp.take(table, buckets, axis=0), -1, 0)[None]
    return attention.on_each_device(
        look_up, (None, 'heads'), ('batch', 'heads', None, None))(
            self.relative_bias * c.emb_dim ** 0.5)

  def head(self) -> Array:
    """Returns the output table float32[V, E]."""
    return self.embedding if self.config.tie_embeddings else self.output_embedding

  def logits(self, x: Array) -> Array:
    """Returns float32[B, T, V] of `hidden`'s x [B, T, E]."""
    table = self.head().astype(x.dtype)
    logits = jnp.einsum('BTE,VE->BTV', x, table, preferred_element_type=jnp.float32)
    return nn.with_logical_constraint(logits, ('batch', 'length', 'vocab'))

  def level_logits(self, x: Array, first_ids: tuple[int, ...], size: int) -> Array:
    """Returns float32[B, T, size]: the logits of the only ids that are legal at each position.

    Position t of x [B, T, E] may hold ids first_ids[t % Q] + [0, size), Q = len(first_ids).
    """
    num_levels, batch_size, length = len(first_ids), *x.shape[:2]
    table = jnp.stack([self.head()[i:i + size] for i in first_ids]).astype(x.dtype)  # [Q, size, E]
    x = x.reshape(batch_size, length // num_levels, num_levels, -1)
    logits = jnp.einsum('BFQE,QVE->BFQV', x, table, preferred_element_type=jnp.float32)
    return logits.reshape(batch_size, length, size)


def unstack_layers(params: Any, num_layers: int) -> dict[str, Any]:
  """Returns scan_layers params {'layers': [layers, ...]} as {'layers_0': .., 'layers_1': ..}."""
  rest = {k: v for k, v in params.items() if k != 'layers'}
  take = lambda i: jax.tree.map(lambda x: x[i], params['layers'])
  return {**rest, **{f'layers_{i}': take(i) for i in range(num_layers)}}
