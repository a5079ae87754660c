"""L4. Model directories as Hugging Face writes them, and tables that move their tensors to ours.

A directory holds config.json, model.safetensors and, for text, vocab.txt. Nothing in it is run: a
pickle is refused. What a table does not name, or names and does not find, is an error.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from musiclm_jax import errors
from musiclm_jax.models import mulan

CONFIG_FILE = 'config.json'
WEIGHTS_FILE = 'model.safetensors'
MAX_SIZE = 2**20  # of anything a config.json counts
MAX_LAYERS = 1000
MAX_SETTINGS_BYTES = 2**24
MAX_WEIGHTS_BYTES = 2**33  # BERT-large has 1.3e9
MAX_NAME = 200


class Settings:
  """The values of a JSON file; each is checked when it is asked for."""

  def __init__(self, path: str, values: Mapping[str, Any]):
    self.path, self._values = path, values

  @classmethod
  def read(cls, directory: str, name: str) -> 'Settings':
    """Returns the settings of a file that has to be there."""
    path = os.path.join(directory, name)
    if not os.path.isdir(directory):
      raise errors.UserError(f'{directory} is not a directory; wanted one with {name}')
    if not os.path.isfile(path):
      raise errors.UserError(f'{directory} has no {name}')
    content = _read(path, MAX_SETTINGS_BYTES)
    try:
      values = json.loads(content)
    except (ValueError, RecursionError) as error:
      raise errors.UserError(f'{path} is not JSON: {error}') from error
    if not isinstance(values, dict):
      raise errors.UserError(f'{path} holds {type(values).__name__}, wanted a JSON object')
    return cls(path, values)

  @classmethod
  def read_if_there(cls, directory: str, name: str) -> 'Settings':
    """Returns the settings of a file, none at all when there is no such file."""
    path = os.path.join(directory, name)
    return cls.read(directory, name) if os.path.exists(path) else cls(path, {})

  def size(self, name: str, most: int = MAX_SIZE) -> int:
    """Returns a whole number of 1 to `most`."""
    value = self._values.get(name)
    if type(value) is not int or not 1 <= value <= most:
      raise errors.UserError(f'{self.path}: {name} is {_shown(value)}, wanted 1 to {most}')
    return value

  def number(self, name: str, default: float, low: float, high: float) -> float:
    """Returns a number of `low` to `high`, `default` when there is none."""
    value = self._values.get(name, default)
    if type(value) not in (int, float) or not low <= value <= high:
      raise errors.UserError(f'{self.path}: {name} is {_shown(value)}, wanted {low:g} to {high:g}')
    return float(value)

  def require(self, name: str, *wanted: Any, why: str) -> None:
    """Raises an error unless `name` has one of the values `wanted`; None among them: or is absent."""
    value = self._values.get(name)
    if not any(type(value) is type(other) and value == other for other in wanted):
      options = ' or '.join(repr(other) for other in wanted if other is not None)
      raise errors.UserError(f'{self.path}: {name} is {_shown(value)}, wanted {options}: {why}')


def encoder_config(
    settings: Settings, norm_first: bool, dropout_rate: float) -> mulan.EncoderConfig:
  """Returns the sizes of an encoder; `dropout_rate` when the settings have none."""
  settings.require('hidden_act', 'gelu', None, why='it is all the tower computes')
  emb_dim, num_heads = settings.size('hidden_size'), settings.size('num_attention_heads')
  if emb_dim % num_heads:
    raise errors.UserError(f'{settings.path}: hidden_size {emb_dim} is not divisible by '
                           f'num_attention_heads {num_heads}')
  return mulan.EncoderConfig(
      num_layers=settings.size('num_hidden_layers', MAX_LAYERS),
      emb_dim=emb_dim,
      num_heads=num_heads,
      mlp_dim=settings.size('intermediate_size'),
      dropout_rate=settings.number('hidden_dropout_prob', dropout_rate, 0.0, 0.99),
      norm_first=norm_first,
      layer_norm_epsilon=settings.number('layer_norm_eps', 1e-12, 0.0, 1.0),
  )


def _read(path: str, most: int) -> bytes:
  """Returns the content of a file of at most `most` bytes."""
  if (size := os.path.getsize(path)) > most:
    raise errors.UserError(f'{path} has {size} bytes, wanted at most {most}')
  with open(path, 'rb') as f:
    return f.read()


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:57] + '...'


class Imported(NamedTuple):
  """One tower: fields of MulanConfig, its parameters by name, and what a user should know."""

  fields: dict[str, Any]
  params: dict[str, np.ndarray]  # 'encoder/layer_0/query/kernel': f32[D, H, K]
  notes: list[str]


class Move(NamedTuple):
  """Tensor `source` becomes `target`, with its axes as in '(H K) D -> D H K'."""

  source: str
  target: str
  axes: str


def dense(source: str, target: str, weight: str, bias: str) -> list[Move]:
  """Returns the moves of a torch.nn.Linear, whose weight is [outputs, inputs]."""
  return [Move(f'{source}.weight', f'{target}/kernel', weight),
          Move(f'{source}.bias', f'{target}/bias', bias)]


def norm(source: str, target: str) -> list[Move]:
  """Returns the moves of a torch.nn.LayerNorm."""
  return [Move(f'{source}.weight', f'{target}/scale', 'D -> D'),
          Move(f'{source}.bias', f'{target}/bias', 'D -> D')]


def encoder(num_layers: int, attention: str, attention_norm: str, mlp_norm: str) -> list[Move]:
  """Returns the moves of an encoder's layers; some parts are called differently by each model."""
  moves = []
  for i in range(num_layers):
    theirs, ours = f'encoder.layer.{i}', f'encoder/layer_{i}'
    for name in ('query', 'key', 'value'):
      moves += dense(f'{theirs}.{attention}.{name}', f'{ours}/{name}',
                     '(H K) D -> D H K', '(H K) -> H K')
    moves += dense(f'{theirs}.attention.output.dense', f'{ours}/out',
                   'D (H K) -> H K D', 'D -> D')
    moves += norm(f'{theirs}.{attention_norm}', f'{ours}/attention_norm')
    moves += dense(f'{theirs}.intermediate.dense', f'{ours}/wi', 'M D -> D M', 'M -> M')
    moves += dense(f'{theirs}.output.dense', f'{ours}/wo', 'D M -> M D', 'D -> D')
    moves += norm(f'{theirs}.{mlp_norm}', f'{ours}/mlp_norm')
  return moves


def encoder_sizes(config: mulan.EncoderConfig) -> dict[str, int]:
  """Returns the axes of an encoder's moves: D emb_dim, H heads, K head_dim, M mlp_dim."""
  return {'D': config.emb_dim, 'H': config.num_heads, 'K': config.emb_dim // config.num_heads,
          'M': config.mlp_dim}


def read_weights(directory: str, prefix: str) -> dict[str, np.ndarray]:
  """Returns the tensors of model.safetensors by name, without `prefix` where a name has it.

  A LayerNorm's gamma and beta, as in files from before 2020, are called weight and bias.
  """
  path = os.path.join(directory, WEIGHTS_FILE)
  if not os.path.isfile(path):
    others = [name for name in (f'{WEIGHTS_FILE}.index.json', 'pytorch_model.bin')
              if os.path.exists(os.path.join(directory, name))]
    hint = {'pytorch_model.bin': ' (it has pytorch_model.bin, a pickle, which is never read)',
            f'{WEIGHTS_FILE}.index.json': ' (its weights are in several files, wanted one)'}
    raise errors.UserError(f'{directory} has no {WEIGHTS_FILE}{hint[others[0]] if others else ""}')
  content = _read(path, MAX_WEIGHTS_BYTES)
  try:
    arrays = safetensors.numpy.load(content)
  except (safetensors.SafetensorError, ValueError) as error:  # ValueError: a shape numpy cannot have
    raise errors.UserError(f'{path} is not a safetensors file: {error}') from error
  except KeyError as error:  # how the library says that numpy has no such type
    raise errors.UserError(f'{path} holds a tensor of type {error}, wanted F32 or F16') from error
  renamed = {}
  for name, array in arrays.items():
    if not name.isprintable() or len(name) > MAX_NAME:
      raise errors.UserError(f'{path}: a tensor is called {_shown(name)}')
    name = name.removeprefix(prefix)
    name = re.sub(r'(LayerNorm)\.gamma$', r'\1.weight', name)
    name = re.sub(r'(LayerNorm)\.beta$', r'\1.bias', name)
    if name in renamed:
      raise errors.UserError(f'{path}: tensor {name} is there twice, under two names')
    renamed[name] = array
  return renamed


def move(
    arrays: Mapping[str, np.ndarray], moves: Iterable[Move], sizes: Mapping[str, int],
    left_out: Mapping[str, str], where: str) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns ({target: f32 array}, a line for each tensor left out); each tensor is used once.

  Args:
    arrays: the tensors by name.
    moves: where each goes.
    sizes: of the axes that the moves name.
    left_out: name -> why; of tensors that may be there and have no place in the tower.
    where: the file, for errors.
  """
  rest, moved = dict(arrays), {}
  for source, target, axes in moves:
    shape, apart, order = _layout(axes, sizes)
    if source not in rest:
      raise errors.UserError(f'{where}: tensor {source} is missing, wanted {shape}')
    array = rest.pop(source)
    if array.shape != shape:
      raise errors.UserError(f'{where}: tensor {source} is {array.shape}, wanted {shape}')
    if array.dtype not in (np.float32, np.float16, np.float64):
      raise errors.UserError(f'{where}: tensor {source} is {array.dtype}, wanted float32')
    with np.errstate(over='ignore'):  # what float32 cannot hold is not finite
      array = array.astype(np.float32)
    if not np.isfinite(array).all():
      raise errors.UserError(f'{where}: tensor {source} has values that are not finite')
    assert target not in moved, target
    moved[target] = array.reshape(apart).transpose(order)
  for name in sorted(rest):
    if name not in left_out:
      raise errors.UserError(
          f'{where}: tensor {name} {rest[name].shape} has no place in the model its config describes')
  return moved, [f'left out: {name} {rest[name].shape}, {left_out[name]}' for name in sorted(rest)]


def _layout(axes: str, sizes: Mapping[str, int]) -> tuple[tuple, tuple, tuple]:
  """Returns (shape of the source, its shape with all axes apart, their order in the target).

  '(H K) D -> D H K', {H: 2, K: 4, D: 8}:  (8, 8), (2, 4, 8), (2, 0, 1)
  """
  source, target = axes.split(' -> ')
  groups = [group.strip('()').split() for group in re.findall(r'\([^)]*\)|\S+', source)]
  names = [name for group in groups for name in group]
  return (tuple(math.prod(sizes[name] for name in group) for group in groups),
          tuple(sizes[name] for name in names),
          tuple(names.index(name) for name in target.split()))
