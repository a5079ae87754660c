"""Shows a few examples of a task: arrays, token streams, texts, pictures and sound."""

import math
import os

from musiclm_jax import cli

TASKS = ('semantic', 'coarse', 'fine', 'captions', 'music_text', 'waveforms', 'melody')
EXAMPLES = """
python tools/inspect_task.py --task=semantic --data_dir=data/tokens
python tools/inspect_task.py --task=coarse --data_dir=data/tokens --models=models --output=look
python tools/inspect_task.py --task=captions --data_dir=data/musiccaps/1.0.0 --split=eval --output=look
"""


def seconds(text: str) -> float:
  value = float(text)
  if not 0 < value < math.inf:  # nor for NaN
    raise ValueError(f'{value} is no length')
  return value


def main() -> None:
  parser = cli.parser(__doc__, EXAMPLES)
  parser.add_argument('--task', required=True, choices=TASKS)
  parser.add_argument('--data_dir', required=True, action='append', metavar='DIR',
                      help='token records, waveform records, melody records, or for captions what '
                           '`tfds build` made; repeatable')
  parser.add_argument('--split', default='train', help='(default: %(default)s)')
  parser.add_argument('--num_examples', type=cli.positive, default=3, metavar='N',
                      help='(default: %(default)s)')
  parser.add_argument('--seconds', type=seconds, help='of a crop (default: 10, fine 3, melody 4)')
  parser.add_argument('--vocab_file', help='of texts (default: that of the package)')
  parser.add_argument('--seed', type=cli.seed, default=0, help='of order and crops (default: 0)')
  parser.add_argument('--models', metavar='DIR',
                      help='exported models whose codec makes coarse and fine tokens heard')
  parser.add_argument('--output', metavar='FOLDER',
                      help='for a png and, of what has sound, a wav of each example; replaces them')
  args = parser.parse_args()
  if args.models and not args.output:
    parser.error('--models needs --output, a folder for the wavs')

  os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # a look takes no accelerator from a run
  from tasks import inspection

  expand = lambda path: path and os.path.expanduser(path)
  for lines in inspection.inspect(
      args.task, [expand(each) for each in args.data_dir], args.split, args.num_examples,
      args.seed, args.seconds, expand(args.vocab_file), expand(args.models), expand(args.output)):
    print(lines, end='\n\n', flush=True)


if __name__ == '__main__':
  cli.run(main)
