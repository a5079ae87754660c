"""Audio files or waveform records -> token records; see musiclm_jax/extraction/."""

import sys

from musiclm_jax import cli


def main() -> None:
  parser = _parser()
  at = sys.argv.index('--') if '--' in sys.argv else len(sys.argv)
  args, beam_options = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1:]
  if beam_options and not args.runner:
    parser.error(f'{beam_options[0]} is for a --runner')
  _check_use(parser, args)

  import os

  from musiclm_jax.extraction import extract, shards
  settings = {name: getattr(args, name) for name in (
      'clip_seconds', 'test_fraction', 'num_shards', 'batch_size', 'semantic_window_seconds',
      'acoustic_levels', 'coarse_levels', 'fine_uses_mulan')}
  job = shards.Job(
      input=os.path.expanduser(args.waveforms or args.input), waveforms=bool(args.waveforms),
      models=os.path.expanduser(args.models), output=os.path.expanduser(args.output),
      splits=tuple(args.splits.split(',')) if args.splits else (),
      **{name: value for name, value in settings.items() if value is not None})
  extract.extract(
      job, num_workers=args.num_workers, runner=args.runner, beam_options=beam_options)


def _check_use(parser, args) -> None:
  """Ends with a usage error at a flag that the input has no use for."""
  unused = ('clip_seconds', 'test_fraction', 'num_shards') if args.waveforms else ('splits',)
  for name in unused:
    if getattr(args, name) is not None:
      parser.error(f'--{name} does not apply with {"--waveforms" if args.waveforms else "--input"}')


def _parser():
  parser = cli.parser(
      'Turns audio files, or waveform records, into token records with exported models: '
      'soundstream, w2v_bert, semantic_quantizer, mulan and mulan_quantizer, and melody and '
      'melody_quantizer where they are there. An interrupted run goes on when started again. What '
      'cannot be read is listed in OUTPUT/rejected.jsonl.',
      """
python tools/extract_tokens.py --input=~/Music --models=models --output=data/tokens
python tools/extract_tokens.py --waveforms=data/corpus --models=models --output=data/tokens
python tools/extract_tokens.py --input=music --models=models --output=data/tokens --num_workers=8
python tools/extract_tokens.py --input=gs://b/music --models=gs://b/models --output=gs://b/tokens \\
    --runner=DataflowRunner -- --project=p --region=us-central1 --temp_location=gs://b/temp
""")
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument('--input', help='folder of audio files, or corpus directory; may be gs://')
  source.add_argument('--waveforms', help='waveform records, of prepare_audio.py')
  parser.add_argument('--models', required=True, help='directory of the exported models named above')
  parser.add_argument('--output', required=True, help='directory of token records to write')
  parser.add_argument('--splits', help='of --waveforms, comma-separated; all by default')
  parser.add_argument('--clip_seconds', type=cli.positive,
                      help='longest clip of --input, in whole seconds (default 30)')
  parser.add_argument('--test_fraction', type=float,
                      help="share of a folder's files held out (default 0.05)")
  parser.add_argument('--num_shards', type=cli.positive,
                      help='record files a split of --input; what a worker does at a time, so '
                           'several times as many as workers (default 16)')
  parser.add_argument('--batch_size', type=cli.positive, default=4,
                      help='clips at a time; memory grows with it (default 4)')
  parser.add_argument('--semantic_window_seconds', type=cli.positive, default=10,
                      help='what w2v-BERT hears at a time (default 10)')
  parser.add_argument('--acoustic_levels', type=cli.positive,
                      help='levels of the codec, its first ones (default: all it has)')
  parser.add_argument('--coarse_levels', type=cli.positive, default=4,
                      help='levels of the codec made by the coarse stage (default 4)')
  parser.add_argument('--fine_uses_mulan', action='store_true',
                      help='the fine stage is to see the MuLan tokens too')
  parser.add_argument('--num_workers', type=cli.positive, default=1,
                      help='processes that share the work, each with the models; more than one '
                           "needs Apache Beam: pip install -e '.[beam]' (default 1)")
  parser.add_argument('--runner', help='Beam runner, with its own options after -- '
                                       '(DataflowRunner, FlinkRunner, PortableRunner, ..)')
  return parser


if __name__ == '__main__':
  cli.run(main)
