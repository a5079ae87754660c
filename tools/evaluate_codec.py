"""Measures a codec on audio files at several bitrates, beside Opus: quality, use of its codes."""

import contextlib
import os
import sys

from musiclm_jax import cli

_EXAMPLES = """
python tools/evaluate_codec.py --audio=tests/pretrained/held_out
python tools/evaluate_codec.py --audio=~/Music --max_files=50 --kbps=1,6 --output=quality.csv
python tools/evaluate_codec.py --audio=song.flac --model=models/soundstream --opus=
"""


def numbers(text: str) -> list[float]:
  """Returns the numbers of '0.5,1,2'; none of an empty text."""
  return [float(part) for part in text.split(',')] if text.strip() else []


def _parse():
  parser = cli.parser(__doc__, _EXAMPLES)
  parser.add_argument('--audio', required=True, action='append',
                      help='audio file, or folder that is searched for them; may be given again')
  parser.add_argument('--model', help='directory of an exported soundstream '
                                      '(default: the small one in the package)')
  parser.add_argument('--kbps', type=numbers,
                      help='bitrates (default: those of 0.5,1,2,3,4,6 that the model has)')
  parser.add_argument('--opus', type=numbers, default=[6.0, 12.0],
                      help="bitrates of Opus in kbps, none to leave it out (default: 6,12)")
  parser.add_argument('--seconds', type=float, default=30.0,
                      help='of a longer file, its beginning is measured (default: %(default)g)')
  parser.add_argument('--max_files', type=cli.positive,
                      help='of more files, some are taken evenly from the list (default: all)')
  parser.add_argument('--output', help='csv file to write as well; an existing one is replaced')
  args = parser.parse_args()
  if args.kbps == []:
    parser.error('argument --kbps: is empty, wanted numbers like 0.5,1,2')
  return args


@contextlib.contextmanager
def _target(name: str | None):
  """Yields a path that appears under its name when whole, None for None."""
  from musiclm_jax import audio, errors

  if name is None:
    yield None
    return
  if os.path.isdir(name):
    raise errors.UserError(f'{name} is a directory, wanted the name of a csv file to write')
  with audio.atomic_path(name, overwrite=True) as temporary:
    yield temporary


def main() -> None:
  args = _parse()
  from musiclm_jax import codec
  from musiclm_jax.evaluation import codec_quality

  files = codec_quality.audio_files(args.audio, args.max_files)
  model = codec.Codec.load(args.model)
  with _target(args.output) as output:
    report = codec_quality.evaluate(model, files, args.kbps, args.opus, args.seconds)
    print(codec_quality.tables(report))
    if output:
      codec_quality.write_csv(output, report)
      print(f'{args.output}: written', file=sys.stderr)


if __name__ == '__main__':
  cli.run(main)
