"""L1. The parts of the decoder-only Transformer: norm, positions, attention, gated feed-forward.

Axes: B batch, T queries, S keys, H heads, D head_dim, E emb_dim, F mlp_dim.
Parameters are float32; `dtype` is what matrix products compute in; norm and softmax are float32.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.models import attention

Array = jax.Array


def kernel(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...],
           fan_in: int) -> Array:
  """Returns a float32 parameter of `shape`, normal with variance 1 / fan_in, with logical axes."""
  init = nn.initializers.normal(fan_in ** -0.5)
  return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def dense(module: nn.Module, x: Array, name: str, shape: tuple[int, ...], axes: tuple[str, ...],
          num_inputs: int = 1) -> Array:
  """Returns x [..., *inputs] times the kernel `name` [*inputs, *outputs]: [..., *outputs], in its dtype.

  The first `num_inputs` axes of `shape` are the inputs. Where the collection 'served' has the kernel
  (see sampling.serve), that is read instead.
  """
  fan_in = math.prod(shape[:num_inputs])
  if module.has_variable('served', name):
    y = served_product(x.reshape(-1, fan_in), module.get_variable('served', name))
    return y.astype(x.dtype).reshape(*x.shape[:x.ndim - num_inputs], *shape[num_inputs:])
  weights = kernel(module, name, shape, axes, fan_in)
  if module.is_mutable_collection('served') and not module.is_initializing():
    module.put_variable('served', name, nn.with_logical_constraint(
        weights.reshape(fan_in, -1).T, (axes[num_inputs], axes[0])))
  return jnp.tensordot(x, weights.astype(x.dtype), num_inputs)


def served(weights: Array, dtype: str) -> dict[str, Array]:
  """Returns weights float32[outputs, inputs] as sampling reads them, in `dtype`.

  int8: 'kernel' int8 and 'scale' float32[outputs], the largest of each row / 127.  Rows are outputs:
  XLA's CPU products are twice as fast that way, and a TPU does not mind.
  """
  if dtype != 'int8':
    return {'kernel': weights.astype(dtype)}
  scale = jnp.maximum(jnp.max(jnp.abs(weights), axis=1), 1e-30) / 127
  return {'kernel': jnp.round(weights / scale[:, None]).astype(jnp.int8), 'scale': scale}


def served_product(x: Array, weights: Mapping[str, Array]) -> Array:
  """Returns float32[rows, outputs] of x [rows, inputs] and what `served` gives.

  With int8 weights each row of x is rounded to int8, too, by its largest value.
  """
  rows, matrix = x.shape[0], weights['kernel']
  product = lambda x, accumulate: jax.lax.dot_general(
      x, matrix, (((1,), (1,)), ((), ())), preferred_element_type=accumulate)
  # XLA's CPU product of one row is ten times as slow as that of two, but for float32.
  x = jnp.pad(x, ((0, rows == 1 and matrix.dtype != jnp.float32), (0, 0)))
  if 'scale' in weights:
    x = x.astype(jnp.float32)
    size = jnp.maximum(jnp.max(jnp.abs(x), axis=1, keepdims=True), 1e-30) / 127
    y = product(jnp.round(x / size).astype(jnp.int8), jnp.int32) * size * weights['scale']
  else:
    y = product(x.astype(matrix.dtype), jnp.float32)
  return y[:rows]


class RMSNorm(nn.Module):
  """x / rms(x) * scale: T5's layer norm, without mean and bias."""

  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = nn.with_logical_partitioning(nn.initializers.ones_init(), ('embed',))
    scale = self.param('scale', init, (x.shape[-1],), jnp.float32)
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
    return (y * scale).astype(x.dtype)


def relative_buckets(distance: Array, num_buckets: int, max_distance: int,
                     bidirectional: bool) -> Array:
  """Returns T5's bucket int32[T, S] of `distance` = key position - query position.

  One-sided, 8 buckets, max_distance 16; keys behind the query:
    distance   0 -1 -2 -3 -4 -5 -6 -7 -8 .. -11  -12 .. and everything farther
    bucket     0  1  2  3  4  4  5  5  6      6    7
  Two-sided: the lower half of the buckets looks back, the upper half ahead.
  """
  offset = 0
  if bidirectional:
    num_buckets //= 2
    offset = jnp.where(distance > 0, num_buckets, 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(-distance, 0)
  exact = num_buckets // 2
  log_ratio = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(max_distance / exact)
  far = exact + (log_ratio * (num_buckets - exact)).astype(jnp.int32)
  bucket = jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))
  return bucket + offset


def rotate(x: Array, positions: Array, max_wavelength: float) -> Array:
  """Returns x [B, T, H, D] with each pair (x[d], x[d + D/2]) turned by positions[T] / wavelength."""
  half = x.shape[-1] // 2
  frequency = max_wavelength ** (-jnp.arange(half) / half)
  angle = positions[:, None, None] * frequency  # [T, 1, D/2]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def dropout(module: nn.Module, x: Array, rate: float, deterministic: bool) -> Array:
  """Returns x with features dropped for whole sequences, as T5 does: one mask for all of T."""
  if deterministic or not rate:
    return x
  shape = (*x.shape[:-2], 1, x.shape[-1])
  keep = jax.random.bernoulli(module.make_rng('dropout'), 1.0 - rate, shape)
  return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


class Attention(nn.Module):
  """Multi-head self-attention over its own keys, or over a cache that now holds them too.

  `bias` float32[N, H, T, S] (T5) or None; `mask` bool[T, S], true where a query may look.

  The cache has keys [B H, D, S] and values [B H, S, D], the operands of the two products as they
  stand: with B = 1 apart from H, XLA copies the whole cache at every decoded token, on CPUs at
  least. Where heads are sharded it is [B, H, ..] all the same (init_cache), as without a cache.
  """

  config: Any  # transformer.DecoderConfig

  @nn.compact
  def __call__(self, x: Array, positions: Array, index: Array, mask: Array, bias: Array | None,
               cache: Mapping[str, Array] | None, deterministic: bool
               ) -> tuple[Array, Mapping[str, Array] | None]:
    """Returns ([B, T, E], cache with this call's keys and values written at `index`)."""
    c = self.config
    query, key, value = (
        dense(self, x, name, (c.emb_dim, c.num_heads, c.head_dim), ('embed', 'heads', 'kv'))
        for name in ('query', 'key', 'value'))
    if c.position == 'rotary':
      query = rotate(query, positions, c.rotary_max_wavelength)
      key = rotate(key, positions, c.rotary_max_wavelength)
    query = nn.with_logical_constraint(query, ('batch', 'length', 'heads', 'kv'))
    query, value = (jnp.swapaxes(y, 1, 2) for y in (query, value))  # [B, H, T, D]
    key = jnp.transpose(key, (0, 2, 3, 1))  # [B, H, D, S]
    if cache is not None:
      if cache['key'].ndim == 3:
        query, key, value = (y.reshape(-1, *y.shape[2:]) for y in (query, key, value))
      query, cache = query.astype(cache['key'].dtype), {
          'key': _write(cache['key'], key, index, axis=-1),
          'value': _write(cache['value'], value, index, axis=-2)}
      key, value = cache['key'], cache['value']
    if c.attention == 'fused':
      y = attention.fused_attention(
          query, key, value, mask, bias, c.num_heads, causal=cache is None)
    elif c.attention == 'splash' and cache is None:
      y = attention.splash_attention(query, key, value)
    else:
      drop = lambda w: dropout(self, w, c.dropout_rate, deterministic)
      chunk = c.query_chunk if cache is None and c.query_chunk else x.shape[1]
      y = attention.chunked_attention(query, key, value, mask, bias, c.num_heads, drop, chunk)
    y = y.reshape(x.shape[0], c.num_heads, -1, c.head_dim).astype(x.dtype)
    return dense(self, jnp.swapaxes(y, 1, 2), 'out', (c.num_heads, c.head_dim, c.emb_dim),
                 ('heads', 'kv', 'embed'), num_inputs=2), cache


def _write(old: Array, new: Array, index: Array, axis: int) -> Array:
  return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, old.ndim + axis)


class GatedMlp(nn.Module):
  """T5.1.1's feed-forward: (gelu(x A) * x B) C."""

  config: Any

  @nn.compact
  def __call__(self, x: Array, deterministic: bool) -> Array:
    c = self.config
    gate, up = (dense(self, x, name, (c.emb_dim, c.mlp_dim), ('embed', 'mlp'))
                for name in ('gate', 'up'))
    h = jax.nn.gelu(gate) * up
    h = nn.with_logical_constraint(h, ('batch', 'length', 'mlp'))
    h = dropout(self, h, c.dropout_rate, deterministic)
    return dense(self, h, 'down', (c.mlp_dim, c.emb_dim), ('mlp', 'embed'))


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x))."""

  config: Any

  @nn.compact
  def __call__(self, x, cache, positions, index, mask, bias, deterministic: bool):
    """Returns ([B, T, E], cache): a carry and an output, so that nn.scan can run it."""
    rate = self.config.dropout_rate
    y, cache = Attention(self.config, name='attention')(
        RMSNorm(name='attention_norm')(x), positions, index, mask, bias, cache, deterministic)
    x = x + dropout(self, y, rate, deterministic)
    y = GatedMlp(self.config, name='mlp')(RMSNorm(name='mlp_norm')(x), deterministic)
    x = x + dropout(self, y, rate, deterministic)
    return nn.with_logical_constraint(x, ('batch', 'length', 'embed')), cache
