"""Every implementation of attention is the same function, gradients included."""

import re

import absent_gpus
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
              attention.fused_attention(*args), attention.fused_attention(*args, causal=True)):
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


# --- cuDNN's kernel, lowered for ----------------------------------------------------------------


def operands(length=10, dim=8, dtype=jnp.bfloat16, has_bias=False, batch=4, heads=2, parts=1):
  """Returns (query, key, value, bias) as a training step has them, of no values."""
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, dtype)
  bias = jax.ShapeDtypeStruct((parts, heads, length, length), jnp.float32) if has_bias else None
  return (shape(batch, heads, length, dim), shape(batch, heads, dim, length),
          shape(batch, heads, length, dim), bias)


def fused(query, key, value, bias, causal=True):
  mask = np.tril(np.ones((query.shape[2], key.shape[3]), bool))
  return attention.fused_attention(query, key, value, mask, bias, query.shape[1], causal)


def gradients(*args):
  places = tuple(i for i, each in enumerate(args) if each is not None)
  return jax.grad(lambda *args: jnp.sum(jnp.square(fused(*args).astype(jnp.float32))), places)(*args)


@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 1, 2)])
def test_training_on_nvidia_gpus_is_cudnns_kernel_on_each_device(monkeypatch, shape, has_bias):
  """Causal by its own flag: with a mask array its name would be that of a kernel with bias."""
  args = operands(has_bias=has_bias, parts=shape[0])
  with absent_gpus.mesh(monkeypatch, shape):
    forward = absent_gpus.cuda_text(fused, *args)
    both = absent_gpus.cuda_text(gradients, *args)
  name = 'ScaleBiasSoftmax' if has_bias else 'Softmax'
  assert absent_gpus.kernels(forward) == {name: 1}
  assert absent_gpus.kernels(both) == {name: 1, f'{name}Backward': 1}
  calls = [line for line in (forward + both).splitlines() if '@__cudnn$' in line]
  for call in calls:
    assert '"mask_type": "CAUSAL"' in call
    batch, heads = re.search(r'-> \(tensor<(\d+)x(\d+)x10x8xbf16>', call).groups()
    assert (int(batch), int(heads)) == (4 // shape[0], 2 // shape[2])
  # All of [T, T] in one array would be the logits.
  assert has_bias or 'x10x10x' not in forward + both


@pytest.mark.parametrize('change, place', [
    ({'dtype': jnp.float32}, {}), ({'dim': 12}, {}), ({'dim': 136}, {}),
    ({'has_bias': True, 'length': 9}, {}), ({}, {'kind': 'AMD Instinct MI300X'}),
    ({}, {'kind': 'cpu', 'platform': 'cpu'}), ({}, {'kind': 'TPU v5', 'platform': 'tpu'})])
def test_what_the_kernel_does_not_take_is_xlas(monkeypatch, change, place):
  with absent_gpus.mesh(monkeypatch, **place):
    text = absent_gpus.cuda_text(gradients, *operands(**change))
  assert '__cudnn' not in text and 'dot_general' in text


def test_other_masks_than_the_causal_one_are_xlas(monkeypatch):
  with absent_gpus.mesh(monkeypatch):
    text = absent_gpus.cuda_text(lambda *args: fused(*args, causal=False), *operands())
  assert '__cudnn' not in text and 'dot_general' in text
