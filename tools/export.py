"""Writes the model of a training run in its exported form: model.safetensors and config.json."""

import logging

from musiclm_jax import cli

EXAMPLES = r"""
python tools/export.py --workdir=runs/soundstream --output=models/soundstream
python tools/export.py --workdir=gs://bucket/semantic --output=models/semantic \
  --step=100000 --dtype=float16
"""


def main() -> None:
  parser = cli.parser(__doc__, EXAMPLES)
  parser.add_argument('--workdir', required=True, help='WORKDIR of the run, local or gs://')
  parser.add_argument('--output', required=True, help='directory for the exported model')
  parser.add_argument('--step', type=int, help='checkpoint to export; default: the last')
  parser.add_argument(
      '--dtype', default='float32', choices=('float32', 'float16', 'bfloat16'),
      help='how arrays are stored; default: %(default)s',
  )  # fmt: skip
  flags = parser.parse_args()

  logging.getLogger('absl').setLevel(logging.ERROR)  # orbax warns of a file that no one writes
  from musiclm_jax import run_files

  step, fingerprint = run_files.export(flags.workdir, flags.output, flags.step, flags.dtype)
  print(f'{flags.output}: step {step}, sha256 {fingerprint}')


if __name__ == '__main__':
  cli.run(main)
