"""Recordings that share melodies -> melody records; see musiclm_jax/corpus/melody_records.py."""

from musiclm_jax import cli


def main() -> None:
  parser = cli.parser(
      'Writes records of melodies, each in several versions, for training the melody embedding. The '
      'table is the melodies.csv of make_corpus.py --melodies, or a csv of your own covers.',
      """
python tools/prepare_melodies.py --input=melodies --output=data/melodies
python tools/prepare_melodies.py --input=covers --table=covers.csv --output=data/covers
""")
  parser.add_argument('--input', required=True, help='folder of recordings')
  parser.add_argument('--output', required=True, help='directory of records; must not hold any yet')
  parser.add_argument('--table', help='csv with columns path (below --input), melody and, where it '
                      'does not start at once, start in seconds; also seconds, kind, piece, split '
                      '(default: melodies.csv in --input)')
  parser.add_argument('--test_fraction', type=float, default=0.1,
                      help='share of the pieces held out where the table does not say (default 0.1)')
  parser.add_argument('--num_shards', type=cli.positive, default=16,
                      help='record files a split; at least as many as training hosts (default 16)')
  parser.add_argument('--num_workers', type=cli.positive, default=2, help='threads (default 2)')
  args = parser.parse_args()

  import os

  from musiclm_jax.corpus import melody_records, melody_versions
  folder = os.path.expanduser(args.input)
  counts = melody_records.write_records(
      input_dir=folder, table=args.table or os.path.join(folder, melody_versions.TABLE_FILE),
      output_dir=os.path.expanduser(args.output), test_fraction=args.test_fraction,
      num_shards=args.num_shards, num_workers=args.num_workers)
  print(f'{" + ".join(f"{count} {split}" for split, count in sorted(counts.items()))} melodies in '
        f'{args.output}')


if __name__ == '__main__':
  cli.run(main)
