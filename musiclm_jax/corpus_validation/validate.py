"""Reads a corpus once and describes it: files, duplicates, captions, leaks and warnings."""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Iterator

import numpy as np

from musiclm_jax import errors
from musiclm_jax.corpus_validation import captions, findings, inputs, leaks, matching

_IN_FLIGHT = 4  # recordings for each worker


def validate(
    *, input_dir: str, captions_file: str | None = None, musiccaps: str | None = None,
    evaluation_dir: str | None = None, num_workers: int = 2, progress: bool = True) -> dict:
  """Returns all there is to say about a corpus, as JSON takes it.

  Args:
    input_dir: any folder of audio, one with a corpus.jsonl, or waveform records.
    captions_file: csv, tsv or jsonl with path (below input_dir) and caption.
    musiccaps: the public csv of MusicCaps; files named by its YouTube ids are reported.
    evaluation_dir: recordings that must not be in the corpus, as input_dir; compared by sound.
    num_workers: threads.
    progress: show a bar.
  """
  parts = leaks.read_musiccaps(musiccaps) if musiccaps else {}
  store = matching.Store()
  try:
    items, others, total = inputs.find(input_dir)
    evaluation, _, evaluated = inputs.find(evaluation_dir) if evaluation_dir else ((), 0, 0)
    files = _measure(items, total, store, num_workers, progress, 'audio')
    of_evaluation = _measure(evaluation, evaluated, store, num_workers,
                             progress and evaluated != 0, 'evaluation')
    own = {file['name']: file.pop('texts') for file in files}
    found = captions.read(input_dir, captions_file, own)
    for file in files:
      file['captions'] = len(found.of_file[file['name']])
    report = {
        'input': input_dir, 'other_files': others, 'files': files,
        'totals': findings.totals(files),
        'captions': captions.describe(found),
        'duplicates': _duplicates(store, files),
        'leaks': {
            'musiccaps': leaks.by_name([file['name'] for file in files], parts) if parts else None,
            'evaluation': _evaluation(store, files, of_evaluation) if evaluation_dir else None},
    }
    report['warnings'] = findings.warnings(report)
    return report
  finally:
    store.close()


def _measure(items, total, store, num_workers, progress, title) -> list[dict]:
  """Returns a description of each item, in order; its fingerprint goes into the store."""
  import tqdm
  found, names = [], set()
  with tqdm.tqdm(total=total, unit='file', disable=not progress, desc=title) as bar:
    for item, outcome in _in_order(items, num_workers):
      name, more = item.name, itertools.count(2)
      while name in names:  # an id of a corpus.jsonl may come twice
        name = f'{item.name} ({next(more)})'
      names.add(name)
      file = {'name': name, 'split': item.split, 'texts': item.texts, 'error': None}
      if isinstance(outcome, str):
        store.append(np.zeros(0, np.uint32))
        file['error'] = outcome
      else:
        store.append(outcome[1])
        file.update(dataclasses.asdict(outcome[0]))
      found.append(file)
      bar.update()
  return found


def _in_order(items, num_workers: int) -> Iterator[tuple]:
  """Yields (item, (Measurements, fingerprint) or why it could not be read)."""
  waiting, items = collections.deque(), iter(items)
  with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
    try:
      while True:
        while len(waiting) < _IN_FLIGHT * num_workers and (item := next(items, None)):
          waiting.append((item, pool.submit(_outcome, item)))
        if not waiting:
          return
        item, future = waiting.popleft()
        yield item, future.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _outcome(item: inputs.Item):
  """Returns what the item's `measure` does, or a text: no file, whatever it holds, ends the run."""
  try:
    return item.measure()
  except (errors.UserError, OSError) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    return reason.removeprefix(f'{item.path} ')
  except Exception as error:
    return f'{type(error).__name__}: {error}'


def _duplicates(store: matching.Store, files: list[dict]) -> dict:
  """Returns {'groups': [[name, ..], ..], 'matches': [..], 'across_splits': [group, ..]}."""
  matches = matching.find(store, lambda first, second: np.maximum(first, second) < len(files))
  joined = matching.Groups()
  for match in matches:
    joined.join(match.first, match.second)
  groups = joined.members(range(len(files)))
  return {
      'groups': [[files[i]['name'] for i in group] for group in groups],
      'across_splits': [[files[i]['name'] for i in group] for group in groups
                        if len({files[i]['split'] for i in group}) > 1],
      'matches': [_match(match, files[match.first], files[match.second]) for match in matches]}


def _evaluation(store: matching.Store, files: list[dict], evaluation: list[dict]) -> dict:
  """Returns {'files': .., 'unreadable': [..], 'matches': [..]}."""
  matches = matching.find(
      store, lambda first, second: (first < len(files)) & (second >= len(files)), join=False)
  return {
      'files': len(evaluation),
      'unreadable': [file['name'] for file in evaluation if file['error']],
      'matches': [_match(match, files[match.first], evaluation[match.second - len(files)])
                  for match in matches]}


def _match(match: matching.Match, first: dict, second: dict) -> dict:
  return {'first': first['name'], 'second': second['name'],
          'bit_errors': round(match.bit_errors, 4), 'offset_seconds': round(match.offset, 2),
          'overlap_seconds': round(match.overlap, 1)}


def check_writable(path: str) -> None:
  """Raises before the work, not after it, where a report could not be written."""
  folder = os.path.dirname(path) or '.'
  if os.path.isdir(path):
    raise errors.UserError(f'{path} is a directory, wanted the name of a file to write')
  if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
    raise errors.UserError(f'{path} cannot be written: {folder} is not a directory to write to')
