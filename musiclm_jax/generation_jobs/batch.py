"""The batch job: prompts in, audio files out; killed anywhere, the same command goes on.

A piece depends on the table, the settings and the models alone (and on the kind of processor):
its seed is made of its id, and the batch that it is made in is always the same one, whoever makes
it.  So any number of processes may work on one output folder, whole or by shards: what is there is
not made again, and what two make at once is written once.
"""

import concurrent.futures
import dataclasses
import datetime
import hashlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from musiclm_jax import errors, generate
from musiclm_jax.generation_jobs import audio_files, jobs, object_store, prompts, reports, stop

log = logging.getLogger(__name__)

_WRITERS = 16
_SHOWN = 5  # warnings of a kind


def run(job: jobs.Job, musiclm: generate.MusicLM | None = None, progress: bool = True) -> dict[str, Any]:
  """Makes the pieces of this share that are not there yet; returns the share's summary.

  On SIGTERM the batch at hand is finished; {} comes back when pieces are left to make.
  `musiclm`: the job's models, where they are read already.
  """
  with stop.on_sigterm() as asked:
    store = object_store.open_store(job.output)
    there = store.sizes()
    table, rejected = prompts.parse(object_store.read_input(job.prompts), job.prompts, job.seconds)
    settings, share = job.settings(table), job.share()
    batches, rejected = job.batches(table), rejected[share[0]::share[1]]
    pieces = [name for _, members in batches for each in members for name in job.names(each)]
    _check_begun(job, store, pieces, there, settings)
    left = {name for name in pieces if not _files(job, name) <= set(there)}
    maker, failed = None, []
    if left:
      musiclm = musiclm or generate.MusicLM.from_pretrained(
          job.model, text_mapper=job.text_mapper, weights_dtype=job.weights_dtype)
      maker = _Maker(job, musiclm, store, there, settings)
    _warn('left out: ', [f'line {row.line}: {row.reason}' for row in rejected])
    log.info('%d of %d pieces to make%s, %d rows left out', len(left), len(pieces),
             f' in shard {share[0]}/{share[1]}' if share[1] > 1 else '', len(rejected))
    if maker:
      if not maker.make(batches, left, asked, progress):
        log.info('stopped; the same command makes the rest')
        return {}
      failed = maker.failed
    lost = {name for each in failed for name in job.names(each)}
    rejected += [prompts.Rejected(each.line, each.id, 'the music holds NaN') for each in failed]
    summary = reports.write(store, [name for name in pieces if name not in lost], rejected, share)
    log.info('all there: %s/%s', job.output.rstrip('/'), reports.names(share)['summary'])
    return summary


def _files(job: jobs.Job, name: str) -> set[str]:
  return {name + job.suffix, f'{name}.json'}


def _check_begun(job: jobs.Job, store, pieces: Sequence[str], there: Mapping[str, int],
                 settings: Mapping[str, Any]) -> None:
  """Raises an error when the output folder has the pieces of another job, or of none."""
  strange = set().union(*(_files(job, name) for name in pieces)) & set(there)
  if strange and reports.JOB_FILE not in there:
    there = store.sizes()  # another process may have begun while the list was made
  if reports.JOB_FILE in there:
    jobs.check_same(reports.read_json(store, reports.JOB_FILE), settings, store.url)
  elif strange:
    raise errors.UserError(f'{store.url} holds {min(strange)} and no {reports.JOB_FILE}: it is not of '
                           'this job, wanted another output')


@dataclasses.dataclass(frozen=True)
class _Piece:
  name: str  # of its files, without suffix
  waveform: np.ndarray
  about: dict[str, Any]


class _Maker:
  """Makes batches on the device while the one before is written."""

  def __init__(self, job: jobs.Job, musiclm: generate.MusicLM, store, there: Mapping[str, int],
               settings: Mapping[str, Any]):
    self._job, self._musiclm, self._store, self._there = job, musiclm, store, there
    self.failed: list[prompts.Prompt] = []
    musiclm.check_sampling(job.how)
    settings = {**settings, 'model': musiclm.fingerprint}
    if not store.create(reports.JOB_FILE, reports.to_json(settings)):
      jobs.check_same(reports.read_json(store, reports.JOB_FILE), settings, store.url)

  def make(self, batches: Sequence[tuple[int, list[prompts.Prompt]]], left: set[str],
           asked: threading.Event, progress: bool) -> bool:
    """Makes the pieces called `left` and returns True, or False when asked to stop before."""
    todo = [(seconds, members) for seconds, members in batches
            if any(left & set(self._job.names(each)) for each in members)]
    self._check(batches, left)
    writing, stopped = [], False
    with (concurrent.futures.ThreadPoolExecutor(_WRITERS) as pool,
          tqdm.tqdm(total=len(left), unit=' pieces', disable=not progress, bar_format=(
              '{n_fmt}/{total_fmt} {bar:32} {rate_noinv_fmt} {elapsed}<{remaining}')) as bar):
      for seconds, members in todo:
        stopped = asked.is_set()
        if stopped:
          break
        pieces = self._batch(seconds, members, left)
        _wait(writing, bar)  # of the batch before: so at most two are held
        writing = [pool.submit(self._publish, piece) for piece in pieces]
      _wait(writing, bar)
    return not stopped

  def _check(self, batches: Sequence[tuple[int, list[prompts.Prompt]]], left: set[str]) -> None:
    """Says what of the prompts is not heard; raises an error for a finished file that is none."""
    unheard = []
    for each in (each for _, members in batches for each in members):
      samples = self._num_samples(each)
      for name in self._job.names(each):
        wanted = audio_files.size(samples, self._job.file_format)
        size = self._there.get(name + self._job.suffix, wanted)
        if wanted not in (None, size):
          raise errors.UserError(f'{self._store.url}: {name}{self._job.suffix} has {size} bytes, wanted '
                                 f'{wanted}: something else wrote it, remove it')
      if left & set(self._job.names(each)):
        unheard += [f'{each.id}: {warning}' for warning in self._musiclm.unheard(each.text)]
    _warn('warning: ', unheard)

  def _num_samples(self, prompt: prompts.Prompt) -> int:
    return round(prompt.seconds * self._musiclm.sample_rate)

  def _batch(self, seconds: int, members: Sequence[prompts.Prompt], left: set[str]) -> list[_Piece]:
    """Returns those pieces of a batch that are left to write.

    The device always makes batch_size pieces: one program, whatever is left.
    """
    job, start = self._job, time.monotonic()
    examples = [(prompt, sample) for prompt in members for sample in range(job.num_samples)]
    waveforms = []
    for first in range(0, len(examples), job.batch_size):
      part = examples[first:first + job.batch_size]
      filled = part + part[-1:] * (job.batch_size - len(part))
      made = self._musiclm.generate(
          [prompt.text for prompt, _ in filled], seconds=seconds, how=job.how,
          seed=[job.example_seed(*example) for example in filled])
      waveforms += list(made[:len(part)])
    pieces = []
    for i, prompt in enumerate(members):
      if left & set(job.names(prompt)):
        of_prompt = waveforms[i * job.num_samples:(i + 1) * job.num_samples]
        pieces += self._chosen(prompt, [one[:self._num_samples(prompt)] for one in of_prompt])
    when = {'made': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'wall_seconds': round((time.monotonic() - start) / max(len(examples), 1), 3)}
    return [dataclasses.replace(piece, about=piece.about | {'time': when})
            for piece in pieces if piece.name in left]

  def _chosen(self, prompt: prompts.Prompt, waveforms: Sequence[np.ndarray]) -> list[_Piece]:
    """Returns the pieces of a prompt that are kept; none when the music is no music."""
    job = self._job
    if not all(np.isfinite(waveform).all() for waveform in waveforms):
      self.failed.append(prompt)
      return []
    scores = self._musiclm.similarity([prompt.text] * len(waveforms), waveforms)
    order = np.argsort(-scores, kind='stable') if job.kept < job.num_samples else range(len(scores))
    return [_Piece(name, waveforms[sample], {
        'id': prompt.id, 'prompt': prompt.text, 'seconds': prompt.seconds,
        'sample_rate': self._musiclm.sample_rate, 'seed': job.example_seed(prompt, int(sample)),
        'sample': int(sample), 'similarity': round(float(scores[sample]), 4),
        'warnings': self._musiclm.unheard(prompt.text), 'how': dataclasses.asdict(job.how),
        'text_mapper': job.text_mapper, 'weights_dtype': job.weights_dtype,
        'model': self._musiclm.fingerprint, **reports.environment(),
    }) for name, sample in zip(job.names(prompt), order, strict=False)]

  def _publish(self, piece: _Piece) -> None:
    """Writes the audio, then the json that says it is finished."""
    name = piece.name + self._job.suffix
    content = audio_files.encode(piece.waveform, self._musiclm.sample_rate, self._job.file_format)
    if not self._store.create(name, content):
      there = self._store.read(name)  # of a process that was killed, or is faster
      if there != content:
        log.warning('warning: %s was made on another kind of processor, it is kept', name)
      content = there
    about = {'file': name, 'sha256': hashlib.sha256(content).hexdigest()} | piece.about
    self._store.create(f'{piece.name}.json', reports.to_json(about))


def _wait(writing: Sequence[concurrent.futures.Future], bar: tqdm.tqdm) -> None:
  """Waits until all is written; an error of one is raised here."""
  for future in writing:
    future.result()
    bar.update()


def _warn(kind: str, messages: Sequence[str]) -> None:
  for message in messages[:_SHOWN]:
    log.warning('%s%s', kind, message)
  if len(messages) > _SHOWN:
    log.warning('%sand %d more', kind, len(messages) - _SHOWN)
