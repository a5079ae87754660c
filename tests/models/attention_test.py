"""Every implementation of attention is the same function, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.models import attention


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
    args = (shape(query), shape(key).swapaxes(-2, -1), shape(value), mask, bias[None], heads)
    same = lambda y: y
    for y in (attention.attention(*args, same), attention.chunked_attention(*args, same, 4),
              attention.fused_attention(*args)):
      assert y.shape == args[0].shape
      np.testing.assert_allclose(y.reshape(expected.shape), expected, atol=1e-5)


def test_splash_attention_and_its_gradients_are_those_of_causal_attention():
  """Interpreted, as there is no TPU; a length that is no multiple of the kernel's blocks."""
  batch, heads, length, dim = 2, 2, 200, 16
  rng = np.random.default_rng(0)
  query, key, value, pull = (
      jnp.asarray(x, jnp.float32) for x in rng.normal(size=(4, batch, heads, length, dim)))
  mask = np.tril(np.ones((length, length), bool))

  def plain(query, key, value):
    return attention.attention(
        query, jnp.swapaxes(key, 2, 3), value, mask, None, heads, lambda weights: weights)

  def splash(query, key, value):
    return attention.splash_attention(query, jnp.swapaxes(key, 2, 3), value)

  results = []
  for function in (plain, splash):
    y, back = jax.jit(lambda *args, f=function: jax.vjp(f, *args))(query, key, value)
    results.append((y, *back(pull)))
  for expected, got in zip(*results, strict=True):
    np.testing.assert_allclose(got, expected, atol=1e-5)
