"""tools/fit_quantizers.py: help at once, bad input in one line."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARGS = ('--model=/nonexistent/model', '--waveforms=/nonexistent/records', '--output=/nonexistent/o')


def _run(*args):
  return subprocess.run(
      [sys.executable, str(ROOT / 'tools/fit_quantizers.py'), *args], capture_output=True,
      text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=False)


def test_help_does_not_import_jax():
  result = subprocess.run(
      [sys.executable, '-X', 'importtime', str(ROOT / 'tools/fit_quantizers.py'), '--help'],
      capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=True)
  assert 'examples:' in result.stdout
  assert 'jax' not in result.stderr.replace('musiclm_jax', '') and 'tensorflow' not in result.stderr


def test_missing_model_is_one_line():
  result = _run('--quantizer=semantic', *ARGS)
  assert result.returncode == 1
  assert result.stderr.count('\n') == 1
  assert result.stderr.startswith('error: /nonexistent/model')


@pytest.mark.parametrize('args, message', [
    (('--quantizer=semantic', '--num_levels=3'), '--num_levels does not apply'),
    (('--quantizer=mulan', '--layer=3'), '--layer does not apply'),
    (('--quantizer=mulan', '--num_codes=0'), '--num_codes'),
    (('--quantizer=other',), "invalid choice: 'other'"),
])
def test_bad_flags_are_named(args, message):
  result = _run(*args, *ARGS)
  assert result.returncode == 2 and message in result.stderr
