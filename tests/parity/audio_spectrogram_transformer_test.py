"""The audio tower against transformers' ASTModel, and its ears against ASTFeatureExtractor."""

import dataclasses
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import audio
from musiclm_jax.models import mulan
from musiclm_jax.pretrained import audio_spectrogram_transformer as ast

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity
CLIP = sorted((pathlib.Path(__file__).parents[1] / 'pretrained' / 'held_out').glob('*.ogg'))[0]


def _config(max_length):
  return transformers.ASTConfig(
      hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80,
      patch_size=8, time_stride=5, frequency_stride=4, max_length=max_length, num_mel_bins=32,
      layer_norm_eps=1e-5)


def _embed(directory, picture, **options):
  tower = ast.read(str(directory), **options)
  params = flax.traverse_util.unflatten_dict(tower.params, sep='/')
  return jax.jit(mulan.Ast(tower.fields['ast']).apply)({'params': params}, jnp.asarray(picture))


def test_embedding_is_that_of_ast(tmp_path, randomize, relative_error):
  model = randomize(transformers.ASTForAudioClassification(_config(100)))
  model.save_pretrained(tmp_path)
  picture = torch.randn(2, 100, 32, generator=torch.manual_seed(0))
  with torch.no_grad():
    theirs = model.audio_spectrogram_transformer(picture).pooler_output
  assert relative_error(_embed(tmp_path, picture, num_frames=100), theirs) <= 1e-4


def test_fewer_frames_keep_the_positions_of_their_moments(tmp_path, randomize, relative_error):
  long = randomize(transformers.ASTModel(_config(100)))
  long.save_pretrained(tmp_path)
  short = transformers.ASTModel(_config(80)).eval()
  weights = long.state_dict()
  table = weights['embeddings.position_embeddings']
  classes, grid = table[:, :2], table[:, 2:].reshape(1, 7, 19, 48)  # [1, mel, time, D]
  weights['embeddings.position_embeddings'] = torch.cat(
      [classes, grid[:, :, :15].reshape(1, 7 * 15, 48)], dim=1)
  short.load_state_dict(weights)
  picture = torch.randn(2, 80, 32, generator=torch.manual_seed(0))
  with torch.no_grad():
    theirs = short(picture).pooler_output
  assert relative_error(_embed(tmp_path, picture, num_frames=80), theirs) <= 1e-4


def test_features_of_music_are_those_of_the_extractor(tmp_path, randomize, relative_error):
  config = transformers.ASTConfig(
      hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
  transformers.ASTModel(config).save_pretrained(tmp_path)
  extractor = transformers.ASTFeatureExtractor(max_length=1000)
  extractor.save_pretrained(tmp_path)
  waveform = np.asarray(audio.read(str(CLIP), 16_000)[:160_000], np.float32)
  waveform = np.pad(waveform, (0, 160_000 - len(waveform)))
  theirs = torch.as_tensor(extractor(waveform, sampling_rate=16_000)['input_values'][0])

  model = mulan.Mulan(dataclasses.replace(
      mulan.MulanConfig(**ast.read(str(tmp_path)).fields), sample_rate=16_000))
  variables = {'params': {'temperature_logit': jnp.zeros(())}}
  ours = jax.jit(lambda x: model.apply(variables, x, method='log_mel'))(waveform[None])[0]
  assert ours.shape == (1000, 128)
  # Theirs is float64: a band a million times weaker than the loudest keeps few digits in float32.
  assert relative_error(ours, theirs) <= 1e-3
  far = np.abs(np.asarray(ours) - theirs.numpy()) > 1e-4 * float(theirs.std())
  assert far.mean() < 1e-3
  np.testing.assert_allclose(ours[998:], theirs[998:], rtol=1e-6)  # beyond the last whole window
