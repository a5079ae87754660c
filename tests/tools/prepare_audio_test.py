"""The command lines of the data: help is quick, bad input is one line."""

import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(tool, *flags):
  return subprocess.run([sys.executable, str(ROOT / 'tools' / tool), *flags], cwd=ROOT,
                        capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize('tool', ['prepare_audio.py', 'extract_tokens.py'])
def test_help_is_quick_and_shows_examples(tool):
  start = time.monotonic()
  done = _run(tool, '--help')
  assert done.returncode == 0 and 'examples:' in done.stdout
  assert time.monotonic() - start < 1


@pytest.mark.parametrize('tool, flags', [
    ('prepare_audio.py', ['--input=none']),
    ('extract_tokens.py', ['--waveforms=none', '--models=none']),
])
def test_bad_input_is_one_line(tool, flags, tmp_path):
  done = _run(tool, *flags, f'--output={tmp_path / "out"}')
  assert done.returncode == 1 and not done.stdout
  lines = [line for line in done.stderr.splitlines() if line.startswith('error: none')]
  assert len(lines) == 1 and 'Traceback' not in done.stderr, done.stderr
  assert done.stderr.splitlines()[-1] == lines[0]
  assert not (tmp_path / 'out').exists()
