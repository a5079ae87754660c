"""L5. Which two clips a rater hears next.

Balanced from the outside in: of the pairs of systems the one with the fewest answers, then of its
captions the one with the fewest, then the order of A and B that came less often; ties by chance.
Questions that are open count as answers for RESERVED_SECONDS, so that raters who answer at the
same time get different ones; afterwards others may get them, too.
"""

import dataclasses
import itertools
import random
import sqlite3

RESERVED_SECONDS = 1800.0


@dataclasses.dataclass(frozen=True)
class Limits:
  """When a test, or a rater's part of it, is over; 0 is no limit."""

  answers_per_pair: int = 0  # of two systems, over all captions
  answers_per_rater: int = 0
  repeat_captions: bool = False  # the same rater may hear a caption again, from other systems


@dataclasses.dataclass(frozen=True)
class Choice:
  item: int
  a: int  # system heard as A
  b: int


def choose(connection: sqlite3.Connection, rater: str, now: float, limits: Limits) -> Choice | None:
  """Returns the next pair of clips for a rater, None when there is none; within a transaction."""
  since = now - RESERVED_SECONDS
  done = connection.execute(
      'SELECT count(*) FROM task WHERE rater = ? AND answer IS NOT NULL', (rater,)).fetchone()[0]
  if limits.answers_per_rater and done >= limits.answers_per_rater:
    return None
  systems = [system for system, in connection.execute('SELECT id FROM system ORDER BY id')]
  taken = {(low, high): (count, in_order) for low, high, count, in_order in connection.execute(
      'SELECT min(a, b), max(a, b), count(*), sum(a < b) FROM task'
      ' WHERE answer IS NOT NULL OR issued > ? GROUP BY 1, 2', (since,))}
  pairs = [(*taken.get(pair, (0, 0)), pair) for pair in itertools.combinations(systems, 2)]
  random.shuffle(pairs)
  for count, in_order, (low, high) in sorted(pairs, key=lambda each: each[0]):
    if limits.answers_per_pair and count >= limits.answers_per_pair:
      continue
    item = _item(connection, rater, low, high, since, limits.repeat_captions)
    if item is not None:
      flip = random.random() < 0.5 if 2 * in_order == count else 2 * in_order > count
      return Choice(item, high, low) if flip else Choice(item, low, high)
  return None


def _item(connection, rater: str, low: int, high: int, since: float, repeat: bool) -> int | None:
  """Returns the least heard caption that is new to the rater, at least with these two systems."""
  row = connection.execute(
      'SELECT item.id FROM item'
      ' LEFT JOIN (SELECT item, count(*) AS heard, sum(min(a, b) = :low AND max(a, b) = :high)'
      '            AS as_pair FROM task WHERE answer IS NOT NULL OR issued > :since GROUP BY item)'
      '   AS every ON every.item = item.id'
      ' LEFT JOIN (SELECT item, count(*) AS heard, sum(min(a, b) = :low AND max(a, b) = :high)'
      '            AS as_pair FROM task WHERE rater = :rater GROUP BY item)'
      '   AS own ON own.item = item.id'
      ' WHERE own.heard IS NULL OR (:repeat AND own.as_pair = 0)'
      ' ORDER BY coalesce(own.heard, 0), coalesce(every.as_pair, 0), coalesce(every.heard, 0),'
      '   random() LIMIT 1',
      {'rater': rater, 'low': low, 'high': high, 'since': since, 'repeat': repeat}).fetchone()
  return row[0] if row else None
