import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

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


def _loss(similarity, temperature, loss='cmc', groups=(0, 1, 2), **options):
  """The mean loss of vectors whose cosines are the similarity f32[3, 3]."""
  terms = mulan.contrastive_terms(
      similarity, jnp.eye(3), temperature, jnp.array(groups), loss, **options)
  return jnp.mean(terms.loss)


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
  np.testing.assert_allclose(_loss(SIMILARITY, 1.0), want, rtol=1e-6)


def test_infonce_equals_numbers_worked_by_hand():
  exp = np.exp(np.asarray(SIMILARITY))
  positive = np.diagonal(exp)
  want = -(np.log(positive / exp.sum(1)) + np.log(positive / exp.sum(0))).mean() / 2
  np.testing.assert_allclose(_loss(SIMILARITY, 1.0, 'infonce'), want, rtol=1e-6)


def test_temperature_divides_the_similarity():
  for loss in mulan.LOSSES:
    np.testing.assert_allclose(_loss(SIMILARITY, 0.5, loss), _loss(2 * SIMILARITY, 1.0, loss),
                               rtol=1e-6)


@pytest.mark.parametrize('loss', mulan.LOSSES)
def test_masked_pairs_do_not_count(loss):
  same = {'groups': (0, 0, 1), 'mask_same_text': True}  # clips 0 and 1: same caption
  moved = SIMILARITY.at[0, 1].set(5.0).at[1, 0].set(-5.0)
  np.testing.assert_allclose(
      _loss(moved, 1.0, loss, **same), _loss(SIMILARITY, 1.0, loss, **same), rtol=1e-6)
  all_same = {'groups': (0, 0, 0), 'mask_same_text': True}
  assert np.isfinite(jax.grad(_loss)(SIMILARITY, 1.0, loss, **all_same)).all()


def _above(similarity, groups=(0, 1, 2)):
  return mulan.contrastive_terms(
      similarity, jnp.eye(len(similarity)), 1.0, jnp.array(groups)).above_text


def test_recall():
  similarity = jnp.array([[0.9, 0.1, 0.2], [0.9, 0.8, 0.4], [0.8, 0.9, 0.7]])
  above = _above(similarity)
  np.testing.assert_array_equal(above, [0, 1, 2])
  for k, want in ((1, 1 / 3), (2, 2 / 3), (3, 1.0)):
    np.testing.assert_allclose(mulan.recall(above, k), want)
  np.testing.assert_array_equal(_above(similarity, (0, 0, 1)), [0, 0, 2])  # the first is no rival
  assert float(mulan.recall(_above(jnp.zeros((9, 9)), range(9)), 1)) == 0  # collapse


def _unit(seed, shape):
  x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
  return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


@pytest.mark.parametrize('loss', mulan.LOSSES)
@pytest.mark.parametrize('mask', [False, True])
def test_in_blocks_it_is_the_same_loss(loss, mask):
  audio, captions = _unit(0, (24, 6)), _unit(1, (24, 6))
  groups = jnp.asarray(np.random.default_rng(2).integers(0, 20, 24))

  @functools.partial(jax.jit, static_argnums=0)
  def terms_and_grads(chunk):
    def mean_loss(audio, captions, temperature):
      terms = mulan.contrastive_terms(audio, captions, temperature, groups, loss, mask, chunk)
      return jnp.mean(terms.loss), terms
    return jax.value_and_grad(mean_loss, (0, 1, 2), has_aux=True)(audio, captions, 0.1)

  plain = terms_and_grads(None)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
               terms_and_grads(8), plain)
  with pytest.raises(errors.UserError, match='similarity_chunk 7 does not divide the batch of 24'):
    terms_and_grads(7)


def test_blocks_need_less_memory():
  size = 1024
  pairs = [jax.ShapeDtypeStruct((size, 32), jnp.float32)] * 2

  def temporary(chunk):
    def mean_loss(audio, captions):
      groups = jnp.arange(size)
      return jnp.mean(
          mulan.contrastive_terms(audio, captions, 0.1, groups, 'cmc', True, chunk).loss)
    compiled = jax.jit(jax.grad(mean_loss, (0, 1))).lower(*pairs).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  matrix = 4 * size * size
  plain, blocks = temporary(None), temporary(64)
  assert plain > 2 * matrix and blocks < matrix / 3, (plain / matrix, blocks / matrix)


def test_text_groups():
  tokens = jnp.array([[2, 5, 3], [2, 6, 3], [2, 5, 3]])
  np.testing.assert_array_equal(mulan.text_groups(tokens), [0, 1, 0])
  tokens = np.random.default_rng(0).integers(0, 2, (200, 9))  # 512 texts: some occur twice
  groups = np.asarray(jax.jit(mulan.text_groups)(jnp.asarray(tokens)))
  np.testing.assert_array_equal(groups[:, None] == groups, (tokens[:, None] == tokens).all(-1))


def test_no_array_of_the_groups_has_both_batch_axes():
  shape = jax.ShapeDtypeStruct((6144, 512), jnp.int32)
  compiled = jax.jit(mulan.text_groups).lower(shape).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * 6144 * 600


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


ON_EIGHT_DEVICES = """
import functools
import jax, jax.numpy as jnp, numpy as np
from musiclm_jax import partitioning
from musiclm_jax.objectives import mulan
from tests.objectives import mulan_test

batch = {name: np.asarray(mulan_test._unit(seed, (16, 6))) for seed, name in enumerate('xy')}
batch['groups'] = np.arange(16) % 13

@functools.partial(jax.jit, static_argnums=1)
def loss_and_grads(batch, chunk):
  def mean_loss(kernels, temperature):
    audio, captions = (batch[name] @ kernel for name, kernel in zip('xy', kernels))
    terms = mulan.contrastive_terms(
        audio, captions, temperature, batch['groups'], 'cmc', True, chunk)
    return jnp.mean(terms.loss), terms
  return jax.value_and_grad(mean_loss, (0, 1), has_aux=True)((jnp.eye(6), jnp.eye(6)), 0.1)

found = []
for devices in (1, 8):
  mesh = partitioning.make_mesh(devices=jax.devices()[:devices])
  with partitioning.activate(mesh):
    sharded = partitioning.global_batch(batch, 16, mesh)
    found += [jax.device_get(loss_and_grads(sharded, chunk)) for chunk in (None, 8)]
assert len(sharded['x'].sharding.device_set) == 8
for other in found[1:]:
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), other, found[0])
"""


def test_eight_devices_see_one_batch():
  """Negatives come from all devices: loss, metrics and gradients are those of one."""
  environment = dict(
      os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=8', JAX_PLATFORMS='cpu')
  root = pathlib.Path(__file__).resolve().parents[2]
  subprocess.run([sys.executable, '-c', ON_EIGHT_DEVICES], check=True, env=environment, cwd=root)


def test_bad_fields_are_named():
  with pytest.raises(ValueError, match="loss 'triplet'"):
    mulan.MulanObjective(config=TINY, text_length=8, loss='triplet')
  with pytest.raises(ValueError, match='text_length 64: wanted 2 to max_length 12'):
    mulan.MulanObjective(config=TINY, text_length=64)
  with pytest.raises(ValueError, match='similarity_chunk is 0'):
    mulan.MulanObjective(config=TINY, text_length=8, similarity_chunk=0)


def test_a_vocabulary_larger_than_the_table_is_refused(tmp_path):
  """Rows past the table are NaN, without any error of their own."""
  vocab = tmp_path / 'vocab.txt'
  tokens = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *(f'word{i}' for i in range(47))]
  vocab.write_text('\n'.join(tokens[:50]) + '\n')
  mulan.MulanObjective(config=TINY, text_length=8, vocab_file=str(vocab))
  vocab.write_text('\n'.join(tokens) + '\n')
  with pytest.raises(errors.UserError, match='51 wordpieces, the text tower has room for .* 50'):
    mulan.MulanObjective(config=TINY, text_length=8, vocab_file=str(vocab))
