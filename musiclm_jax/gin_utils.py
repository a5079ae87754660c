"""L4. The only file that imports gin: from gin files and bindings to the arguments of a function.

Nothing in the package is decorated for gin: files import what they configure
(`from __gin__ import dynamic_registration`), and Python keeps working without them.
"""

import ast
import contextlib
import copy
import difflib
import importlib.util  # gin uses it without importing it  # noqa: F401
import pathlib
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gin
from musiclm_jax import errors

_DATA_MACROS = ('WORKDIR', 'DATA_DIR', 'TOKENS_DIR', 'NOISE_DIR')  # of gin/train.gin
_MACRO = re.compile(r'^([A-Za-z_]\w*)[ \t]*=[ \t]*(.*)$', re.MULTILINE)
_INCLUDE = re.compile(r'''include\s+['"]([^'"]+)['"]''')
_REFERENCE = re.compile(r'%([A-Za-z_]\w*)')
_QUOTED = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")
_REQUIRED = '%gin.REQUIRED'


def load(gin_files: Iterable[str], bindings: Iterable[str] = ()) -> None:
  """Replaces gin's configuration by these files, then bindings 'TOTAL_STEPS=10', in this order.

  An `include` is looked up from the directory that holds the file's gin folder.  Whatever is wrong
  is one UserError: an unknown file or name, bad syntax, a macro that was not set.
  """
  gin.clear_config()
  files = [_find(file, 'gin file') for file in gin_files]
  if not files:
    raise errors.UserError('no gin file: give at least one, for example gin/runs/semantic_tiny.gin')
  included = {path for file in files for path in _includes(file, _root(file))}
  for file in files:
    # gin reads an `include` from the current directory first.
    with _one_line(str(file)), contextlib.chdir(_root(file)):
      gin.parse_config_file(str(file))
  known = _macros()
  for binding in bindings:
    name, value = _split(binding, known)
    with _one_line(f'--gin.{binding}'):
      gin.parse_config(f'{name} = {value}')
  _check_macros({match[1] for path in included for match in _MACRO.finditer(path.read_text())})


def load_without_data(gin_files: Iterable[str], bindings: Iterable[str] = ()) -> None:
  """Does what `load` does for a run whose data is never read: macros that name it may stay unset."""
  bindings = list(bindings)
  given = {each.partition('=')[0].strip() for each in bindings}
  unused = [f'{name}=unused' for name in _DATA_MACROS if name not in given]
  load(gin_files, [*unused, *bindings])


def arguments(
    function: Callable[..., Any], names: Iterable[str] | None = None
) -> dict[str, Any]:
  """Returns the arguments that the configuration gives to `function`, built and ready.

  With `names`, those only: an objective is built without its data being there.
  """
  with _one_line(f'{function.__module__}.{function.__name__}'):
    try:
      found = gin.get_bindings(function, resolve_references=False)
      wanted = found if names is None else [name for name in names if name in found]
      return {name: copy.deepcopy(found[name]) for name in wanted}  # gin builds what it copies
    except TypeError as error:
      if 'No values supplied by Gin' not in str(error):
        raise
      raise errors.UserError(f'set in gin: {str(error).splitlines()[0]}') from error


def config_text() -> str:
  """Returns the whole configuration, includes and bindings merged: a gin file of its own."""
  return gin.config_str(max_line_length=100)


def _macros() -> dict[str, str]:
  """Returns the macros and their values, as gin writes them: {'TOTAL_STEPS': '10'}."""
  text = gin.config_str(max_line_length=10_000)
  return {match[1]: match[2] for match in _MACRO.finditer(text)}


def _check_macros(declared: set[str]) -> None:
  """Raises when a macro is used and not set, or is a misspelling of one that is used."""
  macros = _macros()
  unquoted = _QUOTED.sub('', gin.config_str(max_line_length=10_000))
  used = set(_REFERENCE.findall(unquoted)) - {'gin'}
  unknown = sorted(used - set(macros))
  if unknown:
    raise errors.UserError(f'macro %{unknown[0]} is used but never set{_close(unknown[0], macros)}')
  missing = [name for name in sorted(used) if macros[name] == _REQUIRED]
  if missing:
    flags = ' '.join(f'--gin.{name}=...' for name in missing)
    raise errors.UserError(f'macro {", ".join(missing)} not set: add {flags}')
  for name in sorted(set(macros) - used - declared):
    if difflib.get_close_matches(name, used | declared, n=1, cutoff=0.8):
      raise errors.UserError(
          f'macro {name} is set but nothing uses it{_close(name, used | declared)}'
      )


def _split(binding: str, known: dict[str, str]) -> tuple[str, str]:
  """Returns (name, value) of 'NAME=value'; a value that is no gin value is taken as a string."""
  name, equals, value = binding.partition('=')
  name, value = name.strip(), value.strip()
  if not equals or not name:
    raise errors.UserError(f'--gin.{binding}: wanted --gin.NAME=VALUE')
  if '.' not in name and name not in known:
    raise errors.UserError(f'--gin.{binding}: unknown macro {name!r}{_close(name, known)}')
  if not value.startswith(('@', '%', '(', '[', '{', '"', "'")):
    try:
      ast.literal_eval(value)
    except (ValueError, SyntaxError):
      value = repr(value)
  return name, value


def _close(name: str, names: Iterable[str]) -> str:
  names = sorted(names)
  close = difflib.get_close_matches(name, names, n=1)
  hint = f': did you mean {close[0]}?' if close else ';'
  return f'{hint} known macros are {", ".join(names)}'


def _find(file: str, what: str, root: pathlib.Path = pathlib.Path()) -> pathlib.Path:
  """Returns the path of a gin file, or a UserError that names the files most like it."""
  path = root / file
  if path.is_file():
    return path.resolve()
  folder = next((parent for parent in path.parents if parent.is_dir()), root)
  others = sorted({*folder.glob('*.gin'), *(root / 'gin' / 'runs').glob('*.gin')})
  names = {str(other.relative_to(root)): other.stem for other in others}
  close = difflib.get_close_matches(path.stem, names.values(), n=3, cutoff=0.4)
  shown = [name for name, stem in names.items() if stem in close] or list(names)
  hint = f'; there is {", ".join(shown)}' if shown else ''
  raise errors.UserError(f'{what} {file} does not exist{hint}')


def _includes(
    file: pathlib.Path, root: pathlib.Path, above: tuple[pathlib.Path, ...] = ()
) -> Iterator[pathlib.Path]:
  """Yields the files that `file` includes, and theirs; a missing one, or itself, is a UserError."""
  try:
    lines = file.read_text(encoding='utf-8').splitlines()
  except UnicodeDecodeError as error:
    raise errors.UserError(f'{file} is not UTF-8 text: {error}') from error
  for number, line in enumerate(lines, start=1):
    if match := _INCLUDE.match(line):
      path = _find(match[1], f'{file}, line {number}: include', root)
      if path in (*above, file):
        raise errors.UserError(f'{file}, line {number}: {path} includes itself')
      yield path
      yield from _includes(path, root, (*above, file))


def _root(file: pathlib.Path) -> pathlib.Path:
  """Returns the directory from which `include 'gin/train.gin'` is read."""
  for parent in file.parents:
    if (parent / 'gin').is_dir():
      return parent
  return file.parent


class _one_line:
  """Turns gin's errors into a UserError of one sentence, its place in the files included."""

  def __init__(self, where: str):
    self._where = where

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if error is None:
      return
    if isinstance(error, errors.UserError):
      message = str(error).split('\n  In call to configurable')[0]
      if type(error) is not errors.UserError or message != str(error):
        raise errors.UserError(message) from error
    elif isinstance(error, SyntaxError):
      file = error.filename or self._where
      raise errors.UserError(f'{file}, line {error.lineno}: {error.msg}') from error
    elif isinstance(error, tokenize.TokenError):
      raise errors.UserError(f'{self._where}, line {error.args[1][0]}: {error.args[0]}') from error
    elif isinstance(error, ValueError | AttributeError | ImportError | OSError) and self._where:
      found = re.search(r'In file "([^"]*)", line (\d+)', str(error))
      where = f'{found[1]}, line {found[2]}' if found else self._where
      if not found and _last_module(traceback).split('.')[0] != 'gin':
        return  # raised by the code that was configured: not a mistake in the configuration
      raise errors.UserError(f'{where}: {str(error).splitlines()[0]}') from error


def _last_module(traceback) -> str:
  while traceback.tb_next:
    traceback = traceback.tb_next
  return traceback.tb_frame.f_globals.get('__name__', '')
