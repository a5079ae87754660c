"""L5. The pages of a listening test, on Starlette.  Reading a page changes nothing; forms do.

  GET /                  the welcome, the open question, or the end, by who asks
  POST /start            becomes a rater
  POST /answer           answers the open question
  POST /more             asks for another question at the end
  GET /audio/TASK/a|b    a clip of one's own question; neither file nor system shows
  GET /static/NAME       script and style sheet
  GET, POST /results     asks for the token, shows the results
  GET /results.json      the same for programs, token in the header Authorization: Bearer
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from urllib import parse

import anyio.to_thread
from starlette import applications, exceptions, requests, responses, routing

from musiclm_jax.listening_test import clips, guards, report, store

_LABEL = re.compile(r'[A-Za-z0-9_.@-]{0,64}')
_NUMBER = re.compile(r'[0-9]{1,4}([.][0-9]{1,4})?')
_TYPES = {'.css': 'text/css; charset=utf-8', '.js': 'text/javascript; charset=utf-8',
          '.svg': 'image/svg+xml'}
_FOLDER = pathlib.Path(__file__).parent
_ADMIN_TRIES_PER_MINUTE = 5.0
_RATER_REQUESTS_PER_MINUTE = 120.0


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a test is served."""

  heard_share: float = 0.95  # of each clip, before an answer counts
  admin_token: str = ''  # without it there are no pages of results
  proxy_hops: int = 0  # trusted proxies that write X-Forwarded-For
  https: bool = False  # the browser sees https: cookies are then for it alone
  requests_per_minute: float = 600.0  # of one address
  starts_per_hour: float = 60.0  # new raters of one address


def application(database: store.Store, items: Sequence[clips.Prepared], results: Callable,
                settings: Settings):
  """Returns the ASGI application.

  Args:
    database: of the test.
    items: of the test, in the order of the database.
    results: a function that returns preferences.Results.
    settings: of the server.
  """
  pages = _Pages(database, items, results, settings)
  app = applications.Starlette(
      routes=[
          routing.Route('/', pages.home, methods=['GET']),
          routing.Route('/start', pages.start, methods=['POST']),
          routing.Route('/answer', pages.answer, methods=['POST']),
          routing.Route('/more', pages.more, methods=['POST']),
          routing.Route('/audio/{task}/{side}', pages.audio, methods=['GET']),
          routing.Route('/static/{name}', pages.static, methods=['GET']),
          routing.Route('/results', pages.results_form, methods=['GET']),
          routing.Route('/results', pages.results_page, methods=['POST']),
          routing.Route('/results.json', pages.results_json, methods=['GET']),
      ],
      exception_handlers={store.Refused: pages.refused, exceptions.HTTPException: pages.http_error,
                          Exception: pages.failed},
  )
  limit = guards.RateLimit(settings.requests_per_minute, 60)
  return guards.Guard(app, limit, settings.proxy_hops, settings.https)


class _Pages:
  """The handlers of requests."""

  def __init__(self, database, items, results, settings: Settings):
    self._store, self._items, self._results, self._settings = database, items, results, settings
    self._visitors = guards.Visitors(database.key)
    self._raters = guards.RateLimit(_RATER_REQUESTS_PER_MINUTE, 60)
    self._starts = guards.RateLimit(settings.starts_per_hour, 3600)
    self._admin = guards.RateLimit(_ADMIN_TRIES_PER_MINUTE, 60)
    self._cookie = '__Host-rater' if settings.https else 'rater'
    self._templates = report.templates()
    self._static = {path.name: path.read_bytes() for path in (_FOLDER / 'static').iterdir()
                    if path.suffix in _TYPES}

  def _visitor(self, request: requests.Request) -> str | None:
    return self._visitors.visitor(request.cookies.get(self._cookie, ''))

  def _page(self, name: str, visitor: str | None, status: int = 200, **values):
    """Returns a page; its forms carry the visitor's token, and the cookie is fresh again."""
    token = self._visitors.form_token(visitor) if visitor else ''
    content = self._templates.get_template(name).render(form_token=token, **values)
    response = responses.HTMLResponse(content, status, {'cache-control': 'no-store'})
    if visitor:
      response.set_cookie(
          self._cookie, self._visitors.cookie(visitor), guards.COOKIE_SECONDS, path='/',
          secure=self._settings.https, httponly=True, samesite='lax')
    return response

  async def _rater(self, request: requests.Request) -> str:
    """Returns who has started; everyone else is refused."""
    visitor = self._visitor(request)
    if not visitor or not await _in_thread(self._store.knows, visitor):
      raise store.Refused(403, 'Please start at the first page.')
    self._limit(self._raters, visitor)
    return visitor

  def _limit(self, limit: guards.RateLimit, name: str) -> None:
    if not limit.allows(name):
      raise store.Refused(429, 'Too many requests. Please wait a minute, then go on.')

  async def _form(self, request: requests.Request, *names: str) -> dict[str, str]:
    """Returns the fields of a form that was shown to the visitor who sends it."""
    if request.headers.get('content-type', '').split(';')[0] != 'application/x-www-form-urlencoded':
      raise store.Refused(415, 'This is not a form of these pages.')
    try:
      pairs = parse.parse_qsl((await request.body()).decode('ascii'), keep_blank_values=True,
                              strict_parsing=True, errors='strict', max_num_fields=10)
    except ValueError:
      raise store.Refused(400, 'This form cannot be read.') from None
    form, visitor = dict(pairs), self._visitor(request)
    if sorted(name for name, _ in pairs) != sorted(['form_token', *names]):
      raise store.Refused(400, 'This form has other fields than it was shown with.')
    if not visitor or not guards.from_this_site(request.headers) or (
        not self._visitors.form_is_theirs(visitor, form['form_token'])):
      raise store.Refused(
          403, 'This form is too old, or cookies are blocked. Please reload the page.')
    return form

  async def home(self, request):
    visitor = self._visitor(request)
    if not visitor or not await _in_thread(self._store.knows, visitor):
      label = request.query_params.get('rater', '')
      return self._page('welcome.html', visitor or self._visitors.new(),
                        label=label if _LABEL.fullmatch(label) else '')
    self._limit(self._raters, visitor)
    task = await _in_thread(self._store.current, visitor)
    done = await _in_thread(self._store.num_answers, visitor)
    most = await _in_thread(self._store.most_answers)
    if task is None:
      return self._page('end.html', visitor, done=done, most=most, code=visitor[:10].upper())
    return self._page('question.html', visitor, task=task, done=done, most=most,
                      heard_share=self._settings.heard_share)

  async def start(self, request):
    form = await self._form(request, 'label')
    visitor = self._visitor(request)
    if not _LABEL.fullmatch(form['label']):
      raise store.Refused(400, 'A participant id has up to 64 letters, digits and _ . @ -')
    if not await _in_thread(self._store.knows, visitor):
      self._limit(self._starts, request.scope['client_address'])
      await _in_thread(self._store.start, visitor, form['label'])
    return _see('/')

  async def answer(self, request):
    rater = await self._rater(request)
    form = await self._form(request, 'task', 'answer', 'heard_a', 'heard_b')
    if not re.fullmatch('[0-9]', form['answer']) or not (
        _NUMBER.fullmatch(form['heard_a']) and _NUMBER.fullmatch(form['heard_b'])):
      raise store.Refused(400, 'This form cannot be read.')
    heard = (float(form['heard_a']), float(form['heard_b']))
    await _in_thread(self._store.answer, rater, form['task'], int(form['answer']), heard)
    return _see('/')

  async def more(self, request):
    rater = await self._rater(request)
    await self._form(request)
    await _in_thread(self._store.more, rater)
    return _see('/')

  async def audio(self, request):
    rater = await self._rater(request)
    task, side = request.path_params['task'], request.path_params['side']
    found = await _in_thread(self._store.clip, rater, task, side) if side in ('a', 'b') else None
    if found is None:
      raise store.Refused(404, 'There is no such clip.')
    item, system = found
    content = await _in_thread(self._items[item].files[system].read_bytes)
    return _part(content, request.headers.get('range'))

  async def static(self, request):
    name = request.path_params['name']
    if name not in self._static:
      raise store.Refused(404, 'There is no such page.')
    return responses.Response(self._static[name], headers={
        'content-type': _TYPES[pathlib.PurePath(name).suffix], 'cache-control': 'max-age=300'})

  def _check_token(self, request, given: str) -> None:
    if not self._settings.admin_token:
      raise store.Refused(404, 'There is no such page.')
    self._limit(self._admin, request.scope['client_address'])
    if not guards.same(given, self._settings.admin_token):
      raise store.Refused(403, 'This is not the token.')

  async def results_form(self, request):
    if not self._settings.admin_token:
      raise store.Refused(404, 'There is no such page.')
    return self._page('token.html', self._visitor(request) or self._visitors.new())

  async def results_page(self, request):
    form = await self._form(request, 'token')
    self._check_token(request, form['token'])
    found = await _in_thread(self._results)
    return self._page('results.html', None, **report.page_values(found))

  async def results_json(self, request):
    scheme, _, token = request.headers.get('authorization', '').partition(' ')
    self._check_token(request, token if scheme == 'Bearer' else '')
    found = await _in_thread(self._results)
    return responses.JSONResponse(report.to_json(found), headers={'cache-control': 'no-store'})

  async def refused(self, request, refusal: store.Refused):
    return self._page('message.html', None, refusal.status, message=refusal.message)

  async def http_error(self, request, error: exceptions.HTTPException):
    messages = {404: 'There is no such page.', 405: 'This page cannot be asked in that way.'}
    response = self._page('message.html', None, error.status_code,
                          message=messages.get(error.status_code, 'This cannot be done.'))
    response.headers.update(error.headers or {})
    return response

  async def failed(self, request, error: Exception):
    return self._page('message.html', None, 500,
                      message='Something went wrong here. Nothing was lost; please try again.')


async def _in_thread(function, *arguments):
  return await anyio.to_thread.run_sync(function, *arguments)


def _see(path: str) -> responses.Response:
  headers = {'location': path, 'cache-control': 'no-store'}
  return responses.Response(status_code=303, headers=headers)


def _part(content: bytes, wanted: str | None) -> responses.Response:
  """Returns a clip, or the one range of bytes that was asked for, as iPhones do.

  No etag and no date: the same clip must look like any other.
  """
  headers = {'content-type': 'audio/wav', 'accept-ranges': 'bytes',
             'cache-control': 'private, max-age=3600', 'vary': 'Cookie'}
  found = re.fullmatch(r'bytes=(\d{0,12})-(\d{0,12})', wanted or '')
  if not found or found.groups() == ('', ''):
    return responses.Response(content, headers=headers)
  first, last = found.groups()
  if not first:
    start, end = max(0, len(content) - int(last)), len(content)
  else:
    start, end = int(first), min(int(last) + 1 if last else len(content), len(content))
  if start >= end:
    return responses.Response(
        status_code=416, headers=headers | {'content-range': f'bytes */{len(content)}'})
  headers['content-range'] = f'bytes {start}-{end - 1}/{len(content)}'
  return responses.Response(content[start:end], 206, headers)
