"""Writes two folders to compare systems with: recordings through the codec, and their tokens shuffled.

OUTPUT/resynthesised is the best that tokens of this codec can sound, OUTPUT/shuffled what a model
must beat: the same codec tokens in a random order. Both go to tools/evaluate.py as --generated.
"""

import sys

from musiclm_jax import cli

_EXAMPLES = """
python tools/make_baselines.py --audio=tests/pretrained/held_out --output=baselines
python tools/make_baselines.py --audio=corpus/audio --captions=corpus/corpus.jsonl --output=baselines --num_levels=8
python tools/make_baselines.py --audio=clips --model=models/soundstream --shuffle=tokens --output=baselines
"""


def _parse():
  parser = cli.parser(__doc__, _EXAMPLES)
  parser.add_argument('--audio', required=True, help='folder of recordings')
  parser.add_argument('--output', required=True, help='folder for the two folders')
  parser.add_argument('--captions', help='only clips with a caption: a csv with id (or path) and '
                                         'caption, or a corpus.jsonl (its split test)')
  parser.add_argument('--model', help='directory of an exported soundstream '
                                      '(default: the small one in the package)')
  parser.add_argument('--num_levels', type=cli.positive,
                      help="the codec's first levels (default: all)")
  parser.add_argument('--seconds', type=float, default=10.0,
                      help='of each recording, from its beginning (default: %(default)g)')
  parser.add_argument('--shuffle', choices=('frames', 'tokens'), default='frames',
                      help='whole frames, or the tokens of each level (default: %(default)s)')
  parser.add_argument('--seed', type=cli.seed, default=0, help='(default: %(default)s)')
  parser.add_argument('--overwrite', action='store_true', help='replaces files that exist')
  return parser.parse_args()


def main() -> None:
  args = _parse()
  from musiclm_jax import codec
  from musiclm_jax.evaluation import clip_folders, codec_baselines

  files = clip_folders.find_clips(args.audio)
  if args.captions:
    captions = clip_folders.read_captions(args.captions)
    files = {name: files[name] for name in clip_folders.match(captions, {args.audio: files}).ids}
  left_out = codec_baselines.write(
      files, args.output, codec.Codec.load(args.model), seconds=args.seconds, seed=args.seed,
      num_levels=args.num_levels, shuffle=args.shuffle, overwrite=args.overwrite)
  written = len(files) - len(left_out)
  print(f'{args.output}: {written} clips in resynthesised and shuffled; {len(left_out)} left out',
        file=sys.stderr)


if __name__ == '__main__':
  cli.run(main)
