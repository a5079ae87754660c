"""Questions are dealt evenly, once to each rater, and answers are kept, under threads, too."""

import collections
import concurrent.futures
import contextlib
import itertools
import math
import os
import pathlib
import sqlite3
import stat

import pytest

from musiclm_jax import errors
from musiclm_jax.listening_test import assignment, clips, store

SYSTEMS = ('ours', 'mubert', 'riffusion', 'truth')
PAIRS = list(itertools.combinations(range(4), 2))


@pytest.fixture
def make(tmp_path):
  """Returns a function of a number of captions and limits: an open store at no waiting times."""
  with contextlib.ExitStack() as stack:

    def made(num_items=10, seconds=1e-6, **limits):
      (tmp_path / 'clip.wav').write_bytes(b'sound')
      items = [clips.Prepared(f'i{i}', f'caption {i}', seconds, (tmp_path / 'clip.wav',) * 4)
               for i in range(num_items)]
      path = str(tmp_path / 'test.sqlite')
      store.create(path, SYSTEMS, items)
      opened = store.Store(path, assignment.Limits(**limits), 1.0)
      stack.callback(opened.close)
      return opened

    yield made


def answer_all(opened, rater, most=math.inf):
  """Answers what a rater gets; returns the questions."""
  opened.start(rater, '')
  tasks = []
  while len(tasks) < most and (task := opened.current(rater)):
    opened.answer(rater, task.id, 2, (task.seconds, task.seconds))
    tasks.append(task)
  return tasks


def pair(task):
  return min(task.a, task.b), max(task.a, task.b)


def dealt(folder):
  """Returns [(pair of systems, caption, whether in order)] of all questions, open ones included."""
  with sqlite3.connect(folder / 'test.sqlite') as database:
    rows = database.execute('SELECT a, b, item FROM task').fetchall()
  return [((min(a, b), max(a, b)), item, a < b) for a, b, item in rows]


def spread(counts, of=PAIRS):
  """Returns how far the highest count is above the lowest."""
  return max(counts[each] for each in of) - min(counts[each] for each in of)


def test_pairs_captions_and_sides_are_balanced(make, tmp_path):
  opened = make(num_items=10)
  for i in range(23):
    answer_all(opened, f'r{i}', most=7)
  questions = dealt(tmp_path)
  assert len(questions) == 23 * 8
  assert spread(collections.Counter(pair for pair, _, _ in questions)) <= 1
  cells = collections.Counter((pair, item) for pair, item, _ in questions)
  # Not 1: what is left to a rater may have been heard by others.
  assert spread(cells, of=list(itertools.product(PAIRS, range(10)))) <= 4
  for each in PAIRS:
    sides = collections.Counter(in_order for pair, _, in_order in questions if pair == each)
    assert abs(sides[True] - sides[False]) <= 1


def test_a_rater_hears_a_caption_once(make):
  opened = make(num_items=10)
  for rater in ('one', 'two', 'three'):
    tasks = answer_all(opened, rater)
    assert sorted(task.item for task in tasks) == list(range(10)) and opened.most_answers() == 10
    opened.more(rater)
    assert opened.current(rater) is None


def test_or_once_with_each_pair_of_systems(make):
  opened = make(num_items=3, repeat_captions=True)
  tasks = answer_all(opened, 'one')
  assert len({(pair(task), task.item) for task in tasks}) == len(tasks) == opened.most_answers() == 18
  assert sorted(task.item for task in tasks[:3]) == [0, 1, 2]  # other captions first


def test_limits(make):
  opened = make(num_items=10, answers_per_pair=3, answers_per_rater=4)
  tasks = [answer_all(opened, f'r{i}') for i in range(6)]
  assert [len(each) for each in tasks] == [4, 4, 4, 4, 2, 0]
  assert set(collections.Counter(map(pair, itertools.chain(*tasks))).values()) == {3}


def test_open_questions_are_reserved_for_a_while_and_stay_their_raters(make, monkeypatch):
  opened = make(num_items=10, answers_per_pair=1)
  for i in range(7):
    opened.start(f'r{i}', '')
  current = [opened.current(f'r{i}') for i in range(7)]
  assert {pair(task) for task in current[:6]} == set(PAIRS) and current[6] is None
  now = store.time.time()
  monkeypatch.setattr(store.time, 'time', lambda: now + assignment.RESERVED_SECONDS + 1)
  opened.more('r6')
  assert opened.current('r6') is not None
  opened.answer('r0', current[0].id, 5, (0, 0))
  assert opened.num_answers('r0') == 1


def test_many_threads_at_once(make, tmp_path):
  opened = make(num_items=12)
  raters = [f'r{i}' for i in range(24)]
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    tasks = list(itertools.chain(*pool.map(lambda rater: answer_all(opened, rater, 5), raters)))
  systems, answers = store.read(str(tmp_path / 'test.sqlite'))
  assert tuple(systems) == SYSTEMS and len(answers) == len(tasks) == 24 * 5
  assert collections.Counter(SYSTEMS[task.a] for task in tasks) == collections.Counter(
      answer.a for answer in answers)
  assert spread(collections.Counter(pair for pair, _, _ in dealt(tmp_path))) <= 1


def test_what_is_refused_changes_nothing(make, tmp_path):
  opened = make(num_items=3, seconds=10.0)
  opened.start('one', '')
  opened.start('two', '')
  task = opened.current('one')
  cases = [
      ('two', task.id, 1, (10, 10), 404), ('one', 'other', 1, (10, 10), 404),
      ('one', task.id, 0, (10, 10), 400), ('one', task.id, 6, (10, 10), 400),
      ('one', task.id, 1, (10, 9), 400), ('one', task.id, 1, (math.nan, 10), 400),
      ('one', task.id, 1, (math.inf, 10), 400),
      ('one', task.id, 1, (10, 10), 400),  # too early
  ]  # fmt: skip
  before = pathlib.Path(tmp_path / 'test.sqlite-wal').read_bytes()
  for rater, name, value, heard, status in cases:
    with pytest.raises(store.Refused) as refused:
      opened.answer(rater, name, value, heard)
    assert refused.value.status == status
  assert opened.current('one') == task
  assert pathlib.Path(tmp_path / 'test.sqlite-wal').read_bytes() == before


def test_an_answer_twice_counts_once_and_cannot_be_changed(make):
  opened = make()
  opened.start('one', '')
  task = opened.current('one')
  for _ in range(2):
    opened.answer('one', task.id, 4, (0, 0))
  with pytest.raises(store.Refused, match='answered already') as refused:
    opened.answer('one', task.id, 5, (0, 0))
  assert refused.value.status == 409 and opened.num_answers('one') == 1


def test_a_full_disk_takes_no_answer_and_is_got_over(make):
  opened = make(num_items=400)
  opened.start('one', '')
  pages, = opened._one('PRAGMA page_count')
  opened._one(f'PRAGMA max_page_count = {pages}')
  with pytest.raises(sqlite3.OperationalError, match='full'):
    for _ in range(400):
      task, before = opened.current('one'), opened.num_answers('one')
      opened.answer('one', task.id, 1, (0, 0))
  assert opened.current('one') == task and opened.num_answers('one') == before
  opened._one('PRAGMA max_page_count = 100000')
  opened.answer('one', task.id, 1, (0, 0))
  assert opened.num_answers('one') == before + 1 and opened.current('one') != task


def test_database_is_private_durable_and_of_one_test(make, tmp_path):
  opened, path = make(num_items=4), str(tmp_path / 'test.sqlite')
  answer_all(opened, 'one')
  key = opened.key
  assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
  with sqlite3.connect(path) as other:
    assert other.execute('PRAGMA journal_mode').fetchone() == ('wal',)
  assert opened._one('PRAGMA synchronous') == (2,)  # FULL
  again = make(num_items=4)
  assert again.key == key and again.num_answers('one') == 4
  with pytest.raises(errors.UserError, match='belongs to a test of other systems, captions or clips'):
    make(num_items=5)
  assert not list(tmp_path.glob('*.tmp'))


def test_other_files_are_no_databases(tmp_path):
  (tmp_path / 'text').write_text('no database ' * 100)
  with sqlite3.connect(tmp_path / 'other') as other:
    other.execute('CREATE TABLE task (a)')
  for name, wanted in (('text', 'cannot be opened as the database of a listening test'),
                       ('none', 'does not exist'),
                       ('other', 'is not the database of a listening test')):
    with pytest.raises(errors.UserError, match=wanted):
      store.read(str(tmp_path / name))
  with pytest.raises(errors.UserError, match='is not a directory'):
    store.create(str(tmp_path / 'a' / 'b'), SYSTEMS, [])
