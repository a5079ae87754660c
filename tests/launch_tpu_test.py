"""launch_tpu against a `gcloud` that runs what it is told in folders that stand for TPU workers.

`gcloud_in_folders.py` is put on PATH under that name; all else is what a user runs.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from musiclm_jax import errors, launch_tpu, queued_resources, tpu_workers

ROOT = pathlib.Path(__file__).resolve().parents[1]
GCLOUD = pathlib.Path(__file__).with_name('gcloud_in_folders.py')
_spec = importlib.util.spec_from_file_location('gcloud_in_folders', GCLOUD)
gcloud_in_folders = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gcloud_in_folders)


class Cloud:
  """The workers' homes, and the tool run against them from a small repository."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.repository = folder, folder / 'repository'
    (folder / 'bin').mkdir()
    gcloud = folder / 'bin' / 'gcloud'
    gcloud.write_text(f'#!{sys.executable}\n{GCLOUD.read_text()}')
    gcloud.chmod(0o755)
    self.environment = dict(os.environ, FAKE_CLOUD=str(folder), PATH=f'{folder}/bin:{os.environ["PATH"]}')
    self.repository.mkdir()
    (self.repository / 'say.sh').write_text('echo shipped\n')
    self.git('init', '--quiet')
    self.commit()

  def git(self, *arguments: str) -> str:
    identity = ['-c', 'user.name=t', '-c', 'user.email=t@example.com']
    return subprocess.run(['git', *identity, *arguments], cwd=self.repository, check=True,
                          capture_output=True, text=True).stdout.strip()

  def commit(self) -> None:
    self.git('add', '--all')
    self.git('commit', '--quiet', '--message=x')

  def _arguments(self, verb: str, flags, command) -> list[str]:
    polls = ['--poll_seconds=0.1'] if verb in ('run', 'logs', 'stop') else []
    end = ['--', *command] if command else []
    return [sys.executable, str(ROOT / 'tools' / 'launch_tpu.py'), verb, '--name=pod', '--zone=us-west4-a',
            *polls, *flags, *end]

  def tool(self, verb: str, *flags: str, command=()):
    return subprocess.run(self._arguments(verb, flags, command), cwd=self.repository, env=self.environment,
                          capture_output=True, text=True, timeout=60)

  def run(self, *flags: str, command):
    new = ('--accelerator_type=v5litepod-8', '--skip_install')
    return self.tool('run', *new, *flags, command=command)

  def background(self, *flags: str, command):
    new = ('--accelerator_type=v5litepod-8', '--skip_install')
    return subprocess.Popen(self._arguments('run', (*new, *flags), command), cwd=self.repository,
                            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

  def home(self, worker: int, node: str = 'pod') -> pathlib.Path:
    return self.folder / 'homes' / f'{node}-w-{worker}'

  def calls(self) -> list[list[str]]:
    return [json.loads(line)[:2] for line in (self.folder / 'calls').read_text().splitlines()]

  def wait_for(self, path: pathlib.Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
      assert time.monotonic() < deadline, f'no {path}'
      time.sleep(0.05)

  def processes(self, worker: int) -> list[int]:
    return gcloud_in_folders.processes(self.home(worker))

  def shut_down(self) -> None:
    """What a preemption does: SIGTERM to everything, then the machines are gone."""
    file = self.folder / 'pod.json'
    state = json.loads(file.read_text())
    state['state']['state'] = 'SUSPENDED'
    for worker in range(2):
      for pid in self.processes(worker):
        with contextlib.suppress(ProcessLookupError):  # it ended since it was listed
          os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)
    file.write_text(json.dumps(state))

  def forget(self) -> None:
    """Ends whatever a test left running."""
    for worker in range(2):
      for pid in self.processes(worker):
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path):
  cloud = Cloud(tmp_path)
  yield cloud
  cloud.forget()


def one_line(done) -> str:
  assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
  last = done.stderr.splitlines()[-1]
  assert last.startswith('error: ')
  return last


def test_a_run_from_creation_to_deletion_returns_its_exit_code(cloud):
  done = cloud.run('--delete_when_done', command=['sh', '-c', '. ./say.sh; exit 7'])
  assert done.returncode == 7, done.stderr
  assert done.stdout == 'shipped\n'
  assert 'pod is PROVISIONING (0 min 00 s)' in done.stderr and 'pod-w-1: exit 7' in done.stderr
  assert cloud.calls()[-1] == ['queued-resources', 'delete'] and not (cloud.folder / 'pod.json').exists()
  for worker in range(2):
    shipped, = (cloud.home(worker) / 'launch').glob('*/say.sh')
    assert shipped.parent.name == cloud.git('rev-parse', 'HEAD')
    assert (cloud.home(worker) / 'launch/runs/current/log').read_text() == 'shipped\n'


def test_every_character_of_the_command_arrives(cloud):
  hostile = ["it's", '$HOME `id` $(id)', 'a "b"\\', '', '  two  spaces ', 'line\nbreak', '*', '-x', '%s\\n',
             '--', '!;&|<>', 'caf\u00e9']
  script = 'import json, sys; print(json.dumps(sys.argv[1:]))'
  done = cloud.run(command=[sys.executable, '-c', script, *hostile])
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout) == hostile


def test_what_the_dry_run_prints_does_the_same_in_a_shell(cloud):
  command = ['sh', '-c', '. ./say.sh; echo "$1"', 'x', "it's $HOME"]
  printed = cloud.run('--dry_run', '--delete_when_done', '--poll_seconds=0.1', command=command)
  assert printed.returncode == 0 and not (cloud.folder / 'calls').exists()
  subprocess.run(['bash', '-n', '-c', printed.stdout], check=True)
  done = subprocess.run(['bash', '-c', printed.stdout], cwd=cloud.repository, env=cloud.environment,
                        capture_output=True, text=True, timeout=60)
  assert "shipped\nit's $HOME\n" in done.stdout, done.stderr
  assert len(re.findall(r'pod-w-\d \S+ [0-9a-f]{40} exit 0', done.stdout)) == 2
  by_hand = [call for call in cloud.calls() if call[1] != 'describe']
  (cloud.folder / 'calls').unlink()
  assert cloud.run('--delete_when_done', command=command).stdout == "shipped\nit's $HOME\n"
  own = [call for call in cloud.calls() if call[1] != 'describe' and call[0] != 'tpu-vm']
  without_repeats = lambda calls: [c for i, c in enumerate(calls) if i == 0 or c != calls[i - 1]]
  assert without_repeats(by_hand) == without_repeats(own)
  verbs = [cloud.tool(verb, '--dry_run') for verb in ('status', 'logs', 'stop', 'delete')]
  assert all(done.returncode == 0 and done.stdout.startswith('gcloud ') for done in verbs)


def test_a_second_run_reuses_the_resource_and_the_installation(cloud):
  install = ['--accelerator_type=v5litepod-8', '--install=echo x >>../../installs; cp say.sh copy.sh']
  for _ in range(2):
    assert cloud.tool('run', *install, command=['sh', 'copy.sh']).stdout == 'shipped\n'
  assert (cloud.home(0) / 'installs').read_text() == 'x\n'
  assert cloud.calls().count(['queued-resources', 'create']) == 1
  (cloud.repository / 'say.sh').write_text('echo changed\n')
  cloud.commit()
  assert cloud.tool('run', *install, command=['sh', 'copy.sh']).stdout == 'changed\n'
  assert (cloud.home(1) / 'installs').read_text() == 'x\nx\n'
  other = cloud.tool('run', '--accelerator_type=v4-32', command=['true'])
  assert 'pod is a v5litepod-8, --accelerator_type=v4-32' in one_line(other)


def test_a_failed_installation_is_shown_and_deletes_what_was_created(cloud):
  done = cloud.tool('run', '--accelerator_type=v4-8', '--install=echo no such package; false',
                    '--delete_when_done', command=['true'])
  assert 'no such package' in done.stderr and 'installation failed on pod-w-0' in done.stderr
  assert 'queued-resources ssh' in one_line(done)
  assert not (cloud.folder / 'pod.json').exists()


def test_uncommitted_changes_are_refused_or_shipped_as_they_lie(cloud):
  (cloud.repository / 'say.sh').write_text('echo changed\n')
  (cloud.repository / 'new.sh').write_text('echo new\n')
  refused = cloud.run(command=['true'])
  assert '2 uncommitted changes' in one_line(refused) and not (cloud.folder / 'calls').exists()
  before = cloud.git('status', '--porcelain')
  done = cloud.run('--allow_dirty', command=['sh', '-c', '. ./say.sh; . ./new.sh'])
  assert done.stdout == 'changed\nnew\n' and cloud.git('status', '--porcelain') == before


def test_a_detached_run_survives_is_watched_and_stops_on_sigterm(cloud):
  script = ('import signal, sys, time; print("started", flush=True); '
            'signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print("saved"), sys.exit())); '
            'signal.pause()')
  assert cloud.run('--detach', command=[sys.executable, '-c', script]).returncode == 0
  busy = cloud.tool('run', '--skip_install', command=['true'])
  assert 'still has a run' in one_line(busy)
  assert re.findall(r'pod-w-(\d): running', cloud.tool('status').stdout) == ['0', '1']
  assert cloud.tool('logs').stdout == 'started\n'
  stopped = cloud.tool('stop')
  assert stopped.stdout == 'pod-w-0: exit 0\npod-w-1: exit 0\n', stopped.stderr
  followed = cloud.tool('logs', '--follow', '--worker=all')
  assert followed.returncode == 0
  assert sorted(followed.stdout.splitlines()) == [
      '[0.0] saved', '[0.0] started', '[0.1] saved', '[0.1] started']
  assert cloud.tool('delete').returncode == 0
  assert 'NOT_FOUND' in cloud.tool('status').stdout


@pytest.mark.parametrize('gives_up', [False, True])
def test_after_a_preemption_the_same_command_resumes(cloud, gives_up):
  # Saves on SIGTERM and exits 0 as training does; ends for good when it finds what it saved.
  saved = cloud.folder / 'saved'
  script = (f'if [ -e {saved} ]; then echo resumed; exit 5; fi; echo first; touch "$HOME/started"; '
            f'trap "touch {saved}; exit 0" TERM; while :; do sleep 0.05; done')
  flags = [] if gives_up else ['--retries=1']
  process = cloud.background(*flags, '--grace_seconds=5', command=['bash', '-c', script])
  for worker in range(2):
    cloud.wait_for(cloud.home(worker) / 'started')
  cloud.shut_down()
  out, err = process.communicate(timeout=60)
  assert saved.exists()
  if gives_up:
    assert process.returncode == 1 and '--retries=N does so' in err.splitlines()[-1], err
    return
  assert process.returncode == 5, err
  assert out.endswith('resumed\n') and 'starting again' in err
  verbs = [verb for group, verb in cloud.calls()]
  assert verbs.count('create') == 2 and verbs.count('delete') == 1


def test_a_connection_that_breaks_repeats_the_command_but_not_the_run(cloud):
  (cloud.folder / 'drop').touch()
  done = cloud.run(command=['sh', '-c', 'echo x >>"$HOME/starts"; echo once'])
  assert done.returncode == 0 and done.stdout == 'once\n', done.stderr
  assert (cloud.home(1) / 'starts').read_text() == 'x\n'


@pytest.mark.parametrize('offline', [[3, 4], [9, 10], [10, 11], [12, 14]], ids=str)
def test_a_network_that_is_away_for_a_while_changes_nothing(cloud, offline):
  (cloud.folder / 'offline').write_text(json.dumps(offline))  # numbers of the gcloud calls that fail
  done = cloud.run(command=['sh', '-c', 'echo once; sleep 0.5; exit 6'])
  assert done.returncode == 6 and done.stdout == 'once\n', done.stderr
  assert 'asking again' in done.stderr


def test_a_run_that_is_only_out_of_reach_is_not_deleted(cloud, monkeypatch):
  (cloud.folder / 'offline').write_text('[11, 12, 13, 14]')  # the first of them asks for the state
  monkeypatch.setattr(tpu_workers, 'MAX_UNREACHED', 1)
  for key in ('PATH', 'FAKE_CLOUD'):
    monkeypatch.setenv(key, cloud.environment[key])
  monkeypatch.chdir(cloud.repository)
  launch = launch_tpu.Launch(
      queued_resources.QueuedResource('pod', 'us-west4-a'), queued_resources.Request('v4-8'),
      launch_tpu.source(allow_dirty=False), ('sleep', '30'), install='true', delete_when_done=True,
      poll_seconds=0.01)
  with pytest.raises(queued_resources.CommandError, match='no network'):
    launch.run()
  assert len(cloud.calls()) == 14 and (cloud.folder / 'pod.json').exists() and cloud.processes(1)


def test_a_slice_that_someone_deletes_is_not_created_again(cloud):
  process = cloud.background('--keep_alive', command=['sh', '-c', 'touch "$HOME/started"; sleep 30'])
  for worker in range(2):
    cloud.wait_for(cloud.home(worker) / 'started')
  assert cloud.tool('delete').returncode == 0
  _, err = process.communicate(timeout=60)
  assert process.returncode == 1 and err.splitlines()[-1] == 'error: pod was deleted', err
  assert not (cloud.folder / 'pod.json').exists()


def test_the_others_are_killed_when_one_worker_fails(cloud):
  script = 'case $(hostname) in *-1) exit 9;; esac; trap "" TERM; while :; do sleep 0.05; done'
  done = cloud.run('--grace_seconds=0.3', command=['bash', '-c', script])
  assert done.returncode in (9, 137), done.stderr
  assert 'pod-w-1: exit 9; the other workers get 0.3 s' in done.stderr
  assert 'pod-w-0: exit 137' in done.stderr and not cloud.processes(0)


def test_several_slices_run_the_command_on_all_their_workers(cloud):
  done = cloud.run('--node_count=2', command=['hostname'])
  assert done.returncode == 0 and done.stdout == 'pod-0-w-0\n', done.stderr
  for node in ('pod-0', 'pod-1'):
    for worker in range(2):
      log = cloud.home(worker, node) / 'launch/runs/current/log'
      assert log.read_text() == f'{node}-w-{worker}\n'


def test_a_request_that_fails_ends_in_one_line(cloud):
  (cloud.folder / 'plan').write_text('PROVISIONING FAILED')
  assert 'pod is FAILED, wanted ACTIVE' in one_line(cloud.run(command=['true']))
  assert 'pod is FAILED' in one_line(cloud.run('--retries=2', command=['true']))


def test_without_gcloud_the_error_says_where_to_find_it(cloud):
  git = shutil.which('git')
  (cloud.folder / 'git_alone').mkdir()
  (cloud.folder / 'git_alone' / 'git').symlink_to(git)
  cloud.environment['PATH'] = str(cloud.folder / 'git_alone')
  assert 'gcloud is not installed' in one_line(cloud.run(command=['true']))


BAD_FLAGS = [
    (['--name=Pod'], "--name='Pod', wanted one like"),
    (['--name=a;rm -rf /'], 'wanted one like'),
    (['--name=--quiet'], 'wanted one like'),
    (['--zone=us-west4'], "--zone='us-west4', wanted one like us-central2-b"),
    (['--project=$(id)'], '--project'),
    (['--accelerator_type=h100-8'], 'wanted one like v4-32'),
    (['--runtime_version=a b'], '--runtime_version'),
    (['--service_account=me'], '--service_account'),
    (['--network=-x'], '--network'),
    (['--valid_until_duration=soon'], '--valid_until_duration'),
    (['--create_flag=labels=a=b'], 'wanted a flag like'),
]


@pytest.mark.parametrize('flags, wanted', BAD_FLAGS, ids=str)
def test_values_outside_gclouds_grammar_are_refused(cloud, flags, wanted):
  assert wanted in one_line(cloud.run(*flags, command=['true']))
  assert not (cloud.folder / 'calls').exists()


def test_a_run_needs_a_command_and_retries_need_a_type(cloud):
  assert 'no command' in one_line(cloud.run(command=()))
  assert 'needs --accelerator_type' in one_line(cloud.tool('run', '--keep_alive', command=['true']))
  detached = cloud.run('--detach', '--retries=1', command=['true'])
  assert 'nobody to start it again' in one_line(detached)
  assert 'there is no queued resource pod' in one_line(cloud.tool('run', command=['true']))


@pytest.mark.parametrize('chip, runtime', queued_resources.RUNTIMES.items())
def test_create_has_the_runtime_of_the_chip_and_the_given_options(chip, runtime):
  resource = queued_resources.QueuedResource('pod', 'us-west4-a', 'my-project')
  request = queued_resources.Request(
      f'{chip}-16', spot=True, network='net', internal_ips=True, create_flags=('--labels=a=b',))
  command = resource.create(request)
  assert f'--runtime-version={runtime}' in command and '--node-id=pod' in command
  assert {'--spot', '--network=net', '--internal-ips', '--labels=a=b', '--project=my-project'} < set(command)


def test_scripts_are_valid_shell():
  scripts = [tpu_workers.install('k', 'true'), tpu_workers.start('k', 'r', ('a b', "c'd")),
             tpu_workers.states('r', 'm'), tpu_workers.read_log('r', 'm', 0), tpu_workers.send('r', 'TERM')]
  for script in scripts:
    inner = shlex.split(script)[2]
    subprocess.run(['sh', '-n', '-c', inner], check=True)
    assert shlex.join(shlex.split(script)) == script


def test_a_missing_type_is_named():
  with pytest.raises(errors.UserError, match='--accelerator_type is missing'):
    queued_resources.Request('')
