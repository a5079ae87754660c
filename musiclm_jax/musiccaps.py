"""L0. The csv of MusicCaps, and which file is which of its clips.

  -0Gj8-vB1q4_30.wav       YouTube id, start second
"""

import ast
import collections
import dataclasses
import os
import re

from musiclm_jax import errors, text

CSV_FILE = 'musiccaps-public.csv'
COLUMNS = ('ytid', 'start_s', 'end_s', 'audioset_positive_labels', 'aspect_list', 'caption',
           'author_id', 'is_balanced_subset', 'is_audioset_eval')
SUFFIXES = ('.wav', '.flac', '.mp3', '.ogg', '.m4a')  # of two files of a clip the first is used
_YTID = r'[A-Za-z0-9_-]{11}'
# ID_30, ID-30, and with the end second ID_30_40, ID-30-40.
_FILE_STEM = re.compile(rf'({_YTID})[_-]([0-9]{{1,6}})(?:[_-][0-9]{{1,6}})?')
_MAX_SECONDS = 30  # AudioSet's clips have 10


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of the csv."""

  ytid: str
  start: int
  end: int
  labels: tuple[str, ...]  # AudioSet's machine ids, /m/04rlf
  aspects: tuple[str, ...]
  caption: str
  author_id: int
  balanced: bool
  eval: bool

  @property
  def id(self) -> str:
    return clip_id(self.ytid, self.start)


def clip_id(ytid: str, start: int) -> str:
  """Returns what a clip is called: 'YTID_START'."""
  return f'{ytid}_{start}'


def is_table(path: str | os.PathLike) -> bool:
  """Returns whether a file is a csv with the columns of MusicCaps that make up an id."""
  if not os.path.isfile(path) or not os.fspath(path).lower().endswith('.csv'):
    return False
  rows = text.read_table(os.fspath(path), ())
  return bool(rows) and {'ytid', 'start_s', 'caption'} <= set(rows[0])


def read_rows(path: str) -> list[Row]:
  """Returns the rows of the csv; one that is wrong is an error that names row and column."""
  if not os.path.isfile(path):
    raise errors.UserError(f'{path} does not exist, wanted the public csv of MusicCaps')
  rows, seen = [], {}
  for number, cells in enumerate(text.read_table(path, COLUMNS), 1):
    row = _row(cells, f'{path}, row {number}')
    first = seen.setdefault((row.ytid, row.start), number)
    if first != number:
      raise errors.UserError(f'{path}, row {number}: ytid {row.ytid!r} with start_s {row.start} is '
                             f'that of row {first}, too')
    rows.append(row)
  if not rows:
    raise errors.UserError(f'{path} holds no rows')
  return rows


def split_rows(rows: list[Row]) -> dict[str, list[Row]]:
  """Returns {split: its rows}; those of `balanced` are in `eval`, too."""
  return {'eval': [row for row in rows if row.eval],
          'train': [row for row in rows if not row.eval],
          'balanced': [row for row in rows if row.balanced]}


def find_clips(folder: str) -> dict[tuple[str, int], list[str]]:
  """Returns {(YouTube id, start second): paths} of the clips below a folder.

  Links to folders are followed, each folder once.
  """
  found, seen = collections.defaultdict(list), set()
  for parent, folders, names in os.walk(folder, followlinks=True):
    if (real := os.path.realpath(parent)) in seen:
      folders.clear()
      continue
    seen.add(real)
    folders.sort()
    for name in sorted(names):
      stem, suffix = os.path.splitext(name)
      match = _FILE_STEM.fullmatch(stem)
      path = os.path.join(parent, name)
      if match and suffix.lower() in SUFFIXES and os.path.isfile(path):
        found[match[1], int(match[2])].append(path)
  order = {suffix: i for i, suffix in enumerate(SUFFIXES)}
  return {key: sorted(paths, key=lambda path: order[os.path.splitext(path)[1].lower()])
          for key, paths in found.items()}


def _row(cells: dict[str, str], where: str) -> Row:
  def wrong(column, wanted):
    return errors.UserError(f'{where}: {column} is {cells[column][:100]!r}, wanted {wanted}')

  def number(column):
    if not re.fullmatch(r'[0-9]{1,6}', cells[column]):
      raise wrong(column, 'a whole number')
    return int(cells[column])

  def boolean(column):
    if cells[column] not in ('True', 'False'):
      raise wrong(column, 'True or False')
    return cells[column] == 'True'

  if not re.fullmatch(_YTID, cells['ytid']):
    raise wrong('ytid', '11 letters, digits, - or _')
  start, end, caption = number('start_s'), number('end_s'), text.one_line(cells['caption'])
  if not 1 <= end - start <= _MAX_SECONDS:
    raise wrong('end_s', f'1 to {_MAX_SECONDS} more than start_s, {start}')
  if not caption:
    raise wrong('caption', 'a text')
  try:
    aspects = ast.literal_eval(cells['aspect_list'])
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    aspects = None
  if not isinstance(aspects, list) or not all(isinstance(aspect, str) for aspect in aspects):
    raise wrong('aspect_list', "a list of texts, as ['sad', 'piano']")
  labels = (text.one_line(label) for label in cells['audioset_positive_labels'].split(','))
  return Row(ytid=cells['ytid'], start=start, end=end, labels=tuple(filter(None, labels)),
             aspects=tuple(filter(None, map(text.one_line, aspects))), caption=caption,
             author_id=number('author_id'), balanced=boolean('is_balanced_subset'),
             eval=boolean('is_audioset_eval'))
