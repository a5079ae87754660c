"""L4. Audio files -> waveform records: 24 kHz, mono, 16 bit, clips of at most 30 s.

  music/rock/a.flac (70.5 s)  ->  clips rock/a.flac-000 (24 s), -001 (24 s), -002 (22.5 s)

A file that cannot be read is reported, counted and left out; it does not end the run.

Texts beside the captions, by MuLan's sources (text.py, SOURCES), come from the field
'texts' of a line of corpus.jsonl, {"short": ["sad piano"], "labels": ["Piano", "Sad music"]}, or
from a third column of the csv; a row that names no source is a caption:

  path,caption,source
  rock/a.flac,A loud song with guitars.,
  rock/a.flac,loud rock,short
  rock/a.flac,Songs for the road,playlist
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from musiclm_jax import audio, errors, text

log = logging.getLogger(__name__)

CORPUS_FILE = 'corpus.jsonl'
MIN_SECONDS = 1  # token records hold whole seconds, so a shorter clip would be empty


@dataclasses.dataclass(frozen=True)
class Source:
  """One audio file to be cut into clips."""

  path: str
  id: str
  split: str
  captions: tuple[str, ...] = ()
  piece: str = ''
  texts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Summary:
  """What was written, and why files were left out: {path: reason}.

  texts: {split: {source: clips that have texts of it}}.
  """

  clips: dict[str, int] = dataclasses.field(default_factory=dict)
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  longest: float = 0.0
  texts: dict[str, collections.Counter] = dataclasses.field(default_factory=dict)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)


def prepare_audio(
    *,
    input_dir: str,
    output_dir: str,
    captions: str | None = None,
    clip_seconds: int = 30,
    test_fraction: float = 0.05,
    num_shards: int = 16,
    num_workers: int = 2,
    progress: bool = True,
) -> Summary:
  """Writes waveform records of a corpus directory, or of all audio files below a folder.

  Args:
    input_dir: has a corpus.jsonl (which then says splits and captions), or is any folder of audio.
    output_dir: must be empty or missing.
    captions: csv with columns path (below input_dir), caption and, if you like, source; a file may
      have several rows.
    clip_seconds: longest clip; longer files are cut into equal parts at whole seconds.
    test_fraction: share of a folder's files held out, chosen by the hash of their name.
    num_shards: files written for each split, at most one for each source file.
    num_workers: threads that decode and write.
    progress: show a bar.
  """
  if not (clip_seconds >= MIN_SECONDS and clip_seconds == int(clip_seconds)):
    raise errors.UserError(
        f'clip_seconds is {clip_seconds}, wanted a whole number, at least {MIN_SECONDS}')
  if min(num_shards, num_workers) < 1:
    raise errors.UserError(f'num_shards is {num_shards} and num_workers is {num_workers}, '
                           'wanted at least 1 of each')
  if not 0 <= test_fraction < 1:
    raise errors.UserError(f'test_fraction is {test_fraction}, wanted 0 or more and below 1')
  _check_empty(output_dir)
  sources = find_sources(input_dir, captions, test_fraction)
  shards = list(_shards(sources, num_shards))
  splits = sorted({source.split for source in sources})
  writer = _Writer(output_dir, clip_seconds, splits, len(sources), progress)
  with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
    tasks = [pool.submit(writer.write, *shard) for shard in shards]
    try:
      for task in concurrent.futures.as_completed(tasks):
        task.result()
    except BaseException:
      writer.stop = True
      pool.shutdown(cancel_futures=True)
      raise
  return writer.finish()


def find_sources(
    input_dir: str, captions: str | None = None, test_fraction: float = 0.05) -> list[Source]:
  """Returns what there is to read, in a fixed order."""
  folder = pathlib.Path(input_dir)
  if not folder.is_dir():
    raise errors.UserError(f'{input_dir} is not a directory, wanted a folder of audio files')
  if (folder / CORPUS_FILE).exists():
    if captions:
      raise errors.UserError(f'{input_dir} has a {CORPUS_FILE} with captions: leave out {captions}')
    sources = list(_corpus_sources(folder))
  else:
    sources = _folder_sources(folder, captions, test_fraction)
  if not sources:
    raise errors.UserError(f'{input_dir} holds no audio files ({" ".join(audio.SUFFIXES)})')
  return sources


def clip_bounds(num_samples: int, clip_seconds: int, rate: int) -> list[tuple[int, int]]:
  """Returns (start, end) samples of equal parts of at most `clip_seconds`, cut at whole seconds.

    70.5 s in clips of 30 s: 0-24, 24-47, 47-70.5
  """
  seconds = num_samples / rate
  parts = math.ceil(seconds / clip_seconds)
  cuts = [min(math.ceil(i * seconds / parts), math.floor(i * clip_seconds)) * rate
          for i in range(1, parts)]
  return list(zip([0, *cuts], [*cuts, num_samples], strict=True))


def _corpus_sources(folder: pathlib.Path) -> Iterator[Source]:
  for number, line in enumerate((folder / CORPUS_FILE).read_bytes().split(b'\n'), 1):
    if not line.strip():
      continue
    where = f'{folder / CORPUS_FILE}, line {number}'
    try:
      yield _corpus_source(folder, json.loads(line.decode()), where)
    except errors.UserError:
      raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise errors.UserError(f'{where}: not a clip: {error!r}') from error


def _corpus_source(folder: pathlib.Path, clip: dict, where: str) -> Source:
  """Returns a line of corpus.jsonl, which may come from anywhere: nothing leads out of `folder`."""
  captions, texts = clip['captions'], dict(clip.get('texts', {}))
  lists = [captions, *texts.values()]
  strings = [clip['id'], clip['split'], clip['path'], clip.get('piece', ''), *itertools.chain(*lists)]
  if any(isinstance(values, str) for values in lists) or not all(
      isinstance(value, str) for value in strings):
    raise TypeError('captions or a source of texts is not a list of strings, or another field is '
                    'not a string')
  for value in strings:
    value.encode()  # a ValueError for what no record can hold
  _check_sources(texts, where)
  if not re.fullmatch(r'[A-Za-z0-9_]+', clip['split']):
    raise ValueError(f'split {clip["split"]!r} is not a word')
  return Source(audio.path_inside(folder, clip['path'], where), clip['id'], clip['split'],
                tuple(captions), clip.get('piece', ''),
                {source: tuple(values) for source, values in texts.items() if values})


def _folder_sources(folder, captions_path, test_fraction) -> list[Source]:
  names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*')
                 if path.suffix.lower() in audio.SUFFIXES and path.is_file())
  for name in names:
    if undecodable(name):
      raise errors.UserError(f'{folder}: the file name {name!r} is not UTF-8, rename it')
  captions = _read_captions(captions_path, names) if captions_path else {}
  test = held_out(names, test_fraction)

  def source(name: str) -> Source:
    texts = {of: tuple(values) for of, values in captions.get(name, {}).items()}
    return Source(os.fspath(folder / name), name, 'test' if name in test else 'train',
                  texts.pop('', ()), name, texts)

  return [source(name) for name in names]


def undecodable(name: str) -> bool:
  """Returns whether a file name is not UTF-8: Python marks its bytes by surrogates."""
  return any('\ud800' <= character <= '\udfff' for character in name)


def held_out(names: list[str], fraction: float) -> set[str]:
  """Returns names whose hash is below `fraction`: adding files moves no other file.

  Neither split is left empty where there are two files.
  """
  hashes = {name: int(hashlib.sha1(name.encode()).hexdigest()[:8], 16) / 2 ** 32 for name in names}
  test = {name for name in names if hashes[name] < fraction}
  if fraction and len(names) > 1:
    order = sorted(names, key=hashes.get)
    test = (test | {order[0]}) - {order[-1]}
  return test


def _check_sources(found: Iterable[str], where: str) -> None:
  if unknown := sorted(set(found) - set(text.SOURCES)):
    raise errors.UserError(
        f'{where}: unknown text source {unknown[0]!r}, wanted one of {list(text.SOURCES)}')


def _read_captions(path: str, names: list[str]) -> dict[str, dict[str, list[str]]]:
  """Returns {file: {source: texts}}; the source of plain captions is ''."""
  known, captions, unknown = set(names), {}, 0
  for number, row in enumerate(text.read_table(path, ('path', 'caption')), 2):
    source = row.get('source', '').strip()
    if source:
      _check_sources([source], f'{path}, line {number}')
    name = pathlib.PurePosixPath(row['path']).as_posix()
    if name in known and row['caption'].strip():
      captions.setdefault(name, {}).setdefault(source, []).append(row['caption'].strip())
    else:
      unknown += 1
  if not captions:
    raise errors.UserError(f'{path}: none of its {unknown} rows names an audio file of the folder')
  if unknown:
    log.warning('%s: %d rows without a caption or without a file are left out', path, unknown)
  return captions


def _shards(sources, num_shards) -> Iterator[tuple[str, int, int, list[Source]]]:
  """Yields (split, index, count, sources): files are dealt out by hash, so shards are alike."""
  for split in sorted({source.split for source in sources}):
    members = sorted((source for source in sources if source.split == split),
                     key=lambda source: hashlib.sha1(source.id.encode()).hexdigest())
    count = min(num_shards, len(members))
    for index in range(count):
      yield split, index, count, members[index::count]


class _Writer:
  """Writes shards from several threads and keeps the summary."""

  def __init__(self, output_dir, clip_seconds, splits, num_sources, progress):
    import tqdm
    self.output_dir, self.clip_seconds = output_dir, clip_seconds
    self.summary, self.stop = Summary(), False
    self.num_sources, self.splits = num_sources, splits
    self._lock = threading.Lock()
    self._bar = tqdm.tqdm(total=num_sources, unit='file', disable=not progress, desc='audio')

  def write(self, split: str, index: int, count: int, sources: list[Source]) -> None:
    from musiclm_jax.data import records
    path = pathlib.Path(self.output_dir) / records.shard_name(split, index, count)
    records.write_shard(path, self._records(split, sources))

  def _records(self, split, sources) -> Iterator[bytes]:
    from musiclm_jax.data import records
    for source in sources:
      if self.stop:
        raise KeyboardInterrupt
      try:
        waveform = audio.read(source.path)
        if len(waveform) < MIN_SECONDS * audio.SAMPLE_RATE:
          raise errors.UserError(f'{source.path} lasts {len(waveform) / audio.SAMPLE_RATE:.2f} s, '
                                 f'wanted at least {MIN_SECONDS} s')
      except (errors.UserError, OSError) as error:
        self._failed(source.path, str(error))
        continue
      bounds = clip_bounds(len(waveform), self.clip_seconds, audio.SAMPLE_RATE)
      for i, (start, end) in enumerate(bounds):
        clip_id = source.id if len(bounds) == 1 else f'{source.id}-{i:03d}'
        yield records.waveform_record(
            clip_id, waveform[start:end], source.captions, source.piece or source.id, source.texts)
      self._done(split, np.diff(bounds)[:, 0] / audio.SAMPLE_RATE, source.texts)

  def _failed(self, path: str, reason: str) -> None:
    with self._lock:
      self.summary.failed[path] = reason
      self._bar.write(f'left out: {reason}', file=sys.stderr)
      self._bar.update()

  def _done(self, split: str, lengths: np.ndarray, texts: Iterable[str]) -> None:
    with self._lock:
      summary = self.summary
      summary.clips[split] = summary.clips.get(split, 0) + len(lengths)
      summary.seconds[split] = summary.seconds.get(split, 0.0) + float(lengths.sum())
      counts = summary.texts.setdefault(split, collections.Counter())
      counts.update(dict.fromkeys(texts, len(lengths)))
      summary.longest = max(summary.longest, float(lengths.max()))
      self._bar.update()

  def finish(self) -> Summary:
    from musiclm_jax.data import records
    self._bar.close()
    summary = self.summary
    if not summary.clips:
      shutil.rmtree(self.output_dir)  # empty shards only, and the directory was empty before
      reason = summary.failed[min(summary.failed)]
      raise errors.UserError(f'none of {self.num_sources} files could be read; the first: {reason}')
    records.write_info(self.output_dir, {
        'kind': 'waveforms', 'sample_rate': audio.SAMPLE_RATE, 'clips': summary.clips,
        'seconds': {split: round(summary.seconds.get(split, 0.0), 3) for split in self.splits},
        'longest_seconds': summary.longest, 'failed': len(summary.failed),
        'texts': {split: dict(sorted(counts.items()))
                  for split, counts in sorted(summary.texts.items())}})
    hours = sum(summary.seconds.values()) / 3600
    log.info('%s: %s clips, %.2f hours; %d of %d files left out', self.output_dir,
             ' + '.join(f'{count} {split}' for split, count in sorted(summary.clips.items())),
             hours, len(summary.failed), self.num_sources)
    return summary


def _check_empty(output_dir: str) -> None:
  path = pathlib.Path(output_dir)
  if path.exists() and not path.is_dir():
    raise errors.UserError(f'{output_dir} is a file, wanted a directory')
  if path.is_dir() and any(path.iterdir()):
    state = 'already holds records' if (path / 'info.json').exists() else 'is not empty'
    raise errors.UserError(f'{output_dir} {state}: remove it or choose another directory')
