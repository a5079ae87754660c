"""L2. Weights of losses as shares of the gradient.  Axes: B batch.

A loss's pull on a model follows the scale of its gradient, which nobody chose.  The balancer takes
the gradient of each loss with respect to the model's output, divides it by a moving average of its
norm, and adds them with weights that sum to 1: a weight is then a share (EnCodec, arXiv 2210.13438,
section 3.4; SoundStream itself has fixed weights).
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Losses = Mapping[str, jax.Array]


def initial(names) -> dict[str, dict[str, jax.Array]]:
  """Returns the state before the first step: {'norms': {name: f32[]}, 'weight': f32[]}."""
  return {'norms': {name: jnp.zeros(()) for name in sorted(names)}, 'weight': jnp.zeros(())}


def balance(
    losses_fn: Callable[[jax.Array], Losses],
    output: jax.Array,
    weights: Mapping[str, float],
    state: dict,
    decay: float = 0.999,
) -> tuple[jax.Array, dict]:
  """Returns (surrogate f32[], new state).

  The surrogate is 0, and its gradient with respect to `output` f32[B, ...] is the balanced one.
  Norms are means over the examples.  `losses_fn` must give every name of `weights`; it sees the
  output as a constant, so nothing else is differentiated through it.
  """
  names = sorted(name for name, weight in weights.items() if weight)
  total = sum(weights[name] for name in names)
  constant = jax.lax.stop_gradient(output)
  values, pull = jax.vjp(lambda x: [losses_fn(x)[name] for name in names], constant)
  norms, balanced = {}, jnp.zeros_like(output)
  weight = decay * state['weight'] + (1.0 - decay)
  for i, name in enumerate(names):
    (gradient,) = pull([jnp.ones_like(v) if i == j else jnp.zeros_like(v)
                        for j, v in enumerate(values)])  # fmt: skip
    axes = tuple(range(1, gradient.ndim))
    norm = jnp.mean(jnp.sqrt(jnp.sum(jnp.square(gradient), axis=axes)))
    norms[name] = decay * state['norms'][name] + (1.0 - decay) * norm
    balanced += weights[name] / total * gradient / (norms[name] / weight + 1e-12)
  balanced = jax.lax.stop_gradient(balanced)
  surrogate = jnp.sum(balanced * output)
  state = {'norms': state['norms'] | norms, 'weight': weight}
  return surrogate - jax.lax.stop_gradient(surrogate), jax.lax.stop_gradient(state)
