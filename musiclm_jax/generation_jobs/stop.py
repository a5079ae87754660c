"""A request to stop, from outside."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

log = logging.getLogger(__name__)


@contextlib.contextmanager
def on_sigterm() -> Iterator[threading.Event]:
  """Gives an event that the first SIGTERM sets; a second one ends the process at once.

  A thread listens, for the main one may be inside a compiled program for minutes.
  """
  asked = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield asked  # only the main thread may set handlers
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)

  def listen() -> None:
    while number := os.read(reader, 1):
      if number[0] != signal.SIGTERM:
        continue
      if asked.is_set():
        os._exit(128 + signal.SIGTERM)
      asked.set()
      log.info('SIGTERM: the batch at hand is finished first; a second one ends at once')

  old_handler = signal.signal(signal.SIGTERM, lambda number, frame: None)
  old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  listener = threading.Thread(target=listen, daemon=True)
  listener.start()
  try:
    yield asked
  finally:
    signal.set_wakeup_fd(old_writer)
    signal.signal(signal.SIGTERM, old_handler)
    os.close(writer)
    listener.join()
    os.close(reader)
