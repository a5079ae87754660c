"""L5. Serves a listening test until it is stopped."""

import logging
import os
import socket
from collections.abc import Mapping

from musiclm_jax import audio, errors
from musiclm_jax.listening_test import assignment, clips, preferences, store

log = logging.getLogger(__name__)

TOKEN_VARIABLE = 'LISTENING_TEST_ADMIN_TOKEN'
_MIN_TOKEN = 16
_MAX_CONNECTIONS = 1000


def admin_token(file: str | None, environment: Mapping[str, str]) -> str:
  """Returns the token from a file or the environment, '' when neither has one."""
  token = environment.get(TOKEN_VARIABLE, '')
  if file:
    with open(file, encoding='utf-8') as f:
      token = f.read().strip()
  if (file or token) and len(token) < _MIN_TOKEN:
    raise errors.UserError(f'the token of {file or TOKEN_VARIABLE} has {len(token)} characters, '
                           f'wanted {_MIN_TOKEN} or more, as `openssl rand -hex 16` gives')
  return token


def serve(captions: Mapping[str, str], files: Mapping[str, Mapping[str, str]], database: str,
          limits: assignment.Limits, host: str = '127.0.0.1', port: int = 8000, seconds: float = 10.0,
          rate: int = audio.SAMPLE_RATE, **settings) -> None:
  """Makes the clips and the database, or takes those that are there, and serves them.

  Args:
    captions: {id: caption}.
    files: {system: {id: path}}.
    database: file of the test; DATABASE.clips beside it gets the clips as they are served.
    limits: when the test is over.
    host: address to listen on.
    port: 0 takes a free one, which is printed.
    seconds: longer clips are cut.
    rate: samples a second of the clips.
    **settings: of web.Settings.
  """
  try:
    import uvicorn

    from musiclm_jax.listening_test import web
  except ImportError as error:
    raise errors.UserError(f"{error.name} is not installed, wanted: "
                           "pip install -e '.[listening_test]'") from None
  items = clips.prepare(clips.items(captions, files), f'{database}.clips', seconds, rate)
  systems = list(files)
  store.create(database, systems, items)
  config = web.Settings(**settings)
  opened = store.Store(database, limits, config.heard_share)
  results = lambda: preferences.results(*store.read(database))
  app = web.application(opened, items, results, config)
  listening = _listen(host, port)
  address = f'[{host}]' if ':' in host else host
  log.info('%d captions, %d systems: http://%s:%d/%s', len(items), len(systems), address,
           listening.getsockname()[1], '' if config.admin_token else
           f' (no pages of results: {TOKEN_VARIABLE} is not set)')
  uvicorn.Server(uvicorn.Config(
      app, log_level='warning', access_log=False, proxy_headers=False, server_header=False,
      lifespan='off', ws='none', http='h11', limit_concurrency=_MAX_CONNECTIONS, timeout_keep_alive=15,
      timeout_graceful_shutdown=5,
  )).run(sockets=[listening])  # fmt: skip
  opened.close()


def _listen(host: str, port: int) -> socket.socket:
  if not 0 <= port < 65536:
    raise errors.UserError(f'port is {port}, wanted 0 to 65535')
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    if os.name == 'posix':
      listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
  except OSError as error:
    reason = error.strerror or error
    raise errors.UserError(f'{host} port {port} cannot be used: {reason}') from None
  listening.listen(1024)
  return listening
