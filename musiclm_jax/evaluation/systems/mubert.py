"""L5. Mubert's HTTP API, version 3: a track for each caption.

  POST /public/tracks       {"prompt", "duration", "bitrate", "format", "intensity", "mode"}
  GET  /public/tracks/ID    {"data": {"id", "generations": [{"status", "url", ..}, ..]}}

with the headers customer-id and access-token, which come from the environment.  The paper used what
the service was around New Year 2023; nobody outside can have that again.
"""

import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence

from musiclm_jax import errors
from musiclm_jax.evaluation.systems import filling

BASE_URL = 'https://music-api.mubert.com/api/v3'
CUSTOMER, TOKEN = 'MUBERT_CUSTOMER_ID', 'MUBERT_ACCESS_TOKEN'
MAX_PROMPT_CHARACTERS = 200
MIN_SECONDS = 15  # of a track; comparison.py hears its beginning
_MOST_BYTES = 200_000_000  # of a track
_DONE, _FAILED = ('done', 'completed'), ('failed', 'error', 'expired')


class Mubert:
  """Waits for each track, then downloads it.  The same prompt gives another track each time."""

  batch_size = 1

  def __init__(self, environment: Mapping[str, str] | None = None, base_url: str = BASE_URL,
               patience_seconds: float = 300.0, poll_seconds: float = 3.0):
    environment = os.environ if environment is None else environment
    if missing := [name for name in (CUSTOMER, TOKEN) if not environment.get(name)]:
      raise errors.UserError(f'Mubert needs an account: set {" and ".join(missing)}')
    self._headers = {'customer-id': environment[CUSTOMER], 'access-token': environment[TOKEN]}
    self._base, self._patience, self._poll = base_url.rstrip('/'), patience_seconds, poll_seconds

  def generate(self, ids: Sequence[str], captions: Sequence[str], seconds: float,
               seed: int) -> list[filling.Sound]:
    """Returns tracks of at least MIN_SECONDS, as wav files."""
    del ids, seed
    return [self._track(caption, max(MIN_SECONDS, math.ceil(seconds))) for caption in captions]

  def _track(self, caption: str, seconds: int) -> filling.Sound:
    track = self._ask('POST', '/public/tracks', {
        'prompt': shortened(caption), 'duration': seconds, 'bitrate': 320, 'format': 'wav',
        'intensity': 'high', 'mode': 'track'})
    deadline = time.monotonic() + self._patience
    while not (url := _finished(track)):
      if time.monotonic() > deadline:
        raise errors.UserError(f'Mubert: no track after {self._patience:g} s')
      time.sleep(self._poll)
      name = urllib.parse.quote(str(track.get('id', '')), safe='')
      if not name:
        raise errors.UserError('Mubert answers with a track that has no id')
      track = self._ask('GET', f'/public/tracks/{name}')
    return filling.Sound(content=self._download(url), suffix='.wav')

  def _ask(self, method: str, path: str, body: dict | None = None) -> dict:
    """Returns `data` of the answer."""
    request = urllib.request.Request(
        self._base + path, method=method, headers={**self._headers, 'accept': 'application/json'},
        data=None if body is None else json.dumps(body).encode())
    if body is not None:
      request.add_header('content-type', 'application/json')
    try:
      answer = json.loads(_open(request, _MOST_BYTES))
      data = answer['data']
      if not isinstance(data, dict):
        raise TypeError('its data is no object')
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise errors.UserError(f'Mubert: {method} {path}: not the answer wanted: {error}') from error
    return data

  def _download(self, url: str) -> bytes:
    """Returns a track; the address came with an answer, so only http(s) counts, without the token."""
    secure = urllib.parse.urlsplit(self._base).scheme == 'https'
    if urllib.parse.urlsplit(url).scheme not in (('https',) if secure else ('https', 'http')):
      raise errors.UserError(f'Mubert: a track at {url[:100]!r}, wanted an https address')
    return _open(urllib.request.Request(url), _MOST_BYTES)


def shortened(caption: str) -> str:
  """Returns a caption of at most MAX_PROMPT_CHARACTERS, cut between words where it can be."""
  caption = ' '.join(caption.split())
  if len(caption) <= MAX_PROMPT_CHARACTERS:
    return caption
  cut = caption[:MAX_PROMPT_CHARACTERS + 1]
  return cut.rsplit(' ', 1)[0][:MAX_PROMPT_CHARACTERS]


def _finished(track: Mapping) -> str | None:
  """Returns the address of a track that is done, None while it is not."""
  generations = track.get('generations')
  if not isinstance(generations, list) or not all(isinstance(g, dict) for g in generations):
    raise errors.UserError('Mubert answers with a track without generations')
  for generation in generations:
    status = generation.get('status')
    if status in _FAILED:
      raise errors.UserError(f'Mubert: the track is {status}')
    if status in _DONE and isinstance(generation.get('url'), str):
      return generation['url']
  return None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """A redirect would carry the token to wherever it leads."""

  def redirect_request(self, *_):
    return None


def _open(request: urllib.request.Request, most: int) -> bytes:
  """Returns the body of an answer, at most `most` bytes; whatever goes wrong is a UserError."""
  opener = urllib.request.build_opener(_NoRedirects)
  where = f'{request.get_method()} {request.full_url[:200]}'
  try:
    with opener.open(request, timeout=60) as answer:
      content = answer.read(most + 1)
  except urllib.error.HTTPError as error:
    said = error.read(300).decode(errors='replace')
    raise errors.UserError(f'Mubert: {where}: status {error.code}: {said}') from error
  except (OSError, ValueError) as error:
    raise errors.UserError(f'Mubert: {where}: {error}') from error
  if len(content) > most:
    raise errors.UserError(f'Mubert: {where}: more than {most} bytes')
  return content
