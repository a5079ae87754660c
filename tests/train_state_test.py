"""Weights of an exported model in place of random ones: all of them, or a clear refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import errors, optimizers, partitioning, train_state
from musiclm_jax.models import soundstream
from musiclm_jax.objectives import soundstream as objectives

OBJECTIVE = objectives.SoundStreamObjective(
    soundstream.SoundStreamConfig(
        channels=2, strides=(4, 5), channel_multipliers=(1, 2), dilations=((1,), ()), dim=4,
        num_quantizers=2, codebook_size=8),
    seconds=0.1)
OPTIMIZER = optimizers.adamw(1e-3)


@pytest.fixture(scope='module')
def state():
  mesh = partitioning.make_mesh((-1, 1, 1))
  wanted = train_state.shapes(OBJECTIVE, OPTIMIZER, 2, mesh)
  return train_state.create(OBJECTIVE, OPTIMIZER, 2, 0, wanted)


def _variables(state):
  """Returns other values for everything a codec exports."""
  other = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), (state.params, state.model_state))
  return {'params': other[0], **other[1]}


def test_every_weight_and_codebook_is_replaced_and_nothing_else(state):
  variables = _variables(state)
  found = train_state.with_variables(state, variables, '', OPTIMIZER, 'there')
  jax.tree.map(np.testing.assert_array_equal, found.params, variables['params'])
  np.testing.assert_array_equal(
      found.model_state['codebooks']['quantizer']['embeddings'],
      variables['codebooks']['quantizer']['embeddings'])
  assert int(found.step) == 0
  jax.tree.map(np.testing.assert_array_equal, found.rng, state.rng)
  jax.tree.map(np.testing.assert_array_equal, found.opt_state, state.opt_state)


def test_a_subtree_leaves_the_rest(state):
  whole = state.replace(params={'generator': state.params, 'discriminator': {'w': jnp.ones(3)}},
                        opt_state={})
  optimizer = optimizers.Optimizer(lambda params: {}, None, None)
  variables = _variables(state)
  found = train_state.with_variables(whole, variables, 'generator', optimizer, 'there')
  jax.tree.map(np.testing.assert_array_equal, found.params['generator'], variables['params'])
  np.testing.assert_array_equal(found.params['discriminator']['w'], np.ones(3))


def test_another_shape_and_other_tensors_are_named(state):
  variables = _variables(state)
  kernel = variables['params']['encoder']['first']['conv']['kernel']
  variables['params']['encoder']['first']['conv']['kernel'] = kernel[:3]
  with pytest.raises(errors.UserError, match='there: encoder/first/conv/kernel has shape .3, 1, 2.'):
    train_state.with_variables(state, variables, '', OPTIMIZER, 'there')
  del variables['codebooks']['quantizer']['counts']
  with pytest.raises(errors.UserError, match='there: its tensors are not those'):
    train_state.with_variables(state, variables, '', OPTIMIZER, 'there')


def test_a_collection_of_the_objective_stays(state):
  variables = _variables(state)
  state = state.replace(model_state=state.model_state | {'balancer': jnp.ones(2)})
  new = train_state.with_variables(state, variables, '', OPTIMIZER, 'there')
  np.testing.assert_array_equal(new.model_state['balancer'], 1)
