"""Weights are shares of the gradient, whatever the scale of a loss."""

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.objectives import gradient_balancer

OUTPUT = jnp.array([[3.0, 0.0], [0.0, 4.0]])
DIRECTION = jnp.array([[3.0, 4.0], [3.0, 4.0]])


def _losses(scale):
  # Gradients: OUTPUT itself, of norms 3 and 4, and `scale` times rows of norm 5.
  return lambda x: {'a': 0.5 * jnp.sum(x**2), 'b': scale * jnp.sum(DIRECTION * x)}


def _balanced(scale, weights, state=None, decay=0.9):
  state = state or gradient_balancer.initial(weights)

  def surrogate(x):
    return gradient_balancer.balance(_losses(scale), x, weights, state, decay)

  (value, state), gradient = jax.value_and_grad(surrogate, has_aux=True)(OUTPUT)
  return value, gradient, state


def test_by_hand():
  value, gradient, state = _balanced(1.0, {'a': 1.0, 'b': 3.0})
  # The first step's average is the step's own norm: (3 + 4) / 2 and 5.
  want = 0.25 * OUTPUT / 3.5 + 0.75 * DIRECTION / 5.0
  np.testing.assert_allclose(gradient, want, rtol=1e-5)
  assert value == 0
  np.testing.assert_allclose(state['norms']['a'] / state['weight'], 3.5, rtol=1e-5)


def test_scale_of_a_loss_does_not_matter():
  weights = {'a': 1.0, 'b': 1.0}
  small, large = (_balanced(scale, weights)[1] for scale in (1e-3, 1e3))
  np.testing.assert_allclose(small, large, rtol=1e-4)


def test_norms_are_moving_averages():
  weights = {'a': 1.0, 'b': 1.0}
  _, _, state = _balanced(1.0, weights)
  _, _, state = _balanced(2.0, weights, state)
  # decay 0.9: 0.9 * 0.1 * 5 + 0.1 * 10 over 0.9 * 0.1 + 0.1
  np.testing.assert_allclose(state['norms']['b'] / state['weight'], 1.45 / 0.19, rtol=1e-5)


def test_a_loss_without_weight_is_left_out():
  _, gradient, _ = _balanced(1.0, {'a': 1.0, 'b': 0.0})
  np.testing.assert_allclose(gradient, OUTPUT / 3.5, rtol=1e-5)


def test_a_loss_without_gradient_harms_nothing():
  weights = {'a': 1.0, 'b': 1.0}
  _, gradient, _ = _balanced(0.0, weights)
  np.testing.assert_allclose(gradient, 0.5 * OUTPUT / 3.5, rtol=1e-5)


def test_parameters_inside_the_losses_get_no_gradient():
  def outer(p):
    losses = lambda x: {'a': p * jnp.sum(x**2)}
    state = gradient_balancer.initial({'a': 1.0})
    return gradient_balancer.balance(losses, OUTPUT, {'a': 1.0}, state)[0]

  assert jax.grad(outer)(2.0) == 0
