"""Audio files -> waveform records; see musiclm_jax/prepare_audio.py."""

from musiclm_jax import cli


def main() -> None:
  parser = cli.parser(
      'Cuts audio into clips of at most 30 s and writes them as 24 kHz records for training. The '
      'input is a corpus made by make_corpus.py, or any folder of wav, flac, ogg, mp3 files.',
      """
python tools/prepare_audio.py --input=corpus --output=data/corpus
python tools/prepare_audio.py --input=~/Music --output=data/music --captions=captions.csv
""")
  parser.add_argument('--input', required=True, help='corpus directory, or folder of audio files')
  parser.add_argument('--output', required=True, help='directory of records; must not hold any yet')
  parser.add_argument('--captions',
                      help='csv with columns path (below --input), caption and, if you like, source: '
                           'short, long, playlist or labels; without one it is a plain caption')
  parser.add_argument('--clip_seconds', type=cli.positive, default=30,
                      help='longest clip, a whole number of seconds (default 30)')
  parser.add_argument('--test_fraction', type=float, default=0.05,
                      help="share of a folder's files held out (default 0.05)")
  parser.add_argument('--num_shards', type=cli.positive, default=16,
                      help='record files a split; at least as many as training hosts (default 16)')
  parser.add_argument('--num_workers', type=cli.positive, default=2, help='threads (default 2)')
  args = parser.parse_args()

  import os

  from musiclm_jax import prepare_audio
  prepare_audio.prepare_audio(
      input_dir=os.path.expanduser(args.input), output_dir=os.path.expanduser(args.output),
      captions=args.captions, clip_seconds=args.clip_seconds, test_fraction=args.test_fraction,
      num_shards=args.num_shards, num_workers=args.num_workers)


if __name__ == '__main__':
  cli.run(main)
