"""Compiles a run's train step, or decoding, with the real TPU compiler, without a TPU: does it fit,
what does it cost?

Needs libtpu: pip install -e '.[tpu_compile]'.
"""

import argparse
import os
import sys

from musiclm_jax import cli, tpu_chips

EXAMPLES = r"""
python tools/compile_check.py --gin_file=gin/runs/semantic_base.gin \
  --gin_file=gin/topologies/v5e_16.gin --topology=v5e:4x4
python tools/compile_check.py --gin_file=gin/runs/coarse_base.gin --topology=v4:2x2x4 \
  --gin.MESH_SHAPE='(4,4,1)' --gin.BATCH_SIZE=64 --json=reports/coarse.json
python tools/compile_check.py --gin_file=gin/runs/fine_base.gin --topology=v5e:4x4 \
  --gin_file=gin/topologies/v5e_16.gin --largest_batch
python tools/compile_check.py --gin_file=gin/runs/semantic_base.gin --topology=v5e:2x2 \
  --gin.MESH_SHAPE='(4,1,1)' --gin.BATCH_SIZE=64 --decode
python tools/compile_check.py --table=reports
"""


class _Table(argparse.Action):
  """Prints the table of a folder and ends, as --help does, so that nothing else is asked for."""

  def __call__(self, parser, namespace, folder, option_string=None):
    import json
    import pathlib

    from musiclm_jax import compile_reports, errors

    paths = sorted(pathlib.Path(folder).glob('*.json'))
    if not paths:
      raise errors.UserError(f'--table: {folder} holds no .json file')
    reports = []
    for path in paths:
      try:
        reports.append(json.loads(path.read_text(encoding='utf-8')))
      except ValueError as error:
        raise errors.UserError(f'{path} is not JSON: {error}') from error
    print(compile_reports.table(
        each for each in reports if isinstance(each, dict) and 'model_flops' in each))
    parser.exit()


def main() -> None:
  parser = cli.parser(__doc__, EXAMPLES)
  parser.add_argument('--topology', required=True,
                      help=f'chip ({", ".join(tpu_chips.CHIPS)}) and shape, like v5e:16x16')
  parser.add_argument('--largest_batch', action='store_true',
                      help='find the largest batch that fits; several compilations')
  parser.add_argument('--decode', action='store_true',
                      help='instead of the train step, drawing tokens with a language model')
  parser.add_argument('--dtype', default='bfloat16', choices=('float32', 'bfloat16', 'int8'),
                      help='of the parameters of --decode (default bfloat16)')
  parser.add_argument('--json', metavar='FILE', help='file for all figures as well')
  parser.add_argument('--table', metavar='FOLDER', action=_Table,
                      help='only print a Markdown table of the train steps in its --json files')
  flags, bindings = cli.parse_gin(parser, sys.argv[1:])
  tpu_chips.parse(flags.topology)
  tpu_chips.use_compiler_without_chips(os.environ)  # before jax is imported

  import functools
  import json
  import pathlib

  from musiclm_jax import audio, compile_check, gin_utils, train

  gin_utils.load_without_data(flags.gin_file, bindings)
  run = gin_utils.arguments(train.train, (
      'objective', 'optimizer', 'batch_size', 'mesh_shape', 'microbatches', 'average_decay'))
  batch_size, tried = run.pop('batch_size'), {}
  where = {'mesh_shape': run['mesh_shape'], 'topology': flags.topology}
  if flags.decode:
    check = functools.partial(
        compile_check.check_decode, objective=run['objective'], dtype=flags.dtype, **where)
  else:
    check = functools.partial(compile_check.check_train_step, **run, topology=flags.topology)
  if flags.largest_batch:
    multiple = compile_check.smallest_batch(
        **where, microbatches=1 if flags.decode else run['microbatches'])
    report, tried = compile_check.largest_batch(
        lambda size: check(batch_size=size), batch_size, multiple)
  else:
    report = check(batch_size=batch_size)
  print(report.describe())
  if tried:
    print(f'largest batch that fits: {report.batch_size}, of {len(tried)} tried')
  if flags.json:
    found = report.as_json() | {
        'run': pathlib.Path(flags.gin_file[0]).stem, 'wanted_batch_size': batch_size,
        'tried': tried}
    with audio.atomic_path(flags.json, overwrite=True) as path, open(path, 'w') as f:
      json.dump(found, f, indent=2)


if __name__ == '__main__':
  cli.run(main)
