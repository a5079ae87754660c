"""L0. What every command line shares; standard library only, so that `--help` answers at once."""

import argparse
import logging
import os
import platform
import sys
import zlib
from collections.abc import Callable, MutableMapping, Sequence

from musiclm_jax import errors


def parser(description: str, examples: str) -> argparse.ArgumentParser:
  """Returns an argument parser whose help ends with `examples`, one command a line."""
  return argparse.ArgumentParser(
      description=description,
      epilog='examples:\n' + '\n'.join('  ' + line for line in examples.strip().splitlines()),
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
  )


def parse_gin(flags: argparse.ArgumentParser, arguments: Sequence[str]
              ) -> tuple[argparse.Namespace, list[str]]:
  """Returns (flags, bindings) of a parser that gets --gin_file and --gin.NAME added.

  ['--gin.SEED=1'] gives the binding 'SEED=1'.
  """
  flags.add_argument(
      '--gin_file', action='append', required=True, metavar='FILE',
      help='a run file, then for example a topology; repeatable, later files win',
  )  # fmt: skip
  flags.add_argument(
      '--gin.NAME', dest='unused', metavar='VALUE',
      help='sets a macro (--gin.SEED=1) or a parameter (--gin.train.train.log_every=10)',
  )  # fmt: skip
  bindings = [each.removeprefix('--gin.') for each in arguments if each.startswith('--gin.')]
  return flags.parse_args([each for each in arguments if not each.startswith('--gin.')]), bindings


def positive(text: str) -> int:
  """Returns a whole number of at least 1; argparse names the flag when it is none."""
  value = int(text)
  if value < 1:
    raise ValueError(f'{value} is not positive')
  return value


def count(text: str) -> int:
  """Returns a whole number of at least 0."""
  value = int(text)
  if value < 0:
    raise ValueError(f'{value} is negative')
  return value


def seed(text: str) -> int:
  """Returns a whole number that random generators take: 0 to 2**32 - 1."""
  value = int(text)
  if not 0 <= value < 2**32:
    raise ValueError(f'{value} is not a seed')
  return value


def keep_compiled_programs(environment: MutableMapping[str, str]) -> None:
  """Has JAX keep compiled programs in ~/.cache/musiclm_jax, 4 GiB at most; before jax is imported.

  What is set already stays: JAX_COMPILATION_CACHE_DIR puts them elsewhere (gs:// too, without a
  limit of its own), and JAX_ENABLE_COMPILATION_CACHE=false keeps none.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in environment:
    return
  caches = environment.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  # A program for one CPU may not run on another that shares the home directory.
  machine = f'{platform.machine()}-{_cpu_features():08x}'
  environment['JAX_COMPILATION_CACHE_DIR'] = os.path.join(caches, 'musiclm_jax', machine)
  environment.setdefault('JAX_COMPILATION_CACHE_MAX_SIZE', str(4 * 2**30))
  environment.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')  # of 1 s by default


def _cpu_features() -> int:
  """Returns a checksum of what this machine's CPU can do, 0 where the system does not say."""
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as lines:
      features = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  except OSError:
    return 0
  return zlib.crc32(features.encode())


def run(main: Callable[[], None]) -> None:
  """Calls `main`; bad input ends as one line on stderr and exit code 1, a bug as a traceback."""
  keep_compiled_programs(os.environ)
  # The libraries are talkative: of them warnings only.
  logging.basicConfig(level=logging.WARNING, format='%(message)s', stream=sys.stderr, force=True)
  logging.getLogger('musiclm_jax').setLevel(logging.INFO)
  try:
    main()
  except (errors.UserError, OSError) as error:
    message = ' '.join(str(error).split())
    print(f'error: {message}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    sys.exit(130)
