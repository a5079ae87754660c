"""L5. A comparison of systems as one html file: table, plots inside it, players for some clips.

Names and captions come from anywhere: all of them are escaped, and the page may run no script.
"""

import base64
import html
import io
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

from musiclm_jax import audio, text
from musiclm_jax.evaluation import clip_folders, comparison, comparison_report, frechet

DEFAULT_PLAYERS = 16
_MEDIA_TYPES = {
    '.wav': 'audio/wav', '.flac': 'audio/flac', '.mp3': 'audio/mpeg', '.ogg': 'audio/ogg',
    '.oga': 'audio/ogg', '.opus': 'audio/ogg', '.m4a': 'audio/mp4', '.aac': 'audio/aac',
    '.webm': 'audio/webm', '.aif': 'audio/aiff', '.aiff': 'audio/aiff'}
_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
.wide { overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: .35rem .7rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
tr.paper td { color: #777; }
.clips td, .clips th { text-align: left; } .clips audio { width: 14rem; }
.caption { min-width: 18rem; } .remark { color: #555; } .warning { color: #a40; }
img { max-width: 100%; height: auto; } code { overflow-wrap: anywhere; }
"""
_POLICY = "default-src 'none'; img-src data:; media-src 'self' file: data:; style-src 'unsafe-inline'"


def write(path: str | os.PathLike, report: comparison.Report, players: int = DEFAULT_PLAYERS,
          inline_audio: bool = False) -> None:
  """Writes the page; an existing file is replaced.

  Args:
    path: of the html file.
    report: what to show.
    players: clips that can be heard, the same for all systems; a sample of them.
    inline_audio: the sound is inside the page, which can then be sent by itself. Otherwise it is
      linked, relative to where the page is.
  """
  path = pathlib.Path(path)
  columns, lines = comparison_report.cells(report)
  sources = [row.source for row in comparison_report.rows(report)]
  body = [
      '<h1>Comparison of systems</h1>', _paragraph(comparison_report.headline(report)),
      _table(columns, lines, sources),
      *(_paragraph(line, 'warning' if line.startswith('warning') else 'remark')
        for line in comparison_report.remarks(report)),
      *(_image(title, content) for title, content in plots(report).items()),
      *_players(report, players, path.parent, inline_audio),
      '<h2>Settings</h2>', _settings(report),
      f'<details><summary>All {len(report.clips)} ids</summary><p><code>'
      f'{_escaped(" ".join(clip.id for clip in report.clips))}</code></p></details>']
  page = (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
          f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
          '<meta name="viewport" content="width=device-width, initial-scale=1">'
          f'<title>Comparison of systems</title><style>{_STYLE}</style></head>\n<body>\n'
          + '\n'.join(body) + '\n</body></html>\n')
  with audio.atomic_path(path, overwrite=True) as temporary:
    pathlib.Path(temporary).write_text(page, encoding='utf-8')


def _escaped(value) -> str:
  return html.escape(text.readable(str(value)), quote=True)


def _paragraph(line: str, kind: str = '') -> str:
  return f'<p class="{kind}">{_escaped(line)}</p>'


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]], kinds: Sequence[str]) -> str:
  head = ''.join(f'<th>{_escaped(name)}</th>' for name in columns)
  body = ''.join(
      f'<tr class="{kind}">' + ''.join(f'<td>{_escaped(cell)}</td>' for cell in line) + '</tr>\n'
      for kind, line in zip(kinds, lines, strict=True))
  return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _settings(report: comparison.Report) -> str:
  rows = []
  for name, value in report.settings.items():
    members = value.items() if isinstance(value, Mapping) else [('', value)]
    rows += [[f'{name} {key}'.strip(), str(member)] for key, member in members]
  return _table(['setting', 'value'], rows, [''] * len(rows))


# --- Players ----------------------------------------------------------------------------------


def _players(report: comparison.Report, count: int, folder: pathlib.Path,
             inline: bool) -> list[str]:
  """Returns a table of clips with a player for each system, [] without players."""
  chosen = set(clip_folders.sample([clip.id for clip in report.clips], count)) if count else set()
  if not chosen:
    return []
  systems = [scores.name for scores in report.systems]
  head = ''.join(f'<th>{_escaped(name)}</th>' for name in ('caption', *systems))
  rows = []
  for clip in report.clips:
    if clip.id in chosen:
      cells = ''.join(f'<td>{_player(clip, name, folder, inline)}</td>' for name in systems)
      rows.append(f'<tr><td class="caption">{_escaped(clip.caption)}<br><code>{_escaped(clip.id)}'
                  f'</code></td>{cells}</tr>')
  return [f'<h2>{len(rows)} of {len(report.clips)} clips</h2>',
          f'<div class="wide"><table class="clips"><tr>{head}</tr>\n' + '\n'.join(rows)
          + '</table></div>']


def _player(clip: comparison.Clip, system: str, folder: pathlib.Path, inline: bool) -> str:
  path = clip.files[system]
  scores = [f'{name} {comparison_report.number(found[system])}'
            for name, found in (('KLD', clip.kld), ('MCC', clip.mcc)) if system in found]
  source = _inlined(path) if inline else _link(path, folder)
  return (f'<audio controls preload="none" src="{_escaped(source)}"></audio><br>'
          f'{_escaped(", ".join(scores))}')


def _inlined(path: str) -> str:
  kind = _MEDIA_TYPES.get(pathlib.Path(path).suffix.lower(), 'application/octet-stream')
  return f'data:{kind};base64,{base64.b64encode(pathlib.Path(path).read_bytes()).decode()}'


def _link(path: str, folder: pathlib.Path) -> str:
  relative = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
  return urllib.parse.quote(os.fsencode(relative))


# --- Plots ------------------------------------------------------------------------------------


def plots(report: comparison.Report) -> dict[str, bytes]:
  """Returns {title: png}: a panel for each metric, and FAD over the number of embeddings."""
  rows = comparison_report.rows(report)
  panels = []  # (title, [(system, source, value, mark)])
  for name in comparison_report.fad_names(report):
    values = [(row.system, row.source, row.fad[name], row.fad_extrapolated.get(name))
              for row in rows if name in row.fad]
    panels.append((comparison_report.FAD_LABELS.get(name, f'FAD_{name}'), values))
  panels.append(('KLD', [(r.system, r.source, r.kld, None) for r in rows if r.kld is not None]))
  panels.append(('MCC (mark: permuted captions)', [
      (r.system, r.source, r.mcc, r.mcc_permuted) for r in rows if r.mcc is not None]))
  panels = [(title, values) for title, values in panels
            if any(source == 'measured' for _, source, *_ in values)]
  found = {}
  if panels:
    found['Scores; grey: the paper’s; mark on a bar of FAD: FAD-infinity'] = _bars(panels)
  curves = {}
  for scores in report.systems:
    for name, fad in scores.fad.items():
      if fad.extrapolated:
        curves.setdefault(name, {})[scores.name] = fad.extrapolated
  if curves:
    found['FAD over the number of embeddings, and where it goes'] = _curves(curves)
  return found


def _image(title: str, content: bytes) -> str:
  encoded = base64.b64encode(content).decode()
  return (f'<h2>{_escaped(title)}</h2><img alt="{_escaped(title)}" '
          f'src="data:image/png;base64,{encoded}">')


def _figure(columns: int, height: float):
  import matplotlib
  matplotlib.use('Agg')
  from matplotlib import pyplot
  return pyplot.subplots(
      1, columns, figsize=(4.2 * columns, height), squeeze=False, layout='constrained')


def _png(figure) -> bytes:
  from matplotlib import pyplot
  stream = io.BytesIO()
  figure.savefig(stream, format='png', dpi=100)
  pyplot.close(figure)
  return stream.getvalue()


def _bars(panels) -> bytes:
  most = max(len(values) for _, values in panels)
  figure, grid = _figure(len(panels), 1.2 + 0.35 * most)
  for axes, (title, values) in zip(grid[0], panels, strict=True):
    places = range(len(values))[::-1]
    colours = ['#bbbbbb' if source == 'paper' else '#4477aa' for _, source, *_ in values]
    axes.barh(places, [value for *_, value, _ in values], color=colours)
    for place, (*_, mark) in zip(places, values, strict=True):
      if mark is not None:
        axes.plot([mark], [place], 'k|', markersize=16)
    axes.set_yticks(places, [_short(f'{system} (paper)' if source == 'paper' else system)
                             for system, source, *_ in values])
    for label in axes.get_yticklabels():
      label.set_parse_math(False)
    axes.set_title(title, parse_math=False)
  return _png(figure)


def _curves(panels: Mapping[str, Mapping[str, frechet.Extrapolation]]) -> bytes:
  figure, grid = _figure(len(panels), 3.6)
  for axes, (embedding, curves) in zip(grid[0], panels.items(), strict=True):
    for name, curve in curves.items():
      inverse = [1.0 / count for count in curve.counts]
      line, = axes.plot(inverse, curve.distances, 'o-')
      line.set_label(_short(name))
      axes.plot([0.0, inverse[-1]], [curve.distance, curve.distances[-1]], ':', color=line.get_color())
    for entry in axes.legend().get_texts():
      entry.set_parse_math(False)
    axes.set(xlabel='1 / number of embeddings', ylim=(0, None))
    axes.set_title(comparison_report.FAD_LABELS.get(embedding, f'FAD_{embedding}'), parse_math=False)
  return _png(figure)


def _short(name: str) -> str:
  name = text.readable(name)
  return name if len(name) < 32 else name[:31] + '…'
