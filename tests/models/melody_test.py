"""The melody embedding: unit vectors of windows of one length, whatever the loudness."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import melody, mulan, spectrogram

# Heads of 5 do not divide the width of 16, as the paper's 6 do not divide 512.
CONFIG = melody.MelodyConfig(
    encoder=mulan.EncoderConfig(
        num_layers=1, emb_dim=16, num_heads=3, head_dim=5, mlp_dim=24, dropout_rate=0.3,
        norm_first=True),
    sample_rate=8_000, window_seconds=0.5, hop_seconds=0.25, embedding_dim=12,
    mel=spectrogram.MelConfig(sample_rate=8_000, n_fft=512, win_length=400, hop_length=400,
                              num_mels=20, fmin=60.0, fmax=3_500.0))


@pytest.fixture(scope='module')
def model():
  """Returns (variables, an f32[3, 4000] batch of tones, their embeddings)."""
  time = jnp.arange(CONFIG.window_samples) / CONFIG.sample_rate
  waveform = 0.1 * jnp.sin(2 * jnp.pi * jnp.array([[200.0], [440.0], [1_300.0]]) * time)
  variables = nn.unbox(jax.jit(melody.Melody(CONFIG).init)(jax.random.key(0), waveform))
  return variables, waveform, _embed(variables, waveform)


@jax.jit
def _embed(variables, waveform):
  return melody.Melody(CONFIG).apply(variables, waveform, method='embed')


def test_embeddings_are_unit_vectors_that_differ(model):
  _, _, embeddings = model
  assert embeddings.shape == (3, 12) and embeddings.dtype == jnp.float32
  np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
  assert np.abs(embeddings @ embeddings.T - np.eye(3))[~np.eye(3, dtype=bool)].min() < 0.999


def test_loudness_has_no_effect_and_silence_is_finite(model):
  variables, waveform, embeddings = model
  scaled = waveform * jnp.array([[0.01], [1.0], [8.0]])
  np.testing.assert_allclose(_embed(variables, scaled), embeddings, atol=1e-4)
  assert np.isfinite(_embed(variables, jnp.zeros_like(waveform))).all()


def test_order_of_notes_has_an_effect(model):
  """The mean over frames alone would not hear it: positions do."""
  variables, waveform, _ = model
  half = CONFIG.window_samples // 2
  low, high, _ = waveform
  tunes = jnp.stack([jnp.concatenate([low[:half], high[:half]]),
                     jnp.concatenate([high[:half], low[:half]]), low])
  up, down, _ = _embed(variables, tunes)
  assert float(up @ down) < 0.9999


def test_the_frames_of_a_window(model):
  variables, waveform, _ = model
  log_mel = melody.Melody(CONFIG).apply(variables, waveform, method='log_mel')
  assert log_mel.shape == (3, CONFIG.num_frames, 20) and CONFIG.num_frames == 10
  assert variables['params']['positions'].shape == (10, 16)
  loudest = np.argmax(log_mel[:, 5], axis=1)  # the tones rise
  assert loudest[0] < loudest[1] < loudest[2]


def test_dropout_is_for_training_only(model):
  variables, waveform, embeddings = model
  dropped = melody.Melody(CONFIG).apply(
      variables, waveform, train=True, rngs={'dropout': jax.random.key(1)})
  assert np.abs(dropped - embeddings).max() > 1e-3
  np.testing.assert_allclose(np.linalg.norm(dropped, axis=1), 1, atol=1e-5)


def test_a_wrong_length_and_bad_fields_are_named(model):
  variables, waveform, _ = model
  with pytest.raises(ValueError, match='got 3999 samples, wanted 4000: 0.5 s at 8000 Hz'):
    melody.Melody(CONFIG).apply(variables, waveform[:, 1:])
  with pytest.raises(ValueError, match='wanted both above 0'):
    dataclasses.replace(CONFIG, hop_seconds=0.0)


def test_the_defaults_are_the_papers_size():
  config = melody.MelodyConfig()
  shapes = jax.eval_shape(
      melody.Melody(config).init, jax.random.key(0), jnp.zeros((1, 96_000)))['params']
  shapes = nn.unbox(shapes)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) // 100_000 == 223  # 22.3M
  assert shapes['projection']['kernel'].shape == (512, 192)
  assert len([name for name in shapes['encoder'] if name.startswith('layer')]) == 12
