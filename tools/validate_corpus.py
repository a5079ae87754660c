"""Says what is in a corpus and what is wrong with it; see musiclm_jax/corpus_validation."""

import sys

from musiclm_jax import cli

EXAMPLES = """
python tools/validate_corpus.py --input=~/Music
python tools/validate_corpus.py --input=music --captions=captions.csv --html=report.html
python tools/validate_corpus.py --input=music --musiccaps=musiccaps-public.csv --evaluation=clips
python tools/validate_corpus.py --input=data/records --fail_on_warnings
"""


def main() -> None:
  parser = cli.parser(
      'Says what a corpus holds (lengths, loudness, silence, formats, captions) and warns of what '
      'is wrong with it: files that cannot be read, clipped or silent ones, the same recording '
      'twice (by its sound, whatever the format), repeated captions, clips that would leak into '
      'evaluation.',
      EXAMPLES)
  parser.add_argument('--input', required=True,
                      help='folder of audio, corpus of make_corpus.py, or waveform records')
  parser.add_argument('--captions', metavar='FILE',
                      help='csv, tsv or jsonl with path (below --input) and caption; by default '
                           'captions.csv, .tsv or .jsonl in the folder')
  parser.add_argument('--musiccaps', metavar='FILE',
                      help='the public csv of MusicCaps: files named by its ids are reported')
  parser.add_argument('--evaluation', metavar='FOLDER',
                      help='recordings for evaluation: what sounds like one of them is reported')
  parser.add_argument('--html', metavar='FILE', help='page with plots to write')
  parser.add_argument('--json', metavar='FILE', help='file for all figures and names')
  parser.add_argument('--num_workers', type=cli.positive, default=2, help='threads (default 2)')
  parser.add_argument('--fail_on_warnings', action='store_true',
                      help='exit code 1 where there is a warning')
  args = parser.parse_args()

  import json
  import os

  from musiclm_jax import audio
  from musiclm_jax.corpus_validation import html_report, text_report, validate

  for name in ('input', 'captions', 'musiccaps', 'evaluation', 'html', 'json'):
    setattr(args, name, os.path.expanduser(getattr(args, name) or ''))
  outputs = [path for path in (args.html, args.json) if path]
  for path in outputs:
    validate.check_writable(path)
  report = validate.validate(
      input_dir=args.input, captions_file=args.captions,
      musiccaps=args.musiccaps, evaluation_dir=args.evaluation, num_workers=args.num_workers)
  for path in outputs:
    content = html_report.page(report) if path == args.html else json.dumps(
        report, indent=1, allow_nan=False)
    with audio.atomic_path(path, overwrite=True) as temporary:
      with open(temporary, 'w', encoding='utf-8') as file:
        file.write(content)
  sys.stdout.reconfigure(errors='backslashreplace')
  print(text_report.summary(report))
  if args.fail_on_warnings and report['warnings']:
    sys.exit(1)


if __name__ == '__main__':
  cli.run(main)
