"""No acknowledged answer is lost: many raters at once, and the server killed at work."""

import asyncio
import random
import sqlite3
import time

import pytest

httpx = pytest.importorskip('httpx')

NUM_ITEMS = 8
OPEN_DOORS = ['--requests_per_minute=10000000', '--starts_per_hour=10000000']


def kept(folder):
  """Returns {task: answer} of the database."""
  with sqlite3.connect(folder / 'test.sqlite') as database:
    assert database.execute('PRAGMA integrity_check').fetchone() == ('ok',)
    return dict(database.execute('SELECT id, answer FROM task WHERE answer IS NOT NULL'))


async def _until_killed(rater, answers, most):
  """Goes on as long as there is a server."""
  try:
    await rater.answer_all(most, answers, lambda a, b: random.randint(1, 5))
  except httpx.TransportError:
    pass


async def _work_and_kill(url, process, raters, answers):
  """Kills the server while raters, those given or new ones, answer."""
  for rater in raters:
    rater.client = httpx.AsyncClient(base_url=url, timeout=60, cookies=rater.client.cookies)
    if await rater.look() is None and 'Thank you' not in rater.page:
      await rater.start()
  work = asyncio.gather(*(_until_killed(rater, answers, 999) for rater in raters))
  enough = len(answers) + len(raters)
  while len(answers) < enough and not work.done():
    await asyncio.sleep(0.01)
  await asyncio.sleep(random.random())  # at any moment of what they do
  process.kill()
  await work
  for rater in raters:
    await rater.client.aclose()


def _kill(trial, folder, num_raters, num_kills, num_items=NUM_ITEMS):
  flags = [*trial.make_test(folder, num_items), *OPEN_DOORS, '--repeat_captions']
  raters = [trial.Rater('http://localhost', num_items) for _ in range(num_raters)]
  answers = []
  for _ in range(num_kills):
    with trial.serving(flags) as (url, process):
      asyncio.run(_work_and_kill(url, process, raters, answers))
    acknowledged = {task: answer for task, answer, *_ in answers}
    found = kept(folder)
    assert len(acknowledged) == len(answers) and acknowledged.items() <= found.items()
  with trial.serving(flags) as (url, _):  # everyone goes on
    for rater in raters:
      page = httpx.get(url, cookies=rater.client.cookies).text
      assert 'name="task"' in page or 'Thank you' in page
  return answers


def test_kill_loses_no_acknowledged_answer(trial, tmp_path):
  _kill(trial, tmp_path, num_raters=5, num_kills=1)


@pytest.mark.slow
def test_ten_kills_lose_no_acknowledged_answer(trial, tmp_path):
  answers = _kill(trial, tmp_path, num_raters=30, num_kills=10, num_items=40)
  print(f'{len(answers)} acknowledged answers, 10 kills')


def _crowd(trial, folder, num_raters, most):
  """Has raters answer at the same time; returns what they were told was kept."""
  answers = []

  async def everyone(url):
    raters = [trial.Rater(url, NUM_ITEMS) for _ in range(num_raters)]

    async def one(rater):
      await rater.start()
      await rater.answer_all(most, answers, lambda a, b: random.randint(1, 5))

    await asyncio.gather(*map(one, raters))
    for rater in raters:
      await rater.client.aclose()

  with trial.serving([*trial.make_test(folder, NUM_ITEMS), *OPEN_DOORS]) as (url, _):
    asyncio.run(everyone(url))
  return answers


def _check(trial, folder, answers, num_raters, most):
  assert len(answers) == num_raters * most
  assert kept(folder) == {task: answer for task, answer, *_ in answers}
  with sqlite3.connect(folder / 'test.sqlite') as database:
    names = dict(database.execute('SELECT id, name FROM system'))
    found = {task: (names[a], names[b], item) for task, a, b, item in database.execute(
        'SELECT id, a, b, item FROM task')}
    twice = database.execute('SELECT 1 FROM task GROUP BY rater, item HAVING count(*) > 1').fetchall()
    counts = [count for count, in database.execute(
        'SELECT count(*) FROM task GROUP BY min(a, b), max(a, b)')]
  assert all(found[task] == (a, b, item) for task, _, a, b, item in answers)  # what was heard is kept
  assert not twice and max(counts) - min(counts) <= 1


def test_raters_at_the_same_time_lose_no_answer(trial, tmp_path):
  _check(trial, tmp_path, _crowd(trial, tmp_path, 12, 2), 12, 2)


@pytest.mark.slow
def test_200_raters_at_the_same_time_lose_no_answer(trial, tmp_path):
  since = time.monotonic()
  answers = _crowd(trial, tmp_path, 200, NUM_ITEMS)
  print(f'{len(answers)} answers of 200 raters in {time.monotonic() - since:.0f} s')
  _check(trial, tmp_path, answers, 200, NUM_ITEMS)
