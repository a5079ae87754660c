"""Schedules by hand-worked numbers, clipping, and which parameters decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax import errors, optimizers


def values(schedule, steps):
  return [pytest.approx(float(schedule(jnp.asarray(step))), rel=1e-5) for step in steps]


def test_warmup_cosine_rises_then_falls_to_the_final_fraction():
  schedule = optimizers.warmup_cosine(2.0, warmup_steps=4, total_steps=12, final_fraction=0.1)
  assert values(schedule, [0, 1, 3, 4, 8, 12, 99]) == [0.5, 1.0, 2.0, 2.0, 1.1, 0.2, 0.2]


def test_warmup_longer_than_the_run_still_works():
  schedule = optimizers.warmup_cosine(1.0, warmup_steps=1000, total_steps=2)
  assert values(schedule, [0, 1]) == [0.5, 1.0]


def test_inverse_sqrt():
  schedule = optimizers.inverse_sqrt(1.0, warmup_steps=4)
  assert values(schedule, [0, 3, 4, 16, 400]) == [0.25, 1.0, 1.0, 0.5, 0.1]


def test_constant():
  assert values(optimizers.constant(0.3), [0, 7]) == [0.3, 0.3]
  assert values(optimizers.constant(0.4, warmup_steps=4), [0, 3, 9]) == [0.1, 0.4, 0.4]


PARAMS = {
  'dense': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)},
  'stacked': {'norm': {'scale': jnp.ones((4, 3))}, 'mlp': {'kernel': jnp.ones((4, 3, 3))}},
}


def test_decay_mask_leaves_vectors_biases_and_norms():
  assert optimizers.decay_mask(PARAMS) == {
    'dense': {'kernel': True, 'bias': False},
    'stacked': {'norm': {'scale': False}, 'mlp': {'kernel': True}},
  }


@pytest.mark.parametrize('factory', [optimizers.adamw, optimizers.adafactor])
def test_weight_decay_acts_where_the_mask_says(factory):
  name = 'weight_decay' if factory is optimizers.adamw else 'weight_decay_rate'
  optimizer = factory(0.1, **{name: 0.5})
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
  assert float(jnp.abs(updates['dense']['bias']).max()) == 0
  assert float(jnp.abs(updates['stacked']['norm']['scale']).max()) == 0
  assert float(updates['dense']['kernel'].max()) < 0
  assert float(updates['stacked']['mlp']['kernel'].max()) < 0


def test_gradients_are_clipped_to_a_global_norm():
  sgd = optax.sgd(1.0)
  chain = optimizers._chain(optimizers.constant(1.0), 1.0, sgd)
  gradients = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  updates, _ = chain.update(gradients, chain.init(gradients))
  np.testing.assert_allclose([updates['a'][0], updates['b'][0]], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize('factory', [optimizers.adamw, optimizers.adafactor])
def test_a_quadratic_is_minimised(factory):
  optimizer = factory(optimizers.warmup_cosine(0.1, 5, 200))
  target = jnp.linspace(-1, 1, 6).reshape(2, 3)

  @jax.jit
  def step(carry, _):
    params, state = carry
    gradients = jax.grad(lambda p: jnp.sum((p['w'] - target) ** 2))(params)
    updates, state = optimizer.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), None

  params = {'w': jnp.full((2, 3), 0.5)}
  (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
  assert float(jnp.abs(params['w'] - target).max()) < 0.1


def test_subtrees_get_their_own_optimizer():
  params = {'a': jnp.ones(2), 'b': jnp.ones(2)}
  optimizer = optimizers.by_subtree(
    {'a': optimizers.adamw(1.0, weight_decay=0), 'b': optimizers.adamw(0.0, weight_decay=0)}
  )
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  assert float(updates['a'][0]) != 0 and float(updates['b'][0]) == 0
  assert float(optimizer.learning_rate(0)) == 1.0
  with pytest.raises(errors.UserError, match="'a', 'c'"):
    optimizer.init({'a': jnp.ones(2), 'c': jnp.ones(2)})


def test_the_longest_path_wins_and_frozen_moves_nothing():
  params = {'a': {'b': {'w': jnp.ones((2, 2))}, 'c': jnp.ones(2)}, 'ab': jnp.ones(2)}
  optimizer = optimizers.by_subtree(
    {'': optimizers.adamw(1.0), 'a/b': optimizers.frozen(), 'ab': optimizers.adamw(2.0)}
  )
  updates, _ = optimizer.update(params, optimizer.init(params), params)  # with weight decay
  np.testing.assert_array_equal(updates['a']['b']['w'], 0)
  # Each clips its own gradients: beside a huge one, the others still take a full first step.
  np.testing.assert_allclose(updates['a']['c'], -1.0, rtol=1e-3)
  np.testing.assert_allclose(updates['ab'], -2.0, rtol=1e-3)
  with pytest.raises(errors.UserError, match='a/d is on one side only'):
    optimizers.by_subtree({'': optimizers.adamw(1.0), 'a/d': optimizers.frozen()}).init(params)
