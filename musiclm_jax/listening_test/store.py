"""L5. Raters and their answers in one SQLite file.

An answer is on the disk before `answer` returns: write-ahead log, flushed at every commit.  All
changes are made within transactions that begin by taking the write lock, so any number of threads
and processes may use the file.  It also holds the key that signs cookies: its mode is 0600.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence

from musiclm_jax import errors
from musiclm_jax.listening_test import assignment, clips

APPLICATION_ID = 0x4D4C4A54  # 'MLJT', in the header of the file
NUM_ANSWERS = 5  # 1 strongly A, 2 weakly A, 3 no preference, 4 weakly B, 5 strongly B
_SLACK_SECONDS = 0.25  # by which a player's count of heard seconds may fall short
_SCHEMA = (
    'CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL)',
    'CREATE TABLE system (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)',
    'CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, caption TEXT NOT NULL,'
    ' seconds REAL NOT NULL)',
    'CREATE TABLE rater (id TEXT PRIMARY KEY, label TEXT NOT NULL, started REAL NOT NULL)',
    'CREATE TABLE task (id TEXT PRIMARY KEY, rater TEXT NOT NULL REFERENCES rater,'
    ' item INTEGER NOT NULL REFERENCES item, a INTEGER NOT NULL REFERENCES system,'
    ' b INTEGER NOT NULL REFERENCES system, issued REAL NOT NULL, answered REAL,'
    f' answer INTEGER CHECK (answer BETWEEN 1 AND {NUM_ANSWERS}), heard_a REAL, heard_b REAL,'
    ' CHECK (a <> b), CHECK ((answer IS NULL) = (answered IS NULL)))',
    'CREATE UNIQUE INDEX task_once ON task (rater, item, min(a, b), max(a, b))',
    'CREATE UNIQUE INDEX task_open ON task (rater) WHERE answer IS NULL',
)


class Refused(Exception):
  """A request that is not honoured, with the status of HTTP that says so; nothing was changed."""

  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status, self.message = status, message


@dataclasses.dataclass(frozen=True)
class Task:
  """A question for one rater."""

  id: str
  item: int
  a: int
  b: int
  caption: str
  seconds: float  # of each of the two clips


@dataclasses.dataclass(frozen=True)
class Answer:
  """What is known of one answer; `a` and `b` are names of systems."""

  rater: str
  label: str  # the rater's own id, as crowd-working sites give one
  item: str
  a: str
  b: str
  answer: int
  seconds: float  # from the question to the answer


class Store:
  """An open database; its methods may be called from any thread."""

  def __init__(self, path: str, limits: assignment.Limits, heard_share: float):
    self._connection = _open(path)
    self._lock, self._limits, self._heard_share = threading.Lock(), limits, heard_share

  def close(self) -> None:
    with self._lock:
      self._connection.close()

  @property
  def key(self) -> str:
    return self._one('SELECT value FROM setting WHERE name = ?', 'key')[0]

  @contextlib.contextmanager
  def _transaction(self) -> Iterator[sqlite3.Connection]:
    with self._lock:
      self._connection.execute('BEGIN IMMEDIATE')
      try:
        yield self._connection
        self._connection.execute('COMMIT')
      finally:
        if self._connection.in_transaction:  # of some errors, SQLite has undone everything itself
          self._connection.execute('ROLLBACK')

  def _one(self, query: str, *values) -> tuple | None:
    with self._lock:
      return self._connection.execute(query, values).fetchone()

  def knows(self, rater: str) -> bool:
    return self._one('SELECT 1 FROM rater WHERE id = ?', rater) is not None

  def start(self, rater: str, label: str) -> None:
    """Adds a rater, once, with a first question."""
    now = time.time()
    with self._transaction() as connection:
      added = connection.execute('INSERT OR IGNORE INTO rater VALUES (?, ?, ?)',
                                 (rater, label, now))
      if added.rowcount:
        self._assign(connection, rater, now)

  def more(self, rater: str) -> None:
    """Gives a rater who has no open question another one, if there is any."""
    if self.current(rater) is None:
      with self._transaction() as connection:
        self._assign(connection, rater, time.time())

  def current(self, rater: str) -> Task | None:
    """Returns the open question."""
    row = self._one('SELECT task.id, item, a, b, caption, seconds FROM task'
                    ' JOIN item ON item.id = item WHERE rater = ? AND answer IS NULL', rater)
    return Task(*row) if row else None

  def num_answers(self, rater: str) -> int:
    return self._one('SELECT count(*) FROM task WHERE rater = ? AND answer IS NOT NULL', rater)[0]

  def most_answers(self) -> int:
    """Returns how many questions one rater can get."""
    items, systems = self._one(
        'SELECT (SELECT count(*) FROM item), (SELECT count(*) FROM system)')
    most = items * (math.comb(systems, 2) if self._limits.repeat_captions else 1)
    return min(most, self._limits.answers_per_rater or most)

  def answer(self, rater: str, task: str, answer: int, heard: tuple[float, float]) -> None:
    """Keeps the answer to a rater's open question and gives the next; Refused when it cannot be.

    The same answer once more, as after a lost reply, is no error and changes nothing.
    """
    now = time.time()
    row = self._one('SELECT answer, issued, seconds FROM task JOIN item ON item.id = item'
                    ' WHERE task.id = ? AND rater = ?', task, rater)
    if row is None:
      raise Refused(404, 'This is not one of your questions.')
    given, issued, seconds = row
    if given is not None:
      if given == answer:
        return
      raise Refused(409, 'This question has been answered already.')
    if answer not in range(1, NUM_ANSWERS + 1):
      raise Refused(400, 'This is not one of the answers.')
    wanted = self._heard_share * seconds
    if not all(wanted - _SLACK_SECONDS <= each <= seconds + 1 for each in heard):
      raise Refused(400, 'Please listen to both clips before answering.')
    if now - issued < 2 * wanted:
      raise Refused(400, 'This answer came before both clips could have been heard.')
    with self._transaction() as connection:
      changed = connection.execute(
          'UPDATE task SET answer = ?, answered = ?, heard_a = ?, heard_b = ?'
          ' WHERE id = ? AND rater = ? AND answer IS NULL', (answer, now, *heard, task, rater))
      if not changed.rowcount:
        raise Refused(409, 'This question has been answered already.')
      self._assign(connection, rater, now)

  def _assign(self, connection: sqlite3.Connection, rater: str, now: float) -> None:
    choice = assignment.choose(connection, rater, now, self._limits)
    if choice:
      connection.execute(
          'INSERT OR IGNORE INTO task (id, rater, item, a, b, issued) VALUES (?, ?, ?, ?, ?, ?)',
          (secrets.token_urlsafe(16), rater, choice.item, choice.a, choice.b, now))

  def clip(self, rater: str, task: str, side: str) -> tuple[int, int] | None:
    """Returns (item, system) of the clip that a rater's question has as side 'a' or 'b'."""
    row = self._one('SELECT item, a, b FROM task WHERE id = ? AND rater = ?', task, rater)
    return (row[0], row['ab'.index(side) + 1]) if row else None


def create(path: str, systems: Sequence[str], items: Sequence[clips.Prepared]) -> None:
  """Makes the database of a test, unless it is there; that of another test is an error."""
  fingerprint = _fingerprint(systems, items)
  if os.path.exists(path):
    with contextlib.closing(_open(path)) as connection:
      found = connection.execute("SELECT value FROM setting WHERE name = 'test'").fetchone()
    if found != (fingerprint,):
      raise errors.UserError(f'{path} belongs to a test of other systems, captions or clips: '
                             'wanted the flags that it was made with, or another file')
    return
  folder = os.path.dirname(os.path.abspath(path))
  if not os.path.isdir(folder):
    raise errors.UserError(f'{path} cannot be made: {folder} is not a directory')
  # Whole or not at all: made under another name and then linked, which never replaces a file.
  draft = f'{path}.{secrets.token_hex(8)}.tmp'
  try:
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
      _fill(connection, systems, items, fingerprint)
    os.link(draft, path)
  except FileExistsError:
    raise errors.UserError(f'{path} is being made by another process; try again') from None
  finally:
    pathlib.Path(draft).unlink(missing_ok=True)


def _fill(connection, systems, items, fingerprint: str) -> None:
  connection.execute(f'PRAGMA application_id = {APPLICATION_ID}')
  connection.execute('BEGIN')
  for statement in _SCHEMA:
    connection.execute(statement)
  connection.executemany('INSERT INTO setting VALUES (?, ?)',
                         [('test', fingerprint), ('key', secrets.token_hex(32))])
  connection.executemany('INSERT INTO system VALUES (?, ?)', enumerate(systems))
  connection.executemany(
      'INSERT INTO item VALUES (?, ?, ?, ?)',
      ((i, item.name, item.caption, item.seconds) for i, item in enumerate(items)))
  connection.execute('COMMIT')


def _fingerprint(systems, items) -> str:
  """Returns a digest of all that raters are asked, samples included."""
  digest = hashlib.sha256(json.dumps(list(systems)).encode())
  for item in items:
    digest.update(json.dumps([item.name, item.caption]).encode())
    for path in item.files:
      digest.update(hashlib.sha256(path.read_bytes()).digest())
  return digest.hexdigest()


def _open(path: str) -> sqlite3.Connection:
  if not os.path.isfile(path):
    raise errors.UserError(f'{path} does not exist, wanted the database of a listening test')
  try:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    found = connection.execute('PRAGMA application_id').fetchone()[0]
    if found != APPLICATION_ID:
      connection.close()
      raise errors.UserError(f'{path} is not the database of a listening test')
    for pragma in ('journal_mode = WAL', 'synchronous = FULL', 'foreign_keys = ON',
                   'trusted_schema = OFF'):
      connection.execute(f'PRAGMA {pragma}')
  except sqlite3.DatabaseError as error:
    raise errors.UserError(f'{path} cannot be opened as the database of a listening test: {error}'
                           ) from None
  return connection


def read(path: str) -> tuple[list[str], list[Answer]]:
  """Returns (names of the systems, all answers in the order they came)."""
  with contextlib.closing(_open(path)) as connection:
    try:
      connection.execute('BEGIN')  # one state of the file for both
      systems = list(itertools.chain(*connection.execute('SELECT name FROM system ORDER BY id')))
      rows = connection.execute(
          'SELECT rater.id, rater.label, item.name, a.name, b.name, answer, answered - issued'
          ' FROM task JOIN rater ON rater.id = rater JOIN item ON item.id = item'
          ' JOIN system AS a ON a.id = task.a JOIN system AS b ON b.id = task.b'
          ' WHERE answer IS NOT NULL ORDER BY answered, task.id').fetchall()
    except sqlite3.DatabaseError as error:
      raise errors.UserError(f'{path} cannot be read: {error}') from None
  return systems, [Answer(*row) for row in rows]
