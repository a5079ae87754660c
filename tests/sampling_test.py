"""Sampling: legal ids, greedy equals teacher forcing, and a sample is its own key's alone.

Run as a script (`python tests/sampling_test.py`) with eight devices it prints ids drawn on meshes.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import errors, partitioning, sampling, token_layout
from musiclm_jax.models import transformer

LAYOUT = token_layout.TokenLayout(
    token_layout.TokenStream('mulan', 2, 4, 0), token_layout.TokenStream('semantic', 1, 8, 25),
    token_layout.TokenStream('acoustic', 4, 16, 50), coarse_levels=2)
STAGE = LAYOUT.stage('coarse', 0.16)  # P = 6, N = 16
CONFIG = transformer.DecoderConfig(
    vocab_size=STAGE.vocab_size, num_layers=2, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
    scan_layers=True, clock='time')
PREFIX = STAGE.flatten_prefix({'mulan': np.array([[[1, 2]], [[3, 0]], [[0, 0]]]),
                               'semantic': np.arange(12).reshape(3, 4, 1) % 8})
KEY = jax.random.key(5)
MESHES = ((4, 1, 2), (1, 1, 2), (2, 4, 1), (8, 1, 1))


@pytest.fixture(scope='module')
def params():
  return _params()


def _params():
  decoder = transformer.Decoder(CONFIG)
  params = nn.unbox(decoder.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))['params']
  return jax.tree.map(lambda x: x * 2, params)  # peaked enough for a greedy choice to be clear


def sample(params, **kwargs):
  kwargs = {'prefix_ids': PREFIX, 'rng': KEY, 'cache_block': 8} | kwargs
  return np.asarray(sampling.Sampler(CONFIG, params, STAGE).sample(**kwargs))


def test_greedy_equals_teacher_forcing_over_growing_caches(params):
  progress = []
  ids = sample(params, temperature=0.0, on_progress=lambda *done: progress.append(done))
  assert progress == [(5, 8), (8, 8)]  # the cache holds 16, then all 22 slots
  inputs = np.concatenate([np.full((3, 1), token_layout.BOS_ID), PREFIX, ids], axis=1)[:, :-1]
  logits, _ = transformer.Decoder(CONFIG).apply(
      {'params': params}, jnp.asarray(inputs), positions=jnp.asarray(STAGE.times))
  logits = np.asarray(logits)[:, STAGE.prefix_length:]
  for i, first in enumerate(STAGE.first_ids):
    likeliest = first + logits[:, i, first:first + STAGE.codebook_size].argmax(-1)
    np.testing.assert_array_equal(ids[:, i], likeliest)


def test_guidance_moves_logits_away_from_those_without_the_condition(params):
  """Greedy guided ids equal the likeliest of u + s (c - u), teacher forced."""
  scale = 3.0
  ids = sample(params, temperature=0.0, guidance=scale)
  assert ids.shape == (3, 16) and np.any(ids != sample(params, temperature=0.0))
  hidden = STAGE.hidden(PREFIX, 'mulan')
  c, u = (np.asarray(transformer.Decoder(CONFIG).apply(
      {'params': params}, jnp.asarray(np.concatenate(
          [np.full((3, 1), token_layout.BOS_ID), prefix, ids], axis=1)[:, :-1]),
      positions=jnp.asarray(STAGE.times))[0])[:, STAGE.prefix_length:] for prefix in (PREFIX, hidden))
  logits = u + scale * (c - u)
  for i, first in enumerate(STAGE.first_ids):
    likeliest = first + logits[:, i, first:first + STAGE.codebook_size].argmax(-1)
    np.testing.assert_array_equal(ids[:, i], likeliest)
  drawn = sample(params, guidance=scale)
  np.testing.assert_array_equal(sample(params, guidance=scale, given=drawn[:, :6]), drawn)


def test_slots_hold_the_tokens_in_few_sizes():
  for count in range(1, 3000):
    assert count <= sampling.prefill_slots(count) <= max(16, count + 15, 9 * count / 8)
    assert count <= sampling.cache_slots(count, 512) <= max(64, min(2 * count, count + 512))
  assert len({sampling.prefill_slots(count) for count in range(1, 2049)}) <= 8 * 7 + 8
  caches = sorted({sampling.cache_slots(count, 512) for count in range(1, 2263)})
  assert caches == [64, 128, 256, 512, 1024, 1536, 2048, 2560]
  assert sampling.cache_slots(3, 8) == 8  # a block smaller than all that


def test_ids_are_legal_seeded_and_independent_of_the_batch(params):
  ids = sample(params)
  codes = STAGE.unflatten(ids)  # raises on an illegal id
  assert codes.shape == (3, 8, 2) and len(np.unique(codes)) > 4
  np.testing.assert_array_equal(ids, sample(params))
  assert np.any(ids != sample(params, rng=jax.random.key(6)))
  keys = jnp.stack([jax.random.fold_in(KEY, i) for i in range(3)])
  alone = sample(params, prefix_ids=PREFIX[2:], rng=keys[2:])
  np.testing.assert_array_equal(alone[0], ids[2])
  same_key = sample(params, prefix_ids=PREFIX[[0, 0]], rng=keys[jnp.array([0, 1])])
  assert np.any(same_key[0] != same_key[1])


def test_given_frames_are_kept_and_continued(params):
  """Continuing from the first frames with the same key gives the same sample."""
  ids = sample(params)
  np.testing.assert_array_equal(sample(params, given=ids[:, :6]), ids)
  np.testing.assert_array_equal(sample(params, num_frames=5), ids[:, :10])
  other = STAGE.flatten_stream(STAGE.target, np.full((3, 2, 2), 3))
  np.testing.assert_array_equal(sample(params, given=other)[:, :4], other)


def test_draw_follows_the_distribution():
  logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
  keys = jax.random.split(jax.random.key(0), 4000)
  many = jnp.broadcast_to(logits, (4000, 4))

  def share(**kwargs):
    codes = sampling.draw(many, keys, **{'temperature': 1.0} | kwargs)
    return np.bincount(np.asarray(codes), minlength=4) / 4000

  np.testing.assert_allclose(share(), [0.5, 0.25, 0.15, 0.1], atol=0.03)
  np.testing.assert_allclose(share(top_k=2), [2 / 3, 1 / 3, 0, 0], atol=0.03)
  np.testing.assert_allclose(share(top_p=0.8), [5 / 9, 2.5 / 9, 1.5 / 9, 0], atol=0.03)
  np.testing.assert_array_equal(share(top_p=1e-9), [1, 0, 0, 0])
  np.testing.assert_array_equal(share(temperature=0.0), [1, 0, 0, 0])
  sharp = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
  np.testing.assert_allclose(share(temperature=0.5), sharp / sharp.sum(), atol=0.03)


def test_errors(params):
  with pytest.raises(errors.UserError, match=r'shape \[3, 5\], wanted \[batch, 6\]'):
    sample(params, prefix_ids=PREFIX[:, :5])
  with pytest.raises(errors.UserError, match='a multiple of 2'):
    sample(params, given=np.full((3, 3), 20))
  with pytest.raises(errors.UserError, match=r'num_frames is 9, wanted 0 \(given\) to 8'):
    sample(params, num_frames=9)
  with pytest.raises(errors.UserError, match='rng has shape'):
    sample(params, rng=jax.random.split(KEY, 2))
  with pytest.raises(ValueError, match='position'):
    dataclasses.replace(CONFIG, position='none')
  with pytest.raises(errors.UserError, match="weights_dtype is 'int4', wanted one of"):
    sampling.Sampler(CONFIG, params, STAGE, weights_dtype='int4')


def _draw_eight(params, **options):
  sampler = sampling.Sampler(CONFIG, params, STAGE, **options)
  return np.asarray(sampler.sample(PREFIX[np.arange(8) % 3], KEY, cache_block=8))


def test_ids_are_the_same_on_every_mesh_and_the_cache_is_split_over_it(params):
  environment = dict(
      os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=8', JAX_PLATFORMS='cpu')
  done = subprocess.run([sys.executable, __file__], check=True, env=environment, text=True,
                        cwd=pathlib.Path(__file__).parents[1], stdout=subprocess.PIPE)
  drawn = json.loads(done.stdout)
  assert len(drawn) == len(MESHES)
  for ids in drawn:
    np.testing.assert_array_equal(ids, _draw_eight(params))


def test_int8_weights_are_near_and_draw_legal_ids(params):
  sampler = sampling.Sampler(CONFIG, params, STAGE, weights_dtype='int8')
  STAGE.unflatten(np.asarray(sampler.sample(PREFIX, KEY)))  # raises on an illegal id
  kernels = jax.tree.leaves(sampler.variables['served'])
  assert {str(each.dtype) for each in kernels} == {'int8', 'float32'}  # and scales
  tokens, positions = jnp.asarray(PREFIX), jnp.asarray(STAGE.times)[1:7]
  hidden = lambda config, variables: transformer.Decoder(config).apply(
      variables, tokens, positions=positions, method='hidden')[0]
  exact = hidden(CONFIG, {'params': params})
  served = {name: sampler.variables[name] for name in ('params', 'served')}
  rounded = hidden(sampler.static.config, served)
  error = jnp.sqrt(jnp.mean((rounded - exact) ** 2) / jnp.mean(exact ** 2))
  assert 1e-4 < error < 0.05


def main():
  params, drawn = _params(), []
  for shape in MESHES:
    mesh = partitioning.make_mesh(shape, jax.devices()[:int(np.prod(shape))])
    with partitioning.activate(mesh):
      sampler = sampling.Sampler(CONFIG, params, STAGE)
      drawn.append(np.asarray(
          sampler.sample(PREFIX[np.arange(8) % 3], KEY, cache_block=8)).tolist())
      cache = sampling.prefill(
          sampler.static, sampler.variables, jnp.zeros((8, 8), jnp.int32), jnp.arange(8), 4)
    for each in jax.tree.leaves(cache.layers):
      assert each.addressable_shards[0].data.size * mesh.size == each.size, (shape, each.sharding)
  print(json.dumps(drawn))


if __name__ == '__main__':
  main()
