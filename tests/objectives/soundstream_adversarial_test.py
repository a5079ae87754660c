"""The codec's adversarial side: who learns from what, warm-up, balance, denoising, a frozen encoder."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax import optimizers
from musiclm_jax.models import discriminators, soundstream
from musiclm_jax.objectives import base, gradient_balancer, losses
from musiclm_jax.objectives.soundstream import SoundStreamObjective

CONFIG = soundstream.SoundStreamConfig(
    channels=4, strides=(4, 5), channel_multipliers=(2, 4), dilations=((1,), (1,)), dim=8,
    num_quantizers=3, codebook_size=16, decay=0.9, dead_code_threshold=0.1, kmeans_iterations=2,
)  # fmt: skip
JUDGES = discriminators.DiscriminatorsConfig(
    wave_scales=2, wave_channels=4, wave_max_channels=8, wave_group_size=8, stft_window=128,
    stft_hop=32, stft_channels=2,
)  # fmt: skip
OBJECTIVE = SoundStreamObjective(
    CONFIG, JUDGES, seconds=0.05, spectral_windows=(64, 256), waveform_weight=10.0,
    adversarial_weight=1.0, feature_weight=2.0,
)  # fmt: skip
# No term of the generator has a weight, or each has the same.
SILENT, LOUD = (
    dict.fromkeys([f'{name}_weight' for name in OBJECTIVE.weights], weight)
    | {'adversarial_start_step': 0}
    for weight in (0.0, 1.0)
)


def _batch(objective=OBJECTIVE):
  time = jnp.arange(objective.num_samples) / 24_000
  waveform = 0.3 * jnp.sin(2 * jnp.pi * jnp.array([[220.0], [330.0], [440.0], [600.0]]) * time)
  # A whistle, at the frame rate of 1200 Hz: a codec of few codes can keep it.
  noise = jnp.broadcast_to(0.2 * jnp.sin(2 * jnp.pi * 1_200.0 * time), waveform.shape)
  return {name: {'waveform': waveform, 'noise': noise}[name] for name in objective.input_shapes(4)}


@functools.partial(jax.jit, static_argnums=0)
def _loss_and_gradient(objective, params, state, step, fields):
  """Returns ((loss, (state, metrics)), gradients); number `fields` are traced: one compilation."""
  objective = dataclasses.replace(objective, **fields)
  rng = jax.random.fold_in(jax.random.key(1), step)
  loss_fn = jax.value_and_grad(objective.loss_fn, has_aux=True)
  return loss_fn(params, state, _batch(objective), rng, step)


@pytest.fixture(scope='module')
def started():
  """Returns (params, model_state) after the codebooks found their start."""
  params, state = nn.unbox(jax.jit(OBJECTIVE.init)(jax.random.key(0), _batch()))
  return params, _loss_and_gradient(OBJECTIVE, params, state, 0, SILENT)[0][1][0]


def _norm(tree):
  return float(optax.global_norm(tree))


def test_is_an_objective_whose_generator_is_exported(started):
  assert isinstance(OBJECTIVE, base.Objective) and OBJECTIVE.export_subtree == 'generator'
  assert set(started[0]) == {'generator', 'discriminators'}
  assert dataclasses.replace(OBJECTIVE, discriminator=None).export_subtree == ''


def test_discriminators_learn_from_their_hinge_only(started):
  params, state = started
  silent = _loss_and_gradient(OBJECTIVE, params, state, 1, SILENT)
  loud = _loss_and_gradient(OBJECTIVE, params, state, 1, LOUD)
  # The generator's terms, weighted or not, leave the discriminators' gradient alone ..
  jax.tree.map(np.testing.assert_array_equal, silent[1]['discriminators'], loud[1]['discriminators'])
  # .. and their hinge loss, all that is left without weights, leaves the generator alone.
  assert _norm(silent[1]['discriminators']) > 0 and _norm(loud[1]['generator']) > 0
  assert _norm(silent[1]['generator']) == 0
  (loss, (_, metrics)), _ = silent
  assert loss == metrics['discriminator'] > 0


@pytest.mark.parametrize('term', ['adversarial', 'feature'])
def test_each_adversarial_term_reaches_the_encoder(term, started):
  gradient = _loss_and_gradient(OBJECTIVE, *started, 1, SILENT | {f'{term}_weight': 1.0})[1]
  assert _norm(gradient['generator']['encoder']) > 0


def test_before_the_start_step_only_the_generator_learns(started):
  fields = LOUD | {'adversarial_start_step': 5}
  (_, (_, before)), gradient = _loss_and_gradient(OBJECTIVE, *started, 4, fields)
  assert _norm(gradient['discriminators']) == 0 and before['discriminator'] == 0
  assert before['adversarial'] == before['feature'] == 0
  (_, (_, after)), gradient = _loss_and_gradient(OBJECTIVE, *started, 5, fields)
  assert _norm(gradient['discriminators']) > 0 and after['adversarial'] > 0


def test_a_hundred_steps_stay_finite_and_learn(started):
  params, state = started
  optimizer = optimizers.by_subtree(
      {name: optimizers.adamw(2e-3, b1=0.5, weight_decay=0.0) for name in params})
  fields = LOUD | {'waveform_weight': 10.0}
  update = jax.jit(optimizer.update)
  moments, history = optimizer.init(params), []
  for step in range(1, 101):
    (_, (state, metrics)), gradients = _loss_and_gradient(OBJECTIVE, params, state, step, fields)
    updates, moments = update(gradients, moments, params)
    params = optax.apply_updates(params, updates)
    history.append(jax.device_get(metrics))
  assert np.isfinite([list(m.values()) for m in history]).all()
  assert history[-1]['waveform'] < 0.6 * history[0]['waveform']
  assert history[-1]['discriminator'] < 2.0  # undecided, it is 2


def test_a_frozen_encoder_and_its_codebooks_do_not_move(started):
  params, state = started
  objective = dataclasses.replace(
      OBJECTIVE, train_encoder=False, discriminator=None, seconds=0.02, spectral_windows=(64,))
  generator = params['generator']
  optimizer = optimizers.by_subtree({
      '': optimizers.adamw(1e-2), 'encoder': optimizers.frozen(),
  })  # fmt: skip
  (_, (after, _)), gradient = _loss_and_gradient(objective, generator, state, 1, {})
  assert _norm(gradient['encoder']) == 0 < _norm(gradient['decoder'])
  jax.tree.map(np.testing.assert_array_equal, after, state)
  updates, _ = optimizer.update(gradient, optimizer.init(generator), generator)  # weight decay, too
  assert _norm(updates['encoder']) == 0 < _norm(updates['decoder'])


def test_a_frozen_encoder_has_a_frozen_film(started):
  """What tells the encoder's side of the quantizer to denoise is part of what makes the tokens."""
  config = dataclasses.replace(CONFIG, denoising='encoder')
  objective = dataclasses.replace(
      OBJECTIVE, config=config, train_encoder=False, discriminator=None, seconds=0.02,
      spectral_windows=(64,))
  film = {'dense': {'kernel': jnp.ones((2, 2 * CONFIG.dim))}}
  params = started[0]['generator'] | {'film': film}
  gradient = _loss_and_gradient(objective, params, started[1], 1, {})[1]
  assert _norm(gradient['encoder']) == _norm(gradient['film']) == 0 < _norm(gradient['decoder'])


def test_balanced_weights_are_shares(started):
  params, state = started
  objective = dataclasses.replace(
      OBJECTIVE, balance_gradients=True, discriminator=None, seconds=0.02, spectral_windows=(64,))
  names = ('linear', 'log', 'waveform')  # all but the commitment, which is not of the output
  state = state | {'balancer': gradient_balancer.initial(names)}
  small, large = (
      _loss_and_gradient(
          dataclasses.replace(
              objective, linear_weight=scale, log_weight=2.0 * scale, waveform_weight=3.0 * scale,
              commitment_weight=0.0),
          params['generator'], state, 1, {})
      for scale in (1.0, 100.0)
  )  # fmt: skip
  assert jax.tree.structure(small[0][1][0]) == jax.tree.structure(state)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), small[1], large[1])
  # The value shown stays the plain weighted sum.
  metrics = small[0][1][1]
  want = metrics['linear'] + 2.0 * metrics['log'] + 3.0 * metrics['waveform']
  np.testing.assert_allclose(small[0][0], want, rtol=1e-5)


def test_denoising_targets_by_hand():
  config = dataclasses.replace(CONFIG, denoising='encoder')
  objective = dataclasses.replace(OBJECTIVE, config=config, noise_gain_db=(-20.0, -20.0))
  assert set(objective.input_shapes(4)) == {'waveform', 'noise'}
  waveform, noise = jnp.zeros((64, 8)), jnp.ones((64, 8))
  batch = {'waveform': waveform, 'noise': noise}
  heard, target, denoise = objective._examples(batch, jax.random.key(0))
  noisy = np.abs(heard[:, 0]) > 0
  np.testing.assert_allclose(heard[noisy], 0.1, rtol=1e-5)  # -20 dB
  # All four kinds occur; what is to be denoised has a clean target, the rest is to be kept.
  assert {(bool(a), bool(b)) for a, b in zip(noisy, denoise, strict=True)} == {
      (a, b) for a in (True, False) for b in (True, False)}  # fmt: skip
  np.testing.assert_array_equal(target, np.where(denoise[:, None], waveform, heard))


def test_losses_compare_with_the_clean_target(started, monkeypatch):
  """Distances and discriminators are given the target, never the noisy input."""
  config = dataclasses.replace(CONFIG, denoising='decoder')
  objective = dataclasses.replace(OBJECTIVE, config=config, seconds=0.02)
  generator, state = started[0]['generator'], started[1]
  film = {'dense': {'kernel': jnp.zeros((2, 2 * CONFIG.dim))}}
  batch, rng = _batch(objective), jax.random.key(6)
  heard, target, _ = objective._examples(batch, jax.random.fold_in(rng, 1))
  assert np.abs(heard - target).max() > 1e-3
  seen = []

  def all_terms(self, params, target, reconstruction, step):
    seen.append(target)
    return {}

  monkeypatch.setattr(SoundStreamObjective, '_all_terms', all_terms)
  objective.loss_fn({'generator': generator | {'film': film}}, state, batch, rng, 1)
  np.testing.assert_array_equal(seen[0], target)


@pytest.mark.parametrize('side', ['encoder', 'decoder'])
def test_one_codec_learns_to_keep_the_noise_and_to_take_it_out(side):
  """Trained on tones with a whistle in them, it gives what the flag asks for."""
  config = dataclasses.replace(CONFIG, denoising=side, codebook_size=64, quantizer_dropout=False)
  objective = SoundStreamObjective(
      config, seconds=0.05, spectral_windows=(64, 256), waveform_weight=20.0,
      noise_gain_db=(0.0, 0.0))  # fmt: skip
  params, state = nn.unbox(jax.jit(objective.init)(jax.random.key(0), _batch(objective)))
  optimizer = optimizers.adamw(5e-3, weight_decay=0.0)

  @jax.jit
  def train(params, state, moments):
    def step(carry, i):
      params, state, moments = carry
      (_, (state, _)), gradients = _loss_and_gradient(objective, params, state, i, {})
      updates, moments = optimizer.update(gradients, moments, params)
      return (optax.apply_updates(params, updates), state, moments), None

    return jax.lax.scan(step, (params, state, moments), jnp.arange(300))[0]

  params, state, _ = train(params, state, optimizer.init(params))
  batch = _batch(objective)
  metrics = jax.jit(objective.eval_fn)(params, state, batch)
  noisy = batch['waveform'] + batch['noise']
  kept, cleaned = (
      objective.model.apply({'params': params, **state}, noisy, denoise=jnp.full(4, flag))[0]
      for flag in (False, True))
  ratio = lambda target, x: float(losses.si_sdr(target, x).mean())
  assert ratio(batch['waveform'], cleaned) > ratio(batch['waveform'], kept) + 5.0
  assert ratio(noisy, kept) > ratio(noisy, cleaned) + 5.0
  np.testing.assert_allclose(
      metrics['si_sdr_denoised'], ratio(batch['waveform'], cleaned), rtol=1e-3)
