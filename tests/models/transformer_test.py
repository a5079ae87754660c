"""What the decoder promises: one code path, causality, and the paper's parameter counts."""

import dataclasses

import absent_gpus
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import token_layout
from musiclm_jax.models import transformer

CONFIG = transformer.DecoderConfig(
    vocab_size=32, num_layers=2, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24,
    relative_num_buckets=8, relative_max_distance=16, scan_layers=False, tie_embeddings=True)
KINDS = [('relative_bias', 'index'), ('relative_bias', 'time'), ('rotary', 'index')]
LENGTH = 11
TOKENS = jax.random.randint(jax.random.key(1), (2, LENGTH), 0, 32)
MOMENTS = jnp.array([-2, -1, 0, 4, 8, 0, 1, 2, 3, 4, 5])  # two streams over the same moments


def build(**changes):
  config = dataclasses.replace(CONFIG, **changes)
  decoder = transformer.Decoder(config)
  positions = MOMENTS if config.clock == 'time' else None
  return decoder, nn.unbox(decoder.init(jax.random.key(0), TOKENS, positions=positions)), positions


@pytest.mark.parametrize('position, clock', KINDS)
def test_prefill_and_steps_equal_teacher_forcing(position, clock):
  decoder, variables, positions = build(position=position, clock=clock)
  expected, no_cache = decoder.apply(variables, TOKENS, positions=positions)
  assert no_cache is None
  cache, parts = transformer.init_cache(decoder.config, 2, 8), []
  for start, stop in ((0, 5), (5, 6), (6, 7), (7, 11)):  # a chunk, two steps, a chunk
    if stop > 8:
      cache = transformer.grow_cache(cache, 16)
    moments = None if positions is None else positions[start:stop]
    logits, cache = decoder.apply(variables, TOKENS[:, start:stop], cache, moments)
    parts.append(logits)
  np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=2e-5)
  assert int(cache.index) == LENGTH


@pytest.mark.parametrize('position, clock', KINDS)
def test_no_gradient_from_later_tokens(position, clock):
  """d logits[t] / d embedding of token s is zero for s > t, and not for s <= t."""
  decoder, variables, positions = build(position=position, clock=clock, query_chunk=4)
  tokens = jnp.arange(LENGTH)[None]  # every token its own row of the table

  def one(table, t):
    params = variables['params'] | {'embedding': table}
    # `hidden`, not logits: the tied table is also the head.
    return decoder.apply({'params': params}, tokens, positions=positions, method='hidden')[0][0, t]

  table = variables['params']['embedding']
  for t in (0, 4, LENGTH - 1):
    moved = np.abs(jax.jacrev(one)(table, t)).max(axis=(0, 2))[:LENGTH]
    assert np.all(moved[t + 1:] == 0) and np.all(moved[:t + 1] > 1e-6)


def test_scan_equals_unrolled_with_and_without_cache():
  decoder, variables, _ = build(scan_layers=True)
  unrolled = transformer.Decoder(CONFIG)
  params = transformer.unstack_layers(variables['params'], CONFIG.num_layers)
  expected, _ = decoder.apply(variables, TOKENS)
  np.testing.assert_allclose(unrolled.apply({'params': params}, TOKENS)[0], expected, atol=1e-5)
  cache = transformer.init_cache(decoder.config, 2, LENGTH)
  logits, cache = decoder.apply(variables, TOKENS[:, :6], cache)
  more, _ = decoder.apply(variables, TOKENS[:, 6:], cache)
  np.testing.assert_allclose(np.concatenate([logits, more], 1), expected, atol=1e-5)


@pytest.mark.parametrize('change', [
    {'attention': 'fused'}, {'query_chunk': 4}, {'remat': 'full'}, {'remat': 'dots'},
    {'attention': 'fused', 'remat': 'dots_attention'}])
def test_settings_that_must_not_change_the_result(change):
  _, variables, _ = build()

  def loss(params, config):
    logits, _ = transformer.Decoder(config).apply({'params': params}, TOKENS)
    return jnp.mean(jax.nn.log_softmax(logits)[..., 3])

  grad = lambda config: jax.grad(loss)(variables['params'], config)
  expected, got = grad(CONFIG), grad(dataclasses.replace(CONFIG, **change))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, got)


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('remat, forward', [('dots_attention', 1), ('dots', 2), ('full', 2)])
def test_only_dots_attention_keeps_what_the_cudnn_kernel_gave(monkeypatch, remat, forward, scan):
  """A scan's body is lowered once, layers one by one; the backward pass is one kernel of each."""
  config = dataclasses.replace(
      CONFIG, attention='fused', dtype='bfloat16', position='rotary', remat=remat, scan_layers=scan)
  decoder, tokens = transformer.Decoder(config), jnp.zeros((2, 10), jnp.int32)
  variables = jax.eval_shape(lambda: nn.unbox(decoder.init(jax.random.key(0), tokens)))
  loss = lambda variables, tokens: jnp.mean(decoder.apply(variables, tokens)[0])
  with absent_gpus.mesh(monkeypatch):
    text = absent_gpus.cuda_text(jax.grad(loss), variables, tokens)
  bodies = 1 if scan else CONFIG.num_layers
  assert absent_gpus.kernels(text) == {'Softmax': forward * bodies, 'SoftmaxBackward': bodies}


def test_with_a_cache_no_cudnn_kernel_is_used(monkeypatch):
  config = dataclasses.replace(CONFIG, attention='fused', dtype='bfloat16', position='rotary')
  decoder, tokens = transformer.Decoder(config), jnp.zeros((2, 10), jnp.int32)
  variables = jax.eval_shape(lambda: nn.unbox(decoder.init(jax.random.key(0), tokens)))
  for shard_heads in (False, True):
    with absent_gpus.mesh(monkeypatch):
      cache = jax.eval_shape(lambda: transformer.init_cache(config, 2, 10, shard_heads=shard_heads))  # noqa: B023
      text = absent_gpus.cuda_text(decoder.apply, variables, tokens, cache)
      assert not absent_gpus.kernels(text)
      assert absent_gpus.kernels(absent_gpus.cuda_text(decoder.apply, variables, tokens))


def test_level_logits_are_columns_of_the_logits():
  decoder, variables, _ = build(tie_embeddings=False)
  x, _ = decoder.apply(variables, TOKENS[:, :6], method='hidden')
  logits = np.asarray(decoder.apply(variables, x, method='logits'))
  got = decoder.apply(variables, x, (4, 14), 10, method='level_logits')
  np.testing.assert_allclose(got[:, ::2], logits[:, ::2, 4:14], atol=1e-5)
  np.testing.assert_allclose(got[:, 1::2], logits[:, 1::2, 14:24], atol=1e-5)


def test_dropout_acts_in_training_only():
  decoder, variables, _ = build(dropout_rate=0.5)
  train = lambda seed: decoder.apply(
      variables, TOKENS, deterministic=False, rngs={'dropout': jax.random.key(seed)})[0]
  assert np.abs(train(0) - train(1)).max() > 1e-3
  np.testing.assert_array_equal(
      decoder.apply(variables, TOKENS)[0], decoder.apply(variables, TOKENS)[0])


@pytest.mark.parametrize('stage, seconds, millions', [
    ('semantic', 30, 430), ('coarse', 10, 438), ('fine', 3, 428)])
def test_base_parameter_counts(stage, seconds, millions):
  vocab_size = token_layout.TokenLayout().stage(stage, seconds).vocab_size
  decoder = transformer.Decoder(transformer.DecoderConfig(vocab_size=vocab_size))
  shapes = jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
  count = sum(x.size for x in jax.tree.leaves(shapes)) / 1e6
  assert abs(count / millions - 1) < 0.01


def test_errors_name_the_setting():
  with pytest.raises(ValueError, match=r"position is 'sine', wanted one of \['relative_bias'"):
    dataclasses.replace(CONFIG, position='sine')
  decoder, variables, _ = build(clock='time')
  with pytest.raises(ValueError, match='pass positions'):
    decoder.apply(variables, TOKENS)
