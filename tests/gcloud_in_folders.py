"""A `gcloud` for launch_tpu_test.py: TPU workers are folders below $FAKE_CLOUD, two to a slice.

Queued resources are JSON files.  `ssh` runs its command with bash, HOME being the worker's folder, on all
workers at once and again when the connection broke (exit code 255), as the real one; `scp` copies.
Flags that the real one does not have are errors.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

ROOT = pathlib.Path(os.environ.get('FAKE_CLOUD', '.'))
VALUES = ('zone', 'project', 'format', 'command', 'node', 'worker', 'ssh-flag', 'scp-flag', 'node-id',
          'node-prefix', 'node-count', 'accelerator-type', 'runtime-version', 'service-account', 'network',
          'labels')
SWITCHES = ('quiet', 'force', 'spot', 'internal-ips', 'internal-ip')
WORKERS = 2


def fail(text: str) -> None:
  print(f'ERROR: ({".".join(["gcloud", *sys.argv[1:5]])}) {text}', file=sys.stderr)
  sys.exit(1)


def homes(state: dict, node: str = 'all', worker: str = 'all') -> list[pathlib.Path]:
  return [ROOT / 'homes' / f'{spec["nodeId"]}-w-{index}'
          for number, spec in enumerate(state['tpu']['nodeSpec']) if node in ('all', str(number))
          for index in range(WORKERS) if worker in ('all', str(index))]


def processes(home: pathlib.Path) -> list[int]:
  """Returns ids of what runs on a worker."""
  found = []
  for each in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      if f'HOME={home}'.encode() in (each / 'environ').read_bytes().split(b'\0'):
        found.append(int(each.name))
    except OSError:
      pass
  return found


def run(home: pathlib.Path, command: str, codes: list[int]) -> None:
  environment = {'HOME': str(home), 'PATH': f'{home}/bin:/usr/bin:/bin'}
  for attempt in range(3):
    code = subprocess.run(['bash', '-c', ' '.join(command.split(' '))], cwd=home, env=environment,
                          stdin=subprocess.DEVNULL, check=False).returncode
    if code == 0 and attempt == 0 and (ROOT / 'drop').exists():
      code = 255
    if code != 255:
      break
  codes.append(code)


def create(file: pathlib.Path, flags: argparse.Namespace) -> None:
  if file.exists():
    fail('ALREADY_EXISTS')
  nodes = [flags.node_id] if flags.node_id else [
      f'{flags.node_prefix}-{index}' for index in range(int(flags.node_count))]
  plan = ROOT / 'plan'  # the states that `describe` goes through
  state = {
      'state': {'state': 'WAITING_FOR_RESOURCES'},
      'plan': plan.read_text().split() if plan.exists() else ['PROVISIONING', 'ACTIVE'],
      'tpu': {'nodeSpec': [
          {'nodeId': node, 'node': {'acceleratorType': flags.accelerator_type}} for node in nodes]},
  }
  for home in homes(state):
    shutil.rmtree(home, ignore_errors=True)
    (home / 'bin').mkdir(parents=True)
    (home / 'bin' / 'hostname').write_text(f'#!/bin/sh\necho {home.name}\n')
    (home / 'bin' / 'hostname').chmod(0o755)
  file.write_text(json.dumps(state))


def queued_resource(verb: str, file: pathlib.Path, flags: argparse.Namespace) -> None:
  if verb == 'create':
    return create(file, flags)
  if not file.exists():
    fail('NOT_FOUND: Resource was not found')
  state = json.loads(file.read_text())
  active = state['state']['state'] == 'ACTIVE'
  if verb == 'describe':
    if state['plan']:
      state['state']['state'] = state['plan'].pop(0)
      file.write_text(json.dumps(state))
    print(json.dumps(state) if flags.format == 'json' else state['state']['state'])
  elif verb == 'delete':
    if active and not flags.force:
      fail('FAILED_PRECONDITION')
    for home in homes(state):
      for process in processes(home):
        os.kill(process, signal.SIGKILL)
    file.unlink()
  elif not active:
    fail('the TPU is not in state READY')
  elif verb == 'scp':
    for home in homes(state, flags.node, flags.worker):
      shutil.copy(flags.names[0], home)
  elif verb == 'ssh':
    codes: list[int] = []
    threads = [threading.Thread(target=run, args=(home, flags.command, codes))
               for home in homes(state, flags.node, flags.worker)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    sys.exit(next((code for code in codes if code), 0))
  else:
    fail(f'Invalid choice: {verb!r}')


def main() -> None:
  tpus, group, verb = sys.argv[1:3], *sys.argv[3:5]
  assert tpus == ['compute', 'tpus']
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument('names', nargs='+')
  for each in VALUES:
    parser.add_argument(f'--{each}', required=each == 'zone')
  for each in SWITCHES:
    parser.add_argument(f'--{each}', action='store_true')
  flags = parser.parse_args(sys.argv[5:])
  calls, offline = ROOT / 'calls', ROOT / 'offline'
  with calls.open('a') as f:
    f.write(json.dumps([group, verb, *flags.names]) + '\n')
  if offline.exists() and len(calls.read_text().splitlines()) in json.loads(offline.read_text()):
    fail('no network')
  if group == 'tpu-vm' and verb == 'describe':
    print(json.dumps({'networkEndpoints': [{}] * WORKERS}))
  elif group == 'queued-resources':
    queued_resource(verb, ROOT / (flags.names[-1].rstrip(':') + '.json'), flags)
  else:
    fail(f'Invalid choice: {group!r}')


if __name__ == '__main__':
  main()
