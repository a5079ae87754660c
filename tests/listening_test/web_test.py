"""The server as raters and strangers meet it, over HTTP and in a process of its own."""

import asyncio
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time

import pytest

httpx = pytest.importorskip('httpx')

NUM_ITEMS = 3


@pytest.fixture(scope='module')
def server(trial, tmp_path_factory):
  """Gives (url, folder) of a running server."""
  folder = tmp_path_factory.mktemp('listening_test')
  flags = trial.make_test(folder, NUM_ITEMS)
  with trial.serving([*flags, '--requests_per_minute=6000', '--starts_per_hour=100']) as (url, _):
    yield url, folder


@pytest.fixture
def rater(trial, server):
  """Returns a started rater and the open question."""
  async def started():
    rater = trial.Rater(server[0], NUM_ITEMS)
    await rater.start()
    cookies = dict(rater.client.cookies)
    task = await rater.look()
    page = rater.page
    await rater.client.aclose()
    with_cookies = httpx.Client(base_url=server[0], cookies=cookies)
    token = re.search(r'name="form_token" value="([^"]+)"', page)[1]
    return with_cookies, task, token, page
  client, *rest = asyncio.run(started())
  with client:
    yield client, *rest


def rows(folder):
  """Returns all that the database holds."""
  with sqlite3.connect(f'file:{folder}/test.sqlite?mode=ro', uri=True) as database:
    return list(database.iterdump())


def form(task, token, seconds, **other):
  return {'form_token': token, 'task': task, 'answer': 1, 'heard_a': seconds, 'heard_b': seconds} | other


def test_raters_answer_all_and_the_report_adds_up(trial, tmp_path):
  flags = trial.make_test(tmp_path, NUM_ITEMS)
  given = []

  async def everyone(url):
    raters = [trial.Rater(url, NUM_ITEMS) for _ in range(4)]
    for number, rater in enumerate(raters):
      await rater.start(f'worker-{number}')
    prefer_first = lambda a, b: 1 if trial.SYSTEMS.index(a) < trial.SYSTEMS.index(b) else 4
    await asyncio.gather(*(rater.answer_all(99, given, prefer_first) for rater in raters))
    for rater in raters:
      assert await rater.look() is None and 'You have answered 3 questions' in rater.page
      await rater.client.aclose()

  with trial.serving([*flags, '--answers_per_rater=3']) as (url, _):
    asyncio.run(everyone(url))
    live = httpx.get(f'{url}/results.json', headers={'authorization': f'Bearer {trial.TOKEN}'}).json()
  done = subprocess.run(
      [sys.executable, str(trial.ROOT / 'tools' / 'listening_test.py'), 'report',
       f'--database={tmp_path}/test.sqlite', f'--json={tmp_path}/wins.json'],
      capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / 'wins.json').read_text())
  assert found == live and found['num_answers'] == len(given) == 12 and found['num_raters'] == 4
  wins = {system['name']: system['wins'] for system in found['systems']}
  for system in trial.SYSTEMS:
    mine = sum((a == system and answer == 1) or (b == system and answer == 4)
               for _, answer, a, b, _ in given)
    assert wins[system] == mine
    assert re.search(rf'^{system} +{mine} ', done.stdout, re.MULTILINE)
  assert sum(wins.values()) == 12 and wins['ground_truth'] == 0
  assert {each['label'] for each in found['raters']} == {f'worker-{i}' for i in range(4)}
  assert all(sum(pair['counts']) == 4 for pair in found['pairs'])


def test_nothing_shows_which_system_a_clip_is_of(trial, server, rater):
  client, task, _, page = rater
  assert not re.search('ours|mubert|ground_truth|piece_[0-9][.]', page)
  assert '&lt;b&gt;Calm&lt;/b&gt; &amp; &#34;slow&#34; piece_' in page and '<b>' not in page
  a, b = (client.get(f'/audio/{task}/{side}') for side in 'ab')
  skip = ('date',)
  assert [each for each in a.headers.items() if each[0] not in skip] == [
      each for each in b.headers.items() if each[0] not in skip]
  assert not {'etag', 'last-modified', 'content-disposition', 'server'} & set(a.headers)
  assert a.content[:44] == b.content[:44] and a.content != b.content
  assert len(a.content) == len(b.content) == 44 + 2 * round(24_000 * trial.SECONDS)


def test_clips_come_in_parts(server, rater):
  client, task, *_ = rater
  path = f'/audio/{task}/a'
  whole = client.get(path)
  assert whole.status_code == 200 and whole.headers['accept-ranges'] == 'bytes'
  size = len(whole.content)
  for asked, first, last in (('0-1', 0, 1), ('10-', 10, size - 1), ('-7', size - 7, size - 1),
                             (f'5-{size + 99}', 5, size - 1), (f'-{size * 2}', 0, size - 1)):
    part = client.get(path, headers={'range': f'bytes={asked}'})
    assert part.status_code == 206 and part.content == whole.content[first:last + 1]
    assert part.headers['content-range'] == f'bytes {first}-{last}/{size}'
  for asked in (f'{size}-', '5-4', '-0', f'{10**11}-'):
    part = client.get(path, headers={'range': f'bytes={asked}'})
    assert part.status_code == 416 and part.headers['content-range'] == f'bytes */{size}'
  for asked in ('bytes=-', 'bytes=0-1,4-5', 'lines=0-1', 'bytes=' + '9' * 99 + '-'):
    assert client.get(path, headers={'range': asked}).status_code == 200
  head = client.head(path)
  assert head.status_code == 200 and not head.content and int(head.headers['content-length']) == size


def test_the_same_question_after_a_reload_and_a_restart(trial, tmp_path):
  flags = trial.make_test(tmp_path, NUM_ITEMS)
  with trial.serving(flags) as (url, _):
    rater = trial.Rater(url, NUM_ITEMS)

    async def begin():
      await rater.start()
      tasks = [await rater.look(), await rater.look()]
      await rater.client.aclose()
      return tasks

    first, again = asyncio.run(begin())
    cookies = dict(rater.client.cookies)
  with trial.serving(flags) as (url, _):
    page = httpx.get(url, cookies=cookies).text
    fresh = httpx.get(url).text
  assert first == again and f'value="{first}"' in page and 'Start' in fresh


def test_headers_and_cookie(server):
  reply = httpx.get(server[0])
  policy = reply.headers['content-security-policy']
  assert "default-src 'none'" in policy and 'unsafe' not in policy and "frame-ancestors 'none'" in policy
  assert reply.headers['x-content-type-options'] == 'nosniff'
  cookie = reply.headers['set-cookie']
  assert 'HttpOnly' in cookie and 'SameSite=lax' in cookie and 'Max-Age=' in cookie
  for inline in ('<script>', 'style=', 'onclick', '<style'):
    assert inline not in reply.text
  script = httpx.get(f'{server[0]}/static/question.js')
  assert script.headers['content-type'].startswith('text/javascript') and script.status_code == 200


def hostile(task, token, seconds, other_task):
  """Yields (method, path, arguments of httpx) of requests that must be refused."""
  good = form(task, token, seconds)
  yield 'POST', '/answer', {'data': good, 'cookies': None}
  yield 'POST', '/answer', {'data': good, 'cookies': {'rater': 'IngiOjB9.aaaaaa.bbbbbbbb'}}
  yield 'POST', '/answer', {'data': good, 'headers': {'sec-fetch-site': 'cross-site'}}
  yield 'POST', '/answer', {'data': good, 'headers': {'origin': 'https://evil.example'}}
  yield 'POST', '/answer', {'json': good}
  yield 'POST', '/answer', {'data': good | {'form_token': 'x' * 43}}
  yield 'POST', '/answer', {'data': {key: value for key, value in good.items() if key != 'form_token'}}
  yield 'POST', '/answer', {'data': good | {'rater': 'someone'}}
  yield 'POST', '/answer', {'data': good | {'task': other_task}}
  yield 'POST', '/answer', {'data': good | {'task': "' OR 1=1 --"}}
  for answer in ('0', '6', '-1', '1e0', 'nan', "1); DROP TABLE task; --", '9' * 3000, '٣'):
    yield 'POST', '/answer', {'data': good | {'answer': answer}}
  for heard in ('nan', 'inf', '-1', '0', '1e308', '', seconds * 100):
    yield 'POST', '/answer', {'data': good | {'heard_a': heard}}
  yield 'POST', '/answer', {'data': good | {'pad': 'x' * 10_000}}
  yield 'POST', '/answer', {'content': (b'x' * 1000 for _ in range(50))}  # no length is given
  yield 'POST', '/answer', {'content': b'\xff\xfe&==&;%zz', 'headers': {
      'content-type': 'application/x-www-form-urlencoded'}}
  yield 'POST', '/answer', {'content': '&'.join(f'a{i}=1' for i in range(500)), 'headers': {
      'content-type': 'application/x-www-form-urlencoded'}}
  yield 'POST', '/start', {'data': {'form_token': 'x', 'label': ''}, 'cookies': None}
  yield 'POST', '/start', {'data': {'form_token': token, 'label': '<script>alert(1)</script>'}}
  yield 'POST', '/more', {'data': {'form_token': 'x'}}
  yield 'GET', f'/audio/{task}/a', {'cookies': None}
  yield 'GET', f'/audio/{other_task}/a', {}
  yield 'GET', f'/audio/{task}/c', {}
  for path in ('/audio/../../etc/passwd', '/audio/..%2f..%2ftest.sqlite/a', f'/audio/{task}/..%2fa',
               '/static/../store.py', '/static/..%2fstore.py', '/static/%2e%2e/store.py',
               '/static//etc/passwd', '/static/pages.css%00.js', '/test.sqlite', '/.env', '//etc/passwd',
               '/templates/base.html', '/%ff%fe'):
    yield 'GET', path, {}
  yield 'GET', '/answer', {}
  yield 'DELETE', '/', {}
  yield 'PUT', '/start', {'data': good}
  yield 'POST', '/', {'data': good}
  yield 'GET', '/results.json', {}
  yield 'GET', '/results.json', {'headers': {'authorization': 'Bearer correct-horse-batterx'}}
  yield 'GET', '/results.json?token=correct-horse-battery', {}
  yield 'POST', '/results', {'data': {'token': 'correct-horse-battery', 'form_token': 'x'}}
  yield 'POST', '/results', {'data': {'token': 'wrong', 'form_token': token}}


def test_hostile_requests_are_refused_and_change_nothing(trial, server, rater):
  url, folder = server
  client, task, token, _ = rater
  cookies = dict(client.cookies)
  with sqlite3.connect(folder / 'test.sqlite') as database:
    others = database.execute('SELECT id FROM task WHERE id <> ?', (task,)).fetchone()
  other_task = others[0] if others else 'none'
  time.sleep(2 * trial.SECONDS)  # an answer would be in time
  before, seen = rows(folder), 0
  for method, path, arguments in hostile(task, token, trial.SECONDS, other_task):
    own = {'cookies': cookies} | arguments
    with httpx.Client(base_url=url, cookies=own.pop('cookies')) as stranger:
      reply = stranger.request(method, stranger.base_url.copy_with(raw_path=path.encode()), **own)
    assert 400 <= reply.status_code < 500, (method, path, arguments, reply.status_code)
    assert 'Traceback' not in reply.text and str(folder) not in reply.text
    assert reply.headers['x-content-type-options'] == 'nosniff'
    seen += 1
  assert seen > 50 and rows(folder) == before
  assert client.post('/answer', data=form(task, token, trial.SECONDS)).status_code == 303
  assert rows(folder) != before


def test_raw_bytes_that_are_no_http(server):
  url, folder = server
  host, port = re.fullmatch(r'http://(.*):(\d+)', url).groups()
  before = rows(folder)
  for request in (b'\x16\x03\x01\x02\x00' + os.urandom(200) + b'\r\n\r\n',
                  b'GET / HTTP/1.1\r\nHost: a\r\nX: ' + b'a' * 200_000 + b'\r\n\r\n',
                  b'POST /answer HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n',
                  b'POST /answer HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n',
                  b'POST /answer HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n'
                  b'Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n'):
    with socket.create_connection((host, int(port)), timeout=10) as connection:
      with pytest.MonkeyPatch.context():
        try:
          connection.sendall(request)
          answer = connection.recv(100)
        except ConnectionError:
          answer = b''  # hung up on
    assert not answer or re.match(rb'HTTP/1.1 4\d\d ', answer), answer
  assert rows(folder) == before and httpx.get(url).status_code == 200


def test_limits_by_address_and_for_new_raters(trial, tmp_path):
  flags = [*trial.make_test(tmp_path, NUM_ITEMS), '--proxy_hops=1', '--requests_per_minute=20']
  with trial.serving([*flags, '--starts_per_hour=2']) as (url, _):
    statuses = []
    for _ in range(4):
      with httpx.Client(base_url=url, headers={'x-forwarded-for': '1.1.1.1'}) as client:
        token = re.search(r'form_token" value="([^"]+)"', client.get('/').text)[1]
        statuses.append(client.post('/start', data={'form_token': token, 'label': ''}).status_code)
    assert statuses == [303, 303, 429, 429]
    with httpx.Client(base_url=url) as client:
      ask = lambda chain: client.get('/static/icon.svg', headers={'x-forwarded-for': chain})
      flood = [ask(f'{i}.9.9.9, 1.1.1.1') for i in range(40)]
      assert flood[-1].status_code == 429 and flood[-1].headers['retry-after']
      assert ask('1.1.1.1, 2.2.2.2').status_code == 200


def test_token_cannot_be_tried_for_long(trial, tmp_path):
  with trial.serving(trial.make_test(tmp_path, NUM_ITEMS)) as (url, _):
    with httpx.Client(base_url=url) as client:
      token = re.search(r'form_token" value="([^"]+)"', client.get('/results').text)[1]
      shown = client.post('/results', data={'form_token': token, 'token': trial.TOKEN})
      assert shown.status_code == 200 and 'Answers: 0. Raters: 0.' in shown.text
      tries = [client.post('/results', data={'form_token': token, 'token': f'guess {i}'}).status_code
               for i in range(8)]
    assert tries[0] == 403 and tries[-1] == 429
    header = {'authorization': f'Bearer {trial.TOKEN}'}
    assert httpx.get(f'{url}/results.json', headers=header).status_code == 429


@pytest.mark.parametrize('flags, environment, wanted', [
    (['--systems=a='], {}, 'wanted DIR or NAME=DIR'),
    (['--systems=ours=x'], {}, "two folders are called 'ours'"),
    (['--systems=ground_truth=x'], {}, '--ground_truth: wanted one'),
    (['--systems=a=/none'], {}, '/none is not a directory'),
    (['--captions=/none.csv'], {}, '/none.csv does not exist'),
    (['--port=99999'], {}, 'port is 99999'),
    (['--host=192.0.2.1'], {}, '192.0.2.1 port 0 cannot be used'),
    ([], {'LISTENING_TEST_ADMIN_TOKEN': 'short'}, 'has 5 characters, wanted 16 or more'),
    (['--admin_token_file=/dev/null'], {}, 'has 0 characters'),
])
def test_servers_that_cannot_be(trial, tmp_path, flags, environment, wanted):
  own = [*trial.make_test(tmp_path, 1), *flags]
  done = subprocess.run(
      [sys.executable, str(trial.ROOT / 'tools' / 'listening_test.py'), *own], text=True,
      capture_output=True, timeout=60, env=dict(os.environ, **environment))
  assert done.returncode == 1 and wanted in done.stderr and 'Traceback' not in done.stderr
