"""Transport: Sinkhorn's cost goes to that of an exact linear program; histograms and entropies by hand."""

import math

import numpy as np
import pytest
import scipy.optimize

from musiclm_jax import errors
from musiclm_jax.evaluation import optimal_transport

CENTROIDS = np.random.default_rng(3).normal(size=(32, 4)).astype(np.float32)


def linear_program(cost, first, second):
  """Returns the cost of the cheapest plan float[S, S'] between two histograms."""
  rows, columns = cost.shape
  sums = np.concatenate([np.kron(np.eye(rows), np.ones(columns)),
                         np.kron(np.ones(rows), np.eye(columns))])
  done = scipy.optimize.linprog(cost.ravel(), A_eq=sums, b_eq=np.concatenate([first, second]))
  assert done.status == 0
  return done.fun


@pytest.fixture(scope='module')
def pairs():
  """Returns two histograms of five sequences each, every one of a distribution of its own."""
  rng = np.random.default_rng(0)
  shares = rng.dirichlet(np.full(32, 0.3), size=(2, 5))
  return [optimal_transport.histograms([rng.choice(32, 12, p=p) for p in side]) for side in shares]


def test_sinkhorn_goes_to_the_linear_program(pairs):
  distance = optimal_transport.distances(CENTROIDS)
  first, second = pairs
  exact = np.array([
      linear_program(np.float64(distance[np.ix_(a[m > 0], b[n > 0])]), m[m > 0], n[n > 0])
      for a, m, b, n in zip(*first, *second, strict=True)])
  entropy = np.minimum(*(math.log(2) * optimal_transport.entropy(mass) for _, mass in pairs))
  mean, gaps = optimal_transport.mean_distance(distance), []
  for regularisation in (0.3, 0.03, 0.003):
    how = optimal_transport.Sinkhorn(regularisation, tolerance=1e-4, max_iterations=20_000)
    cost, converged = optimal_transport.costs(first, second, distance, how)
    assert converged.all()
    gaps.append(cost - exact)
    slack = how.tolerance * distance.max()
    assert np.all(gaps[-1] >= -slack) and np.all(gaps[-1] <= regularisation * mean * entropy + slack)
  assert np.all(gaps[0] > 5 * gaps[1]) and gaps[0].min() > 0.01
  np.testing.assert_allclose(gaps[2], 0, atol=1e-3 * mean)


def test_transport_by_hand():
  """Of one code to another it is their distance; half of the mass goes half as far."""
  distance = np.array([[0, 1, 4], [1, 0, 3], [4, 3, 0]], np.float32)
  first = optimal_transport.histograms([[0, 0, 0, 0], [0, 0, 1, 1], [2, 1, 0, 2]])
  second = optimal_transport.histograms([[2, 2, 2, 2], [0, 0, 2, 2], [2, 2, 1, 0]])
  cost, _ = optimal_transport.costs(first, second, distance)
  np.testing.assert_allclose(cost, [4, 1.5, 0], atol=1e-3)


def test_a_pair_does_not_depend_on_the_others(pairs):
  distance = optimal_transport.distances(CENTROIDS)
  together, _ = optimal_transport.costs(*pairs, distance)
  alone, _ = optimal_transport.costs(*([part[3:4] for part in side] for side in pairs), distance)
  np.testing.assert_allclose(alone, together[3:4], rtol=1e-5)
  many = [[np.tile(part, (27, 1)) for part in side] for side in pairs]  # 135: two batches
  np.testing.assert_allclose(
      optimal_transport.costs(*many, distance)[0], np.tile(together, 27), rtol=1e-5)
  hurried = optimal_transport.Sinkhorn(max_iterations=2)
  assert not optimal_transport.costs(*pairs, distance, hurried)[1].any()


def test_histograms_and_entropy_by_hand():
  ids, mass = optimal_transport.histograms([[7, 7, 9, 9], [4, 4, 4, 4], [3, 5, 3, 3]])
  assert ids.shape == mass.shape == (3, 16)
  np.testing.assert_array_equal(ids[:, :2], [[7, 9], [4, 0], [3, 5]])
  np.testing.assert_array_equal(mass[:, :3], [[0.5, 0.5, 0], [1, 0, 0], [0.75, 0.25, 0]])
  wanted = [1.0, 0.0, 2 - 0.75 * math.log2(3)]
  np.testing.assert_allclose(optimal_transport.entropy(mass), wanted, rtol=1e-6)


def test_distances_of_equal_centroids_are_an_error():
  with pytest.raises(errors.UserError, match='mean distance of 3 centroids is 0'):
    optimal_transport.mean_distance(optimal_transport.distances(np.ones((3, 2))))
  for wrong in ({'regularisation': 0}, {'tolerance': math.nan}, {'max_iterations': 0}):
    with pytest.raises(errors.UserError, match=f'{next(iter(wrong))} is'):
      optimal_transport.Sinkhorn(**wrong)
