"""Layers against numpy, and T5's buckets written out."""

import jax
import jax.numpy as jnp
import numpy as np

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


def test_attention_equals_numpy_in_all_three_ways_and_both_shapes():
  batch, length, heads, dim = 2, 6, 3, 4
  rng = np.random.default_rng(0)
  query, key, value = rng.normal(size=(3, batch, length, heads, dim)).astype(np.float32)
  bias = rng.normal(size=(heads, length, length)).astype(np.float32)
  mask = np.tril(np.ones((length, length), bool))
  logits = np.einsum('bthd,bshd->bhts', query, key) / np.sqrt(dim) + bias
  weights = np.exp(logits) * mask
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum('bhts,bshd->bthd', weights, value)

  expected = expected.transpose(0, 2, 1, 3)
  apart = lambda y: jnp.asarray(y.transpose(0, 2, 1, 3))
  merged = lambda y: apart(y).reshape(batch * heads, length, dim)  # as in the cache
  for shape in (apart, merged):
    args = (shape(query), shape(key).swapaxes(-2, -1), shape(value), mask, bias, heads)
    same = lambda y: y
    for y in (layers.attention(*args, same), layers.chunked_attention(*args, same, 4),
              layers.fused_attention(*args)):
      assert y.shape == args[0].shape
      np.testing.assert_allclose(y.reshape(expected.shape), expected, atol=1e-5)
