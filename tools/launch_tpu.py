"""Runs one command on every worker of a Cloud TPU slice, through `gcloud`: the commit in this folder
is shipped, installed and started, its log followed, its exit code returned.

SIGTERM (`stop`, or the slice being taken away) makes training save; the same command then resumes it.
Copying to several workers needs the key in an agent: ssh-add ~/.ssh/google_compute_engine
"""

import argparse
import math
import sys

from musiclm_jax import cli, errors, launch_tpu, queued_resources, tpu_workers

EXAMPLES = r"""
python tools/launch_tpu.py run --name=semantic --zone=us-west4-a --accelerator_type=v5litepod-16 --spot \
  --keep_alive --delete_when_done -- python tools/train.py --gin_file=gin/runs/semantic_base.gin \
  --gin_file=gin/topologies/v5e_16.gin --gin.WORKDIR=gs://bucket/semantic \
  --gin.TOKENS_DIR=gs://bucket/tokens --distributed
python tools/launch_tpu.py run --name=semantic --zone=us-west4-a --dry_run -- python -c "print(1)"
python tools/launch_tpu.py logs --name=semantic --zone=us-west4-a --follow
python tools/launch_tpu.py status --name=semantic --zone=us-west4-a
python tools/launch_tpu.py stop --name=semantic --zone=us-west4-a
python tools/launch_tpu.py delete --name=semantic --zone=us-west4-a
"""


def _worker(text: str) -> str:
  return text if text == 'all' else str(cli.count(text))


def _seconds(text: str) -> float:
  value = float(text)
  if not 0 < value < math.inf:
    raise ValueError(f'{value} is no time')
  return value


def _parser() -> argparse.ArgumentParser:
  common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  common.add_argument('--name', required=True, help='of the queued resource')
  common.add_argument('--zone', required=True, help='like us-central2-b')
  common.add_argument('--project', default='', help='default: that of `gcloud config`')
  common.add_argument('--internal_ip', action='store_true', help='reach the workers by internal addresses')
  common.add_argument('--tunnel_through_iap', action='store_true', help='reach them through IAP')
  common.add_argument('--dry_run', action='store_true', help='print the commands, run none of them')
  waiting = argparse.ArgumentParser(add_help=False)
  waiting.add_argument('--poll_seconds', type=_seconds, default=15, metavar='S', help='default: 15')
  waiting.add_argument('--grace_seconds', type=_seconds, default=300, metavar='S',
                       help='for the others after one worker failed, or for `stop`; default: 300')
  worker = argparse.ArgumentParser(add_help=False)
  worker.add_argument('--worker', type=_worker, default='0', metavar='N',
                      help='whose log is shown, of the first slice, or all; default: 0')

  parser = cli.parser(__doc__, EXAMPLES)
  verbs = parser.add_subparsers(dest='verb', required=True)
  add = lambda name, help, *parents: verbs.add_parser(
      name, help=help, parents=[common, *parents], allow_abbrev=False)
  _add_run_flags(add('run', 'create or reuse, ship, install, start, follow', waiting, worker))
  add('logs', 'log of the last run', waiting, worker).add_argument(
      '--follow', action='store_true', help='until the run ends; returns its exit code')
  add('status', 'state of the resource and of the last run on each worker')
  add('stop', 'SIGTERM to the run on all workers', waiting)
  add('delete', 'delete the queued resource and its machines')
  return parser


def _add_run_flags(run: argparse.ArgumentParser) -> None:
  run.usage = '%(prog)s --name=NAME --zone=ZONE [flags] -- COMMAND ...'
  run.add_argument('--accelerator_type', default='', metavar='TYPE', help=(
      'like v4-32 or v5litepod-256; without it only a resource that is there is used'))
  run.add_argument('--runtime_version', default='', metavar='VERSION', help='default: that of the chip')
  run.add_argument('--node_count', type=cli.positive, default=1, metavar='N', help='slices; default: 1')
  run.add_argument('--spot', action='store_true')
  run.add_argument('--reserved', action='store_true')
  run.add_argument('--service_account', default='', metavar='EMAIL', help='of the workers')
  run.add_argument('--network', default='')
  run.add_argument('--subnetwork', default='')
  run.add_argument('--internal_ips', action='store_true', help='no external addresses')
  run.add_argument('--valid_until_duration', default='', metavar='6h', help='how long the request waits')
  run.add_argument('--create_flag', action='append', default=[], metavar='--FLAG=VALUE',
                   help='another flag of `gcloud compute tpus queued-resources create`; repeatable')
  run.add_argument('--allow_dirty', action='store_true', help='ship uncommitted changes as well')
  install = run.add_mutually_exclusive_group()
  install.add_argument('--install', default=tpu_workers.INSTALL, metavar='COMMAND',
                       help='run by sh in the shipped tree; default: .venv with .[tpu,gcs]')
  install.add_argument('--skip_install', action='store_const', dest='install', const='true')
  again = run.add_mutually_exclusive_group()
  again.add_argument('--retries', type=cli.count, default=0, metavar='N',
                     help='start again this often after the slice was taken away; default: 0')
  again.add_argument('--keep_alive', action='store_const', dest='retries', const=math.inf,
                     help='start again however often')
  end = run.add_mutually_exclusive_group()
  end.add_argument('--detach', action='store_true', help='return once the run has started')
  end.add_argument('--delete_when_done', action='store_true', help='also when the run has failed')


def _launch(flags: argparse.Namespace, resource, command: tuple[str, ...]) -> launch_tpu.Launch:
  if not command:
    raise errors.UserError('no command: wanted -- python tools/train.py ... at the end')
  given = {key: getattr(flags, key) for key in (
      'accelerator_type', 'runtime_version', 'node_count', 'spot', 'reserved', 'service_account',
      'network', 'subnetwork', 'internal_ips', 'valid_until_duration')}  # fmt: skip
  if not flags.accelerator_type and flags.retries:
    raise errors.UserError('--retries creates the slice again and needs --accelerator_type')
  if flags.detach and flags.retries:
    raise errors.UserError('--detach leaves nobody to start it again: wanted without --retries or --keep_alive')
  request = queued_resources.Request(**given, create_flags=tuple(flags.create_flag)) \
      if flags.accelerator_type else None
  return launch_tpu.Launch(
      resource, request, launch_tpu.source(flags.allow_dirty), command, install=flags.install,
      worker=flags.worker, detach=flags.detach, delete_when_done=flags.delete_when_done,
      retries=flags.retries, poll_seconds=flags.poll_seconds, grace_seconds=flags.grace_seconds,
  )  # fmt: skip


def main() -> None:
  arguments = sys.argv[1:]
  end = arguments.index('--') if '--' in arguments else len(arguments)
  flags, command = _parser().parse_args(arguments[:end]), tuple(arguments[end + 1:])
  if command and flags.verb != 'run':
    raise errors.UserError(f'{flags.verb} takes no command')
  reach = [f'--{key.replace("_", "-")}' for key in ('internal_ip', 'tunnel_through_iap')
           if getattr(flags, key)]
  resource = queued_resources.QueuedResource(flags.name, flags.zone, flags.project, tuple(reach))
  if flags.verb == 'run':
    launch = _launch(flags, resource, command)
    if not flags.dry_run:
      sys.exit(launch.run())
    print('\n'.join(launch.shell()))
  elif flags.dry_run:
    print('\n'.join(launch_tpu.shell(flags.verb, resource, getattr(flags, 'worker', '0'))))
  elif flags.verb == 'logs' and flags.follow:
    sys.exit(tpu_workers.follow(resource, launch_tpu.current_run(resource), flags.worker,
                                flags.poll_seconds, flags.grace_seconds))
  elif flags.verb == 'logs':
    launch_tpu.logs(resource, flags.worker)
  elif flags.verb == 'status':
    print('\n'.join(launch_tpu.status(resource)))
  elif flags.verb == 'stop':
    print('\n'.join(launch_tpu.stop(resource, flags.poll_seconds, flags.grace_seconds)))
  else:
    launch_tpu.delete(resource)


if __name__ == '__main__':
  cli.run(main)
