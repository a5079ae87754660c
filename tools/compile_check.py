"""Compiles a run's train step with the real TPU compiler, without a TPU: does it fit, what does it cost?

Needs libtpu: pip install -e '.[tpu_compile]'.
"""

import os
import sys

from musiclm_jax import cli, tpu_chips

EXAMPLES = r"""
python tools/compile_check.py --gin_file=gin/runs/semantic_base.gin \
  --gin_file=gin/topologies/v5e_16.gin --topology=v5e:4x4
python tools/compile_check.py --gin_file=gin/runs/coarse_base.gin --topology=v4:2x2x4 \
  --gin.MESH_SHAPE='(4,4,1)' --gin.BATCH_SIZE=64 --json=coarse.json
"""
_DATA = ('WORKDIR', 'DATA_DIR', 'TOKENS_DIR', 'NOISE_DIR', 'VOCAB_FILE')  # not read here


def main() -> None:
  parser = cli.parser(__doc__, EXAMPLES)
  parser.add_argument('--topology', required=True,
                      help=f'chip ({", ".join(tpu_chips.CHIPS)}) and shape, like v5e:16x16')
  parser.add_argument('--json', metavar='FILE', help='file for all figures as well')
  flags, bindings = cli.parse_gin(parser, sys.argv[1:])
  tpu_chips.parse(flags.topology)
  tpu_chips.use_compiler_without_chips(os.environ)  # before jax is imported

  import dataclasses
  import json

  from musiclm_jax import audio, compile_check, gin_utils, train

  given = {each.partition('=')[0] for each in bindings}
  gin_utils.load(flags.gin_file, [*(f'{name}=unused' for name in _DATA if name not in given), *bindings])
  run = gin_utils.arguments(train.train, ('objective', 'optimizer', 'batch_size', 'mesh_shape'))
  report = compile_check.check_train_step(**run, topology=flags.topology)
  print(report.describe())
  if flags.json:
    with audio.atomic_path(flags.json, overwrite=True) as path, open(path, 'w') as f:
      json.dump(dataclasses.asdict(report) | {'mfu_bound': report.mfu_bound}, f, indent=2)


if __name__ == '__main__':
  cli.run(main)
