"""Does the semantic stage repeat its training pieces? Exact and approximate matches, as in the paper.

The stage gets the music tokens of a crop and its first T semantic tokens, and goes on greedily for 5 s
(125 tokens). Approximate matches are sequences whose histograms of tokens are nearer than tau, which is
calibrated on permuted pairs. A held-out split with the same --tau shows what comes without memory.
"""

import sys

from musiclm_jax import cli

_EXAMPLES = """
python tools/evaluate_memorization.py --waveforms=data/records --num_examples=128
python tools/evaluate_memorization.py --tokens=data/tokens --split=train --model=models --json=memorization.json --plot=memorization.png
python tools/evaluate_memorization.py --tokens=data/tokens --split=validation --model=models --tau=0.85 --num_examples=10000
"""  # noqa: E501


def counts(text: str) -> tuple[int, ...]:
  """Returns the whole numbers of '0,25'."""
  return tuple(cli.count(part) for part in text.split(','))


def _parse():
  parser = cli.parser(__doc__, _EXAMPLES)
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument('--tokens', metavar='DIR', help='token records, made by the tokenizers of --model')
  source.add_argument('--waveforms', metavar='DIR', help='waveform records, made tokens on the fly')
  parser.add_argument('--split', default='train', help='of the records (default: %(default)s)')
  parser.add_argument('--model', metavar='DIR',
                      help='directory of exported models (default: the small ones in the package)')
  parser.add_argument('--num_examples', type=cli.positive, default=1024,
                      help='at most, a crop of each record from the first on (default: %(default)s)')
  parser.add_argument('--prompt_tokens', type=counts, metavar='T,T,..',
                      help='(default: of 0,25,50,75,125,250 those that fit the stage)')
  parser.add_argument('--new_tokens', type=cli.positive, default=125,
                      help='that must match (default: %(default)s)')
  parser.add_argument('--permutations', type=cli.positive, default=16,
                      help='permuted pairs an example and T, for tau (default: %(default)s)')
  parser.add_argument('--false_positives', type=float, default=1e-4,
                      help='less than this share of permuted pairs is nearer than tau (default: %(default)s)')
  parser.add_argument('--tau', type=float,
                      help='cost below which two sequences match, to compare with another report '
                           '(default: calibrated)')
  parser.add_argument('--regularisation', type=float, default=0.01,
                      help="Sinkhorn's, in mean distances of two centroids (default: %(default)s)")
  parser.add_argument('--max_iterations', type=cli.positive, default=2000,
                      help='of Sinkhorn (default: %(default)s)')
  parser.add_argument('--batch_size', type=cli.positive, default=64,
                      help='examples at a time (default: %(default)s)')
  parser.add_argument('--seed', type=cli.seed, default=0,
                      help='of crops and permutations (default: %(default)s)')
  parser.add_argument('--json', help='file for all figures; an existing one is replaced')
  parser.add_argument('--plot', help='png of the matches over T; an existing one is replaced')
  return parser.parse_args()


def main() -> None:
  args = _parse()
  from musiclm_jax.evaluation import (
      comparison_report,
      memorization,
      optimal_transport,
      semantic_crops,
  )

  outputs = [path for path in (args.json, args.plot) if path]
  comparison_report.check_outputs(outputs)
  settings = memorization.Settings(
      prompt_tokens=args.prompt_tokens, new_tokens=args.new_tokens, num_examples=args.num_examples,
      permutations=args.permutations, false_positives=args.false_positives, tau=args.tau,
      batch_size=args.batch_size, seed=args.seed,
      transport=optimal_transport.Sinkhorn(args.regularisation, max_iterations=args.max_iterations))
  stage = semantic_crops.SemanticStage.load(args.model)
  settings.prompts(stage.sampler.stage)
  if args.tokens:
    crops = semantic_crops.Crops.of_tokens(args.tokens, args.split, stage, args.seed)
  else:
    crops = semantic_crops.Crops.of_waveforms(args.waveforms, args.split, stage, args.seed)
  report = memorization.measure(stage.sampler, stage.centroids, crops, settings, progress=True)
  print(memorization.describe(report))
  if crops.left_out:
    print(f'left out: {crops.left_out} records shorter than {stage.sampler.stage.seconds:g} s',
          file=sys.stderr)
  if args.json:
    memorization.write_json(args.json, report)
  if args.plot:
    memorization.write_plot(args.plot, report)
  for path in outputs:
    print(f'{path}: written', file=sys.stderr)


if __name__ == '__main__':
  cli.run(main)
