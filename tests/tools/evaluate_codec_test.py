"""tools/evaluate_codec.py and tools/benchmark_codec.py as a user runs them: their tables."""

import csv
import os
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import audio, checkpoints
from musiclm_jax.models import soundstream

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = soundstream.SoundStreamConfig(
    channels=2, strides=(8, 10, 6), channel_multipliers=(2, 2, 2), dilations=((), (), ()),
    dim=4, num_quantizers=3, codebook_size=16)


def _run(tool, *flags, **environment):
  return subprocess.run(
      [sys.executable, str(ROOT / 'tools' / tool), *flags], cwd=ROOT, capture_output=True,
      env=dict(os.environ, JAX_PLATFORMS='cpu', **environment), text=True, timeout=300)


def _cells(text: str) -> list[list[str]]:
  """Returns the cells of each line of the tables of `text`, those of rules left out."""
  rows = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| ')]
  return [row for row in rows if not row[0].startswith('---')]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder with a tiny model of random weights, and below music/ a second of noise."""
  folder = tmp_path_factory.mktemp('evaluate_codec')
  module = soundstream.SoundStream(CONFIG)
  variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, CONFIG.hop_length))))
  books = variables['codebooks']['quantizer']
  books['embeddings'] = 0.1 * jax.random.normal(jax.random.key(1), books['embeddings'].shape)
  checkpoints.export_model(str(folder / 'model'), 'soundstream', CONFIG, variables)
  noise = 0.1 * np.random.RandomState(0).randn(24_000)
  audio.write(folder / 'music' / 'deep' / '-noise.wav', noise)
  return folder


def test_tables_and_csv(folder):
  done = _run('evaluate_codec.py', f'--audio={folder}/music', f'--model={folder}/model',
              '--kbps=0.2,0.6', '--opus=', f'--output={folder}/out/quality.csv')
  assert done.returncode == 0, done.stderr
  head, *rows = _cells(done.stdout)
  assert head == ['codec', 'kbps nominal', 'kbps of the file', 'mel distance dB', 'SI-SDR dB']
  assert [row[:2] for row in rows[:2]] == [['soundstream', '0.2'], ['soundstream', '0.6']]
  assert rows[2] == ['level', 'codes used', 'perplexity'] and len(rows) == 3 + 3
  assert done.stdout.startswith('1 files, 1.0 s\n') and 'measuring: 100%' in done.stderr
  with open(folder / 'out' / 'quality.csv', newline='') as stream:
    written = list(csv.DictReader(stream))
  assert len(written) == 2 + 3 and os.listdir(folder / 'out') == ['quality.csv']
  for row, cells in zip(written, rows[:2], strict=False):
    assert f'{float(row["mel_distance_db"]):.2f}' == cells[3]
    assert f'{float(row["si_sdr_db"]):.2f}' == cells[4]


@pytest.mark.parametrize('flags, wanted', [
    (['--audio={folder}/none'], 'none does not exist, wanted an audio file or a folder of them'),
    (['--audio={folder}/model'], 'model holds no audio file'),
    (['--audio={folder}/music'], 'apt install opus-tools'),
    (['--audio={folder}/music', '--opus=', '--kbps=9'], '9 kbps asked for'),
    (['--audio={folder}/music', '--opus=', '--output={folder}'], 'is a directory'),
])  # fmt: skip
def test_bad_input_is_one_line_and_a_failure(folder, flags, wanted):
  flags = [flag.format(folder=folder) for flag in flags]
  done = _run('evaluate_codec.py', f'--model={folder}/model', *flags, PATH='')
  assert done.returncode == 1 and not done.stdout
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
  assert wanted in done.stderr


@pytest.mark.parametrize('tool, flags, wanted', [
    ('evaluate_codec.py', ['--audio=.', '--kbps=a'], '--kbps'),
    ('evaluate_codec.py', ['--audio=.', '--kbps='], '--kbps: is empty'),
    ('benchmark_codec.py', ['--models=huge'], '--models'),
    ('benchmark_codec.py', ['--seconds=nan'], '--seconds'),
])
def test_flags_that_cannot_be_are_a_usage_error(tool, flags, wanted):
  done = _run(tool, *flags)
  assert done.returncode == 2 and wanted in done.stderr and 'Traceback' not in done.stderr


def test_benchmark_prints_speeds_of_every_mode():
  done = _run('benchmark_codec.py', '--models=tiny', '--seconds=0.1', '--repeats=2')
  assert done.returncode == 0, done.stderr
  assert 'CPU cores' in done.stdout.splitlines()[0]
  head, *rows = _cells(done.stdout)
  assert head == ['model', 'mode', 'batch', 'encode', 'decode']
  assert [row[:3] for row in rows] == [
      ['tiny', 'whole', '1'], ['tiny', 'whole', '8'], ['tiny', 'blocks of 1000 ms', '1'],
      ['tiny', 'blocks of 20 ms', '1']]
  for row in rows:
    for cell in row[3:]:
      median, least, most = map(float, re.fullmatch(r'(\S+) \((\S+) to (\S+)\)', cell).groups())
      assert 0 < least <= median <= most
