"""A whole job: plan it, have its shards tokenized, sum up."""

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from musiclm_jax import audio, errors
from musiclm_jax.extraction import published, shards

log = logging.getLogger(__name__)
_EVERY_SECONDS = 10.0


def extract(job: shards.Job, *, num_workers: int = 1, runner: str | None = None,
            beam_options: Sequence[str] = (), progress: bool = True) -> dict[str, Any]:
  """Writes token records and returns the manifest: files, rejected, clips, tokens, hours, ..

  A second call goes on where an interrupted one stopped; of a complete job it changes nothing.

  Args:
    job: what to do; see shards.Job.
    num_workers: processes, each with the models; with more than one Beam deals out the work.
    runner: a Beam runner by name, for machines elsewhere; `input`, `models` and `output` must then
      be where those see them.
    beam_options: what else Beam is to know.
    progress: show a bar.
  """
  job = _located(job)
  on_beam = _on_beam() if runner or num_workers > 1 else None
  names = shards.plan(job)
  before = _done_samples(job, names)
  start = time.monotonic()
  if on_beam:
    with _watched(job, names, progress):
      on_beam.run(job, names, runner or on_beam.LOCAL, num_workers, beam_options)
  else:
    _tokenize_here(job, names, progress)
  seconds = time.monotonic() - start
  manifest = shards.finish(job, names)
  hours = (_done_samples(job, names) - before) / audio.SAMPLE_RATE / 3600
  log.info('%s: %d files, %.3f hours, %d rejected, %d clips, %d tokens', job.output,
           manifest['files'], manifest['hours'], manifest['rejected'], manifest['clips'],
           manifest['tokens'])
  if hours:
    log.info('%.4f hours in %.1f s: %.5f hours a second, %.1f times real time', hours, seconds,
             hours / seconds, hours * 3600 / seconds)
  return manifest


def _on_beam():
  try:
    from musiclm_jax.extraction import on_beam
  except ImportError as error:
    raise errors.UserError(
        'several workers, or a runner, need Apache Beam in an environment of its own: '
        f"pip install -e '.[beam]' ({error})") from error
  return on_beam


def _located(job: shards.Job) -> shards.Job:
  """Returns the job with absolute paths, for workers elsewhere, and room for the longest clip."""
  def absolute(path: str) -> str:
    return os.fspath(path) if published.is_remote(path) else os.path.abspath(path)

  if job.waveforms:
    from musiclm_jax.data import records
    longest = records.read_info(job.input, 'waveforms')['longest_seconds']
    job = dataclasses.replace(job, clip_seconds=max(1, int(longest)))
  return dataclasses.replace(job, input=absolute(job.input), models=absolute(job.models),
                             output=absolute(job.output))


def _tokenize_here(job, names, progress) -> None:
  import tqdm
  for name in tqdm.tqdm(names, unit='shard', disable=not progress, desc='tokens'):
    shards.tokenize_shard(job, name)


@contextlib.contextmanager
def _watched(job, names, progress) -> Iterator[None]:
  """Shows how many shards are complete while others work."""
  import tqdm
  done = threading.Event()

  def watch() -> None:
    with tqdm.tqdm(total=len(names), unit='shard', disable=not progress, desc='tokens') as bar:
      while not done.wait(_EVERY_SECONDS):
        bar.update(sum(map(bool, shards.reports(job, names).values())) - bar.n)
      bar.update(sum(map(bool, shards.reports(job, names).values())) - bar.n)

  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()
  try:
    yield
  finally:
    done.set()
    watcher.join()


def _done_samples(job, names) -> int:
  return sum(report['samples'] for report in shards.reports(job, names).values() if report)
