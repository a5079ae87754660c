"""A folder of output files, here or in a bucket: each appears whole, once, and is never replaced.

gs:// is google-cloud-storage with application default credentials and creation on condition
(if_generation_match=0), which makes every retry safe: what a lost answer had already created is
found there.  A local file gets a temporary name and is linked to its own.  Other schemes (s3://)
go through fsspec, as exactly as their file system's `mode='create'` does it.
"""

import contextlib
import errno
import logging
import os
import pathlib
import time
from collections.abc import Iterator

from musiclm_jax import audio, errors

MAX_AT_ONCE = 32  # requests
RETRY_SECONDS = 300.0  # for how long 408, 429, 5xx and broken connections are tried again
_ABANDONED_SECONDS = 3600.0


class LocalStore:
  """A folder."""

  def __init__(self, url: str):
    self.url = url
    self._root = pathlib.Path(url)

  def sizes(self) -> dict[str, int]:
    """Returns {name: size in bytes} of all files, {} where there is no folder yet."""
    with _explained(self.url):
      try:
        entries = [entry for entry in os.scandir(self._root) if entry.is_file()]
      except FileNotFoundError:
        return {}
      found = {}
      for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # another process' temporary file, gone by now
          size, changed = entry.stat().st_size, entry.stat().st_mtime
          if not entry.name.endswith('.tmp'):
            found[entry.name] = size
          elif entry.name.startswith('.') and changed < time.time() - _ABANDONED_SECONDS:
            os.unlink(entry.path)  # what a killed process left
      return found

  def create(self, name: str, content: bytes) -> bool:
    """Writes a file and returns True, or returns False where there is one of that name."""
    path = self._root / name
    with _explained(path):
      if path.exists():
        return False
      try:
        with audio.atomic_path(path) as temporary, open(temporary, 'wb') as file:
          file.write(content)
          file.flush()
          os.fsync(file.fileno())
      except errors.UserError:  # another process was faster
        return False
    return True

  def read(self, name: str) -> bytes:
    """Returns what a file holds."""
    with _explained(self._root / name):
      return (self._root / name).read_bytes()


class GoogleStore:
  """A prefix of a bucket: gs://bucket/run1."""

  def __init__(self, url: str):
    self.url = url
    bucket, _, prefix = url.removeprefix('gs://').partition('/')
    if not bucket:
      raise errors.UserError(f'{url} names no bucket, wanted gs://BUCKET/FOLDER')
    self._prefix = prefix.rstrip('/') + '/' if prefix.strip('/') else ''
    try:
      import requests.adapters
      from google.cloud import storage
      from google.cloud.storage import retry
    except ImportError as error:
      raise errors.UserError(f"{url} needs pip install 'musiclm-jax[gcs]': {error}") from error
    self._retry = retry.DEFAULT_RETRY.with_delay(initial=0.5, maximum=30).with_timeout(RETRY_SECONDS)
    logging.getLogger('google.auth').setLevel(logging.ERROR)  # what it warns of, it raises next
    with _explained(url):
      client = storage.Client(project=None)  # objects need none
      adapter = requests.adapters.HTTPAdapter(pool_maxsize=MAX_AT_ONCE)
      for scheme in ('https://', 'http://'):
        client._http.mount(scheme, adapter)  # its own pool keeps 10 connections
      self._bucket = client.bucket(bucket)

  def sizes(self) -> dict[str, int]:
    with _explained(self.url):
      blobs = self._bucket.list_blobs(
          prefix=self._prefix, delimiter='/', page_size=1000, retry=self._retry,
          fields='items(name,size),nextPageToken')
      return {blob.name.removeprefix(self._prefix): blob.size for blob in blobs}

  def create(self, name: str, content: bytes) -> bool:
    from google.api_core import exceptions
    with _explained(f'{self.url.rstrip("/")}/{name}'):
      try:
        self._bucket.blob(self._prefix + name).upload_from_string(
            content, content_type=_content_type(name), if_generation_match=0, checksum='crc32c',
            retry=self._retry)
      except exceptions.PreconditionFailed:
        return False
    return True

  def read(self, name: str) -> bytes:
    from google.api_core import exceptions
    where = f'{self.url.rstrip("/")}/{name}'
    with _explained(where):
      try:
        return self._bucket.blob(self._prefix + name).download_as_bytes(retry=self._retry)
      except exceptions.NotFound:
        raise errors.UserError(f'{where} does not exist, or this account may not see it') from None


class FsspecStore:
  """A folder of any file system that fsspec knows: s3://bucket/run1."""

  def __init__(self, url: str):
    self.url = url
    with _explained(url):
      import fsspec
      self._store, self._root = fsspec.core.url_to_fs(url.rstrip('/'))

  def sizes(self) -> dict[str, int]:
    with _explained(self.url):
      try:
        entries = self._store.ls(self._root, detail=True)
      except FileNotFoundError:
        return {}
      return {entry['name'].rstrip('/').rpartition('/')[2]: entry['size'] for entry in entries
              if entry['type'] == 'file'}

  def create(self, name: str, content: bytes) -> bool:
    with _explained(f'{self.url.rstrip("/")}/{name}'):
      try:
        self._store.pipe_file(f'{self._root}/{name}', content, mode='create')
      except FileExistsError:
        return False
    return True

  def read(self, name: str) -> bytes:
    with _explained(f'{self.url.rstrip("/")}/{name}'):
      return self._store.cat_file(f'{self._root}/{name}')


def open_store(url: str) -> LocalStore | GoogleStore | FsspecStore:
  """Returns the store of a folder's path or URL."""
  if url.startswith('gs://'):
    return GoogleStore(url)
  return FsspecStore(url) if '://' in url else LocalStore(url)


def read_input(path: str) -> bytes:
  """Returns what a file holds: a local one, gs://, or of any scheme that fsspec knows.

  Not gs:// by fsspec: gcsfs goes on without credentials when it finds none, and prints tracebacks.
  """
  if path.startswith('gs://'):
    bucket, _, name = path.removeprefix('gs://').partition('/')
    if not name:
      raise errors.UserError(f'{path} names no file, wanted gs://BUCKET/FILE')
    return GoogleStore(f'gs://{bucket}').read(name)
  with _explained(path):
    try:
      if '://' not in path:
        return pathlib.Path(path).read_bytes()
      import fsspec
      store, name = fsspec.core.url_to_fs(path)
      return store.cat_file(name)
    except FileNotFoundError:
      raise errors.UserError(f'{path} does not exist') from None


@contextlib.contextmanager
def _explained(where) -> Iterator[None]:
  """Makes one line of whatever a store or a file system raises."""
  try:
    yield
  except errors.UserError:
    raise
  except OSError as error:
    raise errors.UserError(f'{where}: {_reason(error)}') from error
  except Exception as error:  # each scheme has errors of its own
    if type(error).__module__.startswith(('google.', 'requests.', 'gcsfs.', 'fsspec.', 'botocore.',
                                          's3fs.', 'aiohttp.', 'urllib3.')):
      raise errors.UserError(f'{where}: {_reason(error)}') from error
    if isinstance(error, ValueError | ImportError):  # fsspec: an unknown scheme, one not installed
      raise errors.UserError(f'{where}: {error}') from error
    raise


def _reason(error: BaseException) -> str:
  """Returns why, in the words that help."""
  names = {each.__name__ for each in type(error).__mro__}
  if 'RetryError' in names and getattr(error, 'cause', None) is not None:
    return f'still failing after {RETRY_SECONDS:g} s: {_reason(error.cause)}'
  if 'GoogleAuthError' in names:
    return f'no Google credentials that work, try `gcloud auth application-default login`: {error}'
  code = getattr(error, 'code', None)
  message = _said(error) or str(getattr(error, 'message', None) or error)
  if code == 404:
    return f'the bucket does not exist, or this account may not see it ({_first_line(message)})'
  if code in (401, 403):
    return f'permission denied ({_first_line(message)})'
  if isinstance(error, OSError) and error.errno == errno.ENOSPC:
    return 'cannot be written: the disk is full'
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return _first_line(message) or type(error).__name__


def _said(error: BaseException) -> str:
  """Returns the words of the store itself, without request and address; '' where it has none."""
  try:
    return str(error.response.json()['error']['message'])
  except (AttributeError, LookupError, TypeError, ValueError):
    return ''


def _first_line(text: str) -> str:
  line = (text.strip().splitlines() or [''])[0]
  return line if len(line) <= 300 else line[:299] + '…'


def _content_type(name: str) -> str:
  return {'.wav': 'audio/wav', '.flac': 'audio/flac', '.json': 'application/json'}.get(
      os.path.splitext(name)[1], 'application/x-ndjson')
