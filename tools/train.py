"""Trains a model: everything about the run is in gin files and `--gin.NAME=VALUE` bindings."""

import argparse
import sys

from musiclm_jax import cli

EXAMPLES = r"""
python tools/train.py --gin_file=gin/runs/soundstream_tiny.gin \
  --gin.WORKDIR=runs/soundstream --gin.DATA_DIR=data/waveforms
python tools/train.py --gin_file=gin/runs/semantic_tiny.gin --dry_run \
  --gin.WORKDIR=runs/semantic --gin.TOKENS_DIR=data/tokens
python tools/train.py --gin_file=gin/runs/semantic_base.gin --gin_file=gin/topologies/v4_32.gin \
  --gin.WORKDIR=gs://bucket/semantic --gin.TOKENS_DIR=/data/tokens --distributed
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns (flags, bindings): ['--gin.SEED=1'] gives the binding 'SEED=1'."""
  parser = cli.parser(__doc__, EXAMPLES)
  parser.add_argument(
      '--dry_run', action='store_true',
      help='print parameter count, batch shapes and configuration; train nothing, write nothing',
  )  # fmt: skip
  parser.add_argument(
      '--distributed', action='store_true',
      help='one of several hosts: finds the others itself on TPU slices, Slurm and Open MPI;'
      ' elsewhere set JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES and'
      ' JAX_PROCESS_ID (0 to JAX_NUM_PROCESSES - 1). WORKDIR must be one place for all',
  )  # fmt: skip
  return cli.parse_gin(parser, argv)


def main() -> None:
  flags, bindings = parse(sys.argv[1:])
  if not flags.distributed:
    run(flags, bindings)
    return

  from musiclm_jax import multi_host

  with multi_host.joined():  # before anything that might touch a device
    run(flags, bindings)


def run(flags: argparse.Namespace, bindings: list[str]) -> None:
  from musiclm_jax import gin_utils

  gin_utils.load(flags.gin_file, bindings)

  from musiclm_jax import train

  arguments = gin_utils.arguments(train.train)
  if flags.dry_run:
    print(train.describe(**arguments))
    print()
    print(gin_utils.config_text())
  else:
    train.train(**arguments, config_text=gin_utils.config_text())


if __name__ == '__main__':
  cli.run(main)
