"""Losses against numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import discriminators
from musiclm_jax.objectives import losses


def test_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]]]))
  targets, weights = jnp.array([[0, 2]]), jnp.array([[1.0, 3.0]])
  loss, weight = losses.cross_entropy(logits, targets, weights)
  np.testing.assert_allclose(loss, np.log(2.0) + 3.0 * np.log(10.0), rtol=1e-5)
  assert weight == 4.0


def test_z_loss_by_hand():
  logits = jnp.log(jnp.array([[[2.0, 2.0]]]))  # Z = 4
  loss, _ = losses.cross_entropy(logits, jnp.array([[0]]), jnp.ones((1, 1)), z_loss=0.5)
  np.testing.assert_allclose(loss, np.log(2.0) + 0.5 * np.log(4.0) ** 2, rtol=1e-5)


def test_cross_entropy_ignores_weightless_positions():
  logits = jax.random.normal(jax.random.key(0), (1, 3, 5))
  gradient = jax.grad(
      lambda x: losses.cross_entropy(x, jnp.zeros((1, 3), int), jnp.array([[0.0, 1.0, 0.0]]))[0]
  )(logits)
  assert (gradient[0, [0, 2]] == 0).all() and (gradient[0, 1] != 0).all()


def test_si_sdr_by_hand():
  target = jnp.array([[1.0, -1.0, 1.0, -1.0]])
  noise = jnp.array([[1.0, 1.0, -1.0, -1.0]])  # orthogonal, the same energy
  np.testing.assert_allclose(losses.si_sdr(target, target + 0.1 * noise), [20.0], atol=1e-3)
  np.testing.assert_allclose(losses.si_sdr(target, 5.0 * (target + 0.1 * noise)), [20.0], atol=1e-3)
  assert losses.si_sdr(target, noise)[0] < -50


def test_noise_shows_its_loudness_at_every_scale():
  noise = 0.1 * jax.random.normal(jax.random.key(0), (1, 48_000))
  for window in (64, 256, 2048):
    magnitudes = losses.SpectralScale(window).magnitudes(noise)[:, 8:-8]
    assert 0.07 < magnitudes.mean() < 0.11


def test_spectral_distance_of_a_halved_signal():
  x = 0.5 * jax.random.normal(jax.random.key(0), (1, 4096))
  scale = losses.SpectralScale(256, floor=1e-6)
  linear, log, decibels = losses.spectral_distance(x, 0.5 * x, scale)
  np.testing.assert_allclose(linear, 0.5 * scale.magnitudes(x).mean(), rtol=1e-3)
  np.testing.assert_allclose(log, np.log(2.0), rtol=1e-3)
  np.testing.assert_allclose(decibels, 6.02, atol=0.01)


@pytest.mark.parametrize('window', [64, 2048])
def test_spectral_distance_is_zero_for_equals_and_smooth_in_silence(window):
  scale = losses.SpectralScale(window)
  x = 0.1 * jax.random.normal(jax.random.key(0), (1, 4096))
  linear, log, decibels = losses.spectral_distance(x, x, scale)
  assert linear == 0 and log < 1e-3 and decibels == 0
  gradient = jax.grad(lambda y: losses.spectral_distance(x, y, scale)[1])(jnp.zeros_like(x))
  assert np.isfinite(gradient).all()


def _judgements(*logits, features=()):
  features = features or ((),) * len(logits)
  return [
      discriminators.Judgement(jnp.array(x), tuple(map(jnp.array, f)))
      for x, f in zip(logits, features, strict=True)
  ]


def test_discriminator_hinge_by_hand():
  real = _judgements([[2.0, 0.5]], [[-1.0]])
  fake = _judgements([[-3.0, 1.0]], [[0.0]])
  # First: real (0 + 0.5) / 2, fake (0 + 2) / 2; second: real 2, fake 1; mean of 1.25 and 3.
  assert losses.discriminator_hinge(real, fake) == pytest.approx((1.25 + 3.0) / 2)


def test_generator_hinge_by_hand():
  # max(0, 1 - D), not -D: a fake that passes with 2 earns nothing more.
  assert losses.generator_hinge(_judgements([[2.0, 0.5]], [[-1.0]])) == pytest.approx(
      (0.25 + 2.0) / 2
  )


def test_feature_matching_by_hand():
  real = _judgements([[0.0]], [[0.0]], features=([[1.0, 3.0], [0.0]], [[5.0]]))
  fake = _judgements([[9.0]], [[9.0]], features=([[2.0, 1.0], [0.5]], [[5.0]]))
  # Layers: (1 + 2) / 2, 0.5 and 0; the logits do not count.
  assert losses.feature_matching(real, fake) == pytest.approx((1.5 + 0.5 + 0.0) / 3)
