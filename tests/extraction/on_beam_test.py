"""Apache Beam deals out the same work: the same bytes from one worker, two, and a service."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from musiclm_jax import errors
from musiclm_jax.extraction import extract, shards

ROOT = pathlib.Path(__file__).resolve().parents[2]
needs_beam = pytest.mark.beam


@pytest.fixture
def on_beam():
  pytest.importorskip('apache_beam')
  from musiclm_jax.extraction import on_beam
  return on_beam


def _start(line, **options) -> subprocess.Popen:
  here = os.path.dirname(sys.executable)  # a pool starts its workers with what is called python
  environment = dict(os.environ, JAX_PLATFORMS='cpu', PATH=f'{here}:{os.environ["PATH"]}')
  options = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT} | options
  return subprocess.Popen(line, cwd=ROOT, env=environment, text=True, **options)


def test_without_beam_the_extra_is_named(folder, make_job, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  monkeypatch.delitem(sys.modules, 'musiclm_jax.extraction.on_beam', raising=False)
  with pytest.raises(errors.UserError, match=r"need Apache Beam .*'\.\[beam\]'"):
    extract.extract(make_job(folder, tmp_path / 'out'), num_workers=2)
  assert not (tmp_path / 'out').exists()


@needs_beam
def test_one_worker_writes_the_same_bytes_and_counts_the_same(
    on_beam, folder, make_job, whole, contents, tmp_path):
  job = make_job(folder, tmp_path / 'out')
  names = shards.plan(job)
  first = on_beam.run(job, names[:1])
  counters = on_beam.run(job, names)
  manifest = shards.finish(job, names)
  assert first['shards_written'] == counters['shards_kept'] == 1
  assert counters['shards_written'] == len(names) - 1
  for key in ('files', 'rejected', 'clips', 'tokens'):
    assert counters[key] == manifest[key] > 0
  assert contents(tmp_path / 'out') == whole


@needs_beam
def test_two_whose_master_is_killed_leave_what_the_next_two_need(
    on_beam, folder, make_job, command, whole, contents, tmp_path):
  line = command(make_job(folder, tmp_path / 'out'), '--num_workers=2')
  first, until = _start(line, stdout=subprocess.DEVNULL), time.monotonic() + 200
  reports = tmp_path / 'out' / 'reports'
  while not (reports.exists() and any(reports.glob('*.json'))) and first.poll() is None:
    assert time.monotonic() < until
    time.sleep(0.01)
  first.kill()  # its workers end by themselves, having finished what they were at
  first.wait(timeout=60)
  second = _start(line)
  text, _ = second.communicate(timeout=250)
  assert second.returncode == 0, text
  assert contents(tmp_path / 'out') == whole


@needs_beam
@pytest.mark.slow
def test_a_job_service_and_workers_of_their_own_write_the_same_bytes(
    on_beam, folder, make_job, command, whole, contents, tmp_path):
  """The protocol of Flink and Dataflow: the tool, the service and the workers only talk by sockets."""
  ports = []
  for _ in range(2):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      ports.append(free.getsockname()[1])
  service = _start([
      sys.executable, '-m', 'apache_beam.runners.portability.local_job_service_main',
      f'--port={ports[0]}', f'--staging_dir={tmp_path / "staging"}'], stdout=subprocess.DEVNULL)
  pool = _start([sys.executable, '-m', 'apache_beam.runners.worker.worker_pool_main',
                 f'--service_port={ports[1]}'], stdout=subprocess.DEVNULL)
  try:
    for port, process in zip(ports, (service, pool), strict=True):
      _wait_for(port, process)
    client = _start(command(
        make_job(folder, tmp_path / 'out'), '--runner=PortableRunner', '--',
        f'--job_endpoint=localhost:{ports[0]}', '--environment_type=EXTERNAL',
        f'--environment_config=localhost:{ports[1]}'))
    text, _ = client.communicate(timeout=150)
    assert client.returncode == 0, text
  finally:
    for process in (service, pool):
      process.terminate()
      process.communicate(timeout=60)
  assert contents(tmp_path / 'out') == whole


def _wait_for(port: int, process) -> None:
  until = time.monotonic() + 60
  while time.monotonic() < until and process.poll() is None:
    with socket.socket() as client:
      if client.connect_ex(('localhost', port)) == 0:
        return
    time.sleep(0.2)
  raise AssertionError(f'port {port} is not answered: {process.args}')
