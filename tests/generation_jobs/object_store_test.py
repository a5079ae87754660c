"""Folders and buckets: files appear whole, once, and errors are one line."""

import collections
import concurrent.futures
import os
import resource
import time
import uuid

import gcs_server
import pytest

from musiclm_jax import errors
from musiclm_jax.generation_jobs import object_store


@pytest.fixture(scope='module')
def server():
  pytest.importorskip('google.cloud.storage')
  with gcs_server.Server(['music'], denied=['closed']) as server, pytest.MonkeyPatch.context() as patch:
    for name, value in server.environment().items():
      patch.setenv(name, value)
    yield server


@pytest.fixture(params=['local', 'gs', 'memory'])
def store(request, tmp_path):
  name = uuid.uuid4().hex
  if request.param == 'gs':
    request.getfixturevalue('server')
  return object_store.open_store({
      'local': str(tmp_path / 'new' / 'folder'), 'gs': f'gs://music/{name}/',
      'memory': f'memory://{name}'}[request.param])


def test_a_file_is_created_once_and_never_replaced(store):
  assert store.sizes() == {}
  assert store.create('a.wav', b'first') and not store.create('a.wav', b'second')
  assert store.create('b.json', b'')
  assert store.read('a.wav') == b'first' and store.sizes() == {'a.wav': 5, 'b.json': 0}
  with pytest.raises(errors.UserError) as error:
    store.read('none.wav')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('store', ['local', 'gs'], indirect=True)
def test_of_many_writers_one_wins(store):
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    won = list(pool.map(lambda i: store.create('a.wav', b'%d' % i), range(32)))
  assert sum(won) == 1 and store.read('a.wav') == b'%d' % won.index(True)
  assert list(store.sizes()) == ['a.wav']


def test_a_listing_goes_through_all_pages_and_not_into_folders(server):
  for i in range(1203):
    server.put('music', f'pages/{i}.wav', b'x')
  for i in range(1100):
    server.put('music', f'pages/500/{i}', b'')
  server.put('music', 'pages2/a', b'')
  before = len(server.log)
  found = object_store.open_store('gs://music/pages').sizes()
  assert found == {f'{i}.wav': 1 for i in range(1203)}
  pages = [path for _, path, _ in server.log[before:] if '/o?' in path]
  assert len(pages) == 2 and all('items%28name%2Csize%29' in path for path in pages)


def test_failures_that_pass_are_not_noticed(server):
  store = object_store.open_store('gs://music/faults')
  server.fail(503, 429)
  assert store.create('a.wav', b'sound')
  server.fail(500)
  assert store.read('a.wav') == b'sound'
  server.fail(503)
  assert store.sizes() == {'a.wav': 5}
  server.fail(503, acted=True)  # it is there, and the answer is lost
  assert not store.create('b.wav', b'sound') and store.read('b.wav') == b'sound'


def test_a_long_file_goes_up_in_a_session(server):
  store, content = object_store.open_store('gs://music/long'), os.urandom(9_000_000)
  server.fail(503)
  assert store.create('a.wav', content) and not store.create('a.wav', content)
  assert server.objects('music')['long/a.wav'] == content
  assert any('uploadType=resumable' in path for _, path, _ in server.log)


def test_what_does_not_pass_is_said_after_a_while(server, monkeypatch):
  monkeypatch.setattr(object_store, 'RETRY_SECONDS', 0.5)
  store = object_store.open_store('gs://music/down')
  monkeypatch.setattr(server, '_faults', collections.deque())
  server.fail(*[503] * 1000)  # none of which did its work, or the next try would find it done
  with pytest.raises(errors.UserError, match='down/a.wav: .*injected'):
    store.create('a.wav', b'sound')


@pytest.mark.parametrize('action, wanted', [
    (lambda: object_store.open_store('gs://nowhere/run').sizes(),
     'gs://nowhere/run: the bucket does not exist, or this account may not see it'),
    (lambda: object_store.open_store('gs://closed/run').create('a.wav', b''),
     r'gs://closed/run/a.wav: permission denied \(the account does not have storage.objects.create'),
    (lambda: object_store.open_store('gs:///run'), 'names no bucket, wanted gs://BUCKET/FOLDER'),
    (lambda: object_store.read_input('gs://music/none.tsv'), 'gs://music/none.tsv does not exist'),
    (lambda: object_store.read_input('gs://music'), 'names no file'),
    (lambda: object_store.read_input('nope://a/b.tsv'), 'Protocol not known: nope'),
    (lambda: object_store.read_input('memory://none.tsv'), 'none.tsv does not exist'),
    (lambda: object_store.read_input('/none.tsv'), '/none.tsv does not exist'),
    (lambda: object_store.read_input('/'), '/: Is a directory'),
    (lambda: object_store.open_store('/proc/none').create('a', b''), '/proc/none/a: '),
    (lambda: object_store.open_store('/dev/null').sizes(), '/dev/null: Not a directory'),
])
def test_errors_are_one_line(server, action, wanted):
  with pytest.raises(errors.UserError, match=wanted) as error:
    action()
  assert '\n' not in str(error.value)


def test_without_credentials_it_says_so(monkeypatch, tmp_path):
  pytest.importorskip('google.cloud.storage')
  for name in ('STORAGE_EMULATOR_HOST', 'GOOGLE_APPLICATION_CREDENTIALS'):
    monkeypatch.delenv(name, raising=False)
  for name, value in (('HOME', str(tmp_path)), ('CLOUDSDK_CONFIG', str(tmp_path)), ('NO_GCE_CHECK', 'true')):
    monkeypatch.setenv(name, value)
  for action in (lambda: object_store.open_store('gs://b/run'),
                 lambda: object_store.read_input('gs://b/prompts.tsv')):
    with pytest.raises(errors.UserError, match='gs://b.*: no Google credentials that work, try `gcloud'):
      action()


def test_inputs_come_from_anywhere(server, tmp_path):
  server.put('music', 'prompts.tsv', b'a')
  object_store.open_store('memory://in').create('prompts.tsv', b'b')
  (tmp_path / 'prompts.tsv').write_bytes(b'c')
  paths = ['gs://music/prompts.tsv', 'memory://in/prompts.tsv', str(tmp_path / 'prompts.tsv')]
  assert [object_store.read_input(path) for path in paths] == [b'a', b'b', b'c']


def test_a_file_that_does_not_fit_leaves_nothing(tmp_path):
  store = object_store.open_store(str(tmp_path))
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    with pytest.raises(errors.UserError, match='a.wav: File too large'):
      store.create('a.wav', b'x' * 2000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert not list(tmp_path.iterdir()) and store.create('a.wav', b'x' * 2000)


def test_what_killed_writers_left_is_no_file_and_goes_when_old(tmp_path):
  for name, age in (('.a.wav.x.tmp', 10), ('.b.wav.y.tmp', 7200)):
    (tmp_path / name).write_bytes(b'half')
    os.utime(tmp_path / name, (time.time() - age,) * 2)
  assert object_store.open_store(str(tmp_path)).sizes() == {}
  assert [path.name for path in tmp_path.iterdir()] == ['.a.wav.x.tmp']
