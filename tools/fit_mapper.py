"""Fits the option of generate.py that moves text vectors towards those of the music they describe."""

import sys

from musiclm_jax import cli

_EXAMPLES = """
tools/fit_mapper.py --model=system/mulan --quantizer=system/mulan_quantizer \\
    --waveforms=data/records --output=system/mulan_mapper
tools/generate.py --prompt="Fast rock with distorted guitar" --output=rock.wav \\
    --model=system --text_mapper
"""


def _parse(argv):
  parser = cli.parser(
      'Fits a map from MuLan text vectors towards audio vectors, on captioned clips.', _EXAMPLES)
  parser.add_argument('--model', required=True, help='directory of the exported mulan')
  parser.add_argument('--waveforms', required=True,
                      help='directory of waveform records with captions, from tools/prepare_audio.py')
  parser.add_argument('--output', required=True, help='directory to write the exported mapper to')
  parser.add_argument('--quantizer', default=None,
                      help='directory of the exported mulan_quantizer, to report how often text and '
                           'music get the same code')
  parser.add_argument('--hidden_dim', type=cli.positive, default=256, help='(default: 256)')
  parser.add_argument('--max_steps', type=cli.positive, default=5000,
                      help='steps at most; held-out pieces of the train split stop it earlier '
                           '(default: 5000)')
  parser.add_argument('--hop_seconds', type=cli.positive, default=1,
                      help='seconds between the windows whose mean a clip is (default: 1)')
  parser.add_argument('--max_clips', type=cli.positive, default=None,
                      help='clips read of each split (default: all)')
  parser.add_argument('--seed', type=cli.seed, default=0, help='(default: 0)')
  parser.add_argument('--dtype', choices=('float32', 'float16'), default='float32',
                      help='how the weights are stored (default: float32)')
  return parser.parse_args(argv)


def main():
  args = _parse(sys.argv[1:])
  from musiclm_jax import fit_mapper  # After parsing: jax takes seconds to import.

  fit_mapper.fit_mapper(
      args.model, args.waveforms, args.output, quantizer=args.quantizer, hidden_dim=args.hidden_dim,
      max_steps=args.max_steps, hop_seconds=args.hop_seconds,
      max_clips=args.max_clips, seed=args.seed, dtype=args.dtype)


if __name__ == '__main__':
  cli.run(main)
