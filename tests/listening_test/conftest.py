"""A small listening test, its server in a process of its own, and raters who know what they hear."""

import asyncio
import contextlib
import csv
import html
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from musiclm_jax import audio

ROOT = pathlib.Path(__file__).resolve().parents[2]
SYSTEMS = ('ours', 'mubert', 'ground_truth')
TOKEN = 'correct-horse-battery'
SECONDS = 0.3


def make_test(folder: pathlib.Path, num_items: int, seconds: float = SECONDS) -> list[str]:
  """Writes captions and clips whose samples tell system and caption; returns flags of the tool."""
  names = [f'piece_{i}' for i in range(num_items)]
  for number, system in enumerate(SYSTEMS):
    (folder / system).mkdir(parents=True)
    for i, name in enumerate(names):
      suffix = '.flac' if system == 'mubert' else '.wav'
      length = round((seconds + 0.1 * number) * audio.SAMPLE_RATE)
      level = (number * num_items + i + 1) / 32768
      audio.write(folder / system / (name + suffix), np.full(length, level, np.float32))
  with open(folder / 'captions.csv', 'w', newline='', encoding='utf-8') as f:
    writer = csv.writer(f)
    writer.writerow(['id', 'caption'])
    writer.writerows([name, f'<b>Calm</b> & "slow" {name}'] for name in names)
  return ['serve', f'--captions={folder}/captions.csv', f'--ground_truth={folder}/ground_truth',
          *(f'--systems={name}={folder}/{name}' for name in SYSTEMS[:2]),
          f'--database={folder}/test.sqlite', '--port=0', f'--seconds={seconds}']


@contextlib.contextmanager
def serving(flags):
  """Gives (url, process) of a server; it is stopped at the end."""
  process = subprocess.Popen(
      [sys.executable, str(ROOT / 'tools' / 'listening_test.py'), *flags], cwd=ROOT, text=True,
      stderr=subprocess.PIPE, env=dict(os.environ, LISTENING_TEST_ADMIN_TOKEN=TOKEN))
  try:
    lines = []
    while not (lines and (found := re.search(r'http://[^/]+:\d+', lines[-1]))):
      lines.append(process.stderr.readline())
      assert lines[-1], f'no server: {lines}'
    yield found[0], process
  finally:
    process.terminate()
    process.wait(20)
    process.stderr.close()


class Rater:
  """One browser, as far as the server can tell."""

  def __init__(self, url: str, num_items: int):
    import httpx

    self.num_items = num_items
    self.client = httpx.AsyncClient(base_url=url, timeout=60)
    self.page = ''

  async def look(self) -> str | None:
    """Loads the page; returns the id of the open question."""
    reply = await self.client.get('/')
    assert reply.status_code == 200, reply.text
    self.page = reply.text
    found = re.search(r'name="task" value="([^"]+)"', self.page)
    return found[1] if found else None

  def token(self) -> str:
    return re.search(r'name="form_token" value="([^"]+)"', self.page)[1]

  def caption(self) -> str:
    return html.unescape(re.search(r'<blockquote id="caption">(.*)</blockquote>', self.page)[1])

  async def start(self, label: str = '') -> None:
    await self.look()
    reply = await self.client.post('/start', data={'form_token': self.token(), 'label': label})
    assert reply.status_code == 303, reply.text

  async def hear(self, task: str, side: str) -> tuple[str, int]:
    """Returns (system, number of the caption) of a clip."""
    reply = await self.client.get(f'/audio/{task}/{side}')
    assert reply.status_code == 200, reply.text
    level = int(np.frombuffer(reply.content[44:46], '<i2')[0]) - 1
    return SYSTEMS[level // self.num_items], level % self.num_items

  def form(self, task: str, answer: int) -> dict:
    return {'form_token': self.token(), 'task': task, 'answer': answer,
            'heard_a': SECONDS, 'heard_b': SECONDS}

  async def answer_all(self, most: int, answers: list, choose) -> None:
    """Answers up to `most` questions; appends (task, answer, a, b, item) of each acknowledged one."""
    for _ in range(most):
      task = await self.look()
      if task is None:
        return
      a, b = await self.hear(task, 'a'), await self.hear(task, 'b')
      assert a[1] == b[1] and self.caption().endswith(f'piece_{a[1]}')
      answer = choose(a[0], b[0])
      await asyncio.sleep(2 * SECONDS)
      reply = await self.client.post('/answer', data=self.form(task, answer))
      assert reply.status_code == 303, reply.text
      answers.append((task, answer, a[0], b[0], a[1]))


@pytest.fixture(scope='session')
def trial():
  """Returns what the tests of this folder share."""
  pytest.importorskip('httpx')
  pytest.importorskip('uvicorn')
  return types.SimpleNamespace(
      make_test=make_test, serving=serving, Rater=Rater, SYSTEMS=SYSTEMS, TOKEN=TOKEN, ROOT=ROOT,
      SECONDS=SECONDS)
