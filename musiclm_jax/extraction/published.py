"""Files of an output directory, here or in a bucket, that appear whole or not at all."""

import concurrent.futures
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from musiclm_jax import audio, errors


def is_remote(path) -> bool:
  """Returns whether a path names an object of a store: 'gs://bucket/a.wav'."""
  return re.match(r'[a-z][a-z0-9]*://', os.fspath(path)) is not None


def publish(path, content: bytes) -> None:
  """Writes a file that does not exist yet; one that holds `content` already is left as it is.

  Of two processes that write the same name exactly one does: the other finds its file there. A
  file of another content is what an interrupted attempt left, and is replaced.
  """
  try:
    _create(os.fspath(path), content)
  except FileExistsError:
    if read(path) != content:
      _replace(os.fspath(path), content)


def read(path) -> bytes | None:
  """Returns what a file holds, None where there is none."""
  try:
    if not is_remote(path):
      return pathlib.Path(path).read_bytes()
    store, name = _store(path)
    return store.cat_file(name)
  except FileNotFoundError:
    return None


def names(path) -> list[str]:
  """Returns the names, below a remote path, of all objects there."""
  store, root = _store(os.fspath(path).rstrip('/'))
  return [name.removeprefix(root).lstrip('/') for name in store.find(root)]


def read_json(path) -> dict[str, Any] | None:
  """Returns the JSON object of a file, None where there is no file."""
  content = read(path)
  if content is None:
    return None
  try:
    value = json.loads(content)
    if not isinstance(value, dict):
      raise ValueError(f'a {type(value).__name__}')
    return value
  except (ValueError, RecursionError) as error:
    raise errors.UserError(f'{path} is not a JSON object: {error}') from error


def each(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
  """Returns [function(item), ..]: many at a time, for a store answers after a while."""
  with concurrent.futures.ThreadPoolExecutor(32) as pool:
    return list(pool.map(function, items))


def to_json(value: Mapping[str, Any]) -> bytes:
  return (json.dumps(value, indent=2) + '\n').encode()


def remove_temporary(directory) -> None:
  """Removes what killed writers left below a local directory; a bucket has no such files."""
  if not is_remote(directory):
    for path in pathlib.Path(directory).rglob('.*.tmp'):
      path.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
  return name.startswith('.') and name.endswith('.tmp')


def _store(path) -> tuple[Any, str]:
  """Returns (file system, name in it) of 'gs://bucket/a.wav'."""
  import fsspec
  return fsspec.core.url_to_fs(os.fspath(path))


def _create(path: str, content: bytes) -> None:
  if is_remote(path):
    store, name = _store(path)
    store.pipe_file(name, content, mode='create')  # if_generation_match=0
    return
  if os.path.exists(path):
    raise FileExistsError(path)
  try:
    with audio.atomic_path(path) as temporary:
      pathlib.Path(temporary).write_bytes(content)
  except errors.UserError as error:  # somebody else was faster
    raise FileExistsError(path) from error


def _replace(path: str, content: bytes) -> None:
  if is_remote(path):
    store, name = _store(path)
    store.pipe_file(name, content)
    return
  with audio.atomic_path(path, overwrite=True) as temporary:
    pathlib.Path(temporary).write_bytes(content)
