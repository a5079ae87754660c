"""L3. Texts that change over time: the story mode of MusicLM (section 6)."""

import csv
import dataclasses
import json
import os
import re
from collections.abc import Iterable

from musiclm_jax import errors

SECTION_SECONDS = 15  # of the paper
_INLINE = re.compile(r'\s*(\d[\d:.]*)\s+(\S.*?)\s*', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Story:
  """Texts, each from its start second to the start of the next one; the first starts at 0.

    Story(((0, 'calm piano'), (15, 'drums enter')))

  overlap: seconds of the music before that the stages hear where a section begins; None for as much
    as they always do (half a window, as in the paper). Less makes changes clearer.
  """

  sections: tuple[tuple[int, str], ...]
  overlap: int | None = None

  def __post_init__(self):
    starts = self.starts
    if self.overlap is not None and self.overlap < 0:
      raise errors.UserError(f'the overlap is {self.overlap} s, wanted 0 or more')
    if not starts or starts[0] != 0:
      raise errors.UserError(f'the story starts at {starts[0] if starts else "no"} s, wanted 0:00')
    for before, after in zip(starts, starts[1:], strict=False):
      if after <= before:
        raise errors.UserError(
            f'the story has a section at {after} s after one at {before} s, wanted later ones only')

  @property
  def starts(self) -> tuple[int, ...]:
    return tuple(start for start, _ in self.sections)

  @property
  def texts(self) -> tuple[str, ...]:
    return tuple(text for _, text in self.sections)

  @property
  def seconds(self) -> int:
    """Returns a length that gives the last section as much time as the paper's have."""
    return self.starts[-1] + SECTION_SECONDS

  def text_at(self, second: int) -> str:
    """Returns the text of the section that `second` lies in."""
    return [text for start, text in self.sections if start <= second][-1]


def load(story: str, overlap: int | None = None) -> Story:
  """Returns a story: of a tsv, csv or json file, or as it is written on a command line.

    '0:00 calm piano; 0:15 drums enter'
    tsv, csv:  start and text in each line, with or without these two words as a header
    json:      [{"start": 0, "text": "calm piano"}, ..] or [[0, "calm piano"], ..]
  """
  if os.path.isfile(story):
    return Story(tuple((_second(start), text) for start, text in _rows_of_file(story)), overlap)
  sections = [_INLINE.fullmatch(part) for part in story.split(';') if part.strip()]
  if not sections or not all(sections):
    raise errors.UserError(f'story {story[:80]!r} is neither a file nor of the form '
                           '"0:00 calm piano; 0:15 drums enter"')
  return Story(tuple((_second(match[1]), match[2]) for match in sections), overlap)


def _rows_of_file(path: str) -> Iterable[tuple]:
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      if path.lower().endswith('.json'):
        rows = [(row['start'], row['text']) if isinstance(row, dict) else tuple(row)
                for row in json.load(file)]
      else:
        rows = [tuple(row) for row in csv.reader(
            file, delimiter=',' if path.lower().endswith('.csv') else '\t') if any(row)]
        rows = rows[1:] if rows and rows[0] == ('start', 'text') else rows
  except (ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
    raise errors.UserError(f'{path} is no story of starts and texts: {error}') from error
  for row in rows:
    if len(row) != 2 or not isinstance(row[1], str):
      raise errors.UserError(f'{path}: {str(row)[:80]} is no section, wanted a start and a text')
  return rows


def _second(start: str | float) -> int:
  """Returns the whole second of '1:02:03', '0:15', '15' or 15."""
  parts = str(start).strip().split(':')
  try:
    numbers = [float(part) for part in parts]
    second = sum(number * 60 ** place for place, number in enumerate(reversed(numbers)))
    if len(parts) > 3 or min(numbers) < 0 or second % 1 or isinstance(start, bool):
      raise ValueError
  except ValueError:
    raise errors.UserError(f'the story has a section at {str(start)[:40]!r}, wanted whole seconds: '
                           'm:ss or a number') from None
  return int(second)
