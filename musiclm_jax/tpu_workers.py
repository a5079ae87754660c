"""L0. The workers of a queued resource: scripts that install, start and watch one run on all of them.

On each worker, below ~/launch: KEY/ the shipped commit with its .venv, runs/ID/ one run (log, state,
lock), runs/current the last one.  The run is detached from ssh, for a connection may drop, and because
gcloud reaches the workers 64 at a time (`--batch-size`), one batch after the other.  gcloud repeats a
command whose connection broke, so each of the scripts below may come twice.
"""

import base64
import dataclasses
import logging
import secrets
import shlex
import sys
import time

from musiclm_jax import errors, queued_resources
from musiclm_jax.queued_resources import call

_LOG = logging.getLogger(__name__)
# The images come with Python 3.10; uv brings the one asked for.
INSTALL = ('rm -rf .uv .venv && python3 -m pip install --quiet --target=.uv uv && '
           '.uv/bin/uv venv --quiet --python=3.11 .venv && '
           '.uv/bin/uv pip install --quiet --python=.venv ".[tpu,gcs]"')
_LOG_BYTES = 1 << 20  # of the log in one answer
MAX_UNREACHED = 40  # polls in a row without an answer, each of which gcloud tried ten times

# The scripts of the workers; each gets its values as $1, $2, ..., so these are quoted once.  Without a '
# the whole command stays readable.
_INSTALLED = '[ "$(cat "$HOME/launch/$1/.installed" 2>/dev/null)" = "$2" ]'  # $1 key, $2 install
_INSTALL = r"""mkdir -p "$HOME/launch/$1"; cd "$HOME/launch/$1"
exec 9>.lock; flock 9
[ "$(cat .installed 2>/dev/null)" = "$2" ] && exit 0
[ -e .shipped ] || { tar -xzf "$HOME/launch-$1.tar.gz"; touch .shipped; }
rm -f "$HOME/launch-$1.tar.gz"
sh -ec "$2" </dev/null >&2 9>&- || { echo "ERROR: the installation failed on $(hostname)" >&2; exit 1; }
printf %s "$2" >.installed"""
# The lock (file 9) is held while any process of the run lives.  `stop` signals the command's own group,
# a shutdown every process: it ends this script, so a command that saved and exited 0 is not taken for
# finished but for lost.
_RUNNER = r"""run=$1; shift
PATH="$PWD/.venv/bin:$PATH"; export PATH
setsid "$@" &
echo $! >"$run/pid"
code=0; wait $! || code=$?
echo "exit $code" >"$run/state.new"; mv "$run/state.new" "$run/state" """
_START = r"""key=$1 id=$2 runner=$3; shift 3
cd "$HOME/launch"; mkdir -p runs
[ -d "runs/$id" ] && exit 0
if [ -e runs/current/lock ] && ! flock -sw 2 runs/current/lock true; then
echo "ERROR: $(hostname) still has a run, $(cat runs/current/id): stop it or follow it with logs" >&2; exit 3; fi
mkdir "runs/$id"; echo "$id" >"runs/$id/id"; echo "$key" >"runs/$id/key"
exec 9>"runs/$id/lock"; flock -n 9
ln -sfn "$id" runs/current
run=$PWD/runs/$id; cd "$key"
nohup setsid sh -c "$runner" launch "$run" "$@" </dev/null >"$run/log" 2>&1 &"""
_STATE = r"""cd "$HOME/launch/runs/$2" 2>/dev/null || { echo "$1 $(hostname) - - none 0"; exit 0; }
state="running 0"
if flock -sn lock true; then state="lost 0"; fi
if [ -e state ]; then state=$(cat state); fi
echo "$1 $(hostname) $(cat id) $(cat key) $state" """
_READ = r"""printf "%s " "$1"
tail -c "+$3" "$HOME/launch/runs/$2/log" 2>/dev/null | head -c "$4" | base64 -w 0; echo"""
_SIGNAL = r"""cd "$HOME/launch/runs/$1" 2>/dev/null || exit 0
flock -sn lock true || kill -s "$2" -- "-$(cat pid)" || true"""


def remote(script: str, *values: str) -> str:
  """Returns the shell command that runs `script` with $1, $2, ... set to `values`, whatever they hold."""
  return shlex.join(['sh', '-euc', script, 'launch', *values])


def is_installed(key: str, install: str) -> str:
  """Returns the shell command that succeeds where commit `key` was installed by `install`."""
  return remote(_INSTALLED, key, install)


def install(key: str, install: str) -> str:
  """Returns the shell command that unpacks ~/launch-KEY.tar.gz and runs `install` in it, once."""
  return remote(_INSTALL, key, install)


def start(key: str, run_id: str, command: tuple[str, ...]) -> str:
  """Returns the shell command that starts run `run_id`: `command` in the tree of commit `key`."""
  return remote(_START, key, run_id, _RUNNER, *command)


def states(run_id: str, mark: str) -> str:
  """Returns the shell command that prints `MARK host run key state code`."""
  return remote(_STATE, mark, run_id)


def read_log(run_id: str, mark: str, position: int) -> str:
  """Returns the shell command that prints `MARK base64` of at most _LOG_BYTES of the log."""
  return remote(_READ, mark, run_id, str(position + 1), str(_LOG_BYTES))


def send(run_id: str, name: str) -> str:
  """Returns the shell command that sends a signal to the run's command and all it started."""
  return remote(_SIGNAL, run_id, name)


class Interrupted(errors.UserError):
  """The run ended because its machines were taken away; it can be started again."""


@dataclasses.dataclass(frozen=True)
class Worker:
  """A run on one worker: `state` is running, exit, lost (it did not come to an end) or none."""

  host: str
  run_id: str
  key: str
  state: str
  code: int

  def __str__(self) -> str:
    return f'{self.host}: {self.state}' + (f' {self.code}' if self.state == 'exit' else '')


def look(resource: queued_resources.QueuedResource, run_id: str = 'current') -> list[Worker]:
  """Returns the state of a run on every worker; fails unless all of them answer."""
  mark = secrets.token_hex(8)
  found = {}
  for line in call(resource.ssh(states(run_id, mark))).splitlines():
    fields = line.split()
    if len(fields) == 6 and fields[0] == mark:
      found[fields[1]] = Worker(*fields[1:5], code=int(fields[5]))
  if not found:
    raise queued_resources.CommandError(f'no worker of {resource.name} answered')
  return [found[host] for host in sorted(found)]


def send_signal(resource: queued_resources.QueuedResource, run_id: str, name: str) -> None:
  """Sends signal `name` to the command, and what it started, on every worker where it still runs."""
  call(resource.ssh(send(run_id, name)))


class _WorkerLog:
  """Copies the log of one worker to stdout, each line after `prefix`."""

  def __init__(self, resource, run_id: str, node: int, worker: int, prefix: str):
    self.resource, self.run_id, self.node, self.worker = resource, run_id, node, worker
    self.prefix = prefix.encode()
    self.position = 0  # bytes shown
    self.partial = b''  # start of a line, held back when there is a prefix

  def show(self) -> None:
    while True:
      mark = secrets.token_hex(8)
      script = read_log(self.run_id, mark, self.position)
      answer = call(self.resource.ssh(script, self.node, self.worker)).rpartition(f'{mark} ')[2]
      try:
        chunk = base64.b64decode(answer.strip(), validate=True)
      except ValueError:
        raise queued_resources.CommandError('the log came incomplete') from None
      self.position += len(chunk)
      self._print(chunk)
      if len(chunk) < _LOG_BYTES:
        return

  def _print(self, chunk: bytes) -> None:
    if self.prefix:
      *lines, self.partial = (self.partial + chunk).split(b'\n')
      chunk = b''.join(self.prefix + line + b'\n' for line in lines)
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()

  def close(self) -> None:
    if self.partial:
      self._print(b'\n')


def logs_of(resource, run_id: str, worker: str) -> list[_WorkerLog]:
  """Returns the logs of worker `worker` of the first slice, or of 'all' workers with prefixes."""
  if worker != 'all':
    return [_WorkerLog(resource, run_id, 0, int(worker), '')]
  return [_WorkerLog(resource, run_id, node, index, f'[{node}.{index}] ')
          for node, index in resource.workers()]


def follow(resource, run_id: str, worker: str, poll_seconds: float, grace_seconds: float) -> int:
  """Shows the log until the run has ended on all workers; returns its exit code, the first that is not 0.

  When one worker has failed, the others wait for it in a collective: after `grace_seconds` they are killed.
  """
  logs, unreached, deadline = None, 0, None
  while True:
    try:
      if logs is None:
        count = len(resource.workers())
        logs = logs_of(resource, run_id, worker)
      workers = look(resource, run_id)
      if len(workers) < count:
        raise queued_resources.CommandError(f'{len(workers)} of {count} workers answered')
      for log in logs:
        log.show()
      unreached = 0
    except queued_resources.CommandError as error:
      check_active(resource)
      unreached += 1
      if unreached > MAX_UNREACHED:
        raise
      _LOG.info('%s; the run goes on, asking again', error)
      time.sleep(poll_seconds)
      continue
    if all(each.state != 'running' for each in workers):
      for log in logs:
        log.close()
      return _exit_code(resource, workers)
    failed = [str(each) for each in workers if each.state not in ('running', 'exit') or each.code]
    if failed and deadline is None:
      _LOG.info('%s; the other workers get %g s', ', '.join(failed), grace_seconds)
      deadline = time.monotonic() + grace_seconds
    if deadline is not None and time.monotonic() > deadline:
      send_signal(resource, run_id, 'KILL')
    time.sleep(poll_seconds)


def check_active(resource) -> None:
  """Raises Interrupted when the machines were taken away; says nothing while gcloud cannot tell."""
  try:
    state = resource.state()
  except queued_resources.CommandError:  # this machine is offline, not that one
    return
  if state in ('NOT_FOUND', 'DELETING'):
    raise errors.UserError(f'{resource.name} was deleted')
  if state != 'ACTIVE':
    raise Interrupted(f'{resource.name} was taken away: its state is {state}')


def _exit_code(resource, workers: list[Worker]) -> int:
  gone = [str(each) for each in workers if each.state != 'exit']
  if gone:
    raise Interrupted(f'the machines went down during the run ({", ".join(gone)})')
  failed = [each for each in workers if each.code]
  if not failed:
    return 0
  check_active(resource)  # workers fail when their neighbours are taken away
  _LOG.info('%s', ', '.join(str(each) for each in failed))
  return failed[0].code

