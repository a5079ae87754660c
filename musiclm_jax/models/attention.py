"""L1. Implementations of softmax attention, behind one signature each; see DecoderConfig.attention.

Axes: B batch, H heads, T queries, S keys, D head_dim.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

Array = jax.Array
_LANES = 128  # of a TPU: the kernel's blocks are multiples of it
_LARGEST_BLOCK = 512


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
        None if bias is None else bias[:, :, part, :end], num_heads, drop))
  return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-2)


def attention(query, key, value, mask, bias, num_heads, drop) -> Array:
  """Returns [..., T, D] of softmax(query key / sqrt(D) + bias) value; the softmax is float32.

  query [..., T, D], key [..., D, S], value [..., S, D], where ... is B, H or both as one: B H; bias
  None or [N, H, T, S], see `_of_examples`.
  """
  query = query * query.shape[-1] ** -0.5
  logits = jnp.einsum('...TD,...DS->...TS', query, key, preferred_element_type=jnp.float32)
  shape = logits.shape
  logits = logits.reshape(-1, num_heads, *shape[-2:])
  if bias is not None:
    logits = logits + _of_examples(bias, logits.shape[0])
  logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = drop(jax.nn.softmax(logits, axis=-1)).astype(value.dtype)
  return jnp.einsum('...TS,...SD->...TD', weights.reshape(shape), value)


def fused_attention(query, key, value, mask, bias, num_heads, causal: bool = False) -> Array:
  """Returns what `attention` returns, through jax.nn.dot_product_attention (no weight dropout).

  causal: the mask is the causal one over T = S keys, without a cache.  cuDNN's flash kernel is used,
  forward and backward, where `causal` is set, arrays are bfloat16 or float16, D is a multiple of 8
  up to 128, T is even if there is a bias, and the devices are NVIDIA's (compute capability 8.0 on;
  for older ones say attention 'xla'): those of the active mesh, or JAX's first one without a mesh.
  Everything else is XLA's.  The kernel keeps no [T, T] array and skips what the mask hides.
  """
  apart = lambda y: y.reshape(-1, num_heads, *y.shape[-2:])  # [B, H, ..]
  args = (apart(query), apart(key), apart(value))
  if causal and _fits_cudnn(query, bias) and _on_nvidia():
    axes = ('batch', 'heads', None, None)
    args += () if bias is None else (bias,)
    y = on_each_device(_cudnn_attention, axes, axes)(*args)
  else:
    y = _product_attention(*args, bias, mask=mask[None, None])
  return y.reshape(query.shape)


def _product_attention(query, key, value, bias, **masking) -> Array:
  """Returns [B, H, T, D] of query [B, H, T, D], key [B, H, D, S], value [B, H, S, D]."""
  if bias is not None:
    bias = _of_examples(bias, query.shape[0]).astype(query.dtype)
  y = jax.nn.dot_product_attention(
      jnp.swapaxes(query, 1, 2), jnp.transpose(key, (0, 3, 1, 2)), jnp.swapaxes(value, 1, 2),
      bias=bias, **masking)
  return jnp.swapaxes(y, 1, 2)


def _cudnn_attention(query, key, value, bias=None) -> Array:
  # A mask array would become a dense bias, and hide from the kernel what it can skip.
  return _product_attention(query, key, value, bias, is_causal=True, implementation='cudnn')


def _fits_cudnn(query: Array, bias: Array | None) -> bool:
  length, dim = query.shape[-2:]
  return (query.dtype in (jnp.bfloat16, jnp.float16) and dim <= 128 and dim % 8 == 0
          and (bias is None or length % 2 == 0))


def _on_nvidia() -> bool:
  """Returns whether this is traced for NVIDIA's GPUs; jax.lax.platform_dependent cannot choose.

  It would trace the kernel on every platform, which JAX refuses where cuDNN is not installed.
  """
  mesh = jax.sharding.get_abstract_mesh()
  device = jax.devices()[0] if mesh.empty else mesh.abstract_device
  return device is not None and device.platform == 'gpu' and device.device_kind.startswith('NVIDIA')


def _of_examples(bias: Array, batch_size: int) -> Array:
  """Returns [B, H, T, S], or [1, ..] for all, of bias [N, H, T, S]: one for each of N parts of B."""
  parts = bias.shape[0]
  if parts == 1:
    return bias
  bias = jnp.broadcast_to(bias[:, None], (parts, batch_size // parts, *bias.shape[1:]))
  return bias.reshape(batch_size, *bias.shape[2:])


def splash_attention(query: Array, key: Array, value: Array) -> Array:
  """Returns causal attention [B, H, T, D] over T = S keys by JAX's TPU kernel, one call a device.

  query, value [B, H, T, D], key [B, H, D, T].  The kernel skips what the causal mask hides, keeps
  no [T, T] array, and knows neither bias nor dropout of weights.  Off a TPU it is interpreted.
  """
  length, scale = query.shape[2], query.shape[3] ** -0.5
  padding = [(0, 0), (0, 0), (0, -length % _LANES), (0, 0)]  # later keys, which no query sees
  query, key, value = (
      jnp.pad(x, padding) for x in (query * scale, jnp.swapaxes(key, 2, 3), value))

  def attend(query, key, value):
    on = lambda interpret: jax.vmap(_splash_kernel(*query.shape[1:3], interpret))
    return jax.lax.platform_dependent(query, key, value, tpu=on(False), default=on(True))

  axes = ('batch', 'heads', None, None)
  return on_each_device(attend, axes, axes)(query, key, value)[:, :, :length]


def _splash_kernel(num_heads: int, length: int, interpret: bool) -> Callable[..., Array]:
  """Returns the kernel of [H, T, D] arrays, H = `num_heads` and T = `length`, a multiple of 128."""
  block = max(size for size in range(_LANES, min(length, _LARGEST_BLOCK) + 1, _LANES)
              if length % size == 0)
  names = ('q', 'kv', 'kv_compute', 'q_dkv', 'kv_dkv', 'kv_dkv_compute', 'q_dq', 'kv_dq')
  sizes = splash.BlockSizes(**{f'block_{name}': block for name in names})
  mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * num_heads)
  return splash.make_splash_mha(
      mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)


def on_each_device(function: Callable[..., Array], axes: tuple[str | None, ...],
                   out_axes: tuple[str | None, ...]) -> Callable[..., Array]:
  """Returns `function` run on each device's part of arrays with logical `axes`.

  Its result has `out_axes`; without a mesh it is `function`. Where a device got all of an array, the
  gradient is the sum over devices, made after the function's own.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function
  return jax.shard_map(
      function, mesh=mesh, in_specs=nn.logical_to_mesh_axes(axes),
      out_specs=nn.logical_to_mesh_axes(out_axes), check_vma=False)
