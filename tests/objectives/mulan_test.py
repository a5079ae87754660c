import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax import errors
from musiclm_jax.models import mulan as models
from musiclm_jax.models import resnet, spectrogram
from musiclm_jax.objectives import mulan

ENCODER = models.EncoderConfig(num_layers=1, emb_dim=32, num_heads=2, mlp_dim=64, dropout_rate=0.0)
TINY = models.MulanConfig(
    resnet=resnet.ResNetConfig(stage_sizes=(1, 1), widths=(8, 16), expansion=2, stem_width=8),
    text=models.TextConfig(encoder=ENCODER, vocab_size=50, max_length=12),
    mel=spectrogram.MelConfig(sample_rate=16_000, n_fft=512, win_length=400, hop_length=400,
                              num_mels=16),
    time_mask_frames=4, mel_mask_bands=2)
OBJECTIVE = mulan.MulanObjective(config=TINY, seconds=1.0, text_length=8)

# Rows are clips, columns captions; temperature 1.
SIMILARITY = jnp.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.4], [0.5, 0.6, 0.7]])


def test_cmc_equals_numbers_worked_by_hand():
  # Clip 0: e^.9 over its row e^.1 + e^.2 and its column e^.3 + e^.5, and so on.
  denominators = [
      np.exp([0.1, 0.2, 0.3, 0.5]).sum(),  # 5.325154
      np.exp([0.3, 0.4, 0.1, 0.6]).sum(),  # 5.768973
      np.exp([0.5, 0.6, 0.2, 0.4]).sum(),  # 6.184068
  ]
  np.testing.assert_allclose(denominators, [5.325154, 5.768973, 6.184068], rtol=1e-6)
  want = np.mean(np.log(denominators) - [0.9, 0.8, 0.7])  # 0.948971
  np.testing.assert_allclose(want, 0.948971, atol=1e-6)
  np.testing.assert_allclose(mulan.contrastive_loss(SIMILARITY, 1.0), want, rtol=1e-6)


def test_infonce_equals_numbers_worked_by_hand():
  exp = np.exp(np.asarray(SIMILARITY))
  positive = np.diagonal(exp)
  want = -(np.log(positive / exp.sum(1)) + np.log(positive / exp.sum(0))).mean() / 2
  np.testing.assert_allclose(mulan.contrastive_loss(SIMILARITY, 1.0, 'infonce'), want, rtol=1e-6)


def test_temperature_divides_the_similarity():
  for loss in mulan.LOSSES:
    np.testing.assert_allclose(mulan.contrastive_loss(SIMILARITY, 0.5, loss),
                               mulan.contrastive_loss(2 * SIMILARITY, 1.0, loss), rtol=1e-6)


@pytest.mark.parametrize('loss', mulan.LOSSES)
def test_masked_pairs_do_not_count(loss):
  negatives = jnp.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], bool)  # clips 0 and 1: same caption
  masked = mulan.contrastive_loss(SIMILARITY, 1.0, loss, negatives)
  moved = SIMILARITY.at[0, 1].set(5.0).at[1, 0].set(-5.0)
  np.testing.assert_allclose(mulan.contrastive_loss(moved, 1.0, loss, negatives), masked, rtol=1e-6)
  grad = jax.grad(lambda s: mulan.contrastive_loss(s, 1.0, loss, jnp.zeros((3, 3), bool)))
  assert np.isfinite(grad(SIMILARITY)).all()  # every caption the same


def test_recall():
  everyone = jnp.ones((3, 3), bool)
  similarity = jnp.array([[0.9, 0.1, 0.2], [0.9, 0.8, 0.4], [0.8, 0.9, 0.7]])
  np.testing.assert_allclose(mulan.recall(similarity, 1, everyone), 1 / 3)
  np.testing.assert_allclose(mulan.recall(similarity, 2, everyone), 2 / 3)
  np.testing.assert_allclose(mulan.recall(similarity, 3, everyone), 1.0)
  not_the_first = everyone.at[1, 0].set(False)
  np.testing.assert_allclose(mulan.recall(similarity, 1, not_the_first), 2 / 3)
  assert float(mulan.recall(jnp.zeros((9, 9)), 1, jnp.ones((9, 9), bool))) == 0  # collapse


def test_same_text():
  tokens = jnp.array([[2, 5, 3], [2, 6, 3], [2, 5, 3]])
  np.testing.assert_array_equal(mulan.same_text(tokens), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def _batch(batch=8):
  """Each clip a tone of its own, each caption a word of its own."""
  time = jnp.arange(24_000) / 24_000
  pitch = 200.0 * 1.5 ** jnp.arange(batch)[:, None]
  tokens = jnp.zeros((batch, 8), jnp.int32).at[:, 0].set(2).at[:, 2].set(3)
  return {'waveform': 0.3 * jnp.sin(2 * jnp.pi * pitch * time),
          'text_tokens': tokens.at[:, 1].set(10 + jnp.arange(batch))}


def test_batch_is_what_input_shapes_says():
  batch, shapes = _batch(4), OBJECTIVE.input_shapes(4)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
      k: (v.shape, v.dtype) for k, v in shapes.items()}


def test_overfits_one_batch():
  batch = _batch()
  params, state = nn.unbox(jax.jit(OBJECTIVE.init)(jax.random.key(0), batch))
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(params, state, opt_state, batch, rng):
    (_, (state, _)), grads = jax.value_and_grad(OBJECTIVE.loss_fn, has_aux=True)(
        params, state, batch, rng, 0)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), state, opt_state

  evaluate = jax.jit(OBJECTIVE.eval_fn)
  before = evaluate(params, state, batch)
  opt_state = optimizer.init(params)
  for i in range(60):
    params, state, opt_state = step(params, state, opt_state, batch, jax.random.key(i))
  after = evaluate(params, state, batch)
  assert float(before['audio_to_text_recall_at_1']) < 0.6
  assert float(after['audio_to_text_recall_at_1']) == 1.0
  assert float(after['text_to_audio_recall_at_1']) == 1.0
  assert float(after['loss']) < float(before['loss']) - 2
  assert float(after['positive_cosine']) > float(after['negative_cosine']) + 0.3


def test_infonce_and_masking_run_through_the_objective():
  batch = _batch(4)
  objective = dataclasses.replace(OBJECTIVE, loss='infonce', mask_same_text=True)

  @jax.jit
  def init_and_loss(batch):
    params, state = objective.init(jax.random.key(0), batch)
    return state, objective.loss_fn(params, state, batch, jax.random.key(1), 0)

  state, (loss, (new_state, metrics)) = init_and_loss(batch)
  assert np.isfinite(loss) and set(metrics) >= {
      'loss', 'temperature', 'positive_cosine', 'negative_cosine', 'audio_to_text_recall_at_1'}
  assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_bad_fields_are_named():
  with pytest.raises(ValueError, match="loss 'triplet'"):
    mulan.MulanObjective(config=TINY, text_length=8, loss='triplet')
  with pytest.raises(ValueError, match='text_length 64: wanted 2 to max_length 12'):
    mulan.MulanObjective(config=TINY, text_length=64)


def test_a_vocabulary_larger_than_the_table_is_refused(tmp_path):
  """Rows past the table are NaN, without any error of their own."""
  vocab = tmp_path / 'vocab.txt'
  tokens = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *(f'word{i}' for i in range(47))]
  vocab.write_text('\n'.join(tokens[:50]) + '\n')
  mulan.MulanObjective(config=TINY, text_length=8, vocab_file=str(vocab))
  vocab.write_text('\n'.join(tokens) + '\n')
  with pytest.raises(errors.UserError, match='51 wordpieces, the text tower has room for .* 50'):
    mulan.MulanObjective(config=TINY, text_length=8, vocab_file=str(vocab))
