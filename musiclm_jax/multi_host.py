"""L2. The hosts of a run: joining them, leaving them, and what they must agree on."""

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from musiclm_jax import errors

_GRACE_SECONDS = 3.0
ADDRESS, COUNT, INDEX = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Inside, this process is one of the hosts of a run, see `connect`; an error ends it at once.

  JAX on its own would have a host that failed wait five minutes for others to end, while they wait
  for what it was to compute.
  """
  connect()
  try:
    yield
  except (Exception, KeyboardInterrupt) as error:
    # Goes first, as the last one registered, after the error was printed.
    atexit.register(_leave, 130 if isinstance(error, KeyboardInterrupt) else 1)
    raise


def _leave(code: int) -> None:
  if jax.process_index() == 0:  # without the first host the others are aborted:
    time.sleep(_GRACE_SECONDS)  # those that found the same error may say so
  sys.stdout.flush()
  os._exit(code)


def connect(environ: Mapping[str, str] = os.environ) -> None:
  """Joins this process to the others of its run; nothing may have touched a device before.

  TPU slices, Slurm and Open MPI say everything themselves.  Elsewhere three variables do, of which
  JAX reads only the first: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
  JAX_PROCESS_ID.  What is set wins over what is found.
  """
  count, index = _number(environ, COUNT), _number(environ, INDEX)
  if count is not None and (count < 1 or (index is not None and index >= count)):
    raise errors.UserError(f'{COUNT} is {count} and {INDEX} is {index}, wanted 0 <= id < number')
  address = environ.get(ADDRESS)
  if address and not address.rpartition(':')[2].isdigit():
    raise errors.UserError(f'{ADDRESS} is {address!r}, wanted host:port')
  try:
    jax.distributed.initialize(address, count, index)
  except ValueError as error:  # something is neither set nor found
    given = ', '.join(name for name in (ADDRESS, COUNT, INDEX) if environ.get(name)) or 'none'
    raise errors.UserError(
        f'found no TPU slice, Slurm or Open MPI, wanted {ADDRESS}, {COUNT} and {INDEX},'
        f' got {given}: {error}') from error


def _number(environ: Mapping[str, str], name: str) -> int | None:
  text = environ.get(name)
  if not text:
    return None
  if not text.isdecimal():
    raise errors.UserError(f'{name} is {text!r}, wanted a number')
  return int(text)


def first_failed(failed: bool) -> int | None:
  """Returns the first host that says True, the same on all of them, None when none does."""
  hosts = np.flatnonzero(multihost_utils.process_allgather(np.asarray(failed)))
  return int(hosts[0]) if hosts.size else None
