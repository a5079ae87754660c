"""Embeddings of music, texts and melodies, their codes, and the gap between text and audio."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import checkpoints, errors, generate, music_tokens, text
from musiclm_jax.models import quantizers

DIM, LEVELS, SIZE = 8, 5, 16


def _unit(seed, *shape):
  x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope='module')
def codebooks():
  return np.random.default_rng(0).standard_normal((LEVELS, SIZE, DIM)).astype(np.float32) * (
      0.5 ** np.arange(LEVELS)[:, None, None]).astype(np.float32)


@pytest.fixture(scope='module')
def quantizer(codebooks, tmp_path_factory):
  directory = tmp_path_factory.mktemp('models') / 'mulan_quantizer'
  config = quantizers.ResidualVectorQuantizerConfig(DIM, LEVELS, SIZE)
  checkpoints.export_model(
      directory, 'mulan_quantizer', config,
      {'codebooks': quantizers.codebook_variables(jnp.asarray(codebooks))},
      extra={'fitted_to': 'a'})
  return checkpoints.load_model(directory)


@pytest.fixture(scope='module')
def mulan():
  return checkpoints.load_model(generate.TINY / 'mulan', 'mulan')


@pytest.mark.parametrize('length, window, hop, wanted', [
    (5, 3, 1, [[0, 1, 2], [1, 2, 3], [2, 3, 4]]), (7, 3, 2, [[0, 1, 2], [2, 3, 4], [4, 5, 6]]),
    (6, 3, 2, [[0, 1, 2], [2, 3, 4]]), (3, 3, 5, [[0, 1, 2]]), (2, 4, 1, [[0, 1, 0, 0]]),
    (0, 2, 1, [[0, 0]]),
])
def test_windows(length, window, hop, wanted):
  np.testing.assert_array_equal(
      music_tokens.windows(np.arange(length, dtype=np.float32), window, hop), wanted)


def test_music_is_the_unit_mean_of_its_windows(mulan):
  """12.7 s: windows at 0, 1 and 2 s; a clip that is shorter than one is followed by silence."""
  rng = np.random.default_rng(0)
  clip = 0.1 * rng.standard_normal(round(12.7 * 24_000)).astype(np.float32)
  rows = np.stack([clip[s * 24_000:(s + 10) * 24_000] for s in range(3)])
  mean = np.asarray(mulan.apply('embed_audio', rows)).mean(0)
  found = music_tokens.embed_music(mulan, clip)
  np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)
  assert np.linalg.norm(mean) < 1 - 1e-6  # so that making it a unit vector again matters
  short = music_tokens.embed_music(mulan, clip[:72_000])
  padded = np.pad(clip[:72_000], (0, 168_000))
  np.testing.assert_allclose(short, music_tokens.embed_music(mulan, padded), atol=1e-6)
  with pytest.raises(errors.UserError, match='0.0 s are 0 samples at 24000 Hz'):
    music_tokens.embed_music(mulan, clip, hop_seconds=0.0)


def test_a_text_has_its_vector_whatever_the_others(mulan):
  tokenizer = text.WordPieceTokenizer(mulan.directory / 'vocab.txt')
  texts = [f'a {mood} piano piece' for mood in ('calm', 'sad', 'fast')] * 7  # more than a batch
  found = music_tokens.embed_text(mulan, tokenizer, texts)
  assert found.shape == (21, mulan.config.embedding_dim)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
  np.testing.assert_allclose(found[:3], found[18:], atol=1e-5)
  np.testing.assert_allclose(
      found[:1], music_tokens.embed_text(mulan, tokenizer, texts[:1]), atol=1e-5)


def test_tokens_of_fewer_levels_are_the_first_ones(quantizer, codebooks):
  vectors = _unit(1, 40, DIM)
  codes = music_tokens.tokens(vectors, quantizer)
  left = vectors.copy()
  for level, codebook in enumerate(codebooks):
    nearest = np.argmin(np.square(left[:, None] - codebook).sum(-1), axis=1)
    np.testing.assert_array_equal(codes[:, level], nearest)
    left -= codebook[nearest]
  np.testing.assert_array_equal(music_tokens.tokens(vectors, quantizer, 2), codes[:, :2])


@pytest.mark.parametrize('levels', [0, LEVELS + 1])
def test_levels_that_are_not_there_are_named(quantizer, levels):
  with pytest.raises(errors.UserError, match=rf'^{levels} levels are asked of .*wanted 1 to 5'):
    music_tokens.tokens(_unit(0, 1, DIM), quantizer, levels)
  with pytest.raises(errors.UserError, match='quantizes vectors of 8, got 4'):
    music_tokens.tokens(_unit(0, 1, 4), quantizer)


def test_a_quantizer_of_another_model_is_named(quantizer, mulan):
  with pytest.raises(errors.UserError, match='mulan gives vectors of 128, mulan_quantizer wants 8'):
    music_tokens.check_fitted_to(quantizer, mulan)
  shipped = checkpoints.load_model(generate.TINY / 'mulan_quantizer')
  music_tokens.check_fitted_to(shipped, mulan)
  other = dataclasses.replace(shipped, extra={'fitted_to': 'a'})
  with pytest.raises(errors.UserError, match='mulan_quantizer was fitted to a mulan with sha256 a,'):
    music_tokens.check_fitted_to(other, mulan)


def test_melody_of_ten_seconds_is_three_windows(quantizer):
  """MusicLM appendix C: windows of 4 s, 3 s apart."""
  seen = []

  def apply(method, rows):
    assert method == 'embed'
    seen.append(np.asarray(rows))
    return np.stack([_unit(int(row[0]), DIM) for row in rows])

  config = types.SimpleNamespace(window_seconds=4.0, hop_seconds=3.0, sample_rate=10)
  melody = types.SimpleNamespace(config=config, apply=apply)
  codes = music_tokens.melody_tokens(melody, quantizer, np.arange(100, dtype=np.float32))
  np.testing.assert_array_equal(seen[0][:, 0], [0, 30, 60])
  assert seen[0].shape == (3, 40) and codes.shape == (3, LEVELS)
  vectors = np.stack([_unit(start, DIM) for start in (0, 30, 60)])
  np.testing.assert_array_equal(codes, music_tokens.tokens(vectors, quantizer))


def test_the_gap_equals_numbers_worked_by_hand():
  """Two clips along the axes; the first has two captions. One level, whose codes are the axes."""
  audio = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
  captions = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
  gap = music_tokens.text_audio_gap(audio, captions, np.eye(2, dtype=np.float32)[None])
  assert gap.pairs == 3
  np.testing.assert_allclose(gap.matched, (1 + 0 + 0.8) / 3, rtol=1e-6)
  # Clip 0 with the caption of clip 1, twice; clip 1 with the two captions of clip 0.
  np.testing.assert_allclose(gap.mismatched, (0.6 + 0.6 + 0 + 1) / 4, rtol=1e-6)
  np.testing.assert_allclose(gap.agreement, [2 / 3], rtol=1e-6)  # the second pair has 0 and 1
  np.testing.assert_allclose(gap.audio_residual, [0], atol=1e-6)
  np.testing.assert_allclose(gap.text_residual, [np.hypot(0.6, 0.2) / 3], rtol=1e-6)
  lines = gap.describe().splitlines()
  assert len(lines) == 2 and '66.7%' in lines[1]


def test_without_a_gap_all_codes_agree(codebooks):
  vectors = _unit(2, 30, DIM)
  gap = music_tokens.text_audio_gap(vectors, vectors, codebooks)
  assert gap.agreement == (1.0,) * LEVELS and gap.audio_residual == gap.text_residual
  np.testing.assert_allclose(gap.matched, 1, atol=1e-6)
  others = (vectors @ vectors.T)[~np.eye(30, dtype=bool)].mean()
  np.testing.assert_allclose(gap.mismatched, others, atol=1e-6)
  assert dataclasses.asdict(gap)['pairs'] == 30
  with pytest.raises(errors.UserError, match='wanted as many'):
    music_tokens.text_audio_gap(vectors, vectors[:3], codebooks)


def test_fewer_levels_and_a_short_clip_of_a_melody(quantizer):
  """2 s are one window, followed by silence; 21 windows are more than go at once."""
  melody = types.SimpleNamespace(
      config=types.SimpleNamespace(window_seconds=4.0, hop_seconds=3.0, sample_rate=10),
      apply=lambda method, rows: np.stack([_unit(int(row.sum()), DIM) for row in rows]))
  clip = np.arange(20, dtype=np.float32)
  codes = music_tokens.melody_tokens(melody, quantizer, clip)
  np.testing.assert_array_equal(codes, music_tokens.tokens(_unit(190, 1, DIM), quantizer))
  np.testing.assert_array_equal(
      music_tokens.melody_tokens(melody, quantizer, clip, 2), codes[:, :2])
  with pytest.raises(errors.UserError, match='9 levels are asked of'):
    music_tokens.melody_tokens(melody, quantizer, clip, 9)
  assert music_tokens.melody_tokens(melody, quantizer, np.ones(640, np.float32)).shape == (21, LEVELS)
