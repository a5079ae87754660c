"""L2. Everything that changes from one training step to the next, as one plain pytree."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from musiclm_jax import errors, partitioning
from musiclm_jax.objectives import base


class TrainState(flax.struct.PyTreeNode):
  """State after `step` steps; what a training checkpoint holds besides the data position.

  step: int32[], number of steps taken.
  params: plain tree (no axis boxes) of the model's parameters.
  opt_state: optax state.
  model_state: collections that the loss updates itself, as EMA codebooks; {} when there are none.
  average: moving average of the parameters, {} when none is kept: over about 1 / (1 - decay) steps,
    as in Polyak and Juditsky (1992); the decay of step n is at most (1 + n) / (10 + n).
  rng: uint32[2]; step `n` draws from fold_in(rng, n), so randomness needs no other state.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  model_state: Any
  average: Any
  rng: jax.Array

  @property
  def trained(self) -> Any:
    """Returns what evaluation and the exported model take: the average, or the parameters."""
    return self.average or self.params


def shapes(
    objective: base.Objective,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    mesh: Mesh,
    averages: bool = False,
) -> TrainState:
  """Returns the state as ShapeDtypeStructs that carry their sharding; nothing is computed."""
  key = jax.random.key(0)
  batch = objective.input_shapes(batch_size)
  boxed, _ = jax.eval_shape(objective.init, key, batch)
  abstract = jax.eval_shape(_init(objective, optimizer, batch_size, averages), 0)
  params = partitioning.param_shardings(boxed, mesh)
  whole = partitioning.replicated(mesh)
  shardings = TrainState(
      step=whole,
      params=params,
      opt_state=partitioning.like_params(abstract.opt_state, abstract.params, params, mesh),
      model_state=jax.tree.map(lambda _: whole, abstract.model_state),
      average=params if averages else {},
      rng=whole,
  )
  return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      abstract,
      shardings,
  )


def create(
    objective: base.Objective,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    seed: int,
    wanted: TrainState,
) -> TrainState:
  """Returns the state at step 0, each device making only its own part (`wanted`: see shapes)."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, wanted)
  averages = bool(wanted.average)
  # Outside partitioning.activate: linen makes some kernels flat first, which names do not fit.
  return jax.jit(_init(objective, optimizer, batch_size, averages), out_shardings=shardings)(seed)


def with_variables(
    state: TrainState,
    variables: dict[str, Any],
    subtree: str,
    optimizer: optax.GradientTransformation,
    where: str,
) -> TrainState:
  """Returns `state` with a model's variables, {'params': ..., **model_state}, in place of its own.

  With `subtree`, the model is that top-level key of the parameters and the others stay; so does a
  collection that the model has not, which is the objective's own.  The optimizer starts anew.
  `where` names the model in the error raised when it does not fit.
  """
  params = variables['params']
  model_state = state.model_state | {k: tree for k, tree in variables.items() if k != 'params'}
  old = (state.params, state.model_state)
  new = (state.params | {subtree: params} if subtree else params, model_state)
  if jax.tree.structure(old) != jax.tree.structure(new):
    raise errors.UserError(f'{where}: its tensors are not those of the model to train')

  def put(path, leaf, value):
    if leaf.shape != value.shape:
      raise errors.UserError(
          f'{where}: {jax.tree_util.keystr(path[1:], simple=True, separator="/")} has shape'
          f' {value.shape}, the model to train wants {leaf.shape}'
      )
    return jax.device_put(value, leaf.sharding)

  params, model_state = jax.tree_util.tree_map_with_path(put, old, new)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)
  opt_state = jax.jit(optimizer.init, out_shardings=shardings)(params)
  average = jax.tree.map(jnp.copy, params) if state.average else {}
  return state.replace(params=params, model_state=model_state, opt_state=opt_state, average=average)


def num_params(state: TrainState) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def _init(objective, optimizer, batch_size, averages):
  def init(seed):
    key = jax.random.PRNGKey(seed)
    batch = {
        name: jnp.zeros(shape.shape, shape.dtype)
        for name, shape in objective.input_shapes(batch_size).items()
    }
    boxed, model_state = objective.init(jax.random.fold_in(key, 1), batch)
    params = nn.unbox(boxed)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        model_state=nn.unbox(model_state),
        average=params if averages else {},
        rng=jax.random.fold_in(key, 2),
    )

  return init
