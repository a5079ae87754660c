"""Layers against numpy, and T5's buckets written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import layers


def test_one_sided_buckets():
  distance = -jnp.arange(20)
  buckets = layers.relative_buckets(distance, 8, 16, bidirectional=False)
  np.testing.assert_array_equal(
      buckets, [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7])
  assert layers.relative_buckets(jnp.array(5), 8, 16, bidirectional=False) == 0  # ahead: masked


def test_two_sided_buckets():
  buckets = layers.relative_buckets(jnp.array([-9, -2, -1, 0, 1, 2, 9]), 8, 16, True)
  np.testing.assert_array_equal(buckets, [3, 2, 1, 0, 5, 6, 7])


def test_rotary_product_depends_on_distance_only():
  query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  product = lambda i, j: jnp.vdot(layers.rotate(query, jnp.array([i]), 100.0),
                                  layers.rotate(key, jnp.array([j]), 100.0))
  np.testing.assert_allclose(product(7, 3), product(104, 100), rtol=1e-4)
  assert abs(product(7, 3) - product(7, 4)) > 1e-3
  np.testing.assert_array_equal(layers.rotate(query, jnp.array([0]), 100.0), query)


def test_rms_norm():
  x = jnp.array([[3.0, 4.0]])
  y, _ = layers.RMSNorm(epsilon=0.0).init_with_output(jax.random.key(0), x)
  np.testing.assert_allclose(y, x / np.sqrt(12.5), rtol=1e-6)


@pytest.mark.parametrize('dtype, limit', [('float32', 1e-5), ('bfloat16', 0.02), ('int8', 0.03)])
@pytest.mark.parametrize('rows', [1, 5])
def test_served_weights_give_the_product(dtype, limit, rows):
  rng = np.random.default_rng(0)
  x, weights = rng.normal(size=(rows, 64)), rng.normal(size=(64, 48)) * np.geomspace(0.1, 10, 48)
  got = layers.served_product(jnp.asarray(x), layers.served(jnp.asarray(weights.T), dtype))
  expected = x @ weights
  assert got.shape == expected.shape and got.dtype == jnp.float32
  assert np.abs(got - expected).max(axis=0).max() < 4 * limit * np.abs(expected).max()
  error = np.sqrt(np.mean((got - expected) ** 2, 0) / np.mean(expected ** 2, 0))  # of each output
  assert np.median(error) < limit
