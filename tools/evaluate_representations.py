"""Measures what semantic tokens, MuLan and melody embeddings know of held-out pieces of a corpus."""

import sys

from musiclm_jax import cli

_EXAMPLES = """
python tools/evaluate_representations.py --waveforms=records --corpus=corpus/corpus.jsonl
python tools/evaluate_representations.py --waveforms=records --corpus=corpus/corpus.jsonl --tokens=tokens --json=figures.json
python tools/evaluate_representations.py --waveforms=records --corpus=corpus/corpus.jsonl --model=models --max_clips=200
"""  # noqa: E501


def _parse():
  parser = cli.parser(__doc__, _EXAMPLES)
  parser.add_argument('--model', help='directory of exported models; those it lacks are left out '
                                      '(default: the small ones in the package)')
  parser.add_argument('--waveforms', required=True,
                      help='waveform records with the splits train and test, of prepare_audio.py')
  parser.add_argument('--corpus', required=True,
                      help='corpus.jsonl that they were made from, of make_corpus.py')
  parser.add_argument('--tokens', help='token records of the same clips, of extract_tokens.py '
                                       '(default: semantic tokens are made with the models)')
  parser.add_argument('--melodies', help='melody records, of prepare_melodies.py')
  parser.add_argument('--max_clips', type=cli.positive, help='clips of each split (default: all)')
  parser.add_argument('--seed', type=cli.seed, default=0, help='of all draws (default %(default)s)')
  parser.add_argument('--json', help='file for all figures as well; an existing one is replaced')
  return parser.parse_args()


def main() -> None:
  args = _parse()
  from musiclm_jax import generate
  from musiclm_jax.evaluation import representations

  report = representations.evaluate(
      model_dir=args.model or generate.TINY, waveforms_dir=args.waveforms, corpus=args.corpus,
      tokens_dir=args.tokens, melodies_dir=args.melodies, max_clips=args.max_clips, seed=args.seed)
  print(representations.tables(report))
  if args.json:
    representations.write_json(args.json, report)
    print(f'{args.json}: written', file=sys.stderr)


if __name__ == '__main__':
  cli.run(main)
