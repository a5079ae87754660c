"""L5. Results of a listening test as text, json, html and a plot."""

import base64
import dataclasses
import functools
import io
import json
import math
import pathlib

from musiclm_jax import audio, errors
from musiclm_jax.listening_test import preferences

_FOLDER = pathlib.Path(__file__).parent
ANSWERS = ('strongly first', 'slightly first', 'neither', 'slightly second', 'strongly second')
_COLOURS = ('#2f5fd0', '#9db8f2', '#d9dce4', '#f2b98f', '#d1661f')


@functools.cache
def templates():
  """Returns the pages; what goes into them is escaped."""
  try:
    import jinja2
  except ImportError:
    raise errors.UserError("jinja2 is not installed, wanted: pip install -e '.[listening_test]'"
                           ) from None
  return jinja2.Environment(
      loader=jinja2.FileSystemLoader(_FOLDER / 'templates'), autoescape=True, trim_blocks=True,
      undefined=jinja2.StrictUndefined)


def matrix(results: preferences.Results) -> tuple[list[str], list[list[float | None]]]:
  """Returns (names, rows): the share of answers that prefer the row's system to the column's."""
  names = [system.name for system in results.systems]
  shares = {}
  for pair in results.pairs:
    if total := sum(pair.counts):
      shares[pair.first, pair.second] = pair.wins / total
      shares[pair.second, pair.first] = pair.losses / total
  return names, [[shares.get((row, column)) for column in names] for row in names]


def to_json(results: preferences.Results) -> dict:
  """Returns all figures as plain values."""
  names, shares = matrix(results)
  return dataclasses.asdict(results) | {
      'num_raters': len(results.raters),
      'preferred': {row: dict(zip(names, values, strict=True))
                    for row, values in zip(names, shares, strict=True)}}


def as_text(results: preferences.Results) -> str:
  """Returns tables for a terminal."""
  lines = [f'answers: {results.num_answers}, raters: {len(results.raters)}, captions: '
           f'{results.num_captions}', '']
  lines += _table([('system', 'wins', 'losses', 'no preference', 'answers')] + [
      (each.name, each.wins, each.losses, each.ties, each.answers) for each in results.systems])
  heads = ('first', 'second', *ANSWERS, 'W', 'p', f'p x {results.comparisons}', '')
  lines += ['', *_table([heads] + [
      (each.first, each.second, *each.counts, f'{each.statistic:g}', f'{each.p_value:.2g}',
       f'{each.p_corrected:.2g}', '*' if each.significant else '') for each in results.pairs])]
  lines += ['', f'* Wilcoxon signed-rank test by {results.unit}, Bonferroni for '
            f'{results.comparisons} comparisons: p < {results.alpha:g}']
  return '\n'.join(lines)


def _table(rows) -> list[str]:
  rows = [[str(cell) for cell in row] for row in rows]
  left = sum(cell in ('system', 'first', 'second') for cell in rows[0])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ['  '.join(cell.ljust(width) if i < left else cell.rjust(width)
                    for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
          for row in rows]


def page_values(results: preferences.Results, plot: bytes = b'') -> dict:
  """Returns what the pages of results show."""
  names, rows = matrix(results)
  return {'results': results, 'matrix': {'names': names, 'rows': rows},
          'plot': base64.b64encode(plot).decode()}


def as_html(results: preferences.Results) -> str:
  """Returns one page with the plot and nothing that has to be fetched."""
  import markupsafe

  style = (_FOLDER / 'static' / 'pages.css').read_text(encoding='utf-8')
  return templates().get_template('report.html').render(
      style=markupsafe.Markup(style), **page_values(results, draw(results)))


def draw(results: preferences.Results) -> bytes:
  """Returns a png: the five answers of every pair, and who was preferred to whom."""
  import matplotlib.figure

  names, rows = matrix(results)
  height = max(3.0, 1.2 + 0.45 * len(results.pairs), 1.5 + 0.5 * len(names))
  figure = matplotlib.figure.Figure(figsize=(12, height), layout='constrained')
  bars, squares = figure.subplots(1, 2, width_ratios=(3, 2))
  _draw_answers(bars, results.pairs)
  values = [[math.nan if value is None else value for value in row] for row in rows]
  image = squares.imshow(values, vmin=0, vmax=1, cmap='Blues')
  squares.set_xticks(range(len(names)), names, rotation=30, ha='right')
  squares.set_yticks(range(len(names)), names)
  squares.set_title('Preferred the row to the column')
  for y, row in enumerate(rows):
    for x, value in enumerate(row):
      if value is not None:
        squares.text(x, y, f'{value:.0%}', ha='center', va='center',
                     color='white' if value > 0.55 else 'black')
  figure.colorbar(image, ax=squares, shrink=0.8)
  png = io.BytesIO()
  figure.savefig(png, format='png', dpi=110)
  return png.getvalue()


def _draw_answers(axes, pairs) -> None:
  labels = [f'{pair.first} or {pair.second}{" *" if pair.significant else ""}' for pair in pairs]
  left = [0.0] * len(pairs)
  for answer, (text, colour) in enumerate(zip(ANSWERS, _COLOURS, strict=True)):
    shares = [pair.counts[answer] / max(1, sum(pair.counts)) for pair in pairs]
    axes.barh(labels, shares, left=left, color=colour, label=text)
    left = [before + share for before, share in zip(left, shares, strict=True)]
  axes.invert_yaxis()
  axes.set_xlim(0, 1)
  axes.set_xlabel('share of answers')
  axes.set_title('Answers (* significant)')
  axes.legend(loc='upper center', bbox_to_anchor=(0.45, -0.18), ncols=5, fontsize=9,
              frameon=False, columnspacing=1, handlelength=1)


def write(results: preferences.Results, json_file: str | None, html_file: str | None,
          plot_file: str | None) -> None:
  """Writes the files that are named; an existing one is replaced, whole or not at all."""
  makers = ((json_file, lambda: (json.dumps(to_json(results), indent=2) + '\n').encode()),
            (html_file, lambda: as_html(results).encode()), (plot_file, lambda: draw(results)))
  for name, make in makers:
    if name:
      if pathlib.Path(name).is_dir():
        raise errors.UserError(f'{name} is a directory, wanted the name of a file to write')
      with audio.atomic_path(name, overwrite=True) as temporary:
        pathlib.Path(temporary).write_bytes(make())
