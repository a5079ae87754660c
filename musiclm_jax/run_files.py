"""L3. What a WORKDIR says about its run: model.json and config.gin, and the model exported from it.

model.json holds what a checkpoint does not: which model, its config, and the small text files that
the numbers in its weights refer to (the token layout, the vocabulary).
"""

import json
import logging
import time
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from musiclm_jax import checkpoints, errors, multi_host, training_checkpoints
from musiclm_jax.models import registry
from musiclm_jax.objectives import base

log = logging.getLogger(__name__)

MODEL_FILE = 'model.json'
CONFIG_FILE = 'config.gin'
_PATIENCE_SECONDS = 60.0  # a network file system may hide a new file for as long
_KEYS = ('model', 'config', 'export_subtree')


def write(workdir: str, objective: base.Objective, config_text: str | None) -> None:
  """Writes model.json and config.gin; a workdir that holds another model's run is a UserError."""
  workdir = epath.Path(workdir)
  description = {
      'model': objective.model_name,
      'config': registry.config_to_json(objective.config),
      'export_subtree': getattr(objective, 'export_subtree', ''),
      'extra': dict(getattr(objective, 'export_extra', None) or {}),
      'text_files': _text_files(objective),
  }
  path = workdir / MODEL_FILE
  if path.exists():
    old = _read(path)
    for key in ('model', 'config'):
      _check_same(old.get(key), description[key], key, workdir)
    for name, text in description['text_files'].items():
      if old['text_files'].get(name) != text:
        raise errors.UserError(
            f'{workdir} holds a run with another {name} than the one given; set another WORKDIR')
  multihost_utils.sync_global_devices('run_files.checked')  # before anyone writes
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(description, indent=2) + '\n')
    if config_text:
      (workdir / CONFIG_FILE).write_text(config_text)
  multihost_utils.sync_global_devices('run_files.written')
  _check_shared(path)


def _check_shared(path: epath.Path) -> None:
  """Raises an error on every host when one does not see the file that the first one wrote."""
  patience = time.monotonic() + _PATIENCE_SECONDS
  while not path.exists() and time.monotonic() < patience:
    time.sleep(1)
  host = multi_host.first_failed(not path.exists())
  if host is not None:
    raise errors.UserError(
        f'host {host} of {jax.process_count()} has no {path}, which host 0 wrote: wanted a WORKDIR'
        ' that all hosts share, for example gs://BUCKET/RUN')


def check_text_files(objective: base.Objective, directory: str) -> None:
  """Raises an error when an exported model's weights refer to another layout or vocabulary."""
  for name, text in _text_files(objective).items():
    beside = epath.Path(directory) / name
    if not beside.exists():
      raise errors.UserError(f'{directory} has no {name}, which says what its ids mean')
    if beside.read_text() != text:
      raise errors.UserError(
          f'{beside} is not the {name} of this run: its weights know other ids')


def export(
    workdir: str, output: str, step: int | None = None, dtype: str = 'float32'
) -> tuple[int, str]:
  """Writes the model of a run in its exported form; returns (step, fingerprint).

  Reads the checkpoint of `step`, or the last, and model.json: neither gin nor data.
  """
  path = epath.Path(workdir) / MODEL_FILE
  if not path.exists():
    raise errors.UserError(
        f'{workdir} is not the WORKDIR of a training run: it has no {MODEL_FILE}')
  model = _read(path)
  config_class, _ = registry.classes(model['model'])
  config = registry.config_from_json(config_class, model['config'], f'{path}: config')
  step, variables = training_checkpoints.read_variables(workdir, step)
  if subtree := model['export_subtree']:
    if subtree not in variables['params']:
      raise errors.UserError(f'{path}: export_subtree {subtree!r} is not among '
                             f'{sorted(variables["params"])}')
    variables['params'] = variables['params'][subtree]
  # What the objective keeps for itself, as a gradient balancer's norms, is no part of the model.
  collections = registry.variable_shapes(model['model'], config)
  variables = {name: tree for name, tree in variables.items() if name in collections}
  fingerprint = checkpoints.export_model(
      output,
      model['model'],
      config,
      variables,
      extra=dict(model['extra'], step=step),
      text_files=model['text_files'],
      dtype=dtype,
  )
  log.info('exported step %d of %s to %s', step, workdir, output)
  return step, fingerprint


def _read(path: epath.Path) -> dict[str, Any]:
  """Returns model.json, which may come with a run from anywhere."""
  try:
    model = json.loads(path.read_bytes())
    if not isinstance(model['extra'], dict) or not isinstance(model['text_files'], dict):
      raise TypeError('extra or text_files is not an object')
    return {name: model[name] for name in (*_KEYS, 'extra', 'text_files')}
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise errors.UserError(f'{path} does not describe a model: {error!r}') from error


def _text_files(objective: base.Objective) -> dict[str, str]:
  return dict(getattr(objective, 'export_text_files', None) or {})


def _check_same(old: Any, new: Any, name: str, workdir: epath.Path) -> None:
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted(set(old) | set(new)):
      _check_same(old.get(key), new.get(key), f'{name}.{key}', workdir)
  elif old != new:
    raise errors.UserError(
        f'{workdir} holds the run of another model: {name} is {old!r} there and {new!r} here;'
        ' set another WORKDIR'
    )
