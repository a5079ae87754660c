"""L5. A comparison of systems as a table beside the paper's rows, as json and as csv."""

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence

from musiclm_jax import audio, errors
from musiclm_jax.evaluation import codec_quality, comparison

FAD_LABELS = {'trill': 'FAD_TRILL', 'vggish': 'FAD_VGG',  # as in the paper
              'mulan': 'FAD_MuLan', 'w2v_bert': 'FAD_w2v-BERT'}
_PAPER_FAD = ('trill', 'vggish')
PAPER_NOTE = (
    '(paper): MusicLM, table 1, on MusicCaps; FAD by TRILL and VGGish, KLD by a LEAF classifier, MCC '
    "by Google's MuLan. Only TRILL and VGGish are public: FAD by other embeddings, KLD by another "
    'classifier and MCC by another MuLan are other scales.')


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the table; what is unknown is None."""

  system: str
  source: str  # 'measured' or 'paper'
  clips: int | None
  fad: dict[str, float]
  fad_extrapolated: dict[str, float]
  kld: float | None
  mcc: float | None
  mcc_permuted: float | None


def _paper(system: str, trill: float, vggish: float, kld: float, mcc: float) -> Row:
  return Row(system, 'paper', None, {'trill': trill, 'vggish': vggish}, {}, kld, mcc, None)


PAPER = (  # 2301.11325, table 1
    _paper('Riffusion', 0.76, 13.4, 1.19, 0.34),
    _paper('Mubert', 0.45, 9.6, 1.58, 0.32),
    _paper('MusicLM', 0.44, 4.0, 1.01, 0.51),
)


def rows(report: comparison.Report) -> list[Row]:
  """Returns a row for each system, then the paper's."""
  found = []
  for scores in report.systems:
    extrapolated = {name: fad.extrapolated.distance for name, fad in scores.fad.items()
                    if fad.extrapolated}
    agreement = scores.mcc
    found.append(Row(
        scores.name, 'measured', len(report.clips),
        {name: fad.distance for name, fad in scores.fad.items()}, extrapolated, scores.kld,
        agreement and agreement.cosine, agreement and agreement.permuted))
  return [*found, *PAPER]


def fad_names(report: comparison.Report) -> list[str]:
  """Returns the embeddings of the columns: the paper's first, then the others that were used."""
  used = dict.fromkeys(name for scores in report.systems for name in scores.fad)
  return [*_PAPER_FAD, *(name for name in used if name not in _PAPER_FAD)]


def cells(report: comparison.Report) -> tuple[list[str], list[list[str]]]:
  """Returns the names of the columns, and the rows as texts."""
  names = fad_names(report)
  columns = ['system', 'clips', *(f'{FAD_LABELS.get(name, f"FAD_{name}")}↓' for name in names),
             'KLD↓', 'MCC↑', 'MCC permuted']
  lines = []
  for row in rows(report):
    system = f'{row.system} (paper)' if row.source == 'paper' else row.system
    fad = [_fad(row.fad.get(name), row.fad_extrapolated.get(name)) for name in names]
    lines.append([system, str(row.clips or '–'), *fad, number(row.kld), number(row.mcc),
                  number(row.mcc_permuted)])
  return columns, lines


def number(value: float | None) -> str:
  """Returns three digits that count, – for what there is none of."""
  if value is None or not math.isfinite(value):
    return '–'
  return f'{value:.2f}' if abs(value) < 10 else f'{value:.1f}'


def _fad(distance: float | None, extrapolated: float | None) -> str:
  return number(distance) + (f' ({number(extrapolated)})' if extrapolated is not None else '')


def text(report: comparison.Report) -> str:
  """Returns the table in markdown under a line that says what was compared, then remarks."""
  columns, lines = cells(report)
  lines = [[cell.replace('|', '\\|') for cell in line] for line in lines]
  parts = [headline(report), codec_quality.table(columns, lines), *remarks(report)]
  return '\n\n'.join(parts)


def headline(report: comparison.Report) -> str:
  """Returns how many clips were compared, of how many seconds."""
  seconds = report.settings['seconds']
  heard = ', '.join(f'{scores.name} {scores.seconds:.0f} s' for scores in report.systems)
  return (f'{len(report.clips)} clips, at most {seconds:g} s of each ({heard}); '
          f'{len(report.left_out)} left out')


def remarks(report: comparison.Report) -> list[str]:
  """Returns what belongs under the table, a line each."""
  found = []
  if any(fad.extrapolated for scores in report.systems for fad in scores.fad.values()):
    found.append('FAD in brackets: extrapolated to endlessly many embeddings (FAD-infinity).')
  found.append(PAPER_NOTE)
  found += [f'warning: {line}' for line in report.warnings]
  found += [f'missing: {name} has no file for {len(ids)} captions ({_some(ids)})'
            for name, ids in report.missing.items()]
  found += [f'left out: {name}: {reason}' for name, reason in report.left_out.items()]
  return found


def _some(ids: Sequence[str], most: int = 3) -> str:
  return ', '.join(ids[:most]) + (', …' if len(ids) > most else '')


def check_outputs(paths: Sequence[str]) -> None:
  """Raises before the work, not after it, when one of the files to write is a folder."""
  for path in paths:
    if os.path.isdir(path):
      raise errors.UserError(f'{path} is a directory, wanted the name of a file to write')


def write_json(path: str | os.PathLike, report: comparison.Report) -> None:
  """Writes every figure, the ids and what was left out; an existing file is replaced."""
  content = {
      'num_clips': len(report.clips), 'ids': [clip.id for clip in report.clips],
      'table': [dataclasses.asdict(row) for row in rows(report)], **dataclasses.asdict(report)}
  with audio.atomic_path(path, overwrite=True) as temporary:
    pathlib.Path(temporary).write_text(
        json.dumps(_finite(content), indent=2, allow_nan=False) + '\n', encoding='utf-8',
        errors='backslashreplace')


def _finite(value):
  """Returns a tree with None for NaN and infinity, which JSON has not."""
  if isinstance(value, dict):
    return {key: _finite(member) for key, member in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(member) for member in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: str | os.PathLike, report: comparison.Report) -> None:
  """Writes the table, a column for each figure; what a row has not is left empty."""
  names = fad_names(report)
  with audio.atomic_path(path, overwrite=True) as temporary, open(
      temporary, 'w', encoding='utf-8', errors='backslashreplace', newline='') as stream:
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(['system', 'source', 'clips', *(f'fad_{name}' for name in names),
                     *(f'fad_infinity_{name}' for name in names), 'kld', 'mcc', 'mcc_permuted'])
    for row in rows(report):
      writer.writerow([
          row.system, row.source, row.clips, *(row.fad.get(name) for name in names),
          *(row.fad_extrapolated.get(name) for name in names), row.kld, row.mcc, row.mcc_permuted])
