"""L4. A MuLan to train further: towers of public models, the rest freshly initialised."""

import dataclasses
import os
import pathlib
from collections.abc import Container
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from musiclm_jax import checkpoints, errors, text
from musiclm_jax.models import mulan, registry
from musiclm_jax.pretrained import audio_spectrogram_transformer, bert

GIN_FILE = 'model.gin'
SECONDS = 10.0
# Fields that say how to train or to compute, not what the weights mean: a run's own stay as they are.
_OF_THE_RUN = ('dtype', 'remat', 'token_drop_rate', 'time_masks', 'time_mask_frames', 'mel_masks',
               'mel_mask_bands', 'batch_norm_momentum')
_MODULES = {'mulan': 'models', 'resnet': 'resnet', 'spectrogram': 'spectrogram'}  # names in gin


def import_towers(
    output: str,
    text_directory: str | None = None,
    audio_directory: str | None = None,
    vocab_file: str | None = None,
    seed: int = 0,
    patch_stride: int | None = None,
) -> list[str]:
  """Writes an exported MuLan and returns lines about what came from where.

  Args:
    output: directory of the exported model, its vocab.txt and model.gin, which sets the sizes of a
      run that starts from it.
    text_directory: of a BERT-type model; without it the text tower is new, and BERT-base.
    audio_directory: of an AST; without it the audio tower is new, and ResNet-50.
    vocab_file: what a new text tower reads.
    seed: of what is new.
    patch_stride: see audio_spectrogram_transformer.read.
  """
  if not text_directory and not vocab_file:
    raise errors.UserError('without a BERT the text tower is new: give the vocabulary it is to read')
  if text_directory and vocab_file:
    raise errors.UserError(f'{text_directory} has its own vocabulary: {vocab_file} does not apply')
  for directory in (text_directory, audio_directory):
    if directory and os.path.realpath(directory) == os.path.realpath(output):
      raise errors.UserError(f'{output} is what is read, and would be overwritten: give another output')
  towers = {}
  if text_directory:
    towers['text'] = bert.read(text_directory)
  if audio_directory:
    towers['audio'] = audio_spectrogram_transformer.read(
        audio_directory, patch_stride=patch_stride)
  fields = [tower.fields for tower in towers.values()]
  config = mulan.MulanConfig(**{name: field for some in fields for name, field in some.items()})
  if text_directory:
    vocab_file = bert.vocabulary(text_directory, config.text)
  else:
    config.text.check_vocabulary(len(text.read_vocabulary(vocab_file)), vocab_file)

  variables = _fresh(config, seed, without=towers)
  for name, tower in towers.items():
    variables['params'][name] = flax.traverse_util.unflatten_dict(tower.params, sep='/')
  checkpoints.export_model(
      output, 'mulan', config, variables,
      extra={'seconds': SECONDS, 'text_length': config.text.max_length},
      text_files={bert.VOCABULARY_FILE: pathlib.Path(vocab_file).read_text(encoding='utf-8'),
                  GIN_FILE: gin_file(config)})
  return _lines(towers, {'text': text_directory, 'audio': audio_directory}, seed)


def _fresh(config: mulan.MulanConfig, seed: int, without: Container[str]) -> dict[str, Any]:
  """Returns a model's variables as a new run has them, except the towers `without`."""
  module = registry.build('mulan', config)
  inputs = registry.example_inputs('mulan', config)

  @jax.jit
  def init(rng):
    zeros = [jnp.zeros(each.shape, each.dtype) for each in inputs]
    variables = nn.unbox(module.init(rng, *zeros))
    params = {name: tree for name, tree in variables['params'].items() if name not in without}
    return {**variables, 'params': params}

  return init(jax.random.key(seed))


def _lines(towers, directories, seed: int) -> list[str]:
  lines = []
  for name, tower in towers.items():
    count = sum(array.size for array in tower.params.values())
    lines.append(f'{name} tower: {len(tower.params)} arrays, {count:,} parameters from '
                 f'{directories[name]}')
    lines += [f'  {note}' for note in tower.notes]
  new = [f'{name} tower' for name in directories if name not in towers]
  lines.append(f'freshly initialised (seed {seed}): '
               + ', '.join([*new, 'both projections', 'temperature']))
  return lines


def gin_file(config: mulan.MulanConfig) -> str:
  """Returns the text of a gin file that gives a run the sizes of `config`."""
  run = 'mulan_ast' if config.audio_tower == 'ast' else 'mulan_base'
  blocks = []
  _bindings(config, '', blocks, skip={'ast': 'resnet', 'resnet': 'ast'}[config.audio_tower])
  imports = [f'from musiclm_jax.models import {module}' + (f' as {name}' if name != module else '')
             for module, name in _MODULES.items()]
  return '\n'.join([
      "# The sizes of this MuLan, for a run that starts from it; DIR is this file's directory.",
      f'#   python tools/train.py --gin_file=gin/runs/{run}.gin --gin_file=DIR/{GIN_FILE} \\',
      f'#     --gin.INIT_FROM=DIR --gin.VOCAB_FILE=DIR/{bert.VOCABULARY_FILE} ...',
      'from __gin__ import dynamic_registration', *imports, '', *reversed(blocks)])


def _bindings(config: Any, scope: str, blocks: list[str], skip: str = '') -> str:
  """Appends the gin bindings of a config, inner configs first; returns how a field refers to it."""
  module = _MODULES[type(config).__module__.rpartition('.')[2]]
  name = f'{scope}/{module}.{type(config).__name__}'.lstrip('/')
  lines = [f'{name}:']
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.name == skip or field.name in _OF_THE_RUN:
      continue
    if dataclasses.is_dataclass(value):
      # The encoders of the two towers are told apart by their scope.
      value = _bindings(value, field.name if scope == '' else scope, blocks)
    else:
      value = repr(value)
    lines.append(f'  {field.name} = {value}')
  blocks.append('\n'.join(lines) + '\n')
  return f'@{name}()'
