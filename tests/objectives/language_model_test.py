"""The loss counts targets only, and both kinds of softmax learn a batch by heart."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax import errors, token_layout
from musiclm_jax.models import transformer
from musiclm_jax.objectives import language_model

LAYOUT = token_layout.TokenLayout(
    token_layout.TokenStream('mulan', 2, 4, 0), token_layout.TokenStream('semantic', 1, 8, 25),
    token_layout.TokenStream('acoustic', 4, 8, 50), coarse_levels=2)
OBJECTIVE = language_model.LanguageModelObjective(
    transformer.DecoderConfig(num_layers=1, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64,
                              dropout_rate=0.0, scan_layers=False, clock='time'),
    LAYOUT, 'coarse', 0.16)


def make_batch(objective, batch_size=4, seed=0):
  stage, rng = objective.stage_layout, np.random.default_rng(seed)
  codes = {s.name: rng.integers(0, s.codebook_size,
                                (batch_size, s.num_frames(stage.seconds), s.num_levels))
           for s in stage.streams}
  ids = stage.flatten(codes)
  bos = np.full((batch_size, 1), token_layout.BOS_ID)
  weights = np.arange(stage.sequence_length) >= stage.prefix_length
  return {'decoder_input_tokens': jnp.asarray(np.concatenate([bos, ids[:, :-1]], 1), jnp.int32),
          'decoder_target_tokens': jnp.asarray(ids),
          'decoder_loss_weights': jnp.asarray(np.broadcast_to(weights, ids.shape), jnp.float32)}


def test_init_and_shapes():
  batch = make_batch(OBJECTIVE)
  shapes = OBJECTIVE.input_shapes(4)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
      k: (v.shape, v.dtype) for k, v in shapes.items()}
  params, state = OBJECTIVE.init(jax.random.key(0), batch)
  assert state == {} and OBJECTIVE.config.vocab_size == 128 and OBJECTIVE.model_name == 'coarse'
  spec = nn.get_partition_spec(params)['layers_0']['mlp']['gate']
  assert tuple(spec) == ('embed', 'mlp')


@pytest.mark.parametrize('softmax', ['legal', 'full'])
def test_overfits_one_batch(softmax):
  objective = dataclasses.replace(OBJECTIVE, softmax=softmax)
  batch = make_batch(objective)
  params = nn.unbox(objective.init(jax.random.key(0), batch)[0])
  optimizer = optax.adam(1e-2)

  def step(carry, i):
    params, state = carry
    grads = jax.grad(lambda p: objective.loss_fn(p, {}, batch, jax.random.key(0), i)[0])(params)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(params, updates), state), None

  train = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), jnp.arange(150))[0][0])
  evaluate = jax.jit(lambda p: objective.eval_fn(p, {}, batch))
  before, after = evaluate(params), evaluate(train(params))
  floor = np.log(8 if softmax == 'legal' else 128)
  assert abs(before['loss'] / floor - 1) < 0.4
  assert after['loss'] < 0.1 and after['accuracy'] == 1
  levels = [after['loss_level_0'], after['loss_level_1']]
  np.testing.assert_allclose(np.mean(levels), after['loss'], rtol=1e-4)


@pytest.mark.parametrize('softmax', ['legal', 'full'])
def test_only_weighted_targets_count(softmax):
  objective = dataclasses.replace(OBJECTIVE, softmax=softmax, z_loss=0.0)
  batch = make_batch(objective)
  params = nn.unbox(objective.init(jax.random.key(0), batch)[0])
  loss = lambda batch: float(objective.loss_fn(params, {}, batch, jax.random.key(0), 0)[0])
  targets, start = batch['decoder_target_tokens'], objective.stage_layout.prefix_length
  other_prefix = batch | {'decoder_target_tokens': targets.at[:, :start].set(5)}
  assert loss(other_prefix) == loss(batch)
  # The second half of each row is PAD without weight: the loss is that of the first half.
  half = start + 8
  padded = batch | {'decoder_target_tokens': targets.at[:, half:].set(0),
                    'decoder_loss_weights': batch['decoder_loss_weights'].at[:, half:].set(0)}
  logits, codes, weights = objective._predict(params, padded, None)
  entropy = -np.take_along_axis(
      np.asarray(jax.nn.log_softmax(logits)), np.asarray(codes)[..., None], -1)[..., 0]
  np.testing.assert_allclose(loss(padded), entropy[np.asarray(weights) > 0].mean(), rtol=1e-5)


def test_condition_dropout_hides_the_music_tokens_of_that_share_of_examples():
  objective = dataclasses.replace(OBJECTIVE, condition_dropout=0.25)
  assert objective.export_extra['condition_dropout'] == 0.25
  batch = make_batch(objective, batch_size=512)
  tokens = np.asarray(batch['decoder_input_tokens'])
  found = objective._without_some_conditions(batch, jax.random.key(0))
  hidden = np.asarray(found['decoder_input_tokens'])
  music, rest = slice(1, 3), np.r_[0, 3:tokens.shape[1]]  # slot 0 is BOS
  np.testing.assert_array_equal(hidden[:, rest], tokens[:, rest])
  dropped = (hidden[:, music] == token_layout.MASK_ID).all(axis=1)
  np.testing.assert_array_equal(hidden[~dropped], tokens[~dropped])
  assert 0.18 < dropped.mean() < 0.32
  assert found['decoder_target_tokens'] is batch['decoder_target_tokens']


def test_melody_dropout_hides_all_of_it_or_some_of_its_windows():
  layout = dataclasses.replace(OBJECTIVE.layout, melody=token_layout.TokenStream(
      'melody', 2, 4, 1, window_seconds=1))
  objective = dataclasses.replace(OBJECTIVE, layout=layout, seconds=2, melody_dropout=0.4,
                                  config=transformer.DecoderConfig(num_layers=1))
  assert objective.export_extra['melody_dropout'] == 0.4
  assert 'melody_dropout' not in OBJECTIVE.export_extra
  batch = make_batch(objective, batch_size=512)
  tokens = np.asarray(batch['decoder_input_tokens'])
  hidden = np.asarray(objective._without_some_conditions(
      batch, jax.random.key(0))['decoder_input_tokens'])
  tune = slice(3, 7)  # after BOS and two levels of mulan: two windows of two levels
  np.testing.assert_array_equal(np.delete(hidden, tune, axis=1), np.delete(tokens, tune, axis=1))
  windows = (hidden[:, tune] == token_layout.MASK_ID).reshape(512, 2, 2)
  assert (windows[..., 0] == windows[..., 1]).all()  # both levels of a window, or none
  patterns = np.unique(windows[..., 0] @ [1, 2], return_counts=True)
  share = dict(zip(*patterns, strict=True))
  # Of 0.4: half all, and of the other half a quarter each of none, the first, the second, both.
  for pattern, wanted in ((0, 0.65), (1, 0.05), (2, 0.05), (3, 0.25)):
    assert abs(share[pattern] / 512 - wanted) < 0.06


def test_a_model_trained_with_all_conditions_hidden_ignores_them():
  """The loss of the objective uses the dropout: at a share near 1, conditions do not matter."""
  objective = dataclasses.replace(OBJECTIVE, condition_dropout=1 - 1e-9)
  one, other = make_batch(objective), make_batch(objective)
  tokens = one['decoder_input_tokens']
  other['decoder_input_tokens'] = tokens.at[:, 1:3].set(tokens[::-1, 1:3])
  params = nn.unbox(objective.init(jax.random.key(0), one)[0])
  loss = lambda o, batch: float(o.loss_fn(params, {}, batch, jax.random.key(0), 0)[0])
  assert loss(objective, one) == loss(objective, other)
  assert loss(OBJECTIVE, one) != loss(OBJECTIVE, other)


def test_condition_dropout_errors():
  with pytest.raises(errors.UserError, match='condition_dropout is 1.0, wanted 0 or more'):
    dataclasses.replace(OBJECTIVE, condition_dropout=1.0)
  with pytest.raises(errors.UserError, match='melody_dropout is -0.1, wanted 0 or more'):
    dataclasses.replace(OBJECTIVE, melody_dropout=-0.1)
  with pytest.raises(errors.UserError, match="stage fine has no stream 'mulan'"):
    dataclasses.replace(OBJECTIVE, stage='fine', condition_dropout=0.1)


def test_errors():
  with pytest.raises(errors.UserError, match="softmax is 'soft'"):
    dataclasses.replace(OBJECTIVE, softmax='soft')
  with pytest.raises(errors.UserError, match='vocab_size is 77, the coarse stage has 128 ids'):
    dataclasses.replace(OBJECTIVE, config=dataclasses.replace(OBJECTIVE.config, vocab_size=77))
  batch = {k: v[:, :5] for k, v in make_batch(OBJECTIVE).items()}
  with pytest.raises(errors.UserError, match='has 5 ids a row'):
    OBJECTIVE.eval_fn({}, {}, batch)
