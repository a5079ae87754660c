"""Waveform records to token records, through small randomly initialised models of every kind."""

import dataclasses
import shutil

import numpy as np
import pytest
import tiny_tokenizers

from musiclm_jax import (
    audio,
    audio_tokenizer,
    checkpoints,
    errors,
    music_tokens,
    token_layout,
)
from musiclm_jax.models import quantizers

DIM = tiny_tokenizers.DIM


@pytest.fixture(scope='module')
def models_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('models')
  tiny_tokenizers.export(path)
  return path


@pytest.fixture(scope='module')
def tokenizer(models_dir):
  return audio_tokenizer.Tokenizer.load(models_dir, clip_seconds=13, batch_size=1)


def _noise(seconds, seed=0):
  waveform = 0.2 * np.random.default_rng(seed).standard_normal(round(seconds * audio.SAMPLE_RATE))
  return audio.from_pcm16(audio.to_pcm16(waveform))


def _apply(tokenizer, name, method, *inputs):
  model = tokenizer.models[name]
  return np.asarray(model.module.apply(model.variables, *inputs, method=method))


def test_fewer_levels_of_the_codec_are_a_prefix(models_dir, tokenizer):
  fewer = audio_tokenizer.Tokenizer.load(
      models_dir, clip_seconds=1, batch_size=1, acoustic_levels=4)
  clip = _noise(1.0)
  whole = _apply(tokenizer, 'soundstream', 'encode', clip[None])[0]
  np.testing.assert_array_equal(fewer._acoustic_tokens([clip], [1])[0], whole[:, :4])
  assert fewer.layout(2).layout.acoustic.num_levels == 4
  codecs = [t.layout(2).tokenizers['soundstream'] for t in (fewer, tokenizer)]
  assert codecs[0] != codecs[1]  # a codec of those levels only would be the first
  with pytest.raises(errors.UserError, match='acoustic_levels is 7, .*soundstream has 6'):
    audio_tokenizer.Tokenizer.load(models_dir, acoustic_levels=7)


def test_streams_end_together_and_hold_the_models_codes(tokenizer):
  clip = _noise(12.7)
  tokens, = tokenizer.tokenize([clip])
  shapes = {name: array.shape for name, array in tokens.items()}
  assert shapes == {'acoustic_tokens': (600, 6), 'semantic_tokens': (300,),
                    'mulan_embeddings': (3, DIM), 'mulan_tokens': (3, 3)}
  whole = clip[None, :12 * 24_000]
  np.testing.assert_array_equal(
      tokens['acoustic_tokens'], _apply(tokenizer, 'soundstream', 'encode', whole)[0])
  assert len(np.unique(tokens['acoustic_tokens'])) > 4
  features = _apply(tokenizer, 'w2v_bert', 'features', whole[:, :240_000])
  semantic = _apply(tokenizer, 'semantic_quantizer', 'encode', features)[0]
  np.testing.assert_array_equal(tokens['semantic_tokens'][:150], semantic[:150])
  windows = np.stack([clip[s * 24_000:][:240_000] for s in range(3)])
  embeddings = _apply(tokenizer, 'mulan', 'embed_audio', windows)
  np.testing.assert_allclose(tokens['mulan_embeddings'], embeddings, atol=2e-3)
  np.testing.assert_array_equal(tokens['mulan_tokens'], _apply(
      tokenizer, 'mulan_quantizer', 'encode',
      tokens['mulan_embeddings'].astype(np.float32)[:, None])[:, 0])


def test_with_a_melody_model_clips_have_melody_tokens(models_dir, tokenizer, tmp_path):
  shutil.copytree(models_dir, tmp_path, dirs_exist_ok=True)
  prints = tiny_tokenizers.export(tmp_path, tiny_tokenizers.MELODY_CONFIGS)
  listener = audio_tokenizer.Tokenizer.load(tmp_path, clip_seconds=13, batch_size=1)
  saved = listener.layout(2)
  assert saved.layout.melody == token_layout.TokenStream('melody', 2, 8, 1, window_seconds=2)
  assert {name: saved.tokenizers[name] for name in prints} == prints
  assert saved.used_by(tokenizer.layout(2).layout) == tokenizer.layout(2)
  for seconds, rows in ((5.5, 4), (1.0, 1)):
    clip = _noise(seconds)
    tokens, plain = listener.tokenize([clip])[0], tokenizer.tokenize([clip])[0]
    np.testing.assert_array_equal(tokens['melody_tokens'], music_tokens.melody_tokens(
        *(listener.models[name] for name in prints), clip[:int(seconds) * 24_000]))
    assert tokens.pop('melody_tokens').shape == (rows, 2)
    assert tokens.keys() == plain.keys()


def test_a_clips_tokens_do_not_depend_on_the_others(tokenizer):
  clips = [_noise(3, 1), _noise(13, 2), np.zeros(24_000, np.float32)]
  together = tokenizer.tokenize(clips)
  assert [len(t['semantic_tokens']) for t in together] == [75, 325, 25]
  assert [len(t['mulan_tokens']) for t in together] == [1, 4, 1]
  alone, = tokenizer.tokenize(clips[:1])
  for name, array in alone.items():
    np.testing.assert_array_equal(array, together[0][name])


def test_lengths_that_cannot_be_are_errors(tokenizer):
  with pytest.raises(errors.UserError, match='last 0 to 0 whole seconds, wanted 1 to 13'):
    tokenizer.tokenize([_noise(0.5)])
  with pytest.raises(errors.UserError, match='last 14 to 14 whole seconds'):
    tokenizer.tokenize([_noise(14)])


@pytest.mark.parametrize('seconds', [1, 6, 10, 11, 18, 30, 31])
def test_semantic_windows_cover_every_second_with_context(seconds):
  starts, owner = audio_tokenizer.semantic_windows(seconds, 10)
  assert len(owner) == seconds and sorted(set(owner)) == list(range(len(starts)))
  for second, index in enumerate(owner):
    inside = second - starts[index]
    assert 0 <= inside < 10
    assert inside >= 1 or second == 0
    assert inside <= 8 or second == seconds - 1
  if seconds == 30:
    assert starts == [0, 8, 16, 20]


def test_what_does_not_fit_is_named(models_dir, tmp_path):
  with pytest.raises(errors.UserError, match='soundstream'):
    audio_tokenizer.Tokenizer.load(tmp_path)
  models = dict(audio_tokenizer.Tokenizer.load(models_dir).models)
  wide = quantizers.KMeansConfig(dim=DIM + 1, num_centroids=4)
  checkpoints.export_model(tmp_path / 'q', 'semantic_quantizer', wide,
                           tiny_tokenizers.random_variables('semantic_quantizer', wide))
  models['semantic_quantizer'] = checkpoints.load_model(tmp_path / 'q')
  with pytest.raises(errors.UserError, match='w2v_bert gives vectors of 16, semantic_quantizer'):
    audio_tokenizer.Tokenizer(models)


def test_a_quantizer_fitted_to_other_weights_is_refused(models_dir):
  models = dict(audio_tokenizer.Tokenizer.load(models_dir).models)
  quantizer = models['mulan_quantizer']
  for fitted_to in (models['mulan'].fingerprint, 'other weights'):
    models['mulan_quantizer'] = dataclasses.replace(quantizer, extra={'fitted_to': fitted_to})
    if fitted_to == 'other weights':
      with pytest.raises(errors.UserError, match='mulan_quantizer was fitted to a mulan with sha256'):
        audio_tokenizer.Tokenizer(models)
    else:
      audio_tokenizer.Tokenizer(models)


def test_tokens_come_from_the_layer_that_the_quantizer_was_fitted_to(models_dir, tokenizer):
  models, clip = dict(tokenizer.models), _noise(1.0)
  fitted = dataclasses.replace(models['semantic_quantizer'], extra={'layer': 0})
  other = audio_tokenizer.Tokenizer(
      models | {'semantic_quantizer': fitted}, clip_seconds=1, semantic_window_seconds=1, batch_size=1)
  features = models['w2v_bert'].apply('features', clip[None], layer=0)
  codes = _apply(tokenizer, 'semantic_quantizer', 'encode', features)[0]
  np.testing.assert_array_equal(other._semantic_tokens([clip], [1])[0], codes)
  for layer in (2, -1, '0', True):
    fitted = dataclasses.replace(fitted, extra={'layer': layer})
    with pytest.raises(errors.UserError, match='semantic_quantizer was fitted to layer .* has 0 to 1'):
      audio_tokenizer.Tokenizer(models | {'semantic_quantizer': fitted})
