"""L2. Optimizers: AdamW and Adafactor with a schedule, clipping and a weight-decay mask."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from musiclm_jax import errors

Schedule = Callable[[Any], Any]


class Optimizer(NamedTuple):
  """An optax transformation that also tells its learning rate; usable wherever optax's is."""

  init: Callable[..., Any]
  update: Callable[..., Any]
  learning_rate: Schedule


def warmup_cosine(
    peak: float, warmup_steps: int, total_steps: int, final_fraction: float = 0.0
) -> Schedule:
  """Returns a schedule: linear from 0 to `peak`, then half a cosine to `final_fraction * peak`."""
  warmup_steps = min(warmup_steps, total_steps)

  def schedule(step):
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
    return peak * _warmup(step, warmup_steps) * (final_fraction + (1 - final_fraction) * cosine)

  return schedule


def inverse_sqrt(peak: float, warmup_steps: int) -> Schedule:
  """Returns a schedule: linear from 0 to `peak`, then `peak * sqrt(warmup_steps / step)`."""

  def schedule(step):
    later = jnp.sqrt(max(1, warmup_steps) / jnp.maximum(step, max(1, warmup_steps)))
    return peak * _warmup(step, warmup_steps) * later

  return schedule


def constant(value: float, warmup_steps: int = 0) -> Schedule:
  """Returns a schedule: linear from 0 to `value`, then `value`."""
  return lambda step: value * _warmup(step, warmup_steps)


def _warmup(step, warmup_steps):
  """Returns f32[] in (0, 1]: 1/n, 2/n, ... 1, so that the first step already learns."""
  return jnp.minimum(1.0, (step + 1) / max(1, warmup_steps))


def adamw(
    learning_rate: Schedule | float,
    b1: float = 0.9,
    b2: float = 0.98,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    max_grad_norm: float | None = 1.0,
) -> Optimizer:
  """Returns AdamW; gradients are first clipped to a global norm of `max_grad_norm`."""
  schedule = _as_schedule(learning_rate)
  return _chain(
      schedule,
      max_grad_norm,
      optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask),
  )


def adafactor(
    learning_rate: Schedule | float,
    decay_rate: float = 0.8,
    momentum: float | None = None,
    multiply_by_parameter_scale: bool = True,
    weight_decay_rate: float | None = None,
    max_grad_norm: float | None = 1.0,
) -> Optimizer:
  """Returns Adafactor, whose second moments of a matrix take one row and one column."""
  schedule = _as_schedule(learning_rate)
  return _chain(
      schedule,
      max_grad_norm,
      optax.adafactor(
          schedule,
          decay_rate=decay_rate,
          momentum=momentum,
          multiply_by_parameter_scale=multiply_by_parameter_scale,
          weight_decay_rate=weight_decay_rate,
          weight_decay_mask=decay_mask,
      ),
  )


def frozen() -> Optimizer:
  """Returns an optimizer that moves nothing, weight decay included."""
  nothing = optax.set_to_zero()
  return Optimizer(nothing.init, nothing.update, constant(0.0))


def by_subtree(subtrees: Mapping[str, Optimizer]) -> Optimizer:
  """Returns one optimizer per subtree of params, named by its path ('': all); the longest wins.

    {'discriminators': a, 'generator': b, 'generator/encoder': frozen()}

  Each clips the gradients of its own subtrees.  The learning rate it tells is the first one's.
  """
  subtrees = dict(subtrees)

  def owner(path, _):
    keys = [str(getattr(key, 'key', key)) for key in path]
    found = [name for name in subtrees if not name or name.split('/') == keys[: name.count('/') + 1]]
    return max(found, key=len, default='/'.join(keys))

  def labels(params):
    tree = jax.tree_util.tree_map_with_path(owner, params)
    used = set(jax.tree.leaves(tree))
    if used != set(subtrees):
      raise errors.UserError(
          f'optimizers for {sorted(subtrees)} do not match the parameters {sorted(params)}:'
          f' {min(used ^ set(subtrees))} is on one side only')
    return tree

  parts = {key: optax.GradientTransformation(o.init, o.update) for key, o in subtrees.items()}
  joined = optax.partition(parts, labels)
  return Optimizer(joined.init, joined.update, next(iter(subtrees.values())).learning_rate)


def decay_mask(params: Any) -> Any:
  """Returns a tree of bools: True where weight decay acts, on matrices and larger.

  {'dense': {'kernel': f32[4, 8], 'bias': f32[8]}} -> {'dense': {'kernel': True, 'bias': False}}.
  Biases and norm scales stay free also when a scan over layers stacked them to 2-d.
  """

  def decays(path, leaf):
    return leaf.ndim > 1 and getattr(path[-1], 'key', None) not in ('bias', 'scale')

  return jax.tree_util.tree_map_with_path(decays, params)


def _as_schedule(learning_rate):
  return learning_rate if callable(learning_rate) else constant(learning_rate)


def _chain(schedule, max_grad_norm, optimizer):
  clip = [optax.clip_by_global_norm(max_grad_norm)] if max_grad_norm else []
  chain = optax.chain(*clip, optimizer)
  return Optimizer(chain.init, chain.update, schedule)
