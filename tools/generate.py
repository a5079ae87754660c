"""Text to music: one prompt in, one wav out; or a story, or music to go on from."""

import sys

from musiclm_jax import cli

_EXAMPLES = """
tools/generate.py --prompt="A calm solo piano piece in a minor key" --output=piano.wav
tools/generate.py --prompt="Fast rock with distorted guitar" --output=rock.wav --seconds=20 --plot
tools/generate.py --prompt="Lo-fi hip hop beat" --output=beat.wav --num_samples=8 --keep_best=2
tools/generate.py --story="0:00 A calm solo piano piece; 0:15 A fast rock song" --story_overlap=0 --output=story.wav
tools/generate.py --continue_from=piano.wav --output=more.wav --seconds=20
tools/generate.py --melody=humming.wav --prompt="A guitar solo" --guidance=4 --output=guitar.wav
tools/generate.py --style_audio=rock.wav --prompt="Solo piano" --style_weight=0.3 --output=both.wav
tools/generate.py --prompt="Ambient" --seconds=600 --stream --output=- | ffplay -
tools/generate.py --prompts=prompts.tsv --output=gs://bucket/run1/ --batch_size=16
tools/generate.py --prompts=musiccaps-public.csv --output=clips --format=flac --shard=0/4
"""
_TEMPERATURES = {'semantic': 1.0, 'coarse': 0.95, 'fine': 0.4}  # as generation/stages.py has them


def _parse(argv):
  parser = cli.parser('Generates 24 kHz music from a text prompt.', _EXAMPLES)
  what = parser.add_argument_group('what the music is')
  what.add_argument('--prompt', help='what the music should be, in English')
  what.add_argument('--story', help='texts that change over time: "0:00 calm piano; 0:15 drums enter", '
                                    'or a tsv, csv or json file of start and text')
  what.add_argument('--story_overlap', type=cli.count, metavar='SECONDS',
                    help='of the music before that is heard where a text begins; less makes changes '
                         'clearer (default: half a window, as in the paper)')
  what.add_argument('--continue_from', metavar='WAV',
                    help='music to go on from; without --prompt, in its own style')
  what.add_argument('--melody', metavar='WAV',
                    help='a tune to follow from its start, hummed, sung, whistled or played; with '
                         '--continue_from, by what is new')
  what.add_argument('--style_audio', metavar='WAV',
                    help='music to take the style of; with --prompt, a blend of both')
  what.add_argument('--style_weight', type=float, default=0.5,
                    help='share of --style_audio in the blend (default: 0.5)')
  what.add_argument('--seconds', type=float,
                    help='length of the music (default: 10; of a story, until 15 s after its last '
                         'start); with --continue_from, of what is new')
  what.add_argument('--seed', type=cli.seed, default=0,
                    help='the same seed, prompt and model give the same file (default: 0)')

  model = parser.add_argument_group('model')
  model.add_argument('--model', default=None,
                     help='directory of exported models (default: the small one in the package)')
  model.add_argument('--text_mapper', action='store_true',
                     help='let the prompt go through MODEL/mulan_mapper (tools/fit_mapper.py), '
                          'closer to what the music tokens were fitted to')
  model.add_argument('--weights_dtype', default='', choices=('int8', 'bfloat16', 'float32'),
                     help="how the three language models keep their weights (default: as trained)")
  for stage, temperature in _TEMPERATURES.items():
    model.add_argument(f'--{stage}_temperature', type=float, default=temperature,
                       help=f'(default: {temperature})')
    model.add_argument(f'--{stage}_top_k', type=cli.count, default=0,
                       help='draw among the likeliest k tokens only (default: all)')
    model.add_argument(f'--{stage}_top_p', type=float, default=1.0,
                       help='draw among the likeliest tokens of this probability (default: 1)')
  model.add_argument('--guidance', type=float, default=1.0,
                     help='classifier-free guidance of the semantic and coarse stages, where they '
                          'were trained for it; above 1 is closer to prompt and melody (default: 1, '
                          'off)')

  output = parser.add_argument_group('output')
  output.add_argument('--output', required=True,
                      help='wav file to write; for N samples, N files OUTPUT-1.wav … OUTPUT-N.wav; with '
                           '--prompts a folder')
  output.add_argument('--num_samples', type=cli.positive, default=1,
                      help='how many different pieces to make (default: 1)')
  output.add_argument('--keep_best', type=cli.positive,
                      help='of the samples, write those most similar to the prompt (MuLan), best first')
  output.add_argument('--metadata', action='store_true',
                      help='write a json beside each wav (with --keep_best always)')
  output.add_argument('--plot', action='store_true', help='write a spectrogram png beside each wav')
  output.add_argument('--stream', action='store_true',
                      help='write the wav as the music is made; --output=- is standard output')

  batch = parser.add_argument_group('many prompts')
  batch.add_argument('--prompts', metavar='FILE',
                     help='tsv, csv or jsonl with a column prompt, caption or text, and maybe id, seed, '
                          'seconds; local, gs:// or s3://. OUTPUT is then a folder, of the same kinds. '
                          'What was killed goes on when the command is given again')
  batch.add_argument('--batch_size', type=cli.positive, default=8,
                     help='pieces made at once (default: 8)')
  batch.add_argument('--format', default='wav', choices=('wav', 'wav_float', 'flac'),
                     help='16-bit wav, 32-bit float wav or 16-bit flac (default: wav)')
  batch.add_argument('--shard', type=shard, metavar='I/N',
                     help='make the I-th (from 0) of N shares, as one of N jobs (default: the share '
                          'of this host among those that JAX knows)')
  return parser.parse_args(argv)


def shard(text):
  """Returns (1, 4) for '1/4'."""
  index, count = (int(part) for part in text.split('/'))
  if not 0 <= index < count:
    raise ValueError(f'{text} is not 0/N to (N-1)/N')
  return index, count


def _sampling(args, generate):
  stages = {
      stage: generate.StageSampling(
          getattr(args, f'{stage}_temperature'), getattr(args, f'{stage}_top_k'),
          getattr(args, f'{stage}_top_p'))
      for stage in _TEMPERATURES}
  return generate.Sampling(**stages).guided(args.guidance)


def _one_prompt(args):
  from musiclm_jax import errors, generate  # After parsing: jax takes seconds to import.
  from musiclm_jax.generation import stories
  from musiclm_jax.generation_jobs import one_prompt

  for name, default in (('batch_size', 8), ('format', 'wav'), ('shard', None)):
    if getattr(args, name) != default:
      raise errors.UserError(f'--{name} applies with --prompts only')
  if args.story is not None and args.prompt is not None:
    raise errors.UserError('both --prompt and --story are given, wanted one of them')
  prompt = args.prompt or ''
  if args.prompt is not None and not prompt.strip():
    raise errors.UserError('the prompt is empty, wanted a description of the music')
  seconds = 10.0 if args.seconds is None else args.seconds
  if args.story is not None:
    prompt = stories.load(args.story, args.story_overlap)
    seconds = prompt.seconds if args.seconds is None else seconds
  request = one_prompt.Request(
      prompt, seconds, args.seed, _sampling(args, generate), args.style_audio, args.style_weight,
      args.continue_from, args.melody)
  models = {'model': args.model, 'text_mapper': args.text_mapper,
            'weights_dtype': args.weights_dtype}
  if not args.stream:
    one_prompt.generate_files(
        request, args.output, num_samples=args.num_samples, keep_best=args.keep_best,
        plot=args.plot, metadata=args.metadata, **models)
    return
  if args.num_samples > 1 or args.keep_best or args.plot or args.metadata:
    raise errors.UserError('--stream writes one wav: not with --num_samples, --keep_best, --plot or '
                           '--metadata')
  one_prompt.stream_file(request, args.output, **models)


def _many_prompts(args):
  from musiclm_jax import errors, generate
  from musiclm_jax.generation_jobs import batch, jobs

  for name in ('prompt', 'story', 'continue_from', 'melody', 'style_audio', 'plot', 'stream'):
    if getattr(args, name) not in (None, False):
      raise errors.UserError(f'--{name} does not apply with --prompts')
  batch.run(jobs.Job(
      args.prompts, args.output, 10.0 if args.seconds is None else args.seconds, args.seed,
      _sampling(args, generate), args.num_samples, args.keep_best, args.batch_size, args.format,
      args.shard, args.model, args.text_mapper, args.weights_dtype))


def main():
  args = _parse(sys.argv[1:])
  if args.prompts is None:
    _one_prompt(args)
  else:
    _many_prompts(args)


if __name__ == '__main__':
  cli.run(main)
