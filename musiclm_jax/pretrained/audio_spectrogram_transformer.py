"""L4. The audio tower from a directory of an AST (Gong et al. 2021), as Hugging Face's.

Axes: B one example, C one channel or token, D emb_dim, F mel and T time, of a patch or of the grid
of patches, P patches behind two class tokens, of which the second is the distilled one.

Theirs is a picture [mel, time], patches numbered with time as the inner axis; ours is [time, mel]
with mel as the inner axis.
"""

import dataclasses
import os
from typing import Any

import numpy as np

from musiclm_jax import errors
from musiclm_jax.models import mulan, spectrogram
from musiclm_jax.pretrained import hugging_face

NUM_FRAMES = 1000  # 10 s, MuLan's
NUM_CLASS_TOKENS = 2
MAX_MELS = 1024  # public models have 128; a filter bank for a million would fill the memory
PREFIX = 'audio_spectrogram_transformer.'
_HEAD = 'the classifier'
LEFT_OUT = {
    'classifier.layernorm.weight': _HEAD,
    'classifier.layernorm.bias': _HEAD,
    'classifier.dense.weight': _HEAD,
    'classifier.dense.bias': _HEAD,
}


def read(directory: str, num_frames: int = NUM_FRAMES,
         patch_stride: int | None = None) -> hugging_face.Imported:
  """Returns the audio tower: fields of MulanConfig, and the parameters of Ast.

  Args:
    directory: of the model.
    num_frames: what the tower hears, at most the model's own max_length.
    patch_stride: between patches; default the model's own. A patch gets the position of its own
      time and band, interpolated linearly between the model's patches around it: with the model's
      own stride these are the rows of its first patches as they are.
  """
  fields = read_fields(directory, num_frames, patch_stride)
  config, num_mels = fields['ast'], fields['mel'].num_mels
  settings = _settings(directory)
  strides = _strides(settings)
  grid = dataclasses.replace(config, patch_stride=strides).num_patches(
      settings.size('max_length'), num_mels)
  params, notes = _params(directory, config, grid)
  wanted = config.num_patches(num_frames, num_mels)
  classes, positions = np.split(params['positions'][0], [NUM_CLASS_TOKENS])
  positions = positions.reshape(grid[1], grid[0], -1).transpose(1, 0, 2)  # [T, F, D]
  for axis in range(2):
    steps = np.arange(wanted[axis]) * config.patch_stride[axis] / strides[axis]
    positions = interpolate(positions, steps, axis)
  params['positions'] = np.concatenate([classes, positions.reshape(-1, positions.shape[-1])])
  how = 'as they are' if config.patch_stride == strides else 'interpolated between its patches'
  notes.append(f'positions of {grid[0]} x {grid[1]} patches became {wanted[0]} x {wanted[1]}, {how}')
  return hugging_face.Imported(fields, params, notes)


def _settings(directory: str) -> hugging_face.Settings:
  return hugging_face.Settings.read(directory, hugging_face.CONFIG_FILE)


def _strides(settings: hugging_face.Settings) -> tuple[int, int]:
  return settings.size('time_stride'), settings.size('frequency_stride')


def read_fields(directory: str, num_frames: int = NUM_FRAMES,
                patch_stride: int | None = None) -> dict[str, Any]:
  """Returns the fields of MulanConfig; a config.json the tower cannot honour is an error."""
  settings = _settings(directory)
  settings.require('model_type', 'audio-spectrogram-transformer', why='the audio tower is an AST')
  settings.require('qkv_bias', True, None, why='queries, keys and values of the tower have a bias')
  patch, most = settings.size('patch_size', 1024), settings.size('max_length')
  num_mels = settings.size('num_mel_bins', MAX_MELS)
  if not patch <= num_frames <= most or num_mels < patch:
    raise errors.UserError(f'{settings.path}: max_length {most} and num_mel_bins {num_mels}, '
                           f'wanted at least {num_frames} frames and patch_size {patch} bins')
  if patch_stride and patch_stride > patch:
    raise errors.UserError(f'patch_stride {patch_stride}: wanted at most patch_size {patch}')
  config = mulan.AstConfig(
      encoder=hugging_face.encoder_config(settings, norm_first=True, dropout_rate=0.0),
      patch_size=(patch, patch),
      patch_stride=(patch_stride,) * 2 if patch_stride else _strides(settings),
      num_frames=num_frames, num_class_tokens=NUM_CLASS_TOKENS)
  return {'audio_tower': 'ast', 'ast': config, **_front_end(directory, num_mels)}


def interpolate(table: np.ndarray, steps: np.ndarray, axis: int) -> np.ndarray:
  """Returns the rows of `table` at `steps` along `axis`, between its ends, linearly interpolated.

  rows 0 10 40, steps 0 0.5 2 2.2 -> 0 5 40 40
  """
  size = table.shape[axis]
  distance = np.abs(np.minimum(steps, size - 1)[:, None] - np.arange(size))
  weights = np.maximum(0.0, 1.0 - distance).astype(np.float32)  # [wanted, size]
  return np.moveaxis(np.tensordot(weights, table, (1, axis)), 0, axis)


def _params(directory: str, config: mulan.AstConfig, grid: tuple[int, int]):
  """Returns (the parameters, positions still theirs [1, P, D]; lines about what was left out)."""
  moves = [
      hugging_face.Move('embeddings.cls_token', 'class_0', 'B C D -> B C D'),
      hugging_face.Move('embeddings.distillation_token', 'class_1', 'B C D -> B C D'),
      hugging_face.Move('embeddings.position_embeddings', 'positions', 'B P D -> B P D'),
      hugging_face.Move('embeddings.patch_embeddings.projection.weight', 'patches/kernel',
                        'D C F T -> T F C D'),
      hugging_face.Move('embeddings.patch_embeddings.projection.bias', 'patches/bias', 'D -> D'),
      *hugging_face.encoder(config.encoder.num_layers, 'attention.attention', 'layernorm_before',
                            'layernorm_after'),
      *hugging_face.norm('layernorm', 'encoder/norm'),
  ]
  sizes = {
      'B': 1, 'C': 1, 'P': NUM_CLASS_TOKENS + grid[0] * grid[1], 'T': config.patch_size[0],
      'F': config.patch_size[1], **hugging_face.encoder_sizes(config.encoder),
  }  # fmt: skip
  params, notes = hugging_face.move(
      hugging_face.read_weights(directory, PREFIX), moves, sizes, LEFT_OUT,
      os.path.join(directory, hugging_face.WEIGHTS_FILE))
  params['classes'] = np.concatenate([params.pop('class_0')[0], params.pop('class_1')[0]])
  return params, notes


def _front_end(directory: str, num_mels: int) -> dict[str, Any]:
  """Returns the fields of MulanConfig with which a tower hears what ASTFeatureExtractor makes."""
  settings = hugging_face.Settings.read_if_there(directory, 'preprocessor_config.json')
  settings.require('sampling_rate', 16_000, None, why='its windows are 400 samples long')
  settings.require('do_normalize', True, None, why='the tower hears scaled features')
  settings.require('num_mel_bins', num_mels, None, why='config.json says so')
  mel = spectrogram.MelConfig(
      sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, num_mels=num_mels,
      fmin=20.0, fmax=8_000.0, center=False, log_floor=float(np.finfo(np.float32).eps),
      front_end='kaldi', preemphasis=0.97)
  return {
      'mel': mel,
      'mel_mean': settings.number('mean', -4.2677393, -1e3, 1e3),  # AudioSet's
      'mel_scale': 2 * settings.number('std', 4.5689974, 1e-3, 1e3),
  }
