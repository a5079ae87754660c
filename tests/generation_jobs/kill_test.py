"""The command line against a bucket that fails, killed 20 times; and by two processes at once."""

import collections
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import gcs_server
import pytest
import soundfile

pytest.importorskip('google.cloud.storage')
pytestmark = pytest.mark.slow
TOOL = pathlib.Path(__file__).parents[2] / 'tools' / 'generate.py'
COUNT, KILLS = 200, 20


@pytest.fixture(scope='module')
def table():
  words = 'slow calm loud fast rock piano music drums'.split()
  choice = random.Random(0)
  return 'id\tprompt\n' + ''.join(
      f'piece {i}\t{" ".join(choice.choices(words, k=4))}\n' for i in range(COUNT))


@pytest.fixture(scope='module')
def start(system, tmp_path_factory):
  """Returns a function: starts the tool on a bucket of a server."""
  cache = str(tmp_path_factory.mktemp('cache'))

  def start(server, *flags):
    environment = os.environ | server.environment() | {'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': cache}
    return subprocess.Popen(
        [sys.executable, str(TOOL), '--prompts=gs://music/prompts.tsv', '--output=gs://music/run1/',
         f'--model={system}', '--seconds=1', '--batch_size=8', *flags],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

  return start


@pytest.fixture(scope='module')
def whole(table, start):
  """Returns {name: content} of an undisturbed run into a bucket that never fails."""
  with gcs_server.Server(['music']) as server:
    server.put('music', 'prompts.tsv', table.encode())
    process = start(server)
    _, said = process.communicate(timeout=1800)
    assert process.returncode == 0, said
    return _files(server)


def _files(server):
  return {name.removeprefix('run1/'): content for name, content in server.objects('music').items()
          if name.startswith('run1/')}


def _sounds(files):
  found = {name: content for name, content in files.items() if name.endswith('.wav')}
  assert len(found) == COUNT
  for content in found.values():
    waveform, rate = soundfile.read(io.BytesIO(content))
    assert rate == 24_000 and waveform.shape == (24_000,)
  return found


def test_killed_twenty_times_it_is_the_undisturbed_run(table, start, whole):
  choice = random.Random(1)
  with gcs_server.Server(['music'], fault_rate=0.05, seed=2) as server:
    server.put('music', 'prompts.tsv', table.encode())
    for _ in range(KILLS):
      before, process = len(server.created), start(server)
      wanted = before + choice.randint(1, 12)
      while len(server.created) < wanted and process.poll() is None:
        time.sleep(0.001)
      process.kill()
      _, said = process.communicate(timeout=60)
      assert process.returncode == -signal.SIGKILL, said
    assert len(_files(server)) < 2 * COUNT
    process = start(server)
    _, said = process.communicate(timeout=1800)
    assert process.returncode == 0, said
    found = _files(server)
    assert _sounds(found) == _sounds(whole)
    assert set(found) == set(whole)
    assert set(collections.Counter(server.created).values()) == {1}
    faults = sum(status in (429, 503) for _, _, status in server.log)
    print(f'{KILLS} kills, {len(server.log)} requests, {faults} of them failed, '
          f'{sum(status == 412 for _, _, status in server.log)} found the file there')
    assert faults > 20
  manifest = 'manifest-00000-of-00001.jsonl'
  assert [json.loads(line)['id'] for line in found[manifest].splitlines()] == [
      f'piece {i}' for i in range(COUNT)]
  assert found[manifest] == whole[manifest]


def test_two_processes_at_once_cover_the_list_exactly_once(table, start, whole):
  with gcs_server.Server(['music'], fault_rate=0.05, seed=3) as server:
    server.put('music', 'prompts.tsv', table.encode())
    processes = [start(server, f'--shard={i}/2') for i in range(2)]
    for process in processes:
      _, said = process.communicate(timeout=1800)
      assert process.returncode == 0, said
    found = _files(server)
    assert _sounds(found) == _sounds(whole)
    assert set(collections.Counter(server.created).values()) == {1}
  parts = [[json.loads(line)['id'] for line in found[f'manifest-0000{i}-of-00002.jsonl'].splitlines()]
           for i in range(2)]
  assert sorted(parts[0] + parts[1]) == sorted(f'piece {i}' for i in range(COUNT))
  assert min(map(len, parts)) >= 96
