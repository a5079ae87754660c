"""Compares folders of generated audio with each other and with the paper: FAD, KLD, MCC.

Clips belong to a caption by the stems of their files: ID.wav for the row of ID, YTID_START.wav for
MusicCaps. All are heard alike: mono, the first seconds, resampled once. A clip that one of the
folders lacks, or that cannot be read, is left out for all of them, and listed.
"""

import sys

from musiclm_jax import cli

_EXAMPLES = """
python tools/evaluate.py --generated=generated --reference=corpus/audio --captions=corpus/corpus.jsonl
python tools/evaluate.py --generated=ours=out/a --generated=Riffusion=out/b --reference=clips --captions=captions.csv --html=report/index.html
python tools/evaluate.py --generated=out --reference=musiccaps/clips --captions=musiccaps-public.csv --split=balanced --embeddings=vggish,trill --vggish=tfhub/vggish --trill=tfhub/trill --reference_statistics=statistics
python tools/evaluate.py --generated=out --reference=clips --captions=captions.csv --metrics=fad,kld,mcc --yamnet=gs://BUCKET/yamnet --json=table.json --csv=table.csv
"""  # noqa: E501


def names(text: str) -> list[str]:
  """Returns the words of 'a,b'."""
  return [part.strip() for part in text.split(',') if part.strip()]


def _parse():
  parser = cli.parser(__doc__, _EXAMPLES)
  parser.add_argument('--generated', required=True, action='append', metavar='[NAME=]DIR',
                      help='folder of generated audio, with a name for the table; may be given again')
  parser.add_argument('--reference', help='folder of the recordings that the captions describe '
                                          '(needed but for MCC, and FAD with saved statistics)')
  parser.add_argument('--captions', required=True, help='csv with id (or path) and caption, '
                                                        'the csv of MusicCaps, or a corpus.jsonl')
  parser.add_argument('--split', help='of a corpus.jsonl (default: test) or of MusicCaps: eval, '
                                      'train, balanced (default: eval)')
  parser.add_argument('--max_clips', type=cli.positive,
                      help='of more clips, a sample that is always the same (default: all)')
  parser.add_argument('--metrics', type=names, default=['fad', 'mcc'],
                      help='of fad,kld,mcc (default: fad,mcc)')
  parser.add_argument('--embeddings', type=names, default=['mulan', 'w2v_bert'],
                      help='for FAD, of mulan,w2v_bert,vggish,trill (default: mulan,w2v_bert)')
  parser.add_argument('--model', help='directory of exported models, for MCC and for FAD by mulan '
                                      'and w2v_bert (default: the small ones in the package)')
  for name, source in (('vggish', 'google/vggish/1'), ('yamnet', 'google/yamnet/1'),
                       ('trill', 'google/nonsemantic-speech-benchmark/trill/3')):
    parser.add_argument(f'--{name}', metavar='DIR',
                        help=f'SavedModel {source} of TF-Hub, a local or gs:// directory. Its graph '
                             'is run: TensorFlow operations, no Python')
  parser.add_argument('--classifier', choices=('yamnet', 'passt'), default='yamnet',
                      help='of KLD (default: %(default)s); passt needs the package hear21passt')
  parser.add_argument('--kld_direction', default='reference_generated',
                      choices=('reference_generated', 'generated_reference', 'mean'),
                      help='(default: %(default)s, KL(reference || generated))')
  parser.add_argument('--kld_activation', default='softmax', choices=('softmax', 'sigmoid'),
                      help='(default: %(default)s)')
  parser.add_argument('--seconds', type=float, default=10.0,
                      help='heard of each clip, from its beginning (default: %(default)g)')
  parser.add_argument('--reference_statistics', metavar='DIR',
                      help='keeps what FAD needs of the reference: written when missing, else used')
  parser.add_argument('--seed', type=cli.seed, default=0,
                      help='of the extrapolation of FAD (default: %(default)s)')
  parser.add_argument('--json', help='file for all figures and ids; an existing one is replaced')
  parser.add_argument('--csv', help='file for the table; an existing one is replaced')
  parser.add_argument('--html', help='report with plots and players; an existing one is replaced')
  parser.add_argument('--players', type=cli.count, default=16,
                      help='clips that can be heard in the report (default: %(default)s)')
  parser.add_argument('--inline_audio', action='store_true',
                      help='puts the sound of these clips into the report, instead of links')
  return parser.parse_args()


def main() -> None:
  args = _parse()
  from musiclm_jax import generate
  from musiclm_jax.evaluation import (
      clip_folders,
      comparison,
      comparison_html,
      comparison_report,
      kld,
  )

  outputs = [path for path in (args.json, args.csv, args.html) if path]
  comparison_report.check_outputs(outputs)
  folders = clip_folders.named(args.generated, args.reference)
  captions, find = clip_folders.read(args.captions, args.split)
  match = clip_folders.match(
      captions, {name: find(folder) for name, folder in folders.items()}, args.max_clips)
  models = comparison.load_models(
      args.metrics, args.model or generate.TINY, names=args.embeddings, classifier=args.classifier,
      directories={'vggish': args.vggish, 'trill': args.trill, 'yamnet': args.yamnet})
  report = comparison.compare(
      match, models, seconds=args.seconds, seed=args.seed, statistics_dir=args.reference_statistics,
      kld_config=kld.KldConfig(args.kld_direction, args.kld_activation))
  print(comparison_report.text(report))
  if args.json:
    comparison_report.write_json(args.json, report)
  if args.csv:
    comparison_report.write_csv(args.csv, report)
  if args.html:
    comparison_html.write(args.html, report, args.players, args.inline_audio)
  for path in outputs:
    print(f'{path}: written', file=sys.stderr)


if __name__ == '__main__':
  cli.run(main)
