"""L0. What every command line shares; standard library only, so that `--help` answers at once."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

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


def run(main: Callable[[], None]) -> None:
  """Calls `main`; bad input ends as one line on stderr and exit code 1, a bug as a traceback."""
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
