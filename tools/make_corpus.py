"""Makes a captioned music corpus: compositions and arranged scores, rendered, described and split.

The same seed gives the same files, whatever the number of workers.
"""

import os

from musiclm_jax import cli

_EXAMPLES = """
python tools/make_corpus.py --hours=6 --output=corpus --seed=0
python tools/make_corpus.py --hours=6 --output=corpus --scores=midi.zip --drums=groove.zip
python tools/make_corpus.py --hours=0 --output=mine --add_folder=my_music --captions=my_music.csv
"""


def main() -> None:
  parser = cli.parser(__doc__.splitlines()[0], _EXAMPLES)
  parser.add_argument(
    '--hours', type=float, required=True, help='hours of music to make; 0 with --add_folder'
  )
  parser.add_argument('--output', required=True, metavar='DIR', help='new or empty folder')
  parser.add_argument('--seed', type=cli.seed, default=0, help='default: %(default)s')
  parser.add_argument(
    '--scores', metavar='DIR_OR_ZIP', help='MIDI scores to arrange for other players'
  )
  parser.add_argument(
    '--drums', metavar='DIR_OR_ZIP', help='drum performances with info.csv (Groove MIDI Dataset)'
  )
  parser.add_argument(
    '--soundfont',
    metavar='FILE',
    action='append',
    default=[],
    help='sf2 or sf3 file, may be repeated; default: those installed',
  )
  parser.add_argument(
    '--test_share',
    type=float,
    default=0.1,
    help='held-out share of the pieces; default: %(default)s',
  )
  parser.add_argument(
    '--workers', type=int, default=os.cpu_count() or 1, help='processes; default: %(default)s'
  )
  parser.add_argument('--add_folder', metavar='DIR', help='your own recordings')
  parser.add_argument(
    '--captions', metavar='CSV', help='columns path,caption[,aspects separated by ;]'
  )
  flags = parser.parse_args()
  from musiclm_jax.corpus import build

  rows = build.build(
    output=flags.output,
    hours=flags.hours,
    seed=flags.seed,
    scores_path=flags.scores,
    drums_path=flags.drums,
    soundfonts=flags.soundfont,
    test_share=flags.test_share,
    workers=flags.workers,
    add_folder=flags.add_folder,
    captions_csv=flags.captions,
  )
  test = sum(r['split'] == 'test' for r in rows)
  pieces = len({r['piece'] for r in rows})
  print(
    f'{len(rows)} clips of {pieces} pieces, {sum(r["seconds"] for r in rows) / 3600:.2f} hours, '
    f'{test} held out, in {flags.output}'
  )


if __name__ == '__main__':
  cli.run(main)
