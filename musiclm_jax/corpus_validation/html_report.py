"""The report as one HTML page without anything from elsewhere.  Names and captions are hostile."""

import base64
import html
import io
from collections.abc import Iterator, Sequence

from musiclm_jax.corpus_validation import text_report

MAX_ROWS = 1000  # of a list; all of them are in the json
_STYLE = """
body {font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222}
h1, h2 {line-height: 1.2} table {border-collapse: collapse; font-size: 13px}
th, td {text-align: left; padding: .15rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top;
  overflow-wrap: anywhere} td.n {text-align: right; white-space: nowrap}
.plots {display: flex; flex-wrap: wrap; gap: 1rem} .plots img {width: 22rem; max-width: 100%}
details {margin: .3rem 0; border-left: 4px solid #d08700; padding: .2rem .8rem; background: #fff8e6}
.scroll {overflow-x: auto} summary {cursor: pointer} li {overflow-wrap: anywhere}
"""
_COLUMNS = (('seconds', 's', '.2f'), ('rate', 'Hz', ','), ('channels', 'channels', ''),
            ('encoding', 'format', ''), ('loudness', 'LUFS', '.1f'), ('peak', 'peak dBFS', '.1f'),
            ('clipped', 'clipped', '.2%'), ('silence', 'silence', '.1%'),
            ('dc_offset', 'DC offset', '.2%'), ('captions', 'captions', ''))


def page(report: dict) -> str:
  """Returns the page; it may load nothing and runs no script, whatever a name holds."""
  title = f'Corpus report: {text_report.printable(report["input"])}'
  return '\n'.join([
      '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
      '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
      'style-src \'unsafe-inline\'">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>',
      f'<h1>{html.escape(title)}</h1>', *_figures(report), *_plots(report),
      *_warnings(report['warnings']), *_duplicates(report), *_files(report['files']),
      '</body></html>\n'])


def _figures(report: dict) -> Iterator[str]:
  rows = [[html.escape(what), html.escape(words)] for what, words in text_report.figures(report)]
  yield _table((), rows)


def _plots(report: dict) -> Iterator[str]:
  totals, captions = report['totals'], report['captions']
  plots = [('Length, s', _trimmed(totals['durations'])),
           ('Loudness, LUFS', _trimmed(totals['loudness'])),
           ('Peak, dBFS', _trimmed(totals['peak'])),
           ('Silence, share of the length', _trimmed(totals['silence'])),
           ('Sample rate, Hz', sorted(totals['rate'].items(), key=lambda item: int(item[0]))),
           ('Format', list(totals['encoding'].items())[:12])]
  if captions['count']:
    lengths = {int(length): count for length, count in captions['words']['lengths'].items()}
    width = max(1, -(-(max(lengths) + 1) // 16))
    words = [(f'{start} to {start + width - 1}' if width > 1 else str(start),
              sum(lengths.get(start + i, 0) for i in range(width)))
             for start in range(0, max(lengths) + 1, width)]
    plots += [('Caption length, words', words),
              ('Caption language', list(captions['language']['counts'].items())[:12])]
  yield '<h2>Distributions</h2><div class="plots">'
  for title, bars in plots:
    yield (f'<img alt="{html.escape(title)}" src="data:image/svg+xml;base64,'
           f'{base64.b64encode(_bars(title, bars)).decode()}">')
  yield '</div>'


def _trimmed(histogram: dict) -> list[tuple[str, int]]:
  """Returns the bins from the first to the last that is not empty."""
  bars = text_report.bins(histogram)
  filled = [i for i, (_, count) in enumerate(bars) if count]
  return bars[filled[0]:filled[-1] + 1] if filled else []


def _bars(title: str, bars: Sequence[tuple[str, int]]) -> bytes:
  """Returns an SVG image of counts by name."""
  from matplotlib import figure, ticker
  drawing = figure.Figure(figsize=(4.4, 2.9), layout='constrained')
  axes = drawing.subplots()
  axes.bar(range(len(bars)), [count for _, count in bars], color='#3b6ea5', width=0.85)
  names = [text_report.printable(name, 24).replace('$', r'\$') for name, _ in bars]
  axes.set_xticks(range(len(bars)), names, rotation=45, ha='right', fontsize=7)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes.tick_params(axis='y', labelsize=8)
  axes.set_title(title, fontsize=10)
  axes.spines[['top', 'right']].set_visible(False)
  image = io.BytesIO()
  drawing.savefig(image, format='svg', metadata={'Date': None, 'Creator': None})
  return image.getvalue()


def _warnings(warnings: list[dict]) -> Iterator[str]:
  yield f'<h2>{len(warnings)} warnings</h2>'
  for warning in warnings:
    names = warning['names']
    yield (f'<details{" open" if len(names) <= 5 else ""}><summary>{html.escape(warning["text"])} '
           f'({len(names):,})</summary><ul>'
           + ''.join(f'<li>{_name(name)}</li>' for name in names[:MAX_ROWS])
           + f'</ul>{_more(len(names))}</details>')


def _duplicates(report: dict) -> Iterator[str]:
  matches = report['duplicates']['matches']
  if matches:
    yield ('<h2>The same recording</h2><p>In whole or in part, by fingerprints: the share of bits '
           'that differ, and how much later the second begins.</p>')
    yield _table(('first', 'second', 'bits that differ', 'begins later, s', 'in common, s'), [
        [_name(match['first']), _name(match['second']), f'{match["bit_errors"]:.1%}',
         f'{match["offset_seconds"]:.2f}', f'{match["overlap_seconds"]:.1f}']
        for match in matches[:MAX_ROWS]])
    yield _more(len(matches))


def _files(files: list[dict]) -> Iterator[str]:
  yield '<h2>Files</h2>'
  rows = [[_name(file['name']), *(_cell(file.get(key), form) for key, _, form in _COLUMNS)]
          if not file['error'] else [_name(file['name']), 'cannot be read']
          for file in files[:MAX_ROWS]]
  yield _table(('file', *(title for _, title, _ in _COLUMNS)), rows)
  yield _more(len(files))


def _cell(value, form: str) -> str:
  return '' if value is None else html.escape(format(value, form))


def _name(name: str) -> str:
  return html.escape(text_report.printable(name, 500))


def _more(count: int) -> str:
  return f'<p>and {count - MAX_ROWS:,} more, in the json</p>' if count > MAX_ROWS else ''


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table; `rows` are escaped already."""
  head = ''.join(f'<th>{html.escape(title)}</th>' for title in titles)
  body = ''.join('<tr>' + ''.join(
      f'<td{" class=n" if i and titles and cell[:1] in "-0123456789" else ""}>{cell}</td>'
      for i, cell in enumerate(row)) + '</tr>' for row in rows)
  return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
