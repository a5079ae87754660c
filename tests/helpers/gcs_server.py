"""An object store on loopback that speaks the JSON API of Google Cloud Storage, for tests.

Kept: creation on condition (412), generations, checksums of uploads, uploads in one part, in two
and in a session, listing by pages with prefix and delimiter, reading of ranges, deletion.  Requests
can be made to fail, before they do anything or after: a store may lose its answer, too.

  with gcs_server.Server(['music'], fault_rate=0.05) as server:
    subprocess.run(command, env=os.environ | server.environment())
    server.objects('music')  # {name: bytes}
"""

import base64
import collections
import dataclasses
import hashlib
import http.server
import itertools
import json
import random
import re
import sys
import threading
import urllib.parse
from typing import Any

_CHUNK = 256 * 1024  # parts of a session but the last are multiples of this


@dataclasses.dataclass(frozen=True)
class Stored:
  """One generation of an object."""

  name: str
  content: bytes
  generation: int
  content_type: str

  def crc32c(self) -> str:
    import google_crc32c  # comes with google-cloud-storage, without which there is no test
    return base64.b64encode(google_crc32c.Checksum(self.content).digest()).decode()

  def md5(self) -> str:
    return base64.b64encode(hashlib.md5(self.content).digest()).decode()

  def resource(self, bucket: str, url: str) -> dict[str, Any]:
    quoted = urllib.parse.quote(self.name, safe='')
    return {
        'kind': 'storage#object', 'name': self.name, 'bucket': bucket,
        'id': f'{bucket}/{self.name}/{self.generation}', 'generation': str(self.generation),
        'metageneration': '1', 'size': str(len(self.content)), 'contentType': self.content_type,
        'md5Hash': self.md5(), 'crc32c': self.crc32c(), 'etag': str(self.generation),
        'timeCreated': '2026-01-01T00:00:00.000Z', 'updated': '2026-01-01T00:00:00.000Z',
        'storageClass': 'STANDARD', 'selfLink': f'{url}/storage/v1/b/{bucket}/o/{quoted}',
        'mediaLink': f'{url}/download/storage/v1/b/{bucket}/o/{quoted}?alt=media'}


@dataclasses.dataclass
class _Session:
  """An upload in parts: no object until the last of them."""

  bucket: str
  query: dict[str, str]
  about: dict[str, Any]
  content: bytes = b''
  stored: Stored | None = None


class _Failed(Exception):
  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status, self.message = status, message


@dataclasses.dataclass(frozen=True)
class _Answer:
  status: int = 200
  body: bytes | dict[str, Any] = b''
  headers: tuple[tuple[str, str], ...] = ()


class Server:
  """The store; a thread serves each connection."""

  def __init__(self, buckets, fault_rate: float = 0.0, seed: int = 0, denied=()):
    """Args:
      buckets: names of those there are.
      fault_rate: share of the requests that end as 429 or 503; of three, one after it has acted.
      denied: buckets that may be listed and read, not written.
    """
    self.fault_rate, self.denied = fault_rate, set(denied)
    self.log: list[tuple[str, str, int]] = []  # (method, path and query, status)
    self.created: list[str] = []  # names, as often as a request wrote them
    self._buckets = {name: {} for name in [*buckets, *denied]}
    self._sessions: dict[str, _Session] = {}
    self._generations = itertools.count(1_700_000_000_000_000)
    self._faults: collections.deque[tuple[int, bool]] = collections.deque()
    self._random, self._lock = random.Random(seed), threading.RLock()
    handler = type('Handler', (_Handler,), {'store': self})
    self._server = _Quiet(('127.0.0.1', 0), handler)
    self.url = f'http://127.0.0.1:{self._server.server_address[1]}'

  def __enter__(self) -> 'Server':
    threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._server.shutdown()
    self._server.server_close()

  def environment(self) -> dict[str, str]:
    """Returns the variables by which Google's clients find this store."""
    return {'STORAGE_EMULATOR_HOST': self.url, 'NO_GCE_CHECK': 'true',
            'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false', 'EPATH_USE_TF': 'false',
            'TENSORSTORE_GCS_HTTP_URL': self.url, 'GOOGLE_CLOUD_PROJECT': 'test'}

  def objects(self, bucket: str) -> dict[str, bytes]:
    with self._lock:
      return {name: stored.content for name, stored in sorted(self._buckets[bucket].items())}

  def put(self, bucket: str, name: str, content: bytes) -> None:
    with self._lock:
      self._buckets[bucket][name] = Stored(
          name, content, next(self._generations), 'application/octet-stream')

  def fail(self, *statuses: int, acted: bool = False) -> None:
    """Makes the next requests end with these statuses; with `acted`, after they did their work."""
    self._faults.extend((status, acted) for status in statuses)

  def fault(self) -> tuple[int, bool] | None:
    """Returns (status, whether to act before) of the request at hand, None when it is to succeed."""
    with self._lock:
      if self._faults:
        return self._faults.popleft()
      if self._random.random() < self.fault_rate:
        return self._random.choice((503, 503, 429)), self._random.random() < 1 / 3
      return None

  def answer(self, method: str, path: str, query: dict[str, str], headers, body: bytes) -> _Answer:
    """Returns what the API says to one request."""
    match = re.fullmatch(r'/(upload/|download/)?storage/v1/b/([^/]+)(?:/(o|storageLayout)(?:/(.+))?)?',
                         path)
    if not match:
      raise _Failed(404, f'no such route: {path}')
    kind, bucket, part, name = match[1], *(urllib.parse.unquote(x) if x else x for x in match.groups()[1:])
    with self._lock:
      if bucket not in self._buckets:
        raise _Failed(404, 'The specified bucket does not exist.')
      if method not in ('GET', 'HEAD') and bucket in self.denied:
        raise _Failed(403, 'the account does not have storage.objects.create access')
      if part == 'storageLayout':
        return _Answer(body={'bucket': bucket, 'hierarchicalNamespace': {'enabled': False}})
      if part is None:
        return _Answer(body={'kind': 'storage#bucket', 'name': bucket, 'id': bucket})
      if kind == 'upload/':
        return self._upload(bucket, query, headers, body)
      if name is None:
        return _Answer(body=self._listed(bucket, query))
      return self._object(method, bucket, name, query, headers, kind == 'download/')

  def _object(self, method, bucket, name, query, headers, download) -> _Answer:
    stored = self._buckets[bucket].get(name)
    if stored is None or query.get('generation', str(stored.generation)) != str(stored.generation):
      raise _Failed(404, f'No such object: {bucket}/{name}')
    self._check_condition(bucket, name, query)
    if method == 'DELETE':
      del self._buckets[bucket][name]
      return _Answer(204)
    if method not in ('GET', 'HEAD'):
      raise _Failed(405, method)
    if not download and query.get('alt') != 'media':
      return _Answer(body=stored.resource(bucket, self.url))
    about = (('x-goog-generation', str(stored.generation)),
             ('x-goog-stored-content-length', str(len(stored.content))))
    span = re.fullmatch(r'bytes=(\d*)-(\d*)', headers.get('Range') or '')
    if not span or span[0] == 'bytes=-':
      return _Answer(200, stored.content, (
          *about, ('x-goog-hash', f'crc32c={stored.crc32c()}'), ('x-goog-hash', f'md5={stored.md5()}')))
    length = len(stored.content)
    start = int(span[1]) if span[1] else max(length - int(span[2]), 0)
    end = min(int(span[2]), length - 1) if span[1] and span[2] else length - 1
    if start >= length:
      return _Answer(416, b'', (('Content-Range', f'bytes */{length}'),))
    return _Answer(206, stored.content[start:end + 1],
                   (*about, ('Content-Range', f'bytes {start}-{end}/{length}')))

  def _listed(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
    """Returns one page, in the order of names; a page token is the last name of the page before."""
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
    after = base64.urlsafe_b64decode(query.get('pageToken', '')).decode()
    room = min(int(query.get('maxResults', 1000)), 1000)
    items, prefixes, last = [], [], ''
    for name, stored in sorted(self._buckets[bucket].items()):
      if not name.startswith(prefix) or name <= after:
        continue
      head, found, _ = name[len(prefix):].partition(delimiter) if delimiter else ('', '', '')
      folder = prefix + head + found if found else None
      if folder and (folder in prefixes or after.startswith(folder)):
        last = name
        continue
      if len(items) + len(prefixes) == room:
        token = base64.urlsafe_b64encode(last.encode()).decode()
        return {'kind': 'storage#objects', 'items': items, 'prefixes': prefixes, 'nextPageToken': token}
      last = name
      if folder:
        prefixes.append(folder)
      else:
        items.append(stored.resource(bucket, self.url))
    return {'kind': 'storage#objects', 'items': items, 'prefixes': prefixes}

  def _upload(self, bucket, query, headers, body) -> _Answer:
    kind = query.get('uploadType')
    if 'upload_id' in query:
      return self._session_part(query['upload_id'], headers, body)
    if kind == 'resumable':
      about = json.loads(body or b'{}')
      about.setdefault('contentType', headers.get('X-Upload-Content-Type'))
      session = _Session(bucket, query, about)
      self._check_condition(bucket, query.get('name') or about['name'], query)
      number = f'session{len(self._sessions)}'
      self._sessions[number] = session
      return _Answer(headers=(('Location', f'{self.url}/upload/storage/v1/b/{bucket}/o?uploadType='
                                           f'resumable&upload_id={number}'),))
    if kind == 'multipart':
      boundary = re.search(r'''boundary=['"]?([^'";]+)''', headers['Content-Type'])[1].encode()
      first, second = body.split(b'--' + boundary)[1:3]
      about = json.loads(first.split(b'\r\n\r\n', 1)[1])
      content = second.split(b'\r\n\r\n', 1)[1].removesuffix(b'\r\n')
    else:
      about, content = {'contentType': headers.get('Content-Type')}, body
    stored = self._create(bucket, about, query, content, headers)
    return _Answer(body=stored.resource(bucket, self.url))

  def _session_part(self, number: str, headers, body: bytes) -> _Answer:
    if number not in self._sessions:
      raise _Failed(404, 'no such upload')
    session = self._sessions[number]
    given = headers.get('Content-Range') or f'bytes 0-{max(len(body) - 1, 0)}/{len(body)}'
    start, total = re.fullmatch(r'bytes (?:(\d+)-\d+|\*)/(\d+|\*)', given).groups()
    if session.stored is None and start is not None:
      if int(start) > len(session.content) or total == '*' and len(body) % _CHUNK:
        raise _Failed(400, f'Content-Range {given} after {len(session.content)} bytes')
      session.content = session.content[:int(start)] + body
    if session.stored is None and total == str(len(session.content)):
      session.stored = self._create(
          session.bucket, session.about, session.query, session.content, headers)
    if session.stored is not None:
      return _Answer(body=session.stored.resource(session.bucket, self.url))
    last = len(session.content) - 1
    return _Answer(308, b'', (('Range', f'bytes=0-{last}'),) if last >= 0 else ())

  def _create(self, bucket, about, query, content, headers) -> Stored:
    name = query.get('name') or about.get('name')
    if not name:
      raise _Failed(400, 'the object has no name')
    self._check_condition(bucket, name, query)
    stored = Stored(name, content, next(self._generations),
                    about.get('contentType') or 'application/octet-stream')
    said = dict(re.findall(r'(crc32c|md5)=([^,]+)', headers.get('X-Goog-Hash') or ''))
    for key, wanted in (('crc32c', stored.crc32c()), ('md5', stored.md5())):
      for value in (said.get(key), about.get('md5Hash' if key == 'md5' else key)):
        if value not in (None, wanted):
          raise _Failed(400, f'the {key} of {name} is {wanted}, the request says {value}')
    self._buckets[bucket][name] = stored
    self.created.append(name)
    return stored

  def _check_condition(self, bucket: str, name: str, query: dict[str, str]) -> None:
    stored = self._buckets[bucket].get(name)
    generation = str(stored.generation) if stored else '0'
    if query.get('ifGenerationMatch', generation) != generation:
      raise _Failed(412, 'At least one of the pre-conditions you specified did not hold.')
    if query.get('ifGenerationNotMatch') == generation:
      raise _Failed(412, 'At least one of the pre-conditions you specified did not hold.')


class _Quiet(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128

  def handle_error(self, request, client_address) -> None:
    if not isinstance(sys.exception(), ConnectionError):  # of a client that was killed
      super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  store: Server

  def log_message(self, *_) -> None:
    pass

  def _body(self) -> bytes:
    if self.headers.get('Transfer-Encoding', '').lower() != 'chunked':
      length = int(self.headers.get('Content-Length') or 0)
      body = self.rfile.read(length)
      if len(body) < length:
        raise ConnectionResetError('a request that breaks off is none')
      return body
    parts = []
    while size := int(self.rfile.readline().split(b';')[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b''.join(parts)

  def _reply(self) -> None:
    url = urllib.parse.urlsplit(self.path)
    query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query, True).items()}
    try:
      body = self._body()
      fault = self.store.fault()
      if fault and not fault[1]:
        raise _Failed(fault[0], 'injected')
      answer = self.store.answer(self.command, url.path, query, self.headers, body)
      if fault:
        raise _Failed(fault[0], 'injected, and the work is done')
    except _Failed as error:
      answer = _Answer(error.status, {'error': {
          'code': error.status, 'message': error.message, 'errors': [{'message': error.message}]}})
    self.store.log.append((self.command, self.path, answer.status))
    self._send(answer)

  def _send(self, answer: _Answer) -> None:
    is_json = isinstance(answer.body, dict)
    content = json.dumps(answer.body).encode() if is_json else answer.body
    self.send_response(answer.status)
    for key, value in answer.headers:
      self.send_header(key, value)
    self.send_header('Content-Type', 'application/json' if is_json else 'application/octet-stream')
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content)

  do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _reply
