"""Times a run's train step, its input, or a language model's decoding, on this machine.

Steps and decoding are timed with random weights and values, input by reading the run's data.

decode --hugging_face also times, in turn with ours, the static-cache `generate` of transformers for
a decoder of the same size; its Python needs torch and transformers: pip install -e '.[parity]'.
"""

import argparse
import math
import sys

from musiclm_jax import cli

EXAMPLES = r"""
python tools/bench.py train --gin_file=gin/runs/semantic_tiny.gin
python tools/bench.py train --gin_file=gin/runs/semantic_base.gin --gin.BATCH_SIZE=16 --json=a.json
python tools/bench.py input --gin_file=gin/runs/semantic_tiny.gin --gin.TOKENS_DIR=data/tokens
python tools/bench.py decode --gin_file=gin/runs/coarse_tiny.gin --batch_sizes=1,16
python tools/bench.py decode --gin_file=gin/runs/semantic_base.gin --weights_dtype=int8 \
  --hugging_face --hugging_face_python=/tmp/parity/bin/python
"""
TRAIN = r"""
python tools/bench.py train --gin_file=gin/runs/semantic_tiny.gin --steps=20 --repeats=3 --kernels
python tools/bench.py train --gin_file=gin/runs/coarse_base.gin \
  --gin_file=gin/topologies/single_device.gin --gin.BATCH_SIZE=16
"""
INPUT = r"""
python tools/bench.py input --gin_file=gin/runs/semantic_tiny.gin --gin.TOKENS_DIR=data/tokens
python tools/bench.py input --gin_file=gin/runs/mulan_base.gin --gin_file=gin/stages/music_text.gin \
  --gin.DATA_DIR=data/records --gin.VOCAB_FILE=vocab.txt --gin.BATCH_SIZE=64 --no_step
"""
DECODE = r"""
python tools/bench.py decode --gin_file=gin/runs/semantic_tiny.gin --batch_sizes=1,16,64
python tools/bench.py decode --gin_file=gin/runs/semantic_base.gin --batch_sizes=64 --kernels
python tools/bench.py decode --gin_file=gin/runs/semantic_base.gin --weights_dtype=bfloat16 \
  --hugging_face --hugging_face_dtype=bfloat16 --hugging_face_python=/tmp/parity/bin/python
"""


def batch_sizes(text: str) -> list[int]:
  """Returns the numbers of '1,16', each once."""
  return list(dict.fromkeys(cli.positive(each) for each in text.split(',')))


def temperature(text: str) -> float:
  value = float(text)
  if not 0 <= value < math.inf:  # nor for NaN
    raise ValueError(f'{value} is no temperature')
  return value


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
  """Returns the parser of the command's name, and that of each command's flags."""
  parser = cli.parser(__doc__, EXAMPLES)
  commands = parser.add_subparsers(dest='command', required=True, metavar='{train,input,decode}')
  commands.add_parser('train', help='the real train step', add_help=False)
  commands.add_parser('input', help='the input pipeline by itself', add_help=False)
  commands.add_parser('decode', help="a language model's decoding", add_help=False)
  train = cli.parser("Times a run's train step on a batch of random values.", TRAIN)
  train.add_argument('--steps', type=cli.positive, default=10,
                     help='steps of each repeat (default: %(default)s)')
  reading = cli.parser("Times a run's input pipeline by itself, and its train step.", INPUT)
  reading.add_argument('--batches', type=cli.positive, default=20,
                       help='batches of each repeat (default: %(default)s)')
  reading.add_argument('--no_step', action='store_true', help='do not time the train step beside it')
  decode = cli.parser('Times decoding after a random prefix, with random weights.', DECODE)
  decode.add_argument('--batch_sizes', type=batch_sizes, default=[1, 16], metavar='N,N',
                      help='(default: 1,16)')
  decode.add_argument('--tokens', type=cli.positive, default=128,
                      help='new ids of each example (default: %(default)s)')
  decode.add_argument('--weights_dtype', default='', choices=('int8', 'bfloat16', 'float32'),
                      help="of the matrices (default: the run's dtype)")
  decode.add_argument('--temperature', type=temperature, default=1.0, help='(default: %(default)s)')
  decode.add_argument('--hugging_face', action='store_true',
                      help='in turn with transformers, for a decoder of the same size')
  decode.add_argument('--hugging_face_dtype', choices=('float32', 'bfloat16'),
                      help='of its weights (default: float32)')
  decode.add_argument('--hugging_face_python', metavar='PATH',
                      help='a Python with torch and transformers (default: this one)')
  for each in (train, decode):
    each.add_argument('--kernels', action='store_true',
                      help="also profile: time by kind of kernel, and the longest kernels")
  parsers = {'train': train, 'input': reading, 'decode': decode}
  for name, each in parsers.items():
    each.prog = f'{parser.prog} {name}'
    each.add_argument('--repeats', type=cli.positive, default=5,
                      help='timings; medians are given (default: %(default)s)')
    each.add_argument('--json', metavar='FILE', help='file for all figures as well')
  return parser, parsers


def _parse(arguments):
  """Returns (command, flags, gin bindings)."""
  parser, commands = _parsers()
  command = parser.parse_args(arguments[:1]).command
  flags, bindings = cli.parse_gin(commands[command], arguments[1:])
  if command == 'decode' and flags.hugging_face and flags.kernels:
    commands[command].error('--kernels does not apply with --hugging_face')
  if command == 'decode' and not flags.hugging_face:
    for name in ('hugging_face_dtype', 'hugging_face_python'):
      if getattr(flags, name):
        commands[command].error(f'--{name} does not apply without --hugging_face')
  return command, flags, bindings


def _train(flags, run):
  from musiclm_jax.benchmarks import train_speed

  yield train_speed.measure(**run, steps=flags.steps, repeats=flags.repeats,
                            kernels=flags.kernels)


def _input(flags, run):
  from musiclm_jax.benchmarks import input_speed, train_speed

  dataset = run.pop('dataset')
  step = None if flags.no_step else train_speed.measure(**run, steps=3, repeats=flags.repeats)
  yield input_speed.measure(
      dataset, run['batch_size'], flags.batches, flags.repeats, step=step)


def _decode(flags, run):
  from musiclm_jax.benchmarks import decode_speed, side_by_side

  objective = run['objective']
  decode_speed.check(objective, flags.tokens)
  if flags.hugging_face:
    yield from side_by_side.measure(
        objective, flags.batch_sizes, flags.tokens, flags.temperature, flags.weights_dtype,
        flags.hugging_face_python, flags.hugging_face_dtype or 'float32', flags.repeats)
    return
  decoding = decode_speed.Decoding(
      objective.config, objective.stage_layout, flags.weights_dtype, run['mesh_shape'])
  for batch_size in flags.batch_sizes:
    yield decode_speed.measure(
        decoding, batch_size, flags.tokens, flags.temperature, flags.repeats, flags.kernels)


def main() -> None:
  command, flags, bindings = _parse(sys.argv[1:])

  import json
  import pathlib

  from musiclm_jax import audio, gin_utils, train

  names = ['objective', 'optimizer', 'batch_size', 'mesh_shape', 'microbatches', 'average_decay']
  if command == 'input':
    names.append('dataset')
    gin_utils.load(flags.gin_file, ['WORKDIR=unused', *bindings])
  else:
    gin_utils.load_without_data(flags.gin_file, bindings)
  run = gin_utils.arguments(train.train, names)
  found = []
  for report in {'train': _train, 'input': _input, 'decode': _decode}[command](flags, run):
    print(report.describe(), end='\n\n', flush=True)
    found.append(report.as_json())
  if flags.json:
    found = {'command': command, 'run': pathlib.Path(flags.gin_file[0]).stem, 'results': found}
    with audio.atomic_path(flags.json, overwrite=True) as path, open(path, 'w') as f:
      json.dump(found, f, indent=2)


if __name__ == '__main__':
  cli.run(main)
