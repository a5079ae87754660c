"""A listening test as in MusicLM: raters read a caption, hear two clips and say which fits better.

`serve` is a web application for browsers and phones, `report` prints wins and significance. The
token for http://HOST:PORT/results is read from LISTENING_TEST_ADMIN_TOKEN or a file.
Needs: pip install -e '.[listening_test]'.
"""

import argparse
import os
import sys

from musiclm_jax import cli, errors

EXAMPLES = r"""
python tools/listening_test.py serve --captions=captions.csv --systems=ours=clips/ours \
  --systems=mubert=clips/mubert --ground_truth=clips/musiccaps --database=test.sqlite
python tools/listening_test.py serve --captions=captions.csv --systems=a=clips/a \
  --systems=b=clips/b --database=test.sqlite --answers_per_pair=200 --port=8080 --proxy_hops=1 --https
python tools/listening_test.py report --database=test.sqlite --json=wins.json \
  --html=wins.html --plot=wins.png
"""


def _share(text: str) -> float:
  value = float(text)
  if not 0 < value <= 1:
    raise ValueError(f'{value} is no share')
  return value


def _parse() -> argparse.Namespace:
  parser = cli.parser(__doc__, EXAMPLES)
  verbs = parser.add_subparsers(dest='verb', required=True)
  serve = verbs.add_parser('serve', help='let raters listen and answer', allow_abbrev=False)
  serve.add_argument('--captions', required=True, metavar='CSV', help=(
      "columns id (or path) and caption; or musiccaps-public.csv, or a corpus.jsonl"))
  serve.add_argument('--split', help=(
      'of a corpus.jsonl (default: test) or of MusicCaps: eval (default), train, balanced'))
  serve.add_argument('--max_clips', type=cli.positive, metavar='N',
                     help='of more captions, some by their hashes (default: all)')
  serve.add_argument('--systems', action='append', default=[], metavar='NAME=DIR',
                     help='folder with a clip ID.wav (.flac, .mp3 ...) of each caption; repeatable')
  serve.add_argument('--ground_truth', metavar='DIR', help='the same, of real music')
  serve.add_argument('--database', required=True, metavar='FILE',
                     help='is made, or goes on; the clips as served are kept in FILE.clips')
  serve.add_argument('--seconds', type=float, default=10.0,
                     help='longer clips are cut (default: %(default)g)')
  serve.add_argument('--heard_share', type=_share, default=0.95, metavar='SHARE',
                     help='of each clip, to be heard before the answer (default: %(default)g)')
  serve.add_argument('--answers_per_pair', type=cli.count, default=0, metavar='N',
                     help='of two systems, over all captions, 200 in the paper (default: no limit)')
  serve.add_argument('--answers_per_rater', type=cli.count, default=0, metavar='N',
                     help='default: no limit')
  serve.add_argument('--repeat_captions', action='store_true', help=(
      'a rater may get a caption again with two other systems; default: each caption once'))
  _add_network_flags(serve)
  report = verbs.add_parser('report', help='wins, ties, significance', allow_abbrev=False)
  report.add_argument('--database', required=True, metavar='FILE')
  report.add_argument('--json', metavar='FILE')
  report.add_argument('--html', metavar='FILE', help='one page with the plot')
  report.add_argument('--plot', metavar='FILE', help='png: answers of pairs, preference matrix')
  report.add_argument('--alpha', type=float, default=0.01,
                      help='default: %(default)g, as the paper')
  report.add_argument('--comparisons', type=cli.positive, metavar='N', help=(
      "Bonferroni's factor (default: the number of pairs; the paper has 15 for its 6 pairs)"))
  report.add_argument('--unit', choices=('answer', 'rater', 'item'), default='answer', help=(
      'what the signed-rank test takes as independent: answers, or means of raters or captions'))
  return parser.parse_args()


def _add_network_flags(serve: argparse.ArgumentParser) -> None:
  serve.add_argument('--host', default='127.0.0.1', help='0.0.0.0 for all (default: %(default)s)')
  serve.add_argument('--port', type=int, default=8000, help='0: a free one (default: %(default)s)')
  serve.add_argument('--admin_token_file', metavar='FILE', help='16 characters or more')
  serve.add_argument('--https', action='store_true',
                     help='browsers come by https, through a proxy: cookies for https alone')
  serve.add_argument('--proxy_hops', type=cli.count, default=0, metavar='N',
                     help='trusted proxies in front that write X-Forwarded-For (default: none)')
  serve.add_argument('--requests_per_minute', type=cli.positive, default=600, metavar='N',
                     help='of one address (default: %(default)s)')
  serve.add_argument('--starts_per_hour', type=cli.positive, default=60, metavar='N',
                     help='new raters of one address (default: %(default)s)')


def _match(flags: argparse.Namespace):
  """Returns the captions of which every system has a clip, and the clips."""
  from musiclm_jax.evaluation import clip_folders
  from musiclm_jax.listening_test import clips

  folders = clip_folders.named(flags.systems, None)
  if flags.ground_truth:
    if clips.GROUND_TRUTH in folders:
      raise errors.UserError(f'--systems={clips.GROUND_TRUTH}=... and --ground_truth: wanted one')
    folders[clips.GROUND_TRUTH] = flags.ground_truth
  captions, find = clip_folders.read(flags.captions, flags.split)
  files = {name: find(folder) for name, folder in folders.items()}
  match = clip_folders.match(captions, files, flags.max_clips)
  for name, missing in match.missing.items():
    if missing:
      print(f'{name}: no clip of {len(missing)} of {len(captions)} captions, which are left out',
            file=sys.stderr)
  return match


def _serve(flags: argparse.Namespace) -> None:
  from musiclm_jax.listening_test import assignment, server

  match = _match(flags)
  server.serve(
      match.captions, match.files, flags.database,
      assignment.Limits(flags.answers_per_pair, flags.answers_per_rater, flags.repeat_captions),
      flags.host, flags.port, flags.seconds, heard_share=flags.heard_share,
      admin_token=server.admin_token(flags.admin_token_file, os.environ), https=flags.https,
      proxy_hops=flags.proxy_hops, requests_per_minute=flags.requests_per_minute,
      starts_per_hour=flags.starts_per_hour)


def main() -> None:
  flags = _parse()
  if flags.verb == 'serve':
    _serve(flags)
    return
  from musiclm_jax.listening_test import preferences, report, store

  systems, answers = store.read(flags.database)
  results = preferences.results(systems, answers, flags.alpha, flags.comparisons, flags.unit)
  print(report.as_text(results))
  report.write(results, flags.json, flags.html, flags.plot)


if __name__ == '__main__':
  cli.run(main)
