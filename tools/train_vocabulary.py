"""Trains the wordpiece vocabulary of MuLan's text tower on captions."""

from musiclm_jax import cli

EXAMPLES = """
python tools/train_vocabulary.py --captions=corpus/corpus.jsonl --size=3000 --output=vocab.txt
python tools/train_vocabulary.py --captions=corpus.jsonl --captions=mine.csv --output=vocab.txt
"""


def main() -> None:
  parser = cli.parser(__doc__, EXAMPLES)
  parser.add_argument('--captions', action='append', required=True, metavar='FILE',
                      help='corpus.jsonl, a csv with a column `caption`, or a txt with one text a '
                           'line; may be given again')
  parser.add_argument('--size', type=int, default=3000, help='most wordpieces (default: 3000)')
  parser.add_argument('--output', required=True, metavar='FILE', help='vocab.txt to write')
  flags = parser.parse_args()

  from musiclm_jax import text
  texts = [caption for path in flags.captions for caption in text.read_captions(path)]
  tokens = text.train_vocabulary(texts, flags.size, flags.output)
  print(f'{flags.output}: {len(tokens)} wordpieces from {len(texts)} texts')


if __name__ == '__main__':
  cli.run(main)
