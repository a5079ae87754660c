"""Waveform records -> token records; see musiclm_jax/extract_tokens.py."""

from musiclm_jax import cli


def main() -> None:
  parser = cli.parser(
      'Turns waveform records into token records with exported models: soundstream, w2v_bert, '
      'semantic_quantizer, mulan and mulan_quantizer. An interrupted run goes on when started '
      'again.',
      """
python tools/extract_tokens.py --waveforms=data/corpus --models=models --output=data/tokens
python tools/extract_tokens.py --waveforms=data/corpus --models=models --output=test --splits=test
""")
  parser.add_argument('--waveforms', required=True, help='waveform records, of prepare_audio.py')
  parser.add_argument('--models', required=True, help='directory of the five exported models')
  parser.add_argument('--output', required=True, help='directory of token records to write')
  parser.add_argument('--splits', help='comma-separated; all by default')
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
  args = parser.parse_args()

  from musiclm_jax import extract_tokens
  extract_tokens.extract_tokens(
      waveforms_dir=args.waveforms, models_dir=args.models, output_dir=args.output,
      splits=args.splits.split(',') if args.splits else None, batch_size=args.batch_size,
      semantic_window_seconds=args.semantic_window_seconds,
      acoustic_levels=args.acoustic_levels, coarse_levels=args.coarse_levels,
      fine_uses_mulan=args.fine_uses_mulan)


if __name__ == '__main__':
  cli.run(main)
