"""Text to music: one prompt in, one wav out."""

import sys

from musiclm_jax import cli

_EXAMPLES = """
tools/generate.py --prompt="A calm solo piano piece in a minor key" --output=piano.wav
tools/generate.py --prompt="Fast rock with distorted guitar" --output=rock.wav --seconds=20 --plot
tools/generate.py --prompt="Lo-fi hip hop beat" --output=beat.wav --num_samples=4 --model=models/my_set
"""


def _parse(argv):
  parser = cli.parser('Generates 24 kHz music from a text prompt.', _EXAMPLES)
  parser.add_argument('--prompt', required=True, help='what the music should be, in English')
  parser.add_argument('--output', required=True,
                      help='wav file to write; with --num_samples=N, N files OUTPUT-1.wav … OUTPUT-N.wav')
  parser.add_argument('--seconds', type=float, default=10.0, help='length of the music (default: 10)')
  parser.add_argument('--seed', type=cli.seed, default=0,
                      help='the same seed, prompt and model give the same file (default: 0)')
  parser.add_argument('--num_samples', type=cli.positive, default=1,
                      help='how many different pieces to make of the prompt (default: 1)')
  parser.add_argument('--model', default=None,
                      help='directory of exported models (default: the small one in the package)')
  parser.add_argument('--text_mapper', action='store_true',
                      help='let the prompt go through MODEL/mulan_mapper (tools/fit_mapper.py), '
                           'closer to what the music tokens were fitted to')
  parser.add_argument('--weights_dtype', default='', choices=('int8', 'bfloat16', 'float32'),
                      help="how the three language models keep their weights (default: as trained)")
  parser.add_argument('--semantic_temperature', type=float, default=1.0, help='(default: 1.0)')
  parser.add_argument('--coarse_temperature', type=float, default=0.95, help='(default: 0.95)')
  parser.add_argument('--fine_temperature', type=float, default=0.4, help='(default: 0.4)')
  parser.add_argument('--plot', action='store_true', help='write a spectrogram png beside each wav')
  return parser.parse_args(argv)


def main():
  args = _parse(sys.argv[1:])
  from musiclm_jax import generate  # After parsing: jax takes seconds to import.

  generate.generate_files(
      prompt=args.prompt,
      output=args.output,
      seconds=args.seconds,
      seed=args.seed,
      num_samples=args.num_samples,
      model=args.model,
      text_mapper=args.text_mapper,
      weights_dtype=args.weights_dtype,
      temperatures=generate.Temperatures(
          args.semantic_temperature, args.coarse_temperature, args.fine_temperature),
      plot=args.plot,
  )


if __name__ == '__main__':
  cli.run(main)
