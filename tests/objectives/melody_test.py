"""The triplet loss by hand and by brute force, collapse, and a tiny task that is learned."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.models import melody as models
from musiclm_jax.models import mulan, spectrogram
from musiclm_jax.objectives import melody

RATE = 2_000
CONFIG = models.MelodyConfig(
    encoder=mulan.EncoderConfig(
        num_layers=1, emb_dim=16, num_heads=2, mlp_dim=32, dropout_rate=0.1, norm_first=True),
    sample_rate=RATE, window_seconds=0.6, hop_seconds=0.3, embedding_dim=8,
    mel=spectrogram.MelConfig(sample_rate=RATE, n_fft=256, win_length=200, hop_length=100,
                              num_mels=16, fmin=60.0, fmax=900.0))
OBJECTIVE = melody.MelodyObjective(config=CONFIG)


def _brute_force(distances, negatives, margin):
  losses, valid = np.zeros(len(distances)), np.zeros(len(distances), bool)
  for anchor, row in enumerate(distances):
    others = [row[j] for j in range(len(row)) if negatives[anchor, j]]
    if not others:
      continue
    positive = row[anchor + 1 if anchor % 2 == 0 else anchor - 1]
    farther = [d for d in others if d > positive]
    losses[anchor] = max(0, positive - (min(farther) if farther else max(others)) + margin)
    valid[anchor] = True
  return losses, valid


@pytest.mark.parametrize('seed', range(4))
def test_triplets_equal_brute_force(seed):
  rng = np.random.default_rng(seed)
  vectors = rng.standard_normal((12, 3)).astype(np.float32)
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  distances = np.asarray(melody.squared_distances(jnp.asarray(vectors)))
  np.testing.assert_allclose(
      distances, np.square(vectors[:, None] - vectors).sum(-1), atol=1e-5)
  pieces = rng.integers(0, 4, 6).repeat(2)
  negatives = pieces[:, None] != pieces
  losses, valid = melody.semi_hard_triplets(jnp.asarray(distances), jnp.asarray(negatives), 0.5)
  wanted, wanted_valid = _brute_force(distances, negatives, 0.5)
  np.testing.assert_allclose(losses, wanted, atol=1e-6)
  np.testing.assert_array_equal(valid, wanted_valid)


@pytest.mark.parametrize('others, wanted', [
    ((0.3, 0.9), 0.5 - 0.9 + 0.6),  # 0.3 is nearer than the positive: not the one that is chosen
    ((0.7, 0.9), 0.5 - 0.7 + 0.6),  # the nearer of two that are farther away
    ((1.2, 1.3), 0.0),  # beyond the margin
    ((0.3, 0.4), 0.5 - 0.4 + 0.6),  # none is farther away: the farthest
])
def test_the_negative_is_the_semi_hard_one(others, wanted):
  distances = jnp.zeros((4, 4)).at[0].set(jnp.array([0.0, 0.5, *others]))
  pieces = jnp.array([0, 0, 1, 1])
  losses, valid = melody.semi_hard_triplets(distances, pieces[:, None] != pieces, 0.6)
  np.testing.assert_allclose(losses[0], wanted, atol=1e-6)
  assert valid.all()


def _tunes(notes, seed):
  """Returns f32[B, 2, S]: each row of notes twice, with other overtones and another loudness."""
  rng, size = np.random.default_rng(seed), CONFIG.window_samples // notes.shape[1]
  hertz = 110 * 2 ** (notes.repeat(size, axis=1) / 12)
  phase = 2 * np.pi * np.cumsum(hertz, axis=1)[:, None] / RATE
  gains = rng.uniform(0, 1, (len(notes), 2, 1, 3))
  sound = np.sin(phase) + sum(
      gains[..., k] * np.sin((k + 2) * phase) for k in range(3))
  return (sound * rng.uniform(0.02, 0.4, (len(notes), 2, 1))).astype(np.float32)


def _batch(seed, pieces=None):
  notes = np.random.default_rng(7).integers(0, 12, (8, 4))  # the same eight tunes in every batch
  pieces = np.arange(8) if pieces is None else np.asarray(pieces)
  return {'waveform': jnp.asarray(_tunes(notes, seed)),
          'piece': jnp.asarray(pieces[:, None], jnp.int32)}


@pytest.fixture(scope='module')
def params():
  init = jax.jit(lambda rng, batch: nn.unbox(OBJECTIVE.init(rng, batch)[0]))
  return init(jax.random.key(0), _batch(0))


_evaluate = jax.jit(functools.partial(OBJECTIVE.eval_fn, model_state={}))


def test_versions_with_new_sounds_find_each_other_after_training(params):
  optimizer = optax.adam(5e-3)

  @jax.jit
  def step(params, state, batch, rng):
    gradients, (_, metrics) = jax.grad(OBJECTIVE.loss_fn, has_aux=True)(params, {}, batch, rng, 0)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, metrics

  before = _evaluate(params, batch=_batch(1_000))
  state = optimizer.init(params)
  for i in range(150):
    params, state, metrics = step(params, state, _batch(i), jax.random.key(i))
  after = _evaluate(params, batch=_batch(1_000))  # the same tunes, sounds never heard
  assert metrics.keys() == after.keys() - {'recall_at_1'}
  assert after['loss'] < 0.5 * before['loss'], (before['loss'], after['loss'])
  assert before['recall_at_1'] < 0.9 and after['recall_at_1'] > 0.9
  assert after['positive_distance'] + 0.2 < after['negative_distance']
  assert OBJECTIVE.check_metrics(10**6, after) is None


def test_melodies_of_one_piece_are_no_negatives(params):
  metrics = _evaluate(params, batch=_batch(0, pieces=[3] * 8))
  assert metrics['loss'] == 0 and metrics['recall_at_1'] == 1 and metrics['mean_cosine'] == 0
  distances = melody.squared_distances(jnp.asarray(np.eye(4, dtype=np.float32)))
  pieces = jnp.array([0, 0, 0, 0])
  losses, valid = melody.semi_hard_triplets(distances, pieces[:, None] != pieces, 0.2)
  assert not valid.any() and not losses.any()
  grouped = _evaluate(params, batch=_batch(0, pieces=[0, 0, 0, 0, 1, 1, 1, 1]))
  alone = _evaluate(params, batch=_batch(0))
  assert grouped['recall_at_1'] >= alone['recall_at_1']  # fewer rivals
  assert grouped['loss'] != alone['loss']


def test_embeddings_that_are_all_one_have_collapsed(params):
  constant = params | {'projection': jax.tree.map(jnp.zeros_like, params['projection'])}
  constant['projection']['bias'] += 1.0
  metrics = _evaluate(constant, batch=_batch(0))
  np.testing.assert_allclose(metrics['loss'], OBJECTIVE.margin, atol=1e-5)
  assert metrics['embedding_std'] < 1e-3 and metrics['recall_at_1'] == 0  # ties are no finds
  sentence = OBJECTIVE.check_metrics(500, {name: float(x) for name, x in metrics.items()})
  assert sentence == 'mean_cosine 1.000 between different melodies, wanted at most 0.99'
  assert OBJECTIVE.check_metrics(499, metrics) is None
  never = dataclasses.replace(OBJECTIVE, collapse_after=None)
  assert never.check_metrics(10**6, metrics) is None


def test_shapes_and_bad_margins(params):
  shapes = OBJECTIVE.input_shapes(8)
  batch = _batch(0)
  assert {name: (x.shape, x.dtype) for name, x in shapes.items()} == {
      name: (x.shape, x.dtype) for name, x in batch.items()}
  with pytest.raises(ValueError, match='margin 0: wanted between 0 and 4'):
    melody.MelodyObjective(margin=0)
