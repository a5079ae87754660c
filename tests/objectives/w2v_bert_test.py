"""w2v-BERT's losses against numpy and hand numbers; one batch can be learned."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.models import w2v_bert as models
from musiclm_jax.objectives import w2v_bert as objectives

TINY = models.W2vBertConfig(
    num_mels=16, conv_channels=4, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64,
    contrastive_layers=1, prediction_layers=1, feature_layer=1, num_groups=1, num_codes=16,
    code_dim=16)


def test_distractors_are_other_masked_frames():
  mask = jnp.array([[0, 1, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]], bool)
  drawn = objectives.sample_distractors(jax.random.key(0), mask, 200)
  assert drawn.shape == (3, 6, 200)
  assert set(np.unique(drawn[0, 2])) == {1, 4}
  assert set(np.unique(drawn[0, 4])) == {1, 2}
  assert set(np.unique(drawn[1, 0])) == {2}
  assert set(np.unique(drawn[2, 3])) == {3}  # alone: itself, which carries its own code
  assert abs((drawn[0, 2] == 1).mean() - 0.5) < 0.15


def test_contrastive_logits_equal_numpy():
  rng = np.random.default_rng(0)
  context, quantized = rng.normal(size=(2, 2, 5, 4)).astype(np.float32)
  codes = np.array([[[0], [1], [2], [1], [4]], [[0], [0], [2], [3], [4]]])
  distractors = rng.integers(0, 5, (2, 5, 3))
  logits = objectives.contrastive_logits(
      jnp.asarray(context), jnp.asarray(quantized), jnp.asarray(codes), jnp.asarray(distractors),
      0.1)
  for b in range(2):
    for t in range(5):
      for k, other in enumerate([t, *distractors[b, t]]):
        a, q = context[b, t], quantized[b, other]
        wanted = a @ q / np.linalg.norm(a) / np.linalg.norm(q) / 0.1
        if k and codes[b, other, 0] == codes[b, t, 0]:
          wanted = -np.inf
        np.testing.assert_allclose(logits[b, t, k], wanted, rtol=1e-4)


def test_diversity_loss_by_hand():
  uniform = jnp.full((2, 3, 2, 4), 0.25)
  assert objectives.diversity_loss(uniform) == pytest.approx(0.0, abs=1e-5)
  collapsed = jnp.zeros((2, 3, 1, 4)).at[..., 0].set(1.0)
  assert objectives.diversity_loss(collapsed) == pytest.approx(1 - 1 / 4, abs=1e-5)
  # One group over two codes evenly, one collapsed: 1 - (2 + 1) / 2 / 4. Frames are averaged first.
  mixed = jnp.zeros((1, 2, 2, 4)).at[0, 0, 0, 0].set(1.0).at[0, 1, 0, 3].set(1.0)
  mixed = mixed.at[:, :, 1, 2].set(1.0)
  assert objectives.diversity_loss(mixed) == pytest.approx(1 - 1.5 / 4, abs=1e-5)


def test_losses_by_hand():
  # One clip, three frames, the first two masked; each other's only distractor.
  codes = jnp.array([[[0], [1], [0]]])
  outputs = models.Outputs(
      context=jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]),
      quantized=jnp.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]),
      code_probs=jax.nn.one_hot(codes, 2),
      chosen=codes,
      codes=codes,
      logits=jnp.log(jnp.array([[[[0.75, 0.25]], [[0.9, 0.1]], [[0.5, 0.5]]]])),
      mask=jnp.array([[True, True, False]]),
  )
  objective = objectives.W2vBertObjective(
      dataclasses.replace(TINY, num_codes=2), num_distractors=2, contrastive_temperature=1.0,
      alpha=0.1, beta=2.0, gamma=3.0)
  metrics = objective.losses(outputs, jax.random.key(0))
  e = math.e
  contrastive = -(math.log(e / (e + 2)) + math.log(1 / (1 + 2 * e))) / 2
  masked = -(math.log(0.75) + math.log(0.1)) / 2
  share = (2 / 3, 1 / 3)
  perplexity = math.exp(-sum(p * math.log(p) for p in share))
  assert metrics['contrastive'] == pytest.approx(contrastive, rel=1e-4)
  assert metrics['masked_prediction'] == pytest.approx(masked, rel=1e-4)
  assert metrics['code_perplexity'] == pytest.approx(perplexity, rel=1e-4)
  assert metrics['diversity'] == pytest.approx(1 - perplexity / 2, rel=1e-4)
  assert metrics['contrastive_chance'] == pytest.approx(math.log(3), rel=1e-4)
  assert metrics['contrastive_accuracy'] == 0.5
  assert metrics['masked_accuracy'] == 0.5
  assert metrics['loss'] == pytest.approx(
      2 * (contrastive + 0.1 * (1 - perplexity / 2)) + 3 * masked, rel=1e-4)


def test_distractors_with_the_same_noisy_target_do_not_count():
  """The noise decides which vector is the target, so it decides too which distractors are equal."""
  model = models.W2vBert(dataclasses.replace(TINY, num_codes=4))
  waveform = _waveform()
  rngs = {name: jax.random.key(i) for i, name in enumerate(('params', 'mask', 'quantizer'))}
  outputs, _ = model.init_with_output(rngs, waveform, 2.0)
  chosen, codes = np.asarray(outputs.chosen), np.asarray(outputs.codes)
  assert (chosen != codes).any()
  for code in np.unique(chosen):
    same = np.asarray(outputs.quantized)[(chosen == code).all(-1)]
    np.testing.assert_allclose(same, np.broadcast_to(same[:1], same.shape), atol=1e-5)


def test_temperature_schedule():
  objective = objectives.W2vBertObjective(TINY, gumbel_steps=100)
  temperature = [float(objective.gumbel_temperature(step)) for step in (0, 50, 100, 1000)]
  np.testing.assert_allclose(temperature, [2.0, 1.0, 0.5, 0.5], rtol=1e-5)


def _waveform():
  """Returns f32[4, 48000]: a different melody of eight notes in each clip."""
  time = np.arange(48_000) / 24_000
  notes = np.random.default_rng(0).integers(48, 84, (4, 8)).repeat(6_000, 1)
  return jnp.asarray(0.3 * np.sin(2 * np.pi * 440 * 2 ** ((notes - 69) / 12) * time), jnp.float32)


def _objective(**changes) -> objectives.W2vBertObjective:
  """With spans that two seconds have room for."""
  config = dataclasses.replace(TINY, mask_span=3, **changes)
  return objectives.W2vBertObjective(
      config, seconds=2.0, num_distractors=20, gumbel_steps=200, collapse_after=100)


@functools.cache
def _learner(objective):
  """Returns (optimizer, a compiled step on one batch, in which the weight beta is an argument)."""
  optimizer, batch = optax.adam(3e-3), {'waveform': _waveform()}

  @jax.jit
  def update(params, state, step, beta):
    rng = jax.random.fold_in(jax.random.key(1), step)
    gradient, (_, metrics) = jax.grad(
        dataclasses.replace(objective, beta=beta).loss_fn, has_aux=True)(params, {}, batch, rng, step)
    change, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, change), state, metrics

  return optimizer, update


def _learn(objective, beta, steps):
  """Returns (params, metrics of the last step, what the guard said at each)."""
  optimizer, update = _learner(objective)
  params, model_state = objective.init(jax.random.key(0), {'waveform': _waveform()})
  assert model_state == {}
  params, said = nn.unbox(params), []
  state = optimizer.init(params)
  for step in range(steps):
    params, state, metrics = update(params, state, step, beta)
    said.append(objective.check_metrics(step, metrics))
  return params, metrics, said


@pytest.mark.parametrize('codes', [
    {},  # the paper's: the quantizer codes what the encoder makes and both learn
    {'quantizer_input': 'mel', 'quantizer_gradient': 0.0},  # those of gin/models/w2v_bert_tiny.gin
], ids=['encoded', 'mel'])
def test_overfits_one_batch_and_evaluates_deterministically(codes):
  objective, batch = _objective(**codes), {'waveform': _waveform()}
  assert objective.input_shapes(4)['waveform'].shape == batch['waveform'].shape
  evaluate = jax.jit(lambda params: objective.eval_fn(params, {}, batch))
  first = evaluate(_learn(objective, 1.0, 1)[0])
  params, metrics, said = _learn(objective, 1.0, 250)
  last, again = evaluate(params), evaluate(params)
  jax.tree.map(np.testing.assert_array_equal, last, again)
  assert set(last) == set(metrics) - {'gumbel_temperature'}
  assert last['loss'] < 0.4 * first['loss']
  assert last['masked_accuracy'] > 0.7
  assert last['contrastive_accuracy'] > 0.7
  assert last['code_perplexity'] > 2.5  # not by collapsing the codes
  assert said[-1] is None


def test_without_the_contrastive_loss_the_guard_fires():
  _, metrics, said = _learn(_objective(), 0.0, 150)
  assert metrics['masked_prediction'] < 2.0  # it did learn, of 16 codes
  assert set(said[:100]) == {None}
  assert 'contrastive' in said[-1] and 'blind guess' in said[-1]


def test_what_the_guard_says():
  objective = objectives.W2vBertObjective(TINY, collapse_after=100)
  well = {'code_perplexity': 9.0, 'masked_accuracy': 0.5, 'contrastive': 2.0, 'contrastive_chance': 3.0}
  assert objective.check_metrics(100, well) is None
  for changes, wanted in (
      ({'code_perplexity': 1.5}, 'code_perplexity 1.50 of 16 codes, wanted at least 2'),
      ({'masked_accuracy': 0.99}, 'masked_accuracy 0.990 with code_perplexity 9.00, wanted at most 0.98'),
      ({'contrastive': 2.99}, 'contrastive 2.990 where a blind guess has 3.000, wanted at most 0.98 '
                              'of that')):
    assert objective.check_metrics(100, well | changes) == wanted
    assert objective.check_metrics(99, well | changes) is None
    assert dataclasses.replace(objective, collapse_after=None).check_metrics(
        100, well | changes) is None
