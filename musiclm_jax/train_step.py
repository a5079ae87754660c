"""L3. One step of training: loss and gradients, in parts when asked, the update, the average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from musiclm_jax import errors, partitioning, program_costs, train_state
from musiclm_jax.objectives import base

Step = Callable[[train_state.TrainState, base.Batch], tuple[train_state.TrainState, base.Metrics]]


def make_train_step(
    objective: base.Objective,
    optimizer: optax.GradientTransformation,
    wanted: train_state.TrainState,
    microbatches: int = 1,
    average_decay: float | None = None,
) -> Step:
  """Returns the jitted (state, batch) -> (state, metrics); the state given is used up.

  `wanted`: the state's shapes and shardings, see train_state.shapes.  Call it inside
  partitioning.activate.
  `microbatches`: parts that a batch is computed in, one after the other, their gradients added in
  float32: the memory of activations shrinks by as much, and the step is that of the whole batch.
  `average_decay`: see train_state.TrainState.average.
  """
  check_microbatches(objective, microbatches)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, wanted)

  def train_step(state, batch):
    (loss, (model_state, metrics)), gradients = _gradients(
        objective, state, batch, microbatches, shardings.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = dict(
        metrics,
        loss=loss,
        gradient_norm=optax.global_norm(gradients),
        parameter_norm=optax.global_norm(params),
    )
    if hasattr(optimizer, 'learning_rate'):
      metrics['learning_rate'] = optimizer.learning_rate(state.step)
    state = state.replace(
        step=state.step + 1, params=params, opt_state=opt_state, model_state=model_state,
        average=_average(state, params, average_decay),
    )
    return state, metrics

  outputs = (shardings, partitioning.replicated(wanted.step.sharding.mesh))
  return jax.jit(train_step, donate_argnums=0, out_shardings=outputs)


def model_flops(objective: base.Objective, wanted: train_state.TrainState, batch: base.Batch) -> int:
  """Returns the FLOPs of a step, of all devices: three times those of the forward pass."""
  forward = jax.make_jaxpr(objective.loss_fn)(
      wanted.params, wanted.model_state, batch, wanted.rng, wanted.step)
  return 3 * program_costs.flops(forward)


def check_microbatches(objective: base.Objective, microbatches: int) -> None:
  """Raises a UserError when a batch of this objective cannot be computed in parts."""
  if microbatches < 1:
    raise errors.UserError(f'microbatches is {microbatches}, wanted at least 1')
  if microbatches > 1 and not getattr(objective, 'loss_is_mean_over_examples', False):
    raise errors.UserError(
        f'microbatches is {microbatches}, wanted 1 with {objective.model_name}: its loss compares'
        ' the examples of a batch or keeps statistics of it')


def _gradients(objective, state, batch, microbatches: int, shardings: Any):
  """Returns ((loss, (model_state, metrics)), gradients) of a batch."""
  compute = jax.value_and_grad(objective.loss_fn, has_aux=True)
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  if microbatches == 1:
    return compute(state.params, state.model_state, batch, rng, state.step)

  def of_part(index, rows):
    (loss, (_, metrics)), gradients = compute(
        state.params, state.model_state, rows, jax.random.fold_in(rng, index), state.step)
    return (loss, metrics), jax.lax.with_sharding_constraint(gradients, shardings)

  def add(total, part):
    return jax.tree.map(jnp.add, total, of_part(*part)), None

  # Row i is in part i % microbatches: each device keeps the rows it has.
  parts = jax.tree.map(
      lambda x: jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1), batch)
  parts = (jnp.arange(microbatches), partitioning.shard_rows(parts, axis=1))
  zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(of_part, *jax.tree.map(lambda x: x[0], parts)))
  total, _ = jax.lax.scan(add, zeros, parts)
  (loss, metrics), gradients = jax.tree.map(lambda x: x / microbatches, total)
  return (loss, (state.model_state, metrics)), gradients


def _average(state: train_state.TrainState, params: Any, decay: float | None) -> Any:
  """Returns the average after this step: early ones count less, so that it follows at once."""
  if decay is None:
    return state.average
  decay = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
  return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), state.average, params)
