"""L5. What stands between the open internet and the pages: signed cookies, limits, headers."""

import asyncio
import collections
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Mapping
from urllib import parse

MAX_BODY_BYTES = 4096  # an answer has 200
_BODY_SECONDS = 10.0
COOKIE_SECONDS = 180 * 86400
_HEADERS = {
    'content-security-policy': (
        "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self'; "
        "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"),
    'x-content-type-options': 'nosniff',
    'x-frame-options': 'DENY',
    'referrer-policy': 'same-origin',  # with no-referrer, forms would come from the origin null
    'cross-origin-opener-policy': 'same-origin',
    'cross-origin-resource-policy': 'same-origin',
    'permissions-policy': 'camera=(), geolocation=(), microphone=()',
    'x-robots-tag': 'noindex, nofollow',
}


class Visitors:
  """Signs who someone is, as a cookie, and what forms they were shown.

  A visitor is a random name, made before anything is stored; it becomes the rater's on the start.
  """

  def __init__(self, key: str):
    import itsdangerous

    signing = {'digest_method': hashlib.sha256}
    self._cookies = itsdangerous.URLSafeTimedSerializer(key, 'cookie', signer_kwargs=signing)
    self._forms = itsdangerous.Signer(key, 'form', key_derivation='hmac', **signing)
    self._error = itsdangerous.BadData

  def new(self) -> str:
    return secrets.token_hex(16)

  def cookie(self, visitor: str) -> str:
    return self._cookies.dumps(visitor)

  def visitor(self, cookie: str) -> str | None:
    """Returns who a cookie was made for; None when it is not one of ours, or too old."""
    if len(cookie) > 512 or not cookie.isascii():
      return None
    try:
      visitor = self._cookies.loads(cookie, max_age=COOKIE_SECONDS)
    except self._error:
      return None
    return visitor if isinstance(visitor, str) else None

  def form_token(self, visitor: str) -> str:
    return self._forms.get_signature(visitor).decode()

  def form_is_theirs(self, visitor: str, token: str) -> bool:
    return same(token, self.form_token(visitor))


def same(given: str, wanted: str) -> bool:
  """Compares secrets in a time that does not depend on where they differ."""
  return hmac.compare_digest(given.encode('utf-8', 'replace'), wanted.encode())


class RateLimit:
  """A bucket for every name: `count` at once, which come back within `seconds`."""

  def __init__(self, count: float, seconds: float, most_names: int = 50_000):
    self._count, self._rate, self._most = count, count / seconds, most_names
    self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

  def allows(self, name: str, now: float | None = None) -> bool:
    now = time.monotonic() if now is None else now
    left, since = self._buckets.pop(name, (self._count, now))
    left = min(self._count, left + (now - since) * self._rate)
    allowed = left >= 1
    self._buckets[name] = (left - allowed, now)
    if len(self._buckets) > self._most:
      self._buckets.popitem(last=False)  # who came longest ago
    return allowed


def client_address(scope: Mapping, proxy_hops: int) -> str:
  """Returns whom a request is from; networks of /64 for IPv6, of which everyone has one or more.

  Behind proxies: the address that the outermost of `proxy_hops` trusted ones has written down.
  What stands left of it in X-Forwarded-For is the client's own invention.
  """
  address = scope['client'][0] if scope.get('client') else ''
  if proxy_hops:
    lists = [value.decode('latin-1') for name, value in scope['headers']
             if name == b'x-forwarded-for']
    forwarded = [part.strip() for part in ','.join(lists).split(',') if part.strip()]
    if len(forwarded) >= proxy_hops:
      address = forwarded[-proxy_hops]
  try:
    parsed = ipaddress.ip_address(address)
  except ValueError:
    return 'unknown'
  if parsed.version == 6:
    return str(ipaddress.ip_network((parsed, 64), strict=False))
  return str(parsed)


def from_this_site(headers: Mapping[str, str]) -> bool:
  """Whether a browser says that a form was sent from a page of this server."""
  if site := headers.get('sec-fetch-site'):
    return site == 'same-origin'
  if origin := headers.get('origin'):
    return parse.urlsplit(origin).netloc == headers.get('host')
  return True  # browsers of before 2020 may send neither: the form's token decides


class Guard:
  """ASGI middleware: rate limit by address, size of bodies, headers of replies."""

  def __init__(self, app, limit: RateLimit, proxy_hops: int, https: bool):
    self._app, self._limit, self._proxy_hops = app, limit, proxy_hops
    headers = dict(_HEADERS)
    if https:
      headers['strict-transport-security'] = 'max-age=31536000'
    self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

  async def __call__(self, scope, receive, send):
    if scope['type'] == 'websocket':
      await send({'type': 'websocket.close'})
      return
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return

    async def send_guarded(message):
      if message['type'] == 'http.response.start':
        message = {**message, 'headers': [*message.get('headers', ()), *self._headers]}
      await send(message)

    scope['client_address'] = client_address(scope, self._proxy_hops)
    if not self._limit.allows(scope['client_address']):
      await _reply(send_guarded, 429, b'Too many requests. Please wait a minute.')
      return
    try:
      body = await asyncio.wait_for(_body(scope, receive), _BODY_SECONDS)
    except TimeoutError:
      await _reply(send_guarded, 408, b'The request took too long.')
      return
    if body is None:
      await _reply(send_guarded, 413, b'The request is too large.')
      return
    await self._app(scope, _replay(body, receive), send_guarded)


async def _body(scope, receive) -> bytes | None:
  """Returns the whole body of a request, None for one that is too large."""
  for name, value in scope['headers']:
    if name == b'content-length' and not (
        value.isdigit() and len(value) < 10 and int(value) <= MAX_BODY_BYTES):
      return None
  body, more = b'', True
  while more:
    message = await receive()
    if message['type'] != 'http.request':
      return b''  # gone
    body += message.get('body', b'')
    if len(body) > MAX_BODY_BYTES:
      return None
    more = message.get('more_body', False)
  return body


def _replay(body: bytes, receive):
  waiting = [{'type': 'http.request', 'body': body, 'more_body': False}]

  async def again():
    return waiting.pop() if waiting else await receive()

  return again


async def _reply(send, status: int, text: bytes) -> None:
  headers = [(b'content-type', b'text/plain; charset=utf-8'), (b'cache-control', b'no-store'),
             (b'content-length', str(len(text)).encode()), (b'connection', b'close')]
  if status == 429:
    headers.append((b'retry-after', b'60'))
  await send({'type': 'http.response.start', 'status': status, 'headers': headers})
  await send({'type': 'http.response.body', 'body': text})
