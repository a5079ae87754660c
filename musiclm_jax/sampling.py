"""L2. Autoregressive decoding on the device: prefill, then one compiled loop over a KV cache.

Axes: B batch, P prefix ids, G given target ids, N target ids, K codebook_size.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import errors, partitioning, token_layout
from musiclm_jax.models import layers, transformer

Array = jax.Array
_WEIGHTS_DTYPES = ('', 'int8', 'bfloat16', 'float32')
_SMALLEST = 16  # slots of a prefill; of a cache, four times as many


@dataclasses.dataclass(frozen=True)
class Static:
  """What a compiled loop depends on, beside the shapes of its arguments."""

  config: transformer.DecoderConfig
  first_ids: tuple[int, ...]  # of each level
  codebook_size: int
  cache_dtype: str
  shard_heads: bool
  top_k: int = 0
  top_p: float = 1.0
  guided: bool = False  # rows 2i and 2i + 1 are example i with and without its condition


def static(config: transformer.DecoderConfig, stage: token_layout.StageLayout, cache_dtype: str
           ) -> Static:
  """Returns what sampling a stage compiles for; inside of partitioning.activate, for its mesh."""
  heads = partitioning.parts('heads')
  if config.num_heads % heads:
    raise errors.UserError(
        f'{config.num_heads} heads cannot be split over {heads} devices of the model axis')
  # A loop of layers inside the loop of steps would be slow.
  config = dataclasses.replace(
      config, attention='xla', remat='none', query_chunk=0, scan_layers=False)
  first_ids = tuple(int(i) for i in stage.level_offsets(stage.target))
  return Static(config, first_ids, stage.codebook_size, cache_dtype, heads > 1)


class Sampler:
  """A stage's language model with its weights as decoding reads them, once made and used often.

    sampler = Sampler(config, params, stage)
    ids = sampler.sample(prefix_ids, jax.random.key(0))

  Inside of partitioning.activate, batch and cache are split over the mesh's data and fsdp axes, heads
  and weights over its model axis; examples draw the same numbers on any mesh.

  static: what is compiled for; variables: what `serve` made of the params.
  """

  def __init__(self, config: transformer.DecoderConfig, params: Any, stage: token_layout.StageLayout,
               weights_dtype: str = '', cache_dtype: str = ''):
    """Makes the weights ready.

    Args:
      params: of Decoder(config), scanned or not.
      weights_dtype: of the matrix products: 'int8' (activations are rounded, too), or a float type;
        '' for the config's dtype.
      cache_dtype: '' for the config's, but on CPUs, which have no fast bfloat16 attention, float32.
    """
    if weights_dtype not in _WEIGHTS_DTYPES:
      raise errors.UserError(
          f'weights_dtype is {weights_dtype!r}, wanted one of {list(_WEIGHTS_DTYPES)}')
    self.stage = stage
    if not cache_dtype and jax.default_backend() == 'cpu':
      cache_dtype = 'float32'
    self.static = static(config, stage, cache_dtype or config.dtype)
    self.variables = serve(
        self.static, config.scan_layers, weights_dtype or config.dtype, params)

  def sample(
      self, prefix_ids: Array, rng: Array, temperature: float = 1.0, num_frames: int | None = None,
      given: Array | None = None, top_k: int = 0, top_p: float = 1.0, guidance: float = 1.0,
      cache_block: int = 512, on_progress: Callable[[int, int], None] | None = None) -> Array:
    """Returns target ids int32[B, num_frames * Q]: `given`, then a continuation.

    Every id is legal at its position: only the logits of its level are ever computed.

    Args:
      prefix_ids: int32[B, P] as StageLayout.flatten_prefix makes them, without BOS.
      rng: one key, from which example i takes fold_in(rng, i), or one key an example [B]: a sample
        depends on its own key alone, not on the batch it is in.
      temperature: 0 takes the likeliest id.
      num_frames: frames of the result, with the given ones; default and most: all of the stage.
      given: int32[B, G], whole frames that the result starts with.
      top_k: draw among the k likeliest ids only; 0 for all.
      top_p: draw among the fewest ids that hold this much probability only.
      guidance: s of classifier-free guidance, logits u + s (c - u) with c of the prefix and u of the
        prefix whose conditions are hidden (StageLayout.hidden); 1 for c alone, at half the work.
      cache_block: the cache doubles up to so many slots and then grows by as many, so that little is
        read that is not live; each size is compiled once.
      on_progress: called now and then with (frames so far, frames in all).
    """
    stage = self.stage
    static = dataclasses.replace(self.static, top_k=top_k, top_p=top_p, guided=guidance != 1.0)
    prefix_ids, given = _check(stage, prefix_ids, given)
    keys = _example_keys(rng, prefix_ids.shape[0])
    if static.guided:
      hidden = prefix_ids
      for name in stage.conditions:
        hidden = stage.hidden(hidden, name)
      prefix_ids = jnp.stack([prefix_ids, hidden], axis=1).reshape(-1, stage.prefix_length)
      given = jnp.repeat(given, 2, axis=0)
    num_levels, batch_size = stage.target.num_levels, prefix_ids.shape[0]
    num_frames = stage.target_frames if num_frames is None else num_frames
    if not given.shape[1] // num_levels <= num_frames <= stage.target_frames:
      raise errors.UserError(f'num_frames is {num_frames}, wanted {given.shape[1] // num_levels} '
                             f'(given) to {stage.target_frames}')
    bos = jnp.full((batch_size, 1), token_layout.BOS_ID, jnp.int32)
    tokens = jnp.concatenate([bos, prefix_ids, given], axis=1)
    start, stop = tokens.shape[1] - 1, stage.prefix_length + num_levels * num_frames
    ids = jnp.pad(tokens, ((0, 0), (0, stage.sequence_length - start)))  # slot i holds id i - 1
    moments = stage.times if static.config.clock == 'time' else np.arange(stage.sequence_length)
    moments = jnp.asarray(moments, jnp.int32)
    length = min(prefill_slots(start + 1), stage.sequence_length)
    cache = prefill(static, self.variables, ids[:, :length], moments[:length], start)
    while start < stop:
      slots = min(max(cache_slots(start + 1, cache_block), length), stage.sequence_length)
      cache = _grown(cache, slots)
      end = min(slots, stop)
      ids, cache = decode(static, self.variables, ids, cache, moments, keys, start, end,
                          jnp.float32(temperature), stage.prefix_length, jnp.float32(guidance))
      start = end
      if on_progress:
        ids.block_until_ready()
        on_progress((start - stage.prefix_length) // num_levels, num_frames)
    return ids[::2 if static.guided else 1, stage.prefix_length + 1:stop + 1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def serve(static: Static, scanned: bool, weights_dtype: str, params: Any) -> dict[str, Any]:
  """Returns the variables that decoding reads: 'params', 'served' and 'tables' [Q, K, E]."""
  config = static.config
  params = transformer.unstack_layers(params, config.num_layers) if scanned else params
  model, zeros = transformer.Decoder(config), jnp.zeros((partitioning.parts('batch'), 1), jnp.int32)
  _, kernels = model.apply(
      {'params': params}, zeros, positions=zeros[0], method='hidden', mutable=['served'])
  kernels = flax.traverse_util.flatten_dict(kernels['served'])
  served = {path: layers.served(weights, weights_dtype) for path, weights in kernels.items()}
  rest = {path: leaf for path, leaf in flax.traverse_util.flatten_dict(params).items()
          if path not in kernels}
  # As the loop reads them, so that nothing is gathered for a token.
  rest['embedding',] = nn.with_logical_constraint(params['embedding'], (None, 'embed'))
  table = model.apply({'params': params}, method='head').astype(config.dtype)
  tables = jnp.stack([table[i:i + static.codebook_size] for i in static.first_ids])
  return {
      'params': flax.traverse_util.unflatten_dict(rest),
      'served': flax.traverse_util.unflatten_dict(served),
      'tables': nn.with_logical_constraint(tables, (None, 'vocab', 'embed')),
  }


@functools.partial(jax.jit, static_argnums=(0,))
def prefill(static: Static, variables, tokens, moments, length) -> transformer.Cache:
  """Returns a cache of T slots that holds the first `length` of tokens int32[B, T].

  What the other slots hold does not matter: a slot is looked at only after it is written again.
  So any `length` runs the one program compiled for T.
  """
  cache = transformer.init_cache(
      static.config, *tokens.shape, static.cache_dtype, static.shard_heads)
  _, cache = transformer.Decoder(static.config).apply(
      _without_tables(variables), tokens, cache, moments, method='hidden')
  return cache.replace(index=jnp.asarray(length, jnp.int32))


@functools.partial(jax.jit, static_argnums=(0,), donate_argnums=(2, 3))
def decode(static: Static, variables, ids, cache, moments, keys, start, end, temperature,
           prefix_length, guidance=1.0):
  """Returns (ids with slots start + 1 .. end drawn, cache)."""
  model, model_variables = transformer.Decoder(static.config), _without_tables(variables)
  first_ids = jnp.asarray(static.first_ids, jnp.int32)
  ids = nn.with_logical_constraint(ids, ('batch', 'length'))

  def body(slot, carry):
    ids, cache = carry
    token = jax.lax.dynamic_slice_in_dim(ids, slot, 1, axis=1)
    moment = jax.lax.dynamic_slice_in_dim(moments, slot, 1)
    x, cache = model.apply(model_variables, token, cache, moment, method='hidden')
    level = (slot - prefix_length) % len(static.first_ids)
    table = jax.lax.dynamic_index_in_dim(variables['tables'], level, keepdims=False)
    logits = layers.served_product(x[:, 0], {'kernel': table})
    if static.guided:
      with_condition, without = logits[::2], logits[1::2]
      logits = without + guidance * (with_condition - without)
    step_keys = jax.vmap(lambda key: jax.random.fold_in(key, slot))(keys)
    code = draw(logits, step_keys, temperature, static.top_k, static.top_p)
    code = jnp.repeat(code, 2) if static.guided else code
    ids = jax.lax.dynamic_update_slice(ids, (first_ids[level] + code)[:, None], (0, slot + 1))
    return ids, cache

  return jax.lax.fori_loop(start, end, body, (ids, cache))


def prefill_slots(count: int) -> int:
  """Returns how many slots a prefill of `count` tokens has: at most an eighth more, or 16.

    1..16 -> 16     17 -> 32     129 -> 144     257 -> 288     760 -> 768

  Eight lengths for every doubling are compiled, however many there are.
  """
  block = max(_SMALLEST, 1 << max(count.bit_length() - 4, 0))
  return -(-count // block) * block


def cache_slots(count: int, block: int) -> int:
  """Returns how many slots a cache of `count` tokens has, as it grows.

    block 512: 1..64 -> 64     65 -> 128     300 -> 512     513 -> 1024     1025 -> 1536
  """
  if count > block:
    return -(-count // block) * block
  return min(max(4 * _SMALLEST, 1 << (count - 1).bit_length()), block)


_grown = jax.jit(transformer.grow_cache, static_argnums=1)


def _without_tables(variables):
  return {name: tree for name, tree in variables.items() if name != 'tables'}


def draw(logits: Array, keys: Array, temperature: Array, top_k: int = 0, top_p: float = 1.0
         ) -> Array:
  """Returns int32[B]: one code for each row of logits float32[B, K], with that row's key."""
  if top_k and top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, top_k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if top_p < 1.0:
    ordered = -jnp.sort(-logits, axis=-1)
    probs = jax.nn.softmax(ordered / jnp.maximum(temperature, 1e-6), axis=-1)
    kept = jnp.cumsum(probs, axis=-1) - probs < top_p  # the first id always is
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
  return jnp.argmax(logits + temperature * noise, axis=-1).astype(jnp.int32)


def _check(stage, prefix_ids, given):
  prefix_ids = jnp.asarray(prefix_ids, jnp.int32)
  if prefix_ids.ndim != 2 or prefix_ids.shape[1] != stage.prefix_length:
    raise errors.UserError(f'prefix ids of the {stage.name} stage have shape '
                           f'{list(prefix_ids.shape)}, wanted [batch, {stage.prefix_length}]')
  batch_size = prefix_ids.shape[0]
  if not batch_size or batch_size % partitioning.parts('batch'):
    raise errors.UserError(f'{batch_size} examples cannot be split over '
                           f'{partitioning.parts("batch")} devices of the data and fsdp axes')
  given = jnp.zeros((batch_size, 0), jnp.int32) if given is None else jnp.asarray(given, jnp.int32)
  if given.ndim != 2 or given.shape[0] != batch_size or given.shape[1] % stage.target.num_levels:
    raise errors.UserError(
        f'given ids of the {stage.name} stage have shape {list(given.shape)}, wanted '
        f'[{batch_size}, a multiple of {stage.target.num_levels}]')
  return prefix_ids, given


def _example_keys(rng, batch_size):
  """Returns one typed key an example."""
  if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
    rng = jax.random.wrap_key_data(rng)
  if rng.ndim == 0:
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(batch_size))
  if rng.shape != (batch_size,):
    raise errors.UserError(f'rng has shape {rng.shape}, wanted () or ({batch_size},)')
  return rng
