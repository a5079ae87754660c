"""L1. Names of the models, their config and module, and the shapes of their variables.

Modules are imported when asked for: opening a codec does not import the language model.
"""

import dataclasses
import difflib
import importlib
import types
import typing
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax import errors

# name -> (module of this folder, config class, linen module class)
MODELS = {
    'soundstream': ('soundstream', 'SoundStreamConfig', 'SoundStream'),
    'w2v_bert': ('w2v_bert', 'W2vBertConfig', 'W2vBert'),
    'mulan': ('mulan', 'MulanConfig', 'Mulan'),
    'semantic_quantizer': ('quantizers', 'KMeansConfig', 'KMeans'),
    'mulan_quantizer': (
        'quantizers', 'ResidualVectorQuantizerConfig', 'ResidualVectorQuantizer'
    ),
    'mulan_mapper': ('mapper', 'MapperConfig', 'Mapper'),
    'melody': ('melody', 'MelodyConfig', 'Melody'),
    'melody_quantizer': (
        'quantizers', 'ResidualVectorQuantizerConfig', 'ResidualVectorQuantizer'
    ),
    'semantic': ('transformer', 'DecoderConfig', 'Decoder'),
    'coarse': ('transformer', 'DecoderConfig', 'Decoder'),
    'fine': ('transformer', 'DecoderConfig', 'Decoder'),
}


def classes(name: str) -> tuple[type, type[nn.Module]]:
  """Returns (config class, linen module class) of the model called `name`."""
  if name not in list(MODELS):  # a stranger's config may say anything here, also a list
    close = difflib.get_close_matches(str(name), MODELS, n=1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    raise errors.UserError(f'unknown model {name!r}: {hint}known models are {", ".join(MODELS)}')
  module_name, config_name, class_name = MODELS[name]
  module = importlib.import_module(f'musiclm_jax.models.{module_name}')
  return getattr(module, config_name), getattr(module, class_name)


def build(name: str, config: Any) -> nn.Module:
  """Returns the unbound linen module of a config."""
  return classes(name)[1](config)


def variable_shapes(name: str, config: Any) -> dict[str, Any]:
  """Returns the variables of a model as a plain tree of ShapeDtypeStructs; nothing is computed."""
  module = build(name, config)
  inputs = example_inputs(name, config)
  rngs = {key: jax.random.key(0) for key in ('params', 'dropout', 'mask', 'quantizer')}
  return dict(jax.eval_shape(lambda *args: nn.unbox(module.init(rngs, *args)), *inputs))


def example_inputs(name: str, config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns shapes of arguments of the module's __call__, as small as the model allows."""
  return _EXAMPLE_INPUTS[name](config)


def _waveform(seconds: float):
  def inputs(config):
    rate = getattr(config, 'sample_rate', None) or getattr(config, 'input_sample_rate', 24000)
    return (jax.ShapeDtypeStruct((1, round(seconds * rate)), jnp.float32),)

  return inputs


def _window(config):
  return _waveform(config.window_seconds)(config)


def _vectors(config):
  return (jax.ShapeDtypeStruct((1, 1, config.dim), jnp.float32),)


def _tokens(config):
  del config
  return (jax.ShapeDtypeStruct((1, 8), jnp.int32),)


def _waveform_and_text(config):
  return (*_waveform(10.0)(config), *_tokens(config))


_EXAMPLE_INPUTS = {
    'soundstream': _waveform(1.0),
    'w2v_bert': _waveform(2.0),
    'mulan': _waveform_and_text,
    'semantic_quantizer': _vectors,
    'mulan_quantizer': _vectors,
    'mulan_mapper': _vectors,
    'melody': _window,
    'melody_quantizer': _vectors,
    'semantic': _tokens,
    'coarse': _tokens,
    'fine': _tokens,
}


def config_to_json(config: Any) -> dict[str, Any]:
  """Returns the JSON-able dict of a frozen config, nested dataclasses as dicts, tuples as lists."""
  return {
      field.name: _to_json(getattr(config, field.name)) for field in dataclasses.fields(config)
  }


def _to_json(value: Any) -> Any:
  if dataclasses.is_dataclass(value):
    return config_to_json(value)
  if isinstance(value, tuple | list):
    return [_to_json(item) for item in value]
  if value is None or isinstance(value, bool | int | float | str):
    return value
  raise TypeError(f'a config holds JSON values, tuples and dataclasses only, not {value!r}')


def config_from_json(cls: type, values: Any, where: str = 'config') -> Any:
  """Returns `cls` built from `config_to_json(config)`: the exact inverse, or a UserError."""
  if not isinstance(values, dict):
    raise errors.UserError(f'{where} is {values!r}, wanted a JSON object')
  hints = typing.get_type_hints(cls)
  names = [field.name for field in dataclasses.fields(cls)]
  unknown = sorted(set(values) - set(names))
  if unknown:
    raise errors.UserError(
        f'{where} has unknown field {unknown[0]!r}; {cls.__name__} has {", ".join(names)}'
    )
  fields = {
      name: _from_json(hints[name], value, f'{where}.{name}') for name, value in values.items()
  }
  try:
    return cls(**fields)
  except (TypeError, ValueError) as error:
    raise errors.UserError(f'{where} is not a valid {cls.__name__}: {error}') from error


def _from_json(hint: Any, value: Any, where: str) -> Any:
  """Returns `value` as the annotated type of its field."""
  origin = typing.get_origin(hint)
  if origin in (typing.Union, types.UnionType):
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if value is None and len(options) < len(typing.get_args(hint)):
      return None
    if len(options) == 1:
      return _from_json(options[0], value, where)
    return _tuples(value)
  if dataclasses.is_dataclass(hint):
    return config_from_json(hint, value, where)
  if hint is tuple or origin is tuple:
    if not isinstance(value, list):
      raise errors.UserError(f'{where} is {value!r}, wanted a list')
    item_hint = (typing.get_args(hint) or (Any,))[0]
    return tuple(_from_json(item_hint, item, where) for item in value)
  if hint is float and type(value) is int:
    return float(value)
  if hint in (bool, int, float, str) and type(value) is not hint:
    raise errors.UserError(f'{where} is {value!r}, wanted {hint.__name__}')
  return _tuples(value)


def _tuples(value: Any) -> Any:
  return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
