"""SIGTERM asks once, then ends."""

import os
import signal
import subprocess
import sys
import threading

from musiclm_jax.generation_jobs import stop

_BUSY = """
import hashlib, sys
from musiclm_jax.generation_jobs import stop
with stop.on_sigterm() as asked:
  print('ready', flush=True)
  if sys.argv[1] == 'once':
    asked.wait(60)
    print('asked', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2 ** 24 if sys.argv[1] == 'twice' else 1)  # nothing of Python runs
print('done', flush=True)
"""


def _start(how):
  process = subprocess.Popen([sys.executable, '-c', _BUSY, how], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, env=dict(os.environ, PYTHONPATH=':'.join(sys.path)))
  assert process.stdout.readline() == 'ready\n'
  return process


def test_the_first_one_asks():
  process = _start('once')
  process.terminate()
  out, _ = process.communicate(timeout=30)
  assert out == 'asked\ndone\n' and process.returncode == 0


def test_the_second_one_ends_even_a_long_computation():
  process = _start('twice')
  process.terminate()
  try:
    process.wait(timeout=0.5)
  except subprocess.TimeoutExpired:
    pass
  assert process.poll() is None
  process.terminate()
  out, _ = process.communicate(timeout=3)
  assert out == '' and process.returncode == 128 + signal.SIGTERM


def test_afterwards_all_is_as_before():
  before, threads = signal.getsignal(signal.SIGTERM), threading.active_count()
  with stop.on_sigterm() as asked:
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked.wait(5)
  assert signal.getsignal(signal.SIGTERM) == before and threading.active_count() == threads
  assert signal.set_wakeup_fd(-1) == -1
