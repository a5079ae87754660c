"""Fills a folder with a clip for each caption, by one of several systems, for tools/evaluate.py.

What is in the folder already stays: a run that was stopped goes on. A caption that fails is listed.
"""

import sys

from musiclm_jax import cli

_EXAMPLES = """
python tools/run_system.py musiclm --captions=corpus/corpus.jsonl --output=generated --max_clips=64
python tools/run_system.py riffusion --model=models/riffusion --captions=captions.csv --output=riffusion
python tools/run_system.py mubert --captions=musiccaps-public.csv --split=balanced --output=mubert
python tools/run_system.py folder --files=musicgen --captions=captions.csv --output=named
"""

_SYSTEMS = {
    'musiclm': 'exported models of this project (--model; default: the small ones in the package)',
    'riffusion': 'a diffusers pipeline in the directory --model, with safetensors',
    'mubert': 'the HTTP API; account in MUBERT_CUSTOMER_ID and MUBERT_ACCESS_TOKEN',
    'folder': 'copies the files below --files whose stems are ids of captions',
}


def _parse():
  parser = cli.parser(__doc__, _EXAMPLES)
  parser.add_argument('system', choices=_SYSTEMS,
                      help='; '.join(f'{name}: {what}' for name, what in _SYSTEMS.items()))
  parser.add_argument('--captions', required=True, help='csv with id (or path) and caption, '
                                                        'the csv of MusicCaps, or a corpus.jsonl')
  parser.add_argument('--split', help='of a corpus.jsonl (default: test) or of MusicCaps: eval, '
                                      'train, balanced (default: eval)')
  parser.add_argument('--output', required=True, help='folder for the clips')
  parser.add_argument('--model', help='see the systems')
  parser.add_argument('--files', help='of the system folder')
  parser.add_argument('--max_clips', type=cli.positive,
                      help='of more captions, a sample that is always the same (default: all)')
  parser.add_argument('--seconds', type=float, default=10.0,
                      help='of each clip, where the system has a choice (default: %(default)g)')
  parser.add_argument('--batch_size', type=cli.positive, default=16,
                      help='clips at a time, of musiclm (default: %(default)s)')
  parser.add_argument('--seed', type=cli.seed, default=0, help='(default: %(default)s)')
  args = parser.parse_args()
  if args.system == 'riffusion' and not args.model:
    parser.error('riffusion needs --model, the directory of the pipeline')
  if args.system == 'folder' and not args.files:
    parser.error('folder needs --files')
  return args


def _system(args):
  from musiclm_jax.evaluation import clip_folders
  from musiclm_jax.evaluation.systems import local, mubert, riffusion

  if args.system == 'musiclm':
    return local.MusicLM(args.model, args.batch_size)
  if args.system == 'riffusion':
    return riffusion.Riffusion(args.model)
  if args.system == 'mubert':
    return mubert.Mubert()
  return local.Folder(clip_folders.find_clips(args.files))


def main() -> None:
  args = _parse()
  from musiclm_jax.evaluation import clip_folders
  from musiclm_jax.evaluation.systems import filling

  captions, _ = clip_folders.read(args.captions, args.split)
  captions = {name: captions[name] for name in clip_folders.sample(captions, args.max_clips)}
  failed = filling.fill(
      _system(args), captions, args.output, seconds=args.seconds, seed=args.seed)
  print(f'{args.output}: {len(captions) - len(failed)} clips; {len(failed)} failed',
        file=sys.stderr)


if __name__ == '__main__':
  cli.run(main)
