"""L1. The parts of the decoder-only Transformer: norm, positions, attention, gated feed-forward.

Axes: B batch, T queries, S keys, H heads, D head_dim, E emb_dim, F mlp_dim.
Parameters are float32; `dtype` is what matrix products compute in; norm and softmax are float32.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def kernel(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...],
           fan_in: int) -> Array:
  """Returns a float32 parameter of `shape`, normal with variance 1 / fan_in, with logical axes."""
  init = nn.initializers.normal(fan_in ** -0.5)
  return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


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

  `bias` float32[H, T, S] (T5) or None; `mask` bool[T, S], true where a query may look.

  The cache merges B and H: keys [B H, D, S], values [B H, S, D], the operands of the two products
  as they stand. With any other shape XLA copies the whole cache at every decoded token. Without a
  cache B and H stay apart, so that each can be sharded on its own.
  """

  config: Any  # transformer.DecoderConfig

  @nn.compact
  def __call__(self, x: Array, positions: Array, index: Array, mask: Array, bias: Array | None,
               cache: Mapping[str, Array] | None, deterministic: bool
               ) -> tuple[Array, Mapping[str, Array] | None]:
    """Returns ([B, T, E], cache with this call's keys and values written at `index`)."""
    c, dtype = self.config, x.dtype
    shape, axes = (c.emb_dim, c.num_heads, c.head_dim), ('embed', 'heads', 'kv')
    query, key, value = (
        jnp.einsum('BTE,EHD->BTHD', x, kernel(self, name, shape, axes, c.emb_dim).astype(dtype))
        for name in ('query', 'key', 'value'))
    if c.position == 'rotary':
      query = rotate(query, positions, c.rotary_max_wavelength)
      key = rotate(key, positions, c.rotary_max_wavelength)
    query = nn.with_logical_constraint(query, ('batch', 'length', 'heads', 'kv'))
    query, value = (jnp.swapaxes(y, 1, 2) for y in (query, value))  # [B, H, T, D]
    key = jnp.transpose(key, (0, 2, 3, 1))  # [B, H, D, S]
    if cache is not None:
      query, key, value = (y.reshape(-1, *y.shape[2:]) for y in (query, key, value))
      write = lambda old, new, start: jax.lax.dynamic_update_slice(
          old, new.astype(old.dtype), start)
      key = write(cache['key'], key, (0, 0, index))
      value = write(cache['value'], value, (0, index, 0))
      cache = {'key': key, 'value': value}
    if c.attention == 'fused':
      y = fused_attention(query, key, value, mask, bias, c.num_heads)
    else:
      drop = lambda w: dropout(self, w, c.dropout_rate, deterministic)
      chunk = c.query_chunk if cache is None and c.query_chunk else x.shape[1]
      y = chunked_attention(query, key, value, mask, bias, c.num_heads, drop, chunk)
    y = y.reshape(x.shape[0], c.num_heads, -1, c.head_dim)
    y = jnp.swapaxes(y, 1, 2).reshape(*x.shape[:2], -1)  # [B, T, H D]
    out = kernel(self, 'out', (c.num_heads, c.head_dim, c.emb_dim), ('heads', 'kv', 'embed'),
                 c.num_heads * c.head_dim)
    return y @ out.reshape(-1, c.emb_dim).astype(dtype), cache


def chunked_attention(query, key, value, mask, bias, num_heads, drop, chunk: int) -> Array:
  """Returns [..., T, D]; `chunk` queries at a time look only at the keys up to their last one.

  With chunk < T this is for a causal mask over S = T keys: half of the products are never made.
  """
  length, outputs = query.shape[-2], []
  for start in range(0, length, chunk):
    stop = min(start + chunk, length)
    end = stop if chunk < length else key.shape[-1]
    part = slice(start, stop)
    outputs.append(attention(
        query[..., part, :], key[..., :end], value[..., :end, :], mask[part, :end],
        None if bias is None else bias[:, part, :end], num_heads, drop))
  return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-2)


def attention(query, key, value, mask, bias, num_heads, drop) -> Array:
  """Returns [..., T, D] of softmax(query key / sqrt(D) + bias) value; the softmax is float32.

  query [..., T, D], key [..., D, S], value [..., S, D], where ... is B, H or both as one: B H.
  """
  query = query * query.shape[-1] ** -0.5
  logits = jnp.einsum('...TD,...DS->...TS', query, key, preferred_element_type=jnp.float32)
  shape = logits.shape
  logits = logits.reshape(-1, num_heads, *shape[-2:])
  if bias is not None:
    logits = logits + bias
  logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = drop(jax.nn.softmax(logits, axis=-1)).astype(value.dtype)
  return jnp.einsum('...TS,...SD->...TD', weights.reshape(shape), value)


def fused_attention(query, key, value, mask, bias, num_heads) -> Array:
  """Returns what `attention` returns, through jax.nn.dot_product_attention (no weight dropout)."""
  apart = lambda y: jnp.swapaxes(y.reshape(-1, num_heads, *y.shape[-2:]), 1, 2)  # [B, T, H, D]
  bias = None if bias is None else bias[None].astype(query.dtype)
  y = jax.nn.dot_product_attention(
      apart(query), apart(jnp.swapaxes(key, -2, -1)), apart(value), bias=bias,
      mask=mask[None, None])
  return jnp.swapaxes(y, 1, 2).reshape(query.shape)


class GatedMlp(nn.Module):
  """T5.1.1's feed-forward: (gelu(x A) * x B) C."""

  config: Any

  @nn.compact
  def __call__(self, x: Array, deterministic: bool) -> Array:
    c, dtype = self.config, x.dtype
    gate, up = (kernel(self, name, (c.emb_dim, c.mlp_dim), ('embed', 'mlp'), c.emb_dim)
                for name in ('gate', 'up'))
    h = jax.nn.gelu(x @ gate.astype(dtype)) * (x @ up.astype(dtype))
    h = nn.with_logical_constraint(h, ('batch', 'length', 'mlp'))
    h = dropout(self, h, c.dropout_rate, deterministic)
    return h @ kernel(self, 'down', (c.mlp_dim, c.emb_dim), ('mlp', 'embed'),
                      c.mlp_dim).astype(dtype)


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
