import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(*flags):
  return subprocess.run([sys.executable, str(ROOT / 'tools' / 'make_corpus.py'), *flags],
                        capture_output=True, text=True, timeout=120)


def test_help_is_quick_and_shows_examples():
  start = time.process_time()
  done = _run('--help')
  assert done.returncode == 0 and 'examples:' in done.stdout and time.process_time() - start < 1


def test_bad_input_is_one_line(tmp_path):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'file').write_text('')
  done = _run('--hours=1', f'--output={tmp_path / "full"}')
  assert done.returncode == 1 and done.stdout == ''
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  assert 'Traceback' not in done.stderr


def test_a_negative_seed_is_refused(tmp_path):
  done = _run('--hours=1', f'--output={tmp_path / "x"}', '--seed=-1')
  assert done.returncode != 0 and 'seed' in done.stderr and 'Traceback' not in done.stderr
