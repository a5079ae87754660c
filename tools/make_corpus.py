"""Makes a music corpus to train on: captioned clips, or melodies in several versions each.

The same seed gives the same files, whatever the number of workers.
"""

import os

from musiclm_jax import cli

_EXAMPLES = """
python tools/make_corpus.py --hours=6 --output=corpus --seed=0
python tools/make_corpus.py --hours=6 --output=corpus --scores=midi.zip --drums=groove.zip
python tools/make_corpus.py --hours=0 --output=mine --add_folder=my_music --captions=my_music.csv
python tools/make_corpus.py --melodies=1500 --output=melodies --scores=midi.zip
"""
# Flags that do not apply with --melodies, and without.
_CLIPS_ONLY = ('drums', 'add_folder', 'captions')
_MELODIES_ONLY = ('versions',)


def _parse():
  parser = cli.parser(__doc__.splitlines()[0], _EXAMPLES)
  wanted = parser.add_mutually_exclusive_group(required=True)
  wanted.add_argument(
    '--hours', type=float, help='hours of captioned music to make; 0 with --add_folder'
  )
  wanted.add_argument(
    '--melodies',
    type=cli.positive,
    help='melodies to make versions of, for the melody embedding: tools/prepare_melodies.py next',
  )
  parser.add_argument(
    '--versions', type=cli.positive, help='with --melodies: of each, 2 or more; default: 4'
  )
  parser.add_argument('--output', required=True, metavar='DIR', help='new or empty folder')
  parser.add_argument('--seed', type=cli.seed, default=0, help='default: %(default)s')
  parser.add_argument(
    '--scores', metavar='DIR_OR_ZIP', help='MIDI scores to arrange for other players'
  )
  parser.add_argument(
    '--drums',
    metavar='DIR_OR_ZIP',
    help='with --hours: drum performances with info.csv (Groove MIDI Dataset)',
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
    '--workers', type=cli.positive, default=os.cpu_count() or 1, help='processes; default: %(default)s'
  )
  parser.add_argument('--add_folder', metavar='DIR', help='with --hours: your own recordings')
  parser.add_argument(
    '--captions',
    metavar='CSV',
    help='of --add_folder: columns path,caption[,aspects separated by ;]',
  )
  flags = parser.parse_args()
  for name in _MELODIES_ONLY if flags.melodies is None else _CLIPS_ONLY:
    if getattr(flags, name) is not None:
      given = 'hours' if flags.melodies is None else 'melodies'
      parser.error(f'--{name} does not apply to --{given}')
  return flags


def main() -> None:
  flags = _parse()
  shared = {
    'output': flags.output,
    'seed': flags.seed,
    'scores_path': flags.scores,
    'soundfonts': flags.soundfont,
    'test_share': flags.test_share,
    'workers': flags.workers,
  }
  if flags.melodies is None:
    _make_clips(flags, shared)
  else:
    _make_melodies(flags, shared)


def _make_clips(flags, shared) -> None:
  from musiclm_jax.corpus import build

  rows = build.build(
    hours=flags.hours,
    drums_path=flags.drums,
    add_folder=flags.add_folder,
    captions_csv=flags.captions,
    **shared,
  )
  test = sum(r['split'] == 'test' for r in rows)
  pieces = len({r['piece'] for r in rows})
  print(
    f'{len(rows)} clips of {pieces} pieces, {sum(r["seconds"] for r in rows) / 3600:.2f} hours, '
    f'{test} held out, in {flags.output}'
  )


def _make_melodies(flags, shared) -> None:
  from musiclm_jax.corpus import melody_versions

  rows = melody_versions.build(
    num_melodies=flags.melodies, num_versions=flags.versions or 4, **shared
  )
  test = len({r['melody'] for r in rows if r['split'] == 'test'})
  print(
    f'{len(rows)} versions of {flags.melodies} melodies, '
    f'{sum(r["seconds"] for r in rows) / 3600:.2f} hours, {test} melodies held out, '
    f'in {flags.output}'
  )


if __name__ == '__main__':
  cli.run(main)
