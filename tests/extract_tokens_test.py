"""Waveform records to token records, through small randomly initialised models of every kind."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import audio, checkpoints, errors, extract_tokens, token_layout
from musiclm_jax.data import records
from musiclm_jax.models import mulan, quantizers, registry, resnet, soundstream, w2v_bert

DIM = 16
CONFIGS = {
    'soundstream': soundstream.SoundStreamConfig(
        channels=2, strides=(6, 8, 10), channel_multipliers=(1, 1, 2), dilations=((1,),) * 3,
        dim=8, num_quantizers=6, codebook_size=16),
    'w2v_bert': w2v_bert.W2vBertConfig(
        conv_channels=2, emb_dim=DIM, num_heads=2, head_dim=8, mlp_dim=16, contrastive_layers=1,
        prediction_layers=1, feature_layer=1, num_codes=8, code_dim=8),
    'semantic_quantizer': quantizers.KMeansConfig(dim=DIM, num_centroids=32),
    'mulan': mulan.MulanConfig(
        resnet=resnet.ResNetConfig(stage_sizes=(1,), widths=(4,), stem_width=4, norm='group'),
        text=mulan.TextConfig(mulan.EncoderConfig(1, 8, 1, 8), vocab_size=16, max_length=8),
        embedding_dim=DIM),
    'mulan_quantizer': quantizers.ResidualVectorQuantizerConfig(
        dim=DIM, num_quantizers=3, codebook_size=8),
}


def _random_variables(name, config):
  """Random values everywhere, so that codebooks hold more than zeros."""
  leaves, tree = jax.tree.flatten(registry.variable_shapes(name, config))
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(tree, [
      jnp.asarray(np.abs(rng.standard_normal(leaf.shape)) ** 0.5 * rng.choice([-.3, .3], leaf.shape)
                  if leaf.shape else 1, leaf.dtype) for leaf in leaves])


@pytest.fixture(scope='module')
def models_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('models')
  for name, config in CONFIGS.items():
    variables = _random_variables(name, config)
    if name == 'semantic_quantizer':
      variables['codebooks']['std'] = jnp.ones(DIM)
    checkpoints.export_model(path / name, name, config, variables)
  return path


@pytest.fixture(scope='module')
def tokenizer(models_dir):
  return extract_tokens.Tokenizer.load(models_dir, clip_seconds=13, batch_size=1)


def _noise(seconds, seed=0):
  waveform = 0.2 * np.random.default_rng(seed).standard_normal(round(seconds * audio.SAMPLE_RATE))
  return audio.from_pcm16(audio.to_pcm16(waveform))


def _apply(tokenizer, name, method, *inputs):
  model = tokenizer.models[name]
  return np.asarray(model.module.apply(model.variables, *inputs, method=method))


def test_fewer_levels_of_the_codec_are_a_prefix(models_dir, tokenizer):
  fewer = extract_tokens.Tokenizer.load(
      models_dir, clip_seconds=1, batch_size=1, acoustic_levels=4)
  clip = _noise(1.0)
  whole = _apply(tokenizer, 'soundstream', 'encode', clip[None])[0]
  np.testing.assert_array_equal(fewer._acoustic_tokens([clip], [1])[0], whole[:, :4])
  assert fewer.layout(2).layout.acoustic.num_levels == 4
  codecs = [t.layout(2).tokenizers['soundstream'] for t in (fewer, tokenizer)]
  assert codecs[0] != codecs[1]  # a codec of those levels only would be the first
  with pytest.raises(errors.UserError, match='acoustic_levels is 7, .*soundstream has 6'):
    extract_tokens.Tokenizer.load(models_dir, acoustic_levels=7)


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
  starts, owner = extract_tokens.semantic_windows(seconds, 10)
  assert len(owner) == seconds and sorted(set(owner)) == list(range(len(starts)))
  for second, index in enumerate(owner):
    inside = second - starts[index]
    assert 0 <= inside < 10
    assert inside >= 1 or second == 0
    assert inside <= 8 or second == seconds - 1
  if seconds == 30:
    assert starts == [0, 8, 16, 20]


@pytest.fixture(scope='module')
def waveforms_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('waveforms')
  lengths = {'train': [3.4, 11, 0.5, 2], 'test': [5]}
  for split, seconds in lengths.items():
    shards = [seconds[:2], seconds[2:]] if split == 'train' else [seconds]
    for i, shard in enumerate(shards):
      records.write_shard(path / records.shard_name(split, i, len(shards)), [
          records.waveform_record(f'{split}{length}', _noise(length, i)) for length in shard])
  records.write_info(path, {'kind': 'waveforms', 'longest_seconds': 11.0,
                            'seconds': {split: sum(s) for split, s in lengths.items()}})
  return path


def test_extract_writes_records_layout_and_codebooks(waveforms_dir, models_dir, tmp_path):
  counts = extract_tokens.extract_tokens(
      waveforms_dir=waveforms_dir, models_dir=models_dir, output_dir=tmp_path, batch_size=1,
      progress=False)
  assert counts == {'train': 3, 'test': 1}
  read = {split: list(records.read_tokens(tmp_path, split)) for split in counts}
  assert [r['id'] for r in read['train']] == ['train3.4', 'train11', 'train2']
  for record in read['train'] + read['test']:
    seconds = int(float(re.sub('[a-z]', '', record['id'])))
    assert len(record['semantic_tokens']) == 25 * seconds
    assert record['acoustic_tokens'].shape == (50 * seconds, 6)
    assert len(record['mulan_tokens']) == max(seconds - 9, 1)
  saved = token_layout.read_layout(tmp_path)
  assert saved.layout == token_layout.TokenLayout(
      token_layout.TokenStream('mulan', 3, 8, 0), token_layout.TokenStream('semantic', 1, 32, 25),
      token_layout.TokenStream('acoustic', 6, 16, 50), coarse_levels=4)
  assert saved.tokenizers == {
      name: checkpoints.token_fingerprint(checkpoints.load_model(models_dir / name))
      for name in token_layout.TOKENIZERS}
  assert np.load(tmp_path / records.CODEBOOKS_FILE).shape == (3, 8, DIM)
  with pytest.raises(errors.UserError, match='already holds token records'):
    extract_tokens.extract_tokens(waveforms_dir=waveforms_dir, models_dir=models_dir,
                                  output_dir=tmp_path, progress=False)


def test_an_interrupted_extraction_goes_on(waveforms_dir, models_dir, tmp_path, monkeypatch):
  arguments = {'waveforms_dir': waveforms_dir, 'models_dir': models_dir, 'splits': ['train'],
               'batch_size': 1, 'progress': False}
  extract_tokens.extract_tokens(output_dir=tmp_path / 'whole', **arguments)
  tokenize, calls = extract_tokens.Tokenizer.tokenize, []

  def interrupted(self, waveforms):
    calls.append(len(waveforms))
    if len(calls) == 2:
      raise KeyboardInterrupt
    return tokenize(self, waveforms)

  monkeypatch.setattr(extract_tokens.Tokenizer, 'tokenize', interrupted)
  with pytest.raises(KeyboardInterrupt):
    extract_tokens.extract_tokens(output_dir=tmp_path / 'parts', **arguments)
  with pytest.raises(errors.UserError, match='coarse_levels is 4 in .* 3 in'):
    extract_tokens.extract_tokens(output_dir=tmp_path / 'parts', coarse_levels=3, **arguments)
  counts = extract_tokens.extract_tokens(output_dir=tmp_path / 'parts', **arguments)
  assert calls == [2, 1, 1] and counts == {'train': 3}
  for path in (tmp_path / 'whole').iterdir():
    assert (tmp_path / 'parts' / path.name).read_bytes() == path.read_bytes()


def test_what_does_not_fit_is_named(models_dir, waveforms_dir, tmp_path):
  with pytest.raises(errors.UserError, match='does not exist'):
    extract_tokens.extract_tokens(
        waveforms_dir=tmp_path / 'none', models_dir=models_dir, output_dir=tmp_path / 'out')
  with pytest.raises(errors.UserError, match='soundstream'):
    extract_tokens.extract_tokens(
        waveforms_dir=waveforms_dir, models_dir=tmp_path, output_dir=tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  models = dict(extract_tokens.Tokenizer.load(models_dir).models)
  wide = quantizers.KMeansConfig(dim=DIM + 1, num_centroids=4)
  checkpoints.export_model(tmp_path / 'q', 'semantic_quantizer', wide,
                           _random_variables('semantic_quantizer', wide))
  models['semantic_quantizer'] = checkpoints.load_model(tmp_path / 'q')
  with pytest.raises(errors.UserError, match='w2v_bert gives vectors of 16, semantic_quantizer'):
    extract_tokens.Tokenizer(models)


def test_a_quantizer_fitted_to_other_weights_is_refused(models_dir):
  models = dict(extract_tokens.Tokenizer.load(models_dir).models)
  quantizer = models['mulan_quantizer']
  for fitted_to in (models['mulan'].fingerprint, 'other weights'):
    models['mulan_quantizer'] = dataclasses.replace(quantizer, extra={'fitted_to': fitted_to})
    if fitted_to == 'other weights':
      with pytest.raises(errors.UserError, match='mulan_quantizer was fitted to a mulan with sha256'):
        extract_tokens.Tokenizer(models)
    else:
      extract_tokens.Tokenizer(models)


def test_tokens_come_from_the_layer_that_the_quantizer_was_fitted_to(models_dir, tokenizer):
  models, clip = dict(tokenizer.models), _noise(1.0)
  fitted = dataclasses.replace(models['semantic_quantizer'], extra={'layer': 0})
  other = extract_tokens.Tokenizer(
      models | {'semantic_quantizer': fitted}, clip_seconds=1, semantic_window_seconds=1, batch_size=1)
  features = models['w2v_bert'].apply('features', clip[None], layer=0)
  codes = _apply(tokenizer, 'semantic_quantizer', 'encode', features)[0]
  np.testing.assert_array_equal(other._semantic_tokens([clip], [1])[0], codes)
  for layer in (2, -1, '0', True):
    fitted = dataclasses.replace(fitted, extra={'layer': layer})
    with pytest.raises(errors.UserError, match='semantic_quantizer was fitted to layer .* has 0 to 1'):
      extract_tokens.Tokenizer(models | {'semantic_quantizer': fitted})
