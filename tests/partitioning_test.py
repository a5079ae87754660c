"""The mesh, the one table of logical axes, and shardings of parameters, optimizer and batch."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from musiclm_jax import errors, optimizers, partitioning
from musiclm_jax.models import registry

DECODER = {
  'vocab_size': 128,
  'num_layers': 2,
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 8,
  'mlp_dim': 32,
}


def boxed_shapes(name, config):
  """Returns the variables of a model with their boxes, nothing computed."""
  module = registry.build(name, config)
  rngs = {key: jax.random.key(0) for key in ('params', 'dropout', 'mask', 'quantizer')}
  return jax.eval_shape(
    lambda *args: module.init(rngs, *args), *registry.example_inputs(name, config)
  )


@pytest.mark.parametrize('name', registry.MODELS)
def test_every_logical_axis_of_every_model_is_in_the_table(name):
  config_class, _ = registry.classes(name)
  fields = {}
  if name in ('semantic', 'coarse', 'fine'):
    fields = DECODER
  elif name.endswith('_quantizer'):
    fields = {'dim': 16}
  variables = boxed_shapes(name, config_class(**fields))
  names = partitioning.logical_names(variables.get('params', {}))
  assert names <= {name for name, _ in partitioning.LOGICAL_AXIS_RULES}
  if 'params' in variables:
    assert names, f'{name} names no axis: it could not be sharded'


def test_table_uses_mesh_axes_only_and_each_name_once():
  names = [name for name, _ in partitioning.LOGICAL_AXIS_RULES]
  assert len(set(names)) == len(names)
  for _, axes in partitioning.LOGICAL_AXIS_RULES:
    for axis in axes if isinstance(axes, tuple) else (axes,):
      assert axis is None or axis in partitioning.MESH_AXES


def test_unknown_logical_name_is_an_error():
  boxed = {'w': nn.LogicallyPartitioned(jnp.zeros((2, 2)), ('embed', 'embde'))}
  with pytest.raises(ValueError, match='embde'):
    partitioning.param_shardings(boxed, partitioning.make_mesh())


@pytest.mark.parametrize(
  'shape, wanted',
  [
    ((3, 1, 1), 'does not fit'),
    ((0, 1, 1), 'positive'),
    ((-1, -1, 1), 'at most one'),
    ((1, 1), 'three'),
  ],
)
def test_bad_mesh_shape_is_named(shape, wanted):
  with pytest.raises(errors.UserError, match=wanted):
    partitioning.make_mesh(shape, jax.devices()[:1])


def test_single_host_reads_the_whole_batch():
  mesh = partitioning.make_mesh()
  assert partitioning.host_shard(mesh) == (0, 1)
  batch = partitioning.global_batch({'x': np.arange(6)}, 6, mesh)
  np.testing.assert_array_equal(batch['x'], np.arange(6))
  with pytest.raises(errors.UserError, match="'x' of shape .5,., wanted 6 rows"):
    partitioning.global_batch({'x': np.arange(5)}, 6, mesh)


ON_EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
from musiclm_jax import errors, optimizers, partitioning

mesh = partitioning.make_mesh((2, 2, -1))
assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'model': 2}
try:
  partitioning.check_batch_size(30, mesh)
  raise AssertionError('30 is not divisible by 4')
except errors.UserError as error:
  assert 'batch_size 30 is not divisible by 4 devices' in str(error), error

boxed = {
    'mlp': {'kernel': nn.LogicallyPartitioned(jnp.zeros((4, 8)), ('embed', 'mlp')),
            'bias': nn.LogicallyPartitioned(jnp.zeros((8,)), ('mlp',))},
    'odd': nn.LogicallyPartitioned(jnp.zeros((3, 8)), ('embed', 'mlp')),
    'plain': jnp.zeros((4,)),
}
shardings = partitioning.param_shardings(boxed, mesh)
specs = jax.tree.map(lambda s: tuple(s.spec), shardings)
assert specs['mlp'] == {'kernel': ('fsdp', 'model'), 'bias': ('model',)}, specs
assert specs['odd'] == (None, 'model') and specs['plain'] == (), specs

params = nn.unbox(boxed)
for optimizer in (optimizers.adamw(1e-3), optimizers.adafactor(1e-3)):
  state = jax.eval_shape(optimizer.init, params)
  found = partitioning.like_params(state, params, shardings, mesh)
  flat = jax.tree_util.tree_flatten_with_path(state)[0]
  for (path, leaf), sharding in zip(flat, jax.tree.leaves(found), strict=True):
    mirrors = leaf.shape == (4, 8)
    assert (tuple(sharding.spec) == ('fsdp', 'model')) == mirrors, (path, sharding.spec)

batch = partitioning.global_batch({'x': np.arange(8.0).reshape(8, 1)}, 8, mesh)['x']
rows = {tuple(shard.data.ravel().tolist()) for shard in batch.addressable_shards}
assert rows == {(0., 1.), (2., 3.), (4., 5.), (6., 7.)}, rows
"""


def test_shardings_on_eight_devices():
  environment = dict(
    os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=8', JAX_PLATFORMS='cpu'
  )
  root = pathlib.Path(__file__).resolve().parents[1]
  subprocess.run([sys.executable, '-c', ON_EIGHT_DEVICES], check=True, env=environment, cwd=root)


def test_optimizer_state_of_subtrees_finds_its_parameters():
  params = {'generator': {'w': jnp.zeros((2, 3))}, 'discriminator': {'w': jnp.zeros((2, 3))}}
  optimizer = optimizers.by_subtree({key: optimizers.adamw(1e-3) for key in params})
  mesh = partitioning.make_mesh()
  boxed = jax.tree.map(lambda x: nn.LogicallyPartitioned(x, ('embed', 'mlp')), params)
  shardings = partitioning.param_shardings(boxed, mesh)
  state = jax.eval_shape(optimizer.init, params)
  found = partitioning.like_params(state, params, shardings, mesh)
  mirrored = [s for s in jax.tree.leaves(found) if len(s.spec) == 2]
  assert len(mirrored) == 4  # first and second moments of both
