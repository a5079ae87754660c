"""L4. Rendering in several processes, each with a synthesizer of its own."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from musiclm_jax.corpus import render

_RENDERER = None


def make_all(make: Callable[[Any, render.Renderer, str], list[dict]], specs: Sequence[Any],
             soundfonts: Sequence[str], output: str, workers: int) -> Iterator[list[dict]]:
  """Yields make(spec, renderer, output) in the order of `specs`, whatever the number of workers.

  `make` is a function of a module, which other processes can import.
  """
  if workers == 1:
    renderer = render.Renderer(soundfonts)
    for spec in specs:
      yield make(spec, renderer, output)
    return
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(
    workers, context, _start_worker, (soundfonts,)
  ) as pool:
    try:
      yield from pool.map(_work, [(make, spec, output) for spec in specs])
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _start_worker(soundfonts):
  global _RENDERER  # one synthesizer per process, as FluidSynth keeps samples per process
  _RENDERER = render.Renderer(soundfonts)


def _work(arguments) -> list[dict]:
  make, spec, output = arguments
  return make(spec, _RENDERER, output)
