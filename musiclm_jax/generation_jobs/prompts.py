"""The prompts of a batch job, from a table; and how they are dealt out.

  id      prompt                          seed   seconds       (the last two where wanted)
  calm    A calm solo piano piece         7      20

tsv, csv or jsonl in UTF-8; the prompt may also be called caption or text, and the public csv of
MusicCaps is read as it is (id: ytid_start).  Without an id a row gets one made of its prompt.
A row that cannot be used is named with its line and the reason, and left out.
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from musiclm_jax import errors, generate

PROMPT_COLUMNS = ('prompt', 'caption', 'text')
MAX_SEED = 2**31 - 1
SUFFIXES = ('.tsv', '.csv', '.jsonl')
_PLAIN = re.compile(r'[A-Za-z0-9_-]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?')
# Names that Windows does not take, and those of the job's own files.
_RESERVED = re.compile(r'(con|prn|aux|nul|com\d|lpt\d)(\..*)?|job|summary-.*', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One row: what is to be made, and `name`, its files' name without the suffix."""

  id: str
  name: str
  text: str
  seconds: float
  seed: int | None
  line: int


@dataclasses.dataclass(frozen=True)
class Rejected:
  """A row that is left out: its line in the file, its id as far as it has one, and the reason."""

  line: int
  id: str
  reason: str


def parse(content: bytes, path: str, seconds: float) -> tuple[list[Prompt], list[Rejected]]:
  """Returns (prompts in the file's order, rows left out); `seconds` for rows that name none."""
  suffix = os.path.splitext(path)[1].lower()
  if suffix not in SUFFIXES:
    raise errors.UserError(f'{path} ends with {suffix!r}, wanted one of {" ".join(SUFFIXES)}')
  text = content.removeprefix(b'\xef\xbb\xbf').decode('utf-8', errors='surrogateescape')
  read = {'.tsv': _tsv_rows, '.csv': _csv_rows, '.jsonl': _jsonl_rows}[suffix]
  rows = list(read(text))
  if not rows:
    raise errors.UserError(f'{path} holds no prompts')
  columns = list(dict.fromkeys(name for _, row, _ in rows for name in row))
  if not any(name in columns for name in PROMPT_COLUMNS):
    raise errors.UserError(f'{path} has columns {_shortened(columns)}, wanted one called '
                           f'{", ".join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]}')
  found, rejected = _named(rows, columns, seconds)
  if not found:
    raise errors.UserError(f'{path}: none of {len(rows)} rows can be used; the first: '
                           f'line {rejected[0].line}: {rejected[0].reason}')
  return found, rejected


def _named(rows, columns: Sequence[str], seconds: float) -> tuple[list[Prompt], list[Rejected]]:
  """Returns (prompts, rejected rows): no id comes twice, and no two names differ in case alone."""
  found, rejected, lines, taken = [], [], {}, set()
  for line, row, problem in rows:
    given = ''
    try:
      if problem:
        raise errors.UserError(problem)
      given = _id(row, columns)
      prompt = _prompt(given, row, columns, seconds, line)
      if prompt.id in lines:
        raise errors.UserError(f'the id is that of line {lines[prompt.id]} already')
      if prompt.name.casefold() in taken:  # ids that a file system may not tell apart
        prompt = dataclasses.replace(prompt, name=_hashed(prompt.id))
      if prompt.name.casefold() in taken:
        raise errors.UserError(f'the file name {prompt.name} is taken already')
    except errors.UserError as error:
      rejected.append(Rejected(line, _printable(given), str(error)))
      continue
    lines[prompt.id] = line
    taken.add(prompt.name.casefold())
    found.append(prompt)
  return found, rejected


def _id(row: dict[str, Any], columns: Sequence[str]) -> str:
  """Returns what the row says of its id, '' where it says nothing."""
  if 'id' not in columns and {'ytid', 'start_s'} <= set(columns):  # MusicCaps
    parts = [str(row.get(name, '')).strip() for name in ('ytid', 'start_s')]
    return '_'.join(parts) if parts[0] else ''
  given = row.get('id', '')
  if given is None:
    return ''
  if isinstance(given, bool) or not isinstance(given, str | int):
    raise errors.UserError(f'the id is {_shortened(given)}, wanted a text')
  return str(given).strip()


def _prompt(given: str, row: dict[str, Any], columns: Sequence[str], seconds: float, line: int
            ) -> Prompt:
  column = next(name for name in PROMPT_COLUMNS if name in columns)
  text = row.get(column, '')
  if not isinstance(text, str):
    raise errors.UserError(f'{column} is {_shortened(text)}, wanted a text')
  text = text.strip()
  for what, value in ((column, text), ('id', given)):
    if _printable(value) != value:
      raise errors.UserError(f'the {what} is not UTF-8')
  length = _number(row, 'seconds', float)
  length = seconds if length is None else length
  generate.check_request([text], length)
  seed = _number(row, 'seed', int)
  if seed is not None and not 0 <= seed <= MAX_SEED:
    raise errors.UserError(f'seed is {seed}, wanted 0 to {MAX_SEED}')
  given = given or _hashed(text)
  return Prompt(given, file_name(given), text, length, seed, line)


def _number(row: dict[str, Any], name: str, kind: type) -> Any:
  """Returns the number in a column, None where there is none."""
  value = row.get(name)
  if value is None or value == '':
    return None
  try:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
      raise ValueError
    number = kind(value)
    if kind is int and not isinstance(value, str) and number != value:
      raise ValueError
    return number
  except (ValueError, OverflowError):
    wanted = 'a whole number' if kind is int else 'a number'
    raise errors.UserError(f'{name} is {_shortened(value)}, wanted {wanted}') from None


def file_name(prompt_id: str) -> str:
  """Returns the id itself where it makes a good file name anywhere, else a name made of it.

    file_name('-0Gj8-vB1q4_30') == '-0Gj8-vB1q4_30'    file_name('../a b') == 'a-b-2c2c791a06'
  """
  if _PLAIN.fullmatch(prompt_id) and not _RESERVED.fullmatch(prompt_id):
    return prompt_id
  return _hashed(prompt_id)


def _hashed(text: str) -> str:
  words = re.sub('[^A-Za-z0-9]+', '-', text).strip('-')[:40].strip('-')
  digest = hashlib.sha256(text.encode()).hexdigest()[:10]
  return f'{words}-{digest}' if words else digest


def batches(prompts: Sequence[Prompt], size: int) -> list[tuple[int, list[Prompt]]]:
  """Returns [(whole seconds, at most `size` prompts)]: those of one length in the list's order.

  A function of the list alone, so that who makes a batch, and when, does not change what is in it.
  """
  buckets = {}
  for prompt in prompts:
    buckets.setdefault(math.ceil(prompt.seconds), []).append(prompt)
  return [(seconds, members[start : start + size]) for seconds, members in buckets.items()
          for start in range(0, len(members), size)]


def _tsv_rows(text: str) -> Iterator[tuple[int, dict[str, Any], str]]:
  """Yields (line, row, what is wrong with it); a quotation mark within a cell is just one."""
  lines = text.replace('\r\n', '\n').replace('\r', '\n').split('\n')
  cells = ((number, [_unquoted(cell) for cell in line.split('\t')])
           for number, line in enumerate(lines, 1) if line.strip())
  yield from _under_header(cells)


def _unquoted(cell: str) -> str:
  """Returns the cell without the quotation marks that spreadsheets put around some."""
  inner = cell[1:-1]
  if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', ''):
    return inner.replace('""', '"')
  return cell


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any], str]]:
  reader = csv.reader(io.StringIO(text, newline=''))

  def cells() -> Iterator[tuple[int, list[str] | str]]:
    while True:
      line = reader.line_num + 1
      try:
        row = next(reader)
      except StopIteration:
        return
      except csv.Error as error:
        yield line, str(error)
      else:
        if any(cell.strip() for cell in row):
          yield line, row

  yield from _under_header(cells())


def _under_header(rows: Iterator[tuple[int, list[str] | str]]
                  ) -> Iterator[tuple[int, dict[str, Any], str]]:
  header = None
  for line, cells in rows:
    if isinstance(cells, str):
      yield line, {}, cells
    elif header is None:
      header = [cell.strip().lower() for cell in cells]
    elif len(cells) > len(header):
      yield line, dict.fromkeys(header, ''), f'the row has {len(cells)} cells, the header {len(header)}'
    else:
      yield line, dict.fromkeys(header, '') | dict(zip(header, cells, strict=False)), ''


def _jsonl_rows(text: str) -> Iterator[tuple[int, dict[str, Any], str]]:
  for number, line in enumerate(text.split('\n'), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      if not isinstance(row, dict):
        raise ValueError
      yield number, row, ''
    except (ValueError, RecursionError):
      yield number, {}, 'the line is not a JSON object'


def _printable(text: str) -> str:
  """Returns the text without what no UTF-8 file can hold."""
  return re.sub('[\ud800-\udfff]', '', text)


def _shortened(value: Any) -> str:
  shown = _printable(repr(value))
  return shown if len(shown) <= 80 else shown[:79] + '…'
