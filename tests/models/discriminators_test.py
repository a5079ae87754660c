"""The discriminators: shapes and size of the paper's, finite, and every part of them has a vote."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import discriminators

CONFIG = discriminators.DiscriminatorsConfig(
    wave_channels=4, wave_max_channels=16, stft_window=128, stft_hop=32, stft_channels=2
)


def _model(config):
  return discriminators.Discriminators(config)


def test_paper_shapes_and_size():
  config = discriminators.DiscriminatorsConfig()
  waveform = jax.ShapeDtypeStruct((2, 72_000), jnp.float32)
  model = _model(config)
  variables = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), waveform))
  judgements = jax.eval_shape(model.apply, variables, waveform)
  # Waves: S / 4^4 at full, half and quarter rate; STFT: 1 + S / 256 frames, halved three times.
  assert [j.logits.shape for j in judgements] == [(2, 282), (2, 141), (2, 71), (2, 36)]
  *waves, stft = judgements
  for wave in waves:
    assert [f.shape[-1] for f in wave.features] == [16, 64, 256, 1024, 1024, 1024]
  assert [f.shape[1:] for f in stft.features] == [
      (282, 512, 32), (282, 256, 64), (141, 128, 128), (141, 64, 128), (71, 32, 256),
      (71, 16, 256), (36, 8, 512),
  ]  # fmt: skip
  # Grouped convolutions: each output channel sees 4 inputs.
  kernels = variables['params']['wave0']
  assert [kernels[f'conv{i}']['kernel'].shape for i in (1, 3)] == [(41, 4, 64), (41, 4, 1024)]
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 22_461_444


def test_judges_are_finite_and_hear_the_waveform():
  waveform = jax.random.normal(jax.random.key(0), (2, 2_000)) * 0.1
  variables = jax.jit(_model(CONFIG).init)(jax.random.key(1), waveform)
  means = lambda x: jnp.stack([j.logits.mean() for j in _model(CONFIG).apply(variables, x)])
  gradients = jax.jit(jax.jacrev(means))
  assert np.isfinite(gradients(jnp.zeros_like(waveform))).all()
  heard = np.abs(gradients(waveform)).max(axis=(1, 2))
  assert heard.shape == (4,) and (heard > 0).all()


def test_scales_see_the_waveform_halved():
  """A tone above half the rate's Nyquist frequency is all but gone at the second scale."""
  config = dataclasses.replace(CONFIG, wave_scales=2)
  time = np.arange(4_096)
  low, high = (0.5 * np.sin(2 * np.pi * f * time)[None] for f in (0.02, 0.45))
  variables = jax.jit(_model(config).init)(jax.random.key(1), low)

  @jax.jit
  def loudness(x):
    return [jnp.abs(j.features[0]).mean() for j in _model(config).apply(variables, x)[:2]]

  assert loudness(high)[1] < 0.35 * loudness(low)[1]


@pytest.mark.parametrize('fields, wanted', [
    ({'stft_window': 1000}, 'stft_window is 1000, wanted a multiple of 128'),
    ({'wave_channels': 6}, 'wave_channels is 6, wanted a multiple or a part of wave_group_size, 4'),
])
def test_sizes_that_do_not_fit_are_named(fields, wanted):
  with pytest.raises(ValueError, match=wanted):
    discriminators.DiscriminatorsConfig(**fields)
