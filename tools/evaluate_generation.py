"""Long pieces, stories, continuations and melodies of a model: are they what they claim to be?"""

from musiclm_jax import cli

_EXAMPLES = """
tools/evaluate_generation.py --output=modes
tools/evaluate_generation.py --model=models --seconds=240 --num_samples=8 --output=modes
tools/evaluate_generation.py --modes=melody --guidance=4 --melodies=hums,whistling.wav --output=modes
"""
_MODES = ('long', 'story', 'continuation', 'melody')
_STORY = ('0:00 A calm solo piano piece; 0:15 A fast rock song with distorted guitar and drums; '
          '0:30 A calm solo piano piece')


def modes(text: str) -> list[str]:
  """Returns the names of 'long,story', each once."""
  names = list(dict.fromkeys(part.strip() for part in text.split(',')))
  if not set(names) <= set(_MODES):
    raise ValueError(f'{text!r} names a mode that is none of {_MODES}')
  return names


def _parse():
  parser = cli.parser('Measures the modes of generation and writes what it measured as wavs.', _EXAMPLES)
  parser.add_argument('--model', default=None,
                      help='directory of exported models (default: the small one in the package)')
  parser.add_argument('--modes', type=modes, metavar='MODE[,..]',
                      help=f'of {", ".join(_MODES)} (default: all, melody where the model hears one)')
  parser.add_argument('--seconds', type=cli.positive, default=120,
                      help='of the long piece (default: 120)')
  parser.add_argument('--prompt', default='A calm solo piano piece', help='of all but stories')
  parser.add_argument('--story', default=_STORY, help=f'as generate.py takes it (default: {_STORY})')
  parser.add_argument('--story_overlap', type=cli.count, help='as generate.py takes it')
  parser.add_argument('--num_samples', type=cli.positive, default=4,
                      help='stories, continuations and pieces for each tune (default: 4)')
  parser.add_argument('--guidance', type=float, default=1.0,
                      help='of the pieces for tunes, as generate.py takes it (default: 1, off)')
  parser.add_argument('--melodies', metavar='WAV_OR_FOLDER[,..]',
                      help='tunes, their first 10 s (default: hums, composed for this)')
  parser.add_argument('--num_tunes', type=cli.positive, default=8,
                      help='how many hums, without --melodies (default: 8)')
  parser.add_argument('--output', required=True, help='folder for the wavs')
  return parser.parse_args()


def _long(musiclm, args, evaluation, save) -> None:
  waveform = musiclm.generate([args.prompt], seconds=args.seconds, progress=True)[0]
  save('long', waveform)
  for name in ('semantic', 'coarse', 'fine'):
    length = int(musiclm.stage(name).seconds)
    step = length if name == 'fine' else max(length // 2, 1)
    places = list(range(length, args.seconds, step))
    print(f'{name} windows: {evaluation.seams(waveform, musiclm.sample_rate, places).describe()}')
  taken = evaluation.lengths(
      musiclm, args.prompt, [args.seconds // 4, args.seconds // 2, args.seconds])
  for seconds, wall in taken.items():
    print(f'{seconds} s of music in {wall:.1f} s, {seconds / wall:.2f} times as fast as it plays')


def _story(musiclm, args, evaluation, stories, save) -> None:
  story = stories.load(args.story, args.story_overlap)
  waveforms = musiclm.generate([story] * args.num_samples, seconds=story.seconds, progress=True)
  for i, waveform in enumerate(waveforms):
    save(f'story-{i + 1}', waveform)
  print('mean cosine of each section (row) with each text (column):')
  for row, text in zip(evaluation.story_similarities(musiclm, story, waveforms), story.texts, strict=True):
    print('  ' + ' '.join(f'{value:6.3f}' for value in row) + f'   {text}')


def _continuation(musiclm, args, np, evaluation, save) -> None:
  begun = musiclm.generate([args.prompt] * args.num_samples, seconds=10, seed=100)
  found = []
  for i, waveform in enumerate(begun):
    made = musiclm.generate([args.prompt], seconds=10, seed=i, continue_from=waveform)[0]
    codes = musiclm.models['soundstream'].apply('encode', waveform[None])
    levels = musiclm.layout.acoustic.num_levels
    kept = musiclm.decode(np.asarray(codes)[..., :levels])[0]
    worst = float(np.abs(made[:len(kept)] - kept).max())
    found.append(evaluation.seams(made, musiclm.sample_rate, [10]))
    save(f'continued-{i + 1}', made)
    print(f'continuation {i + 1}: its first 10 s differ from those given, through the codec, by at '
          f'most {worst:.1e}; the join: {found[-1].describe()}')


def _melody(musiclm, args, evaluation, tunes, how, save) -> None:
  followed = evaluation.follow(musiclm, tunes, args.prompt, args.num_samples, how)
  for name, tune in tunes.items():
    save(name, tune)
    for kind, music in (('made', followed.made), ('unconditioned', followed.unconditioned)):
      for i, waveform in enumerate(music[name]):
        save(f'{name}-{kind}-{i + 1}', waveform)
  print(followed.similarity.describe())


def main():
  args = _parse()
  import numpy as np
  from etils import epath

  from musiclm_jax import audio, generate
  from musiclm_jax.evaluation import generation_modes as evaluation
  from musiclm_jax.generation import stories

  tunes = evaluation.read_tunes(args.melodies.split(',')) if args.melodies else {}
  musiclm = generate.MusicLM.from_pretrained(args.model)
  how = generate.PUBLISHED.guided(args.guidance)
  musiclm.check_sampling(how)
  folder = epath.Path(args.output)
  save = lambda name, waveform: audio.write(
      folder / f'{name}.wav', waveform, musiclm.sample_rate, overwrite=True)
  wanted = args.modes or [
      mode for mode in _MODES if mode != 'melody' or tunes or musiclm.layout.melody]
  if 'melody' in wanted:
    tunes = tunes or evaluation.hummed_tunes(args.num_tunes)
    musiclm.melody_codes(next(iter(tunes.values())))  # a model that hears none says so now
  if 'long' in wanted:
    _long(musiclm, args, evaluation, save)
  if 'story' in wanted:
    _story(musiclm, args, evaluation, stories, save)
  if 'continuation' in wanted:
    _continuation(musiclm, args, np, evaluation, save)
  if 'melody' in wanted:
    _melody(musiclm, args, evaluation, tunes, how, save)


if __name__ == '__main__':
  cli.run(main)
