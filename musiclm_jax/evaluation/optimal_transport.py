"""L5. How far a histogram of codes is from another.  Axes: B pairs, N tokens, S bins, K codes.

Entropic optimal transport, Sinkhorn's iterations in the log domain (Cuturi 2013; Peyre and Cuturi
2019, section 4.4), batched on the device.  Empty bins are left out: a sequence of N tokens has at
most N others.

  tokens [[7 7 9] [4 4 4]] -> ids [[7 9 0 ..] [4 0 ..]], mass [[2/3 1/3 0 ..] [1 0 ..]]
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import errors

_BINS = 16  # bins are filled up to a multiple, so that few shapes are compiled
_PAIRS = 128  # pairs at a time, always: bounds memory, and few shapes are compiled
_COOLING = 0.9  # of the regularisation, an iteration, until it is the wanted one


@dataclasses.dataclass(frozen=True)
class Sinkhorn:
  """What a transport plan is weighed by, and when it is good enough.

  regularisation: weight of the plan's entropy, as a share of the mean distance of two codes. The
    plan costs at most regularisation * min(entropies of the two, in nats) mean distances more than
    the cheapest one.
  tolerance: mass that a plan may put into other bins than it should.
  max_iterations: after so many a plan is taken as it is, and counted.
  """

  regularisation: float = 0.01
  tolerance: float = 1e-3
  max_iterations: int = 2000

  def __post_init__(self):
    for name in ('regularisation', 'tolerance'):
      if not 0 < getattr(self, name) < float('inf'):
        raise errors.UserError(f'{name} is {getattr(self, name)}, wanted more than 0')
    if self.max_iterations < 1:
      raise errors.UserError(f'max_iterations is {self.max_iterations}, wanted at least 1')


def distances(centroids: np.ndarray) -> np.ndarray:
  """Returns float32[K, K], the Euclidean distances of float[K, D]."""
  centroids = np.asarray(centroids, np.float64)
  lengths = np.square(centroids).sum(axis=1)
  squared = lengths[:, None] + lengths[None] - 2 * centroids @ centroids.T
  np.fill_diagonal(squared, 0.0)
  return np.sqrt(np.maximum(squared, 0.0)).astype(np.float32)


def mean_distance(distance: np.ndarray) -> float:
  """Returns the mean of float32[K, K] over pairs of different codes; an error when it is 0."""
  size = len(distance)
  mean = float(np.asarray(distance, np.float64).sum()) / max(size * (size - 1), 1)
  if not 0 < mean < float('inf'):
    raise errors.UserError(f'the mean distance of {size} centroids is {mean}, wanted more than 0')
  return mean


def histograms(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (int32[B, S] codes, float32[B, S] their shares) of int[B, N]; left over bins hold 0."""
  tokens = np.asarray(tokens)
  found = [np.unique(row, return_counts=True) for row in tokens]
  size = -(-max(len(ids) for ids, _ in found) // _BINS) * _BINS
  ids, mass = np.zeros((len(tokens), size), np.int32), np.zeros((len(tokens), size), np.float32)
  for row, (codes, counts) in enumerate(found):
    ids[row, :len(codes)], mass[row, :len(codes)] = codes, counts / tokens.shape[1]
  return ids, mass


def entropy(mass: np.ndarray) -> np.ndarray:
  """Returns float64[B], the entropies in bits of shares float[B, S]."""
  mass = np.asarray(mass, np.float64)
  return np.maximum(-np.sum(mass * np.log2(np.where(mass > 0, mass, 1.0)), axis=1), 0.0)


def costs(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray],
          distance: np.ndarray, how: Sinkhorn = Sinkhorn()) -> tuple[np.ndarray, np.ndarray]:
  """Returns (float32[B] cost of transport, bool[B] within the tolerance) of pairs of histograms.

  The cost is the mean distance that mass goes, without the entropy, in the units of `distance`.
  A pair's does not depend on the pairs beside it.

  Args:
    first, second: (ids int[B, S], mass float[B, S]), as `histograms` returns them.
    distance: float32[K, K] of codes.
  """
  scale = mean_distance(distance)
  table = jnp.asarray(distance / scale, jnp.float32)
  run = functools.partial(
      _costs, table, regularisation=jnp.float32(how.regularisation),
      tolerance=jnp.float32(how.tolerance), max_iterations=jnp.int32(how.max_iterations))
  found, good = [], []
  for start in range(0, len(first[0]), _PAIRS):
    part = [array[start:start + _PAIRS] for array in (*first, *second)]
    count = len(part[0])
    rows = np.minimum(np.arange(_PAIRS), count - 1)  # filled up: one program for a number of bins
    cost, converged = run(*(array[rows] for array in part))
    found.append(np.asarray(cost)[:count] * np.float32(scale))
    good.append(np.asarray(converged)[:count])
  return np.concatenate(found), np.concatenate(good)


@jax.jit
def _costs(table, first_ids, first, second_ids, second, *, regularisation, tolerance,
           max_iterations):
  cost = table[first_ids[:, :, None], second_ids[:, None, :]]  # [B, S, S']
  log_first, log_second = jnp.log(first)[:, :, None], jnp.log(second)[:, None, :]  # -inf: empty
  hottest = jnp.maximum(jnp.max(table), regularisation)

  def step(state):
    number, f, g, error = state
    heat = jnp.maximum(hottest * _COOLING ** number.astype(jnp.float32), regularisation)
    new_f = -heat * jax.nn.logsumexp(log_second + (g[:, None, :] - cost) / heat, axis=2)
    new_g = -heat * jax.nn.logsumexp(log_first + (new_f[:, :, None] - cost) / heat, axis=1)
    # The rows of the plan of (f, g) hold first * exp((f - new_f) / heat); its columns are exact.
    wrong = jnp.abs(jnp.expm1((f - new_f) / heat))
    new_error = jnp.sum(jnp.where(first > 0, first * wrong, 0.0), axis=1)
    new_error = jnp.where(heat > regularisation, jnp.inf, new_error)
    done = error <= tolerance
    keep = lambda old, new: jnp.where(done[:, None], old, new)
    return number + 1, keep(f, new_f), keep(g, new_g), jnp.where(done, error, new_error)

  def goes_on(state):
    number, _, _, error = state
    return (number < max_iterations) & jnp.any(error > tolerance)

  start = (jnp.int32(0), jnp.zeros_like(first), jnp.zeros_like(second),
           jnp.full(first.shape[:1], jnp.inf))
  _, f, g, error = jax.lax.while_loop(goes_on, step, start)
  plan = jnp.exp(log_first + log_second + (f[:, :, None] + g[:, None, :] - cost) / regularisation)
  return jnp.sum(plan * cost, axis=(1, 2)), error <= tolerance
