"""The audio tower of a small AST: which patch goes where."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import errors
from musiclm_jax.models import mulan
from musiclm_jax.pretrained import audio_spectrogram_transformer as ast

FRAMES = 19


def _sequence(tower, picture):
  """Returns what comes out of the first layer, f32[2 + P, D]."""
  params = flax.traverse_util.unflatten_dict(tower.params, sep='/')
  _, found = jax.jit(lambda x: mulan.Ast(tower.fields['ast']).apply(
      {'params': params}, x, capture_intermediates=lambda module, _: module.name == 'layer_0')
  )(jnp.asarray(picture)[None])
  return np.asarray(found['intermediates']['encoder']['layer_0']['__call__'][0][0])


def _without_layers(directory):
  for name, array in directory.arrays.items():
    if 'output.dense' in name:
      array[...] = 0.0  # a layer then returns what it is given
  return directory.write()


def test_patches_and_positions_of_a_picture(make_ast):
  directory = _without_layers(make_ast())
  arrays = directory.arrays
  picture = np.zeros((FRAMES, 8), np.float32)
  picture[7, 2], picture[18, 7], picture[0, 0] = 1.0, 2.0, -3.0  # three points in the dark
  ours = _sequence(ast.read(str(directory), FRAMES), picture)
  kernel = arrays['embeddings.patch_embeddings.projection.weight'][:, 0]  # [D, mel, time]
  positions = arrays['embeddings.position_embeddings'][0]
  tokens = [arrays['embeddings.cls_token'][0, 0], arrays['embeddings.distillation_token'][0, 0]]
  np.testing.assert_allclose(ours[:2], np.stack(tokens) + positions[:2], rtol=1e-5, atol=1e-6)
  times, bands = 6, 3  # of patches of 4 x 4, every 3 frames and 2 bands
  assert len(ours) == 2 + times * bands
  for t in range(times):
    for f in range(bands):
      seen = picture[3 * t:3 * t + 4, 2 * f:2 * f + 4].T
      wanted = (kernel * seen).sum((1, 2)) + arrays['embeddings.patch_embeddings.projection.bias']
      wanted += positions[2 + f * times + t]
      np.testing.assert_allclose(ours[2 + t * bands + f], wanted, rtol=1e-5, atol=1e-6)


def test_every_parameter_of_the_tower_is_set(make_ast):
  directory = make_ast()
  directory.arrays = {f'audio_spectrogram_transformer.{name}': array
                      for name, array in directory.arrays.items()}
  directory.arrays['classifier.dense.bias'] = np.zeros(527, np.float32)
  tower = ast.read(str(directory.write()), FRAMES)
  module = mulan.Ast(tower.fields['ast'])
  shapes = flax.traverse_util.flatten_dict(jax.eval_shape(
      module.init, jax.random.key(0), jnp.zeros((1, FRAMES, 8)))['params'], sep='/')
  assert {k: v.shape for k, v in tower.params.items()} == {k: v.value.shape for k, v in shapes.items()}
  assert tower.notes == ['left out: classifier.dense.bias (527,), the classifier',
                         'positions of 6 x 3 patches became 6 x 3, as they are']


def test_fewer_frames_keep_the_positions_of_their_moments(make_ast):
  directory = str(make_ast())
  all_frames, fewer = (ast.read(directory, n).params['positions'] for n in (FRAMES, 13))
  np.testing.assert_array_equal(fewer, all_frames[:2 + 4 * 3])


def test_another_stride_interpolates_between_patches(make_ast):
  directory = make_ast(frequency_stride=4, time_stride=2, max_length=20)
  times, bands = np.meshgrid(np.arange(0, 17, 2), np.arange(0, 5, 4))  # [mel, time]: where they start
  table = directory.arrays['embeddings.position_embeddings']
  table[0, 2:] = (100 * times + bands).reshape(-1, 1)
  tower = ast.read(str(directory.write()), 20, patch_stride=3)
  times, bands = np.meshgrid(np.arange(0, 17, 3), np.arange(0, 5, 3), indexing='ij')
  np.testing.assert_allclose(tower.params['positions'][2:, 0], (100 * times + bands).ravel())
  np.testing.assert_array_equal(tower.params['positions'][:2], table[0, :2])
  assert tower.fields['ast'].patch_stride == (3, 3)
  assert tower.notes[-1] == 'positions of 9 x 2 patches became 6 x 2, interpolated between its patches'


def test_interpolation_stays_between_the_ends():
  rows = np.array([[0.0], [10.0], [40.0]], np.float32)
  np.testing.assert_array_equal(
      ast.interpolate(rows, np.array([0, 0.5, 2, 2.2]), 0)[:, 0], [0, 5, 40, 40])


def test_the_front_end_is_what_the_directory_says(make_ast):
  directory = make_ast()
  fields = ast.read_fields(str(directory), FRAMES)
  assert (fields['mel_mean'], fields['mel_scale']) == (-4.2677393, 2 * 4.5689974)
  assert (fields['mel'].front_end, fields['mel'].num_mels) == ('kaldi', 8)
  path = directory.path / 'preprocessor_config.json'
  path.write_text(json.dumps({'mean': -6.5, 'std': 5.0, 'num_mel_bins': 8, 'sampling_rate': 16000}))
  fields = ast.read_fields(str(directory), FRAMES)
  assert (fields['mel_mean'], fields['mel_scale']) == (-6.5, 10.0)
  for change, wanted in (({'sampling_rate': 44100}, 'sampling_rate is 44100, wanted 16000'),
                         ({'do_normalize': False}, 'do_normalize is False, wanted True'),
                         ({'num_mel_bins': 128}, 'num_mel_bins is 128, wanted 8'),
                         ({'std': 0}, 'std is 0, wanted 0.001 to 1000')):
    path.write_text(json.dumps(change))
    with pytest.raises(errors.UserError, match=wanted):
      ast.read_fields(str(directory), FRAMES)


@pytest.mark.parametrize('change, wanted', [
    ({'model_type': 'bert'}, "model_type is 'bert', wanted 'audio-spectrogram-transformer'"),
    ({'qkv_bias': False}, 'qkv_bias is False, wanted True'),
    ({'hidden_act': 'gelu_new'}, "hidden_act is 'gelu_new', wanted 'gelu'"),
    ({'patch_size': [4, 4]}, r'patch_size is \[4, 4\], wanted 1 to 1024'),
    ({'max_length': 18}, 'max_length 18 and num_mel_bins 8, wanted at least 19 frames'),
    ({'num_mel_bins': 2**20}, 'num_mel_bins is 1048576, wanted 1 to 1024'),
    ({'num_mel_bins': 3}, 'num_mel_bins 3, wanted .* patch_size 4 bins'),
    ({'max_length': 2**20}, r'position_embeddings is \(1, 20, 8\), wanted \(1, 1048577, 8\)'),
    ({'time_stride': 0}, 'time_stride is 0'),
    ({'num_hidden_layers': 2}, 'tensor encoder.layer.1.attention.attention.query.weight is missing'),
])  # fmt: skip
def test_a_config_that_cannot_be_honoured(make_ast, change, wanted):
  directory = make_ast()
  directory.config.update(change)
  with pytest.raises(errors.UserError, match=wanted):
    ast.read(str(directory.write()), FRAMES)


def test_a_stride_that_skips_frames_is_refused(make_ast):
  with pytest.raises(errors.UserError, match='patch_stride 5: wanted at most patch_size 4'):
    ast.read(str(make_ast()), FRAMES, patch_stride=5)
