"""L4. Runs one command on a TPU slice: create, ship the commit, install, start, follow, delete.

A spot slice is taken away at any moment and its queued resource becomes SUSPENDED, which holds the name
and cannot come back (cloud.google.com/tpu/docs/queued-resources, /spot): it is deleted and created again.
"""

import contextlib
import dataclasses
import logging
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable

from musiclm_jax import errors, queued_resources, tpu_workers
from musiclm_jax.queued_resources import CommandError, QueuedResource, Request, call
from musiclm_jax.tpu_workers import Interrupted

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
  """What is shipped: `tree` for `git archive`, called `key` on the workers."""

  key: str
  tree: str

  def archive(self, folder: str) -> list[str]:
    return ['git', 'archive', '--format=tar.gz', f'--output={self.path(folder)}', self.tree]

  def path(self, folder: str) -> str:
    return f'{folder}/launch-{self.key}.tar.gz'


def source(allow_dirty: bool) -> Source:
  """Returns HEAD of the repository around the working directory.

  Changes are refused, or with `allow_dirty` shipped as they lie: what git tracks and what it does not
  ignore, under the commit and the hash of the whole tree.
  """
  top = call(['git', 'rev-parse', '--show-toplevel']).strip()
  commit = call(['git', 'rev-parse', '--verify', 'HEAD']).strip()
  if not os.path.samefile(top, '.'):
    raise errors.UserError(f'start this in {top}, the top folder of the repository that is shipped')
  changed = call(['git', 'status', '--porcelain']).splitlines()
  if not changed:
    return Source(key=commit, tree=commit)
  if not allow_dirty:
    raise errors.UserError(f'{len(changed)} uncommitted changes, the first {changed[0].strip()!r}: commit '
                           'them, so that the run has a commit, or give --allow_dirty')
  with tempfile.TemporaryDirectory() as folder:
    git = ['env', f'GIT_INDEX_FILE={folder}/index', 'git']
    call([*git, 'read-tree', 'HEAD'])
    call([*git, 'add', '--all'])
    tree = call([*git, 'write-tree']).strip()
  return Source(key=f'{commit}-dirty-{tree[:12]}', tree=tree)


@dataclasses.dataclass
class Launch:
  """A command on a queued resource.

  `retries`: how often it is started again after its machines were taken away (inf: always).
  """

  resource: QueuedResource
  request: Request | None  # None: only a queued resource that is there is used
  source: Source
  command: tuple[str, ...]
  install: str = tpu_workers.INSTALL  # 'true' for nothing
  worker: str = '0'  # whose log is shown, or 'all'
  detach: bool = False
  delete_when_done: bool = False
  retries: float = 0
  poll_seconds: float = 15
  grace_seconds: float = 300
  owned: bool = dataclasses.field(default=False, init=False)  # created or started here: may be deleted
  started: bool = dataclasses.field(default=False, init=False)

  def run(self) -> int:
    """Returns the exit code of the run, 0 when detached."""
    try:
      code = self._run_with_retries()
    except KeyboardInterrupt:
      _LOG.info('%s stays, and so does what runs there: logs, status, stop and delete reach it',
                self.resource.name)
      raise
    except errors.UserError as error:
      goes_on = self.started and isinstance(error, CommandError)  # only out of reach
      if self.delete_when_done and self.owned and not goes_on:
        with contextlib.suppress(CommandError):
          delete(self.resource)
      raise
    if self.delete_when_done:
      delete(self.resource)
    return code

  def _run_with_retries(self) -> int:
    left = self.retries
    while True:
      try:
        self.acquire()
        self.ship()
        run_id = self.start()
        if self.detach:
          return 0
        return tpu_workers.follow(
            self.resource, run_id, self.worker, self.poll_seconds, self.grace_seconds)
      except Interrupted as error:
        if left < 1:
          raise Interrupted(f'{error}; the same command resumes from its WORKDIR, --retries=N does so '
                            'by itself') from None
        left -= 1
        _LOG.info('%s; starting again', error)
        self.started = False
        self._clear()

  def acquire(self) -> None:
    """Creates the queued resource unless it is there, and waits until it is ACTIVE."""
    seen = self.resource.look()
    if seen is None:
      if self.request is None:
        raise errors.UserError(f'there is no queued resource {self.resource.name} in {self.resource.zone}; '
                               '--accelerator_type would create it')
      _LOG.info('creating %s: %s', self.resource.name, self.request.accelerator_type)
      call(self.resource.create(self.request))
      self.owned = True
    elif self.request is not None:
      self._check_same(seen)
    start, said = time.monotonic(), ('', 0.0)
    while True:
      state, reason = self._patiently(self._state)
      elapsed = time.monotonic() - start
      if state != said[0] or elapsed - said[1] > 60:
        _LOG.info('%s is %s (%d min %02d s)', self.resource.name, state, *divmod(int(elapsed), 60))
        said = state, elapsed
      if state == 'ACTIVE':
        return
      if state not in queued_resources.WAITING:
        wrong = Interrupted if state.startswith('SUSPEND') else errors.UserError
        raise wrong(f'{self.resource.name} is {state}{reason}, wanted ACTIVE; `delete` makes room for another')
      time.sleep(self.poll_seconds)

  def _state(self) -> tuple[str, str]:
    seen = (self.resource.look() or {}).get('state', {})
    message = str(seen.get('failedData', {}).get('error', {}).get('message', ''))
    return str(seen.get('state', 'NOT_FOUND')), f' ({message})' if message else ''

  def _check_same(self, seen: dict) -> None:
    for spec in seen.get('tpu', {}).get('nodeSpec', ()):
      there = spec.get('node', {}).get('acceleratorType')
      if there not in (None, self.request.accelerator_type):
        raise errors.UserError(
            f'{self.resource.name} is a {there}, --accelerator_type={self.request.accelerator_type}: take '
            'another --name, or delete that one')

  def ship(self) -> None:
    """Copies and installs the commit on all workers, unless they all have it."""
    try:
      with contextlib.suppress(CommandError):
        call(self.resource.ssh(tpu_workers.is_installed(self.source.key, self.install)))
        return
      _LOG.info('shipping %s', self.source.key)
      with tempfile.TemporaryDirectory() as folder:
        call(self.source.archive(folder))
        call(self.resource.scp(self.source.path(folder)))
      call(self.resource.ssh(tpu_workers.install(self.source.key, self.install)), show=True)
    except CommandError:
      tpu_workers.check_active(self.resource)
      raise

  def start(self) -> str:
    """Starts the command on all workers; returns the id of the run."""
    run_id = new_run_id()
    try:
      call(self.resource.ssh(tpu_workers.start(self.source.key, run_id, self.command)))
    except CommandError:
      tpu_workers.check_active(self.resource)
      with contextlib.suppress(CommandError):  # those that started cannot run alone
        tpu_workers.send_signal(self.resource, run_id, 'KILL')
      raise
    self.owned = self.started = True
    _LOG.info('run %s started on all workers of %s', run_id, self.resource.name)
    return run_id

  def _clear(self) -> None:
    """Makes room for another start: deletes what is gone, ends what still runs on what is not."""
    deadline = time.monotonic() + self.grace_seconds
    state = self._patiently(self.resource.state)
    while state in ('ACTIVE', 'SUSPENDING') and time.monotonic() < deadline:
      time.sleep(self.poll_seconds)
      state = self._patiently(self.resource.state)
    if state == 'ACTIVE':  # machines that were restarted
      tpu_workers.send_signal(self.resource, 'current', 'KILL')
    elif state in ('SUSPENDING', 'SUSPENDED', 'FAILED'):
      delete(self.resource)

  def _patiently(self, ask: Callable):
    """Returns what `ask` returns; the wait for a slice may last longer than the network."""
    for _ in range(tpu_workers.MAX_UNREACHED):
      try:
        return ask()
      except CommandError as error:
        _LOG.info('%s; asking again', error)
        time.sleep(self.poll_seconds)
    return ask()

  def shell(self) -> list[str]:
    """Returns the commands of a run in order, as lines for a shell."""
    resource, run_id, mark = self.resource, new_run_id(), secrets.token_hex(8)
    folder = tempfile.gettempdir()
    wait = f'sleep {self.poll_seconds:g}'
    states = shlex.join(resource.ssh(tpu_workers.states(run_id, mark)))
    there = shlex.join(resource.ssh(tpu_workers.is_installed(self.source.key, self.install)))
    ship = [self.source.archive(folder), resource.scp(self.source.path(folder)),
            resource.ssh(tpu_workers.install(self.source.key, self.install))]
    lines = []
    if self.request:
      lines = [f'{shlex.join(resource.describe())} >/dev/null 2>&1 || {shlex.join(resource.create(self.request))}']
    lines += [
        f"until {shlex.join(resource.describe('value(state.state)'))} | grep -qx ACTIVE; do {wait}; done",
        f'{there} || {{ {" && ".join(map(shlex.join, ship))}; }}',
        shlex.join(resource.ssh(tpu_workers.start(self.source.key, run_id, self.command))),
    ]
    if not self.detach:
      lines += [f'while {states} | grep -qw running; do {wait}; done',
                _show_log(resource, run_id, mark, self.worker), states]
    return lines + ([shlex.join(resource.delete())] if self.delete_when_done else [])


def new_run_id() -> str:
  return time.strftime('%Y%m%d-%H%M%S-') + secrets.token_hex(3)


def delete(resource: QueuedResource) -> None:
  """Deletes the queued resource and its machines."""
  _LOG.info('deleting %s', resource.name)
  call(resource.delete())


def current_run(resource: QueuedResource) -> str:
  """Returns the id of the run that was started last."""
  found = {each.run_id for each in tpu_workers.look(resource) if each.state != 'none'}
  if not found:
    raise errors.UserError(f'nothing was started on {resource.name} yet')
  return max(found)  # ids begin with the time


def status(resource: QueuedResource) -> list[str]:
  """Returns lines: the state of the queued resource, and of the last run on each worker."""
  state = resource.state()
  lines = [f'{resource.name}: {state}']
  if state == 'ACTIVE':
    lines += [f'{each}, run {each.run_id} of commit {each.key}' for each in tpu_workers.look(resource)]
  return lines


def logs(resource: QueuedResource, worker: str) -> None:
  """Prints the log of the last run so far."""
  for log in tpu_workers.logs_of(resource, current_run(resource), worker):
    log.show()
    log.close()


def stop(resource: QueuedResource, poll_seconds: float, grace_seconds: float) -> list[str]:
  """Sends SIGTERM, on which training saves and ends; returns how the run ended on each worker."""
  run_id = current_run(resource)
  tpu_workers.send_signal(resource, run_id, 'TERM')
  deadline = time.monotonic() + grace_seconds
  while True:
    workers = tpu_workers.look(resource, run_id)
    if all(each.state != 'running' for each in workers):
      return [str(each) for each in workers]
    if time.monotonic() > deadline:
      raise errors.UserError(f'run {run_id} still goes on {grace_seconds:g} s after SIGTERM')
    time.sleep(poll_seconds)


def shell(verb: str, resource: QueuedResource, worker: str) -> list[str]:
  """Returns the commands of logs, status, stop or delete as lines for a shell."""
  mark = secrets.token_hex(8)
  if verb == 'delete':
    return [shlex.join(resource.delete())]
  if verb == 'logs':
    return [_show_log(resource, 'current', mark, worker)]
  states = shlex.join(resource.ssh(tpu_workers.states('current', mark)))
  if verb == 'status':
    return [shlex.join(resource.describe('value(state.state)')), states]
  return [shlex.join(resource.ssh(tpu_workers.send('current', 'TERM'))), states]


def _show_log(resource: QueuedResource, run_id: str, mark: str, worker: str) -> str:
  read = tpu_workers.read_log(run_id, mark, 0)
  log = shlex.join(resource.ssh(read, 0, '0' if worker == 'all' else worker))
  return f"{log} | sed -n 's/^{mark} //p' | base64 -d"
