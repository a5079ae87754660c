"""L3. The exported form of a trained model, which is what other programs read.

  model.safetensors  arrays named 'params/encoder/conv/kernel', 'codebooks/quantizer/embeddings'
  config.json        {"format_version": 1, "model": "soundstream", "config": {...}, "extra": {...}}

Loading one runs no code from it: no pickle, no gin.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from musiclm_jax import errors
from musiclm_jax.models import registry

FORMAT_VERSION = 1
WEIGHTS_FILE = 'model.safetensors'
CONFIG_FILE = 'config.json'
STORAGE_DTYPES = {'float32': np.float32, 'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}
_STORED = {
    'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16, 'I32': np.int32,
    'U32': np.uint32, 'I64': np.int64, 'U8': np.uint8, 'BOOL': np.bool_,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ExportedModel:
  """A model read from an exported directory: `codec.apply('decode', codes)` runs it."""

  name: str
  config: Any
  module: nn.Module
  variables: dict[str, Any]
  extra: dict[str, Any]
  directory: epath.Path
  fingerprint: str  # sha256 of model.safetensors: which weights, whatever the directory is called

  def apply(self, method: str, *inputs: jax.Array, **options: Any) -> Any:
    """Returns module.METHOD(*inputs, **options), compiled once for each shape of the inputs."""
    return _apply(self.module, method, tuple(sorted(options.items())), self.variables, *inputs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(module, method, options, variables, *inputs):
  return module.apply(variables, *inputs, method=method, **dict(options))


def export_model(
    directory: str,
    model_name: str,
    config: Any,
    variables: Mapping[str, Any],
    *,
    extra: Mapping[str, Any] | None = None,
    text_files: Mapping[str, str] | None = None,
    dtype: str = 'float32',
) -> str:
  """Writes an exported model (of several hosts, the first one does) and returns its fingerprint.

  Args:
    directory: made when missing; files in it with the same names are replaced.
    model_name: key of `registry.MODELS`.
    config: the model's config.
    variables: {'params': tree, 'codebooks': tree, ...}, plain or boxed.
    extra: JSON values that travel in config.json.
    text_files: file name -> text, for example {'vocab.txt': '[PAD]\\n[UNK]\\n'}.
    dtype: how floating point arrays are stored, 'float32', 'float16' or 'bfloat16'.  An array that
      does not fit float16 (EMA counts may not) stays float32.
  """
  if dtype not in STORAGE_DTYPES:
    raise errors.UserError(f'dtype {dtype!r} is not one of {", ".join(STORAGE_DTYPES)}')
  variables = jax.device_get(nn.unbox(dict(variables)))
  arrays = flax.traverse_util.flatten_dict(variables, sep='/')
  _check_arrays(arrays, model_name, config, 'the variables to export')
  stored = {name: _to_storage(array, dtype) for name, array in arrays.items()}
  weights = safetensors.numpy.save(stored)
  description = {
      'format_version': FORMAT_VERSION,
      'model': model_name,
      'config': registry.config_to_json(config),
      'extra': dict(extra or {}),
  }
  fingerprint = hashlib.sha256(weights).hexdigest()
  if jax.process_index() != 0:
    return fingerprint
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  for name, text in (text_files or {}).items():
    if name != os.path.basename(name) or name in ('', '.', '..'):
      raise errors.UserError(f'text file {name!r} of the model is not the name of a file')
    _write(directory / name, text.encode())
  _write(directory / CONFIG_FILE, (json.dumps(description, indent=2) + '\n').encode())
  _write(directory / WEIGHTS_FILE, weights)
  return fingerprint


def load_model(directory: str, wanted: str | None = None, on_host: bool = False) -> ExportedModel:
  """Returns the model of an exported directory; a directory that is not one is a UserError.

  So is, when `wanted` names a model ('soundstream'), a directory that holds another one.  With
  `on_host` the variables stay numpy arrays, for a device to take its part of.
  """
  directory = epath.Path(directory)
  description = _read_description(directory / CONFIG_FILE)
  name = description.get('model')
  if wanted and name != wanted:
    raise errors.UserError(f'{directory} holds a {name}, wanted a {wanted}')
  config_class, _ = registry.classes(name)
  where = f'{directory / CONFIG_FILE}: config'
  config = registry.config_from_json(config_class, description.get('config'), where)
  weights = _read(directory / WEIGHTS_FILE)
  arrays = _parse_weights(weights, directory / WEIGHTS_FILE)
  shapes = _check_arrays(arrays, name, config, str(directory / WEIGHTS_FILE))
  as_array = np.asarray if on_host else jnp.asarray
  arrays = {key: as_array(array, shapes[key].dtype) for key, array in arrays.items()}
  return ExportedModel(
      name=name,
      config=config,
      module=registry.build(name, config),
      variables=flax.traverse_util.unflatten_dict(arrays, sep='/'),
      extra=dict(description.get('extra') or {}),
      directory=directory,
      fingerprint=hashlib.sha256(weights).hexdigest(),
  )


def token_fingerprint(model: ExportedModel, num_levels: int | None = None) -> str:
  """Returns which tokens a model makes: for most, `fingerprint`.

  For a codec it is the sha256 of its encoder and of its first `num_levels` codebooks (default: all).
  Another decoder, or levels that are added, leave the tokens as they are, and so the models that
  were trained on them.
  """
  if model.name != 'soundstream':
    return model.fingerprint
  params = {name: model.variables['params'][name] for name in model.config.encoding_params}
  parts = flax.traverse_util.flatten_dict({'params': params}, sep='/')
  parts['embeddings'] = model.variables['codebooks']['quantizer']['embeddings'][:num_levels]
  digest = hashlib.sha256()
  for name, array in sorted(parts.items()):
    digest.update(f'{name} {array.shape}'.encode())
    digest.update(np.asarray(array, '<f4').tobytes())
  return digest.hexdigest()


def _to_storage(array: np.ndarray, dtype: str) -> np.ndarray:
  array = np.array(array, order='C')
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return array
  with np.errstate(over='ignore'):
    cast = array.astype(STORAGE_DTYPES[dtype])
  lost = np.isfinite(array) & ~np.isfinite(cast.astype(np.float32))
  return array.astype(np.float32) if lost.any() else cast


def _check_arrays(arrays: Mapping[str, Any], name: str, config: Any, where: str) -> dict[str, Any]:
  """Returns the wanted shapes; a tensor missing, left over or of another shape is a UserError."""
  try:
    shapes = registry.variable_shapes(name, config)
  except Exception as error:  # a stranger's config: any line of the model may fail
    reason = str(error).split('\n')[0]
    raise errors.UserError(f'{where}: config does not build a {name}: {reason}') from error
  shapes = flax.traverse_util.flatten_dict(shapes, sep='/')
  for key in sorted(set(shapes) | set(arrays)):
    if key not in arrays:
      raise errors.UserError(f'{where}: tensor {key} is missing, wanted {shapes[key].shape}')
    if key not in shapes:
      raise errors.UserError(f'{where}: tensor {key} is not part of a {name} of this config')
    if tuple(arrays[key].shape) != shapes[key].shape:
      raise errors.UserError(
          f'{where}: tensor {key} has shape {tuple(arrays[key].shape)}, wanted {shapes[key].shape}'
      )
    if jnp.issubdtype(arrays[key].dtype, jnp.floating) != jnp.issubdtype(
        shapes[key].dtype, jnp.floating
    ):
      raise errors.UserError(
          f'{where}: tensor {key} is {arrays[key].dtype}, wanted {shapes[key].dtype}'
      )
  return shapes


def _parse_weights(weights: bytes, path: epath.Path) -> dict[str, np.ndarray]:
  try:
    tensors = safetensors.deserialize(weights)
  except safetensors.SafetensorError as error:
    raise errors.UserError(f'{path} is not a safetensors file: {error}') from error
  arrays = {}
  for name, tensor in tensors:
    if tensor['dtype'] not in _STORED:
      raise errors.UserError(
          f'{path}: tensor {name} is {tensor["dtype"]}, wanted one of {", ".join(_STORED)}'
      )
    values = np.frombuffer(tensor['data'], _STORED[tensor['dtype']])
    try:
      arrays[name] = values.reshape(tensor['shape'])
    except (ValueError, OverflowError) as error:  # sizes beyond numpy's, such as [0, 2**62]
      raise errors.UserError(f'{path}: tensor {name!r:.80} is no array: {error}') from error
  return arrays


def _read_description(path: epath.Path) -> dict[str, Any]:
  content = _read(path)
  try:
    description = json.loads(content.decode())
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f'{path} is not JSON: {error}') from error
  if not isinstance(description, dict):
    raise errors.UserError(f'{path} holds {type(description).__name__}, wanted a JSON object')
  version = description.get('format_version')
  if version != FORMAT_VERSION:
    raise errors.UserError(f'{path}: format_version is {version!r}, wanted {FORMAT_VERSION}')
  return description


def _read(path: epath.Path) -> bytes:
  if not path.parent.exists():
    raise errors.UserError(f'{path.parent} does not exist, wanted a directory of an exported model')
  if not path.exists():
    raise errors.UserError(f'{path.parent} is not an exported model: it has no {path.name}')
  return path.read_bytes()


def _write(path: epath.Path, content: bytes) -> None:
  """Writes under a temporary name first: a reader sees the old file or the new one."""
  temporary = path.parent / f'.{path.name}.tmp'
  temporary.write_bytes(content)
  temporary.replace(path)
