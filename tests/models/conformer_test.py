"""Conformer: batch independence, relative positions, scan and remat change nothing."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import conformer

TINY = conformer.ConformerConfig(
    num_layers=3, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, kernel_size=5)


@pytest.fixture(name='x', scope='module')
def _x():
  return jax.random.normal(jax.random.key(0), (2, 12, 16))


def _random_variables(module, x):
  """Returns variables as after some training: no kernel is zero, as the last of a branch starts."""
  params = nn.unbox(module.init(jax.random.key(1), x))['params']
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  noisy = [leaf + 0.2 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
  return {'params': jax.tree.unflatten(tree, noisy)}


@pytest.fixture(name='variables', scope='module')
def _variables(x):
  return _random_variables(conformer.ConformerStack(TINY), x)


def _stacked(variables):
  """Returns the parameters of separate layers as those of a scan: leaves [L, ...]."""
  layers = [variables['params'][f'layer_{i}'] for i in range(TINY.num_layers)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nn.unbox(layers))
  return {'params': {'layers': {'block': stacked}}}


@pytest.mark.parametrize('num_layers', [0, 2, None])
@pytest.mark.parametrize('remat', ['none', 'full'])
def test_scan_equals_loop(x, variables, num_layers, remat):
  loop = conformer.ConformerStack(TINY).apply(variables, x, num_layers=num_layers)
  config = dataclasses.replace(TINY, scan_layers=True, remat=remat)
  scanned = conformer.ConformerStack(config).apply(_stacked(variables), x, num_layers=num_layers)
  np.testing.assert_allclose(scanned, loop, atol=1e-5)


def test_a_stack_starts_as_the_identity(x):
  """Whatever its depth, so that training begins with frames that are still themselves."""
  normalised = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
  stack = conformer.ConformerStack(TINY)
  y = stack.apply(stack.init(jax.random.key(1), x), x)
  np.testing.assert_allclose(y, normalised, atol=1e-4)


def test_an_example_does_not_depend_on_its_batch(x, variables):
  stack = conformer.ConformerStack(TINY)
  np.testing.assert_allclose(
      stack.apply(variables, x)[:1], stack.apply(variables, x[:1]), atol=1e-5)


def test_depthwise_convolution_sees_kernel_size_frames(x):
  module = conformer.ConvModule(TINY)
  variables = _random_variables(module, x)
  gradient = jax.grad(lambda y: module.apply(variables, y)[0, 6].sum())(x)
  seen = np.flatnonzero(np.abs(np.asarray(gradient[0])).sum(-1))
  assert seen.tolist() == [4, 5, 6, 7, 8]
  assert not np.any(gradient[1])


def test_depthwise_convolution_equals_the_grouped_one(x):
  config = dataclasses.replace(TINY, kernel_size=4)
  module = conformer.ConvModule(config)
  params = _random_variables(module, x)['params']
  y = nn.glu(nn.LayerNorm().apply({'params': params['norm']}, x) @ params['wi']['kernel'])
  y = jax.lax.conv_general_dilated(
      y, params['depthwise'][:, None], (1,), ((1, 2),), feature_group_count=16,
      dimension_numbers=('NWC', 'WIO', 'NWC'))
  y = nn.swish(nn.LayerNorm().apply({'params': params['depthwise_norm']}, y))
  np.testing.assert_allclose(
      module.apply({'params': params}, x), y @ params['wo']['kernel'], atol=1e-5)


def test_attention_depends_on_relative_positions_alone(x):
  module = conformer.SelfAttention(TINY)
  variables = _random_variables(module, x)
  # A frame repeated for ever: the same answer at every time.
  constant = jnp.broadcast_to(x[:, :1], x.shape)
  y = module.apply(variables, constant)
  np.testing.assert_allclose(y, jnp.broadcast_to(y[:, :1], y.shape), atol=1e-5)
  # Order matters.
  y, swapped = (module.apply(variables, z)[:, 0] for z in (x, x.at[:, 1:].set(x[:, :0:-1])))
  assert np.abs(y - swapped).max() > 1e-3


def test_attention_without_positions_does_not_see_order(x):
  order = np.random.RandomState(0).permutation(x.shape[1])
  for wavelength, ordered in ((0.0, False), (10_000.0, True)):
    module = conformer.SelfAttention(dataclasses.replace(TINY, rotary_max_wavelength=wavelength))
    variables = _random_variables(module, x)
    difference = np.abs(module.apply(variables, x[:, order]) - module.apply(variables, x)[:, order])
    assert (difference.max() > 1e-2) == ordered, wavelength
    assert ordered or difference.max() < 1e-5


def test_dropout_needs_a_stream_only_when_training(x):
  config = dataclasses.replace(TINY, num_layers=1, dropout_rate=0.5)
  stack = conformer.ConformerStack(config)
  variables = _random_variables(stack, x)
  a, b = (stack.apply(variables, x, deterministic=False, rngs={'dropout': jax.random.key(i)})
          for i in range(2))
  assert np.abs(a - b).max() > 1e-3


def test_half_precision_output(x, variables):
  config = dataclasses.replace(TINY, dtype='bfloat16')
  y = conformer.ConformerStack(config).apply(variables, x)
  assert y.dtype == jnp.bfloat16
  full = conformer.ConformerStack(TINY).apply(variables, x)
  np.testing.assert_allclose(y.astype(jnp.float32), full, atol=0.15)


def test_bad_settings_are_named(x):
  with pytest.raises(ValueError, match="remat 'some' is not one of"):
    conformer.ConformerConfig(remat='some')
  with pytest.raises(ValueError, match='head_dim 7 is odd'):
    conformer.ConformerConfig(head_dim=7)
  assert conformer.ConformerConfig(head_dim=7, rotary_max_wavelength=0.0).head_dim == 7
  with pytest.raises(ValueError, match='layer 4 is not in 0 to 3'):
    jax.eval_shape(
        lambda: conformer.ConformerStack(TINY).init(jax.random.key(0), x, num_layers=4))
