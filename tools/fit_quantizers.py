"""Fits the semantic (k-means), music or melody (residual) quantizer, or more levels of a codec."""

import sys

from musiclm_jax import cli

_EXAMPLES = """
tools/fit_quantizers.py --quantizer=semantic --model=system/w2v_bert \\
    --waveforms=data/records --output=system/semantic_quantizer --num_codes=512
tools/fit_quantizers.py --quantizer=mulan --model=system/mulan \\
    --waveforms=data/records --output=system/mulan_quantizer --num_levels=6 --num_codes=64
tools/fit_quantizers.py --quantizer=melody --model=system/melody \\
    --waveforms=data/melodies --output=system/melody_quantizer
tools/fit_quantizers.py --quantizer=soundstream --model=system/soundstream \\
    --waveforms=data/records --output=system/soundstream_12 --num_levels=12
"""
# Flags that do not apply.
_OTHERS = {
    'semantic': ('num_levels', 'hop_seconds'),
    'mulan': ('layer', 'passes'),
    'melody': ('layer', 'passes'),
    'soundstream': ('layer', 'passes', 'hop_seconds', 'num_codes'),
}


def _parse(argv):
  parser = cli.parser('Fits a tokenizer to the features of an exported model.', _EXAMPLES)
  parser.add_argument('--quantizer', required=True, choices=tuple(_OTHERS),
                      help='semantic: k-means on w2v-BERT features; '
                           'mulan: residual k-means on MuLan embeddings of 10 s windows; '
                           'melody: likewise on melody embeddings of 4 s windows; '
                           'soundstream: the codec again with more levels, its tokens unchanged')
  parser.add_argument('--model', required=True,
                      help='directory of the exported w2v_bert, mulan, melody or soundstream')
  parser.add_argument('--waveforms', required=True,
                      help='directory of waveform records, from tools/prepare_audio.py; melody: also '
                           'of melody records, from tools/prepare_melodies.py')
  parser.add_argument('--output', required=True,
                      help='directory to write the exported quantizer to')
  parser.add_argument('--num_codes', type=cli.positive, default=None,
                      help='not for soundstream: codes, of each level (default: 1024, melody: 512)')
  parser.add_argument('--num_levels', type=cli.positive, default=None,
                      help='not for semantic: residual levels in all (default: 12, melody: 24)')
  parser.add_argument('--hop_seconds', type=float, default=None,
                      help='mulan and melody: from one window to the next '
                           '(default: 1, melody: as the model, 3)')
  parser.add_argument('--layer', type=int, default=None,
                      help='semantic only: block of the masked-prediction module '
                           '(default: the feature_layer of the model)')
  parser.add_argument('--passes', type=cli.count, default=None,
                      help='semantic only: minibatch passes over all frames after the sample '
                           '(default: 1 when the sample left frames out, else 0)')
  parser.add_argument('--max_points', type=cli.positive, default=200_000,
                      help='frames or windows in the sample for k-means (default: 200000)')
  parser.add_argument('--max_clips', type=cli.positive, default=None,
                      help='clips read of each split (default: all)')
  parser.add_argument('--batch_size', type=cli.positive, default=8,
                      help='clips or windows a forward pass (default: 8)')
  parser.add_argument('--seed', type=cli.seed, default=0, help='(default: 0)')
  parser.add_argument('--dtype', choices=('float32', 'float16'), default='float32',
                      help='how the codebooks are stored (default: float32)')
  args = parser.parse_args(argv)
  for name in _OTHERS[args.quantizer]:
    if getattr(args, name) is not None:
      parser.error(f'--{name} does not apply to --quantizer={args.quantizer}')
  if args.hop_seconds is not None and not 0.01 <= args.hop_seconds < 1000:
    parser.error(f'--hop_seconds is {args.hop_seconds}, wanted 0.01 to 1000')
  return args


def main():
  args = _parse(sys.argv[1:])
  from musiclm_jax import fit_quantizers  # After parsing: jax takes seconds to import.

  shared = {
      'max_points': args.max_points, 'max_clips': args.max_clips, 'batch_size': args.batch_size,
      'seed': args.seed, 'dtype': args.dtype,
  }
  if args.quantizer == 'semantic':
    fit_quantizers.fit_semantic_quantizer(
        args.model, args.waveforms, args.output, num_clusters=args.num_codes or 1024,
        layer=args.layer, num_passes=args.passes, **shared)
    return
  if args.quantizer == 'soundstream':
    fit_quantizers.fit_codec_levels(
        args.model, args.waveforms, args.output, num_quantizers=args.num_levels or 12, **shared)
    return
  if args.quantizer == 'melody':
    fit_quantizers.fit_melody_quantizer(
        args.model, args.waveforms, args.output, codebook_size=args.num_codes or 512,
        num_quantizers=args.num_levels or 24, hop_seconds=args.hop_seconds, **shared)
    return
  fit_quantizers.fit_mulan_quantizer(
      args.model, args.waveforms, args.output, codebook_size=args.num_codes or 1024,
      num_quantizers=args.num_levels or 12, hop_seconds=args.hop_seconds or 1.0, **shared)


if __name__ == '__main__':
  cli.run(main)
