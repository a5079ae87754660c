"""The codec's objective: it overfits, its gradient reaches the encoder, its state moves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.models import soundstream
from musiclm_jax.objectives import base
from musiclm_jax.objectives.soundstream import SoundStreamObjective

CONFIG = soundstream.SoundStreamConfig(
    channels=8,
    strides=(4, 5),
    channel_multipliers=(2, 4),
    dilations=((1,), (1, 3)),
    dim=16,
    num_quantizers=4,
    codebook_size=32,
    decay=0.9,
    dead_code_threshold=0.1,
    kmeans_iterations=2,
)
OBJECTIVE = SoundStreamObjective(
    CONFIG, seconds=0.1, spectral_windows=(64, 256), waveform_weight=10.0
)


def _batch():
  time = jnp.arange(OBJECTIVE.num_samples) / 24_000
  pitches = jnp.array([[220.0], [330.0], [440.0], [600.0]])
  tone = sum(jnp.sin(2 * jnp.pi * k * pitches * time) / k for k in (1, 2, 3))
  return {'waveform': 0.2 * tone * jnp.exp(-10 * time)}


@pytest.fixture(scope='module')
def trained():
  """Eighty steps on one batch, from which the tests below read."""
  batch = _batch()
  params, state = nn.unbox(OBJECTIVE.init(jax.random.key(0), batch))
  optimizer = optax.adam(3e-3)
  optimizer_state = optimizer.init(params)

  @jax.jit
  def train_step(params, state, optimizer_state, step):
    rng = jax.random.fold_in(jax.random.key(1), step)
    (_, (state, metrics)), gradients = jax.value_and_grad(OBJECTIVE.loss_fn, has_aux=True)(
        params, state, batch, rng, step
    )
    updates, optimizer_state = optimizer.update(gradients, optimizer_state)
    return optax.apply_updates(params, updates), state, optimizer_state, metrics, gradients

  history = []
  structure = jax.tree.structure(state)
  for step in range(80):
    params, state, optimizer_state, metrics, gradients = train_step(
        params, state, optimizer_state, step
    )
    history.append(jax.device_get(metrics))
    if step == 1:
      first_gradients = gradients
  assert jax.tree.structure(state) == structure
  return params, state, history, first_gradients


def test_is_an_objective():
  assert isinstance(OBJECTIVE, base.Objective)
  assert OBJECTIVE.input_shapes(3)['waveform'].shape == (3, 2400)


def test_overfits_one_batch(trained):
  _, _, history, _ = trained
  first, last = history[0], history[-1]
  assert last['loss'] < 0.5 * first['loss']
  assert last['waveform'] < 0.6 * first['waveform']
  assert last['mel_distance'] < 0.7 * first['mel_distance']


def test_gradient_reaches_every_parameter(trained):
  gradients = jax.tree.leaves_with_path(trained[3])
  still = [jax.tree_util.keystr(path) for path, g in gradients if not np.any(g)]
  assert not still


def test_codebooks_stay_in_use(trained):
  _, state, history, _ = trained
  assert state['codebooks']['quantizer']['initialized']
  assert history[-1]['perplexity_min'] > 8


def test_all_levels_beat_half_of_them(trained):
  params, state, _, _ = trained
  metrics = jax.jit(OBJECTIVE.eval_fn)(params, state, _batch())
  assert metrics['si_sdr'] > metrics['si_sdr_half']
  assert metrics['mel_distance'] < metrics['mel_distance_half']


def test_media_are_pairs(trained):
  params, state, _, _ = trained
  media = OBJECTIVE.media_fn(params, state, _batch())
  assert set(media) == {'original', 'reconstruction'}
  for kind, audio, rate in media.values():
    assert kind == 'audio' and audio.shape == (4, 2400) and rate == 24_000


def test_window_weights_by_hand():
  objective = SoundStreamObjective(CONFIG, spectral_windows=(8, 32))
  assert objective.window_weights() == pytest.approx([2 / 3, 4 / 3])  # alphas 2 and 4, mean 1
  even = SoundStreamObjective(CONFIG, spectral_windows=(8, 32), window_weighting='even')
  assert even.window_weights() == [1.0, 1.0]


def test_unknown_window_weighting_lists_the_known():
  objective = SoundStreamObjective(CONFIG, window_weighting='loud')
  with pytest.raises(ValueError, match="'loud', wanted 'paper' or 'even'"):
    objective.window_weights()


def test_loss_is_the_weighted_sum():
  objective = SoundStreamObjective(
      CONFIG, linear_weight=1.0, log_weight=2.0, waveform_weight=3.0, commitment_weight=4.0
  )
  terms = {'linear': 1.0, 'log': 10.0, 'waveform': 100.0, 'commitment': 1000.0, 'mel_distance': 9}
  assert objective.total(terms) == 1.0 + 20.0 + 300.0 + 4000.0
