"""L0. Queued resources of Cloud TPU: the `gcloud` commands for them, with every value checked.

Flags are those of `gcloud compute tpus queued-resources create`, `describe`, `delete`, `ssh` and `scp`,
cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources.  `ssh` and `scp` of a queued
resource take `--node=all --worker=all`: the same command serves one slice and several.
"""

import dataclasses
import json
import re
import subprocess
import sys

from musiclm_jax import errors

# Software of the virtual machines, cloud.google.com/tpu/docs/runtimes (table for PyTorch and JAX).
RUNTIMES = {
    'v2': 'tpu-ubuntu2204-base', 'v3': 'tpu-ubuntu2204-base', 'v4': 'tpu-ubuntu2204-base',
    'v5litepod': 'v2-alpha-tpuv5-lite', 'v5p': 'v2-alpha-tpuv5', 'v6e': 'v2-alpha-tpuv6e',
}
# cloud.google.com/tpu/docs/queued-resources: what a request can be in before it is ACTIVE.
WAITING = ('CREATING', 'ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING')
_ALIVE = '-oServerAliveInterval=30'  # a connection that died is noticed
_GRAMMAR = {  # what each value is made of, and an example
    'name': (r'[a-z]([-a-z0-9]{0,58}[a-z0-9])?', 'semantic-1: lower-case letters, digits and "-"'),
    'zone': (r'[a-z]+-[a-z]+\d+-[a-z0-9]+', 'us-central2-b'),
    'project': (r'([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]', 'my-project'),
    'accelerator_type': (rf'({"|".join(RUNTIMES)})-[1-9]\d*',
                         f'v4-32 or v5litepod-256, a chip of {", ".join(RUNTIMES)}'),
    'runtime_version': (r'[a-z0-9][a-z0-9.-]*', 'tpu-ubuntu2204-base'),
    'service_account': (r'[\w.-]+@[\w.-]+', 'trainer@my-project.iam.gserviceaccount.com'),
    'network': (r'\w[\w./:-]*', 'default'),
    'subnetwork': (r'\w[\w./:-]*', 'default'),
    'valid_until_duration': (r'[1-9]\d*[smhd]', '6h'),
}  # fmt: skip


def _check(**values: str) -> None:
  for name, value in values.items():
    pattern, example = _GRAMMAR[name]
    if value and not re.fullmatch(pattern, value, re.ASCII):
      raise errors.UserError(f'--{name}={value!r}, wanted one like {example}')


class CommandError(errors.UserError):
  """A command failed: its own error in one line."""


@dataclasses.dataclass(frozen=True)
class Request:
  """What `create` asks for.  `node_count` slices, joined by the data-centre network when several."""

  accelerator_type: str
  runtime_version: str = ''  # that of the chip when empty
  node_count: int = 1
  spot: bool = False
  reserved: bool = False
  service_account: str = ''
  network: str = ''
  subnetwork: str = ''
  internal_ips: bool = False
  valid_until_duration: str = ''
  create_flags: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.accelerator_type:
      raise errors.UserError('--accelerator_type is missing, and there is no such queued resource yet')
    _check(
        accelerator_type=self.accelerator_type, runtime_version=self.runtime_version,
        service_account=self.service_account, network=self.network, subnetwork=self.subnetwork,
        valid_until_duration=self.valid_until_duration,
    )  # fmt: skip
    for flag in self.create_flags:
      if not re.match(r'--[a-z]', flag):
        raise errors.UserError(f'--create_flag={flag!r}, wanted a flag like --labels=team=music')

  def flags(self, name: str) -> list[str]:
    """Returns the flags of `create`."""
    chip = self.accelerator_type.partition('-')[0]
    given = {
        'accelerator-type': self.accelerator_type,
        'runtime-version': self.runtime_version or RUNTIMES[chip],
        'service-account': self.service_account,
        'network': self.network,
        'subnetwork': self.subnetwork,
        'valid-until-duration': self.valid_until_duration,
    }
    flags = [f'--{key}={value}' for key, value in given.items() if value]
    if self.node_count > 1:
      flags += [f'--node-count={self.node_count}', f'--node-prefix={name}']
    else:
      flags += [f'--node-id={name}']
    flags += [f'--{key.replace("_", "-")}' for key in ('spot', 'reserved', 'internal_ips')
              if getattr(self, key)]
    return flags + list(self.create_flags)


@dataclasses.dataclass(frozen=True)
class QueuedResource:
  """A queued resource by name: its `gcloud` commands as lists of arguments.

  `ssh_flags` say how its workers are reached: none, --internal-ip or --tunnel-through-iap.
  """

  name: str
  zone: str
  project: str = ''  # that of `gcloud config` when empty
  ssh_flags: tuple[str, ...] = ()

  def __post_init__(self):
    for key in ('name', 'zone'):
      if not getattr(self, key):
        raise errors.UserError(f'--{key} is missing')
    _check(name=self.name, zone=self.zone, project=self.project)

  def _command(self, group: str, verb: str, *arguments: str) -> list[str]:
    where = [f'--zone={self.zone}', *([f'--project={self.project}'] if self.project else [])]
    return ['gcloud', 'compute', 'tpus', group, verb, *arguments, *where]

  def create(self, request: Request) -> list[str]:
    return self._command('queued-resources', 'create', self.name, *request.flags(self.name), '--quiet')

  def describe(self, format: str = 'json') -> list[str]:
    return self._command('queued-resources', 'describe', self.name, f'--format={format}')

  def describe_node(self, node: str) -> list[str]:
    return self._command('tpu-vm', 'describe', node, '--format=json')

  def delete(self) -> list[str]:
    return self._command('queued-resources', 'delete', self.name, '--force', '--quiet')

  def ssh(self, command: str, node: int | str = 'all', worker: int | str = 'all') -> list[str]:
    return self._command('queued-resources', 'ssh', self.name, f'--node={node}', f'--worker={worker}',
                         f'--command={command}', f'--ssh-flag={_ALIVE}', *self.ssh_flags, '--quiet')

  def scp(self, path: str) -> list[str]:
    """Returns the command that copies `path` into the home directory of every worker."""
    return self._command('queued-resources', 'scp', path, f'{self.name}:', '--node=all',
                         '--worker=all', f'--scp-flag={_ALIVE}', *self.ssh_flags, '--quiet')

  def look(self) -> dict | None:
    """Returns what `describe` says, or None when there is no such queued resource."""
    try:
      return _object(call(self.describe()))
    except CommandError as error:
      if 'NOT_FOUND' in str(error):
        return None
      raise

  def state(self) -> str:
    """Returns 'ACTIVE', 'SUSPENDED', ..., or 'NOT_FOUND'."""
    seen = self.look()
    return 'NOT_FOUND' if seen is None else str(seen.get('state', {}).get('state', 'UNKNOWN'))

  def workers(self) -> list[tuple[int, int]]:
    """Returns (node, worker) of every virtual machine, in the order --node and --worker count."""
    seen = self.look() or {}
    nodes = [str(each['nodeId']) for each in seen.get('tpu', {}).get('nodeSpec', ())]
    found = []
    for index, node in enumerate(nodes):
      count = len(_object(call(self.describe_node(node))).get('networkEndpoints', ()))
      found += [(index, worker) for worker in range(count)]
    if not found:
      raise errors.UserError(f'gcloud names no worker of {self.name}')
    return found


def _object(text: str) -> dict:
  try:
    found = json.loads(text)
  except json.JSONDecodeError:
    found = None
  if not isinstance(found, dict):
    raise CommandError('gcloud describes the resource as something that is no JSON object')
  return found


def call(command: list[str], show: bool = False) -> str:
  """Returns what `command` printed; with `show` its messages pass through to stderr as they come."""
  try:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr if show else subprocess.PIPE,
        stderr=None if show else subprocess.PIPE, encoding='utf-8', errors='replace', check=False,
    )  # fmt: skip
  except FileNotFoundError:
    raise errors.UserError(
        f'{command[0]} is not installed; the Google Cloud CLI is at cloud.google.com/sdk/docs/install'
        if command[0] == 'gcloud' else f'{command[0]} is not installed') from None
  if done.returncode == 0:
    return done.stdout or ''
  lines = [line.strip() for line in (done.stderr or '').splitlines() if line.strip()]
  reason = next((line for line in lines if line.startswith('ERROR:')), lines[-1] if lines else '')
  short = ' '.join(word for word in command[:6] if not word.startswith('-'))
  raise CommandError(f'`{short}` ended with exit code {done.returncode}' + (f': {reason}' if reason else ''))
