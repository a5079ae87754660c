"""What there is to tokenize: names below a folder or a bucket's prefix, and the clips of a file.

Nothing a file holds, or is, ends the run: `read_clips` raises a UserError with the reason.
"""

import contextlib
import hashlib
import os
import pathlib
import stat
import tempfile
from collections.abc import Iterator

import numpy as np

from musiclm_jax import audio, errors, prepare_audio
from musiclm_jax.extraction import published

MAX_HOURS = 6  # of one file: it is held in memory as 16-bit samples, 1 GB


def find(input_dir: str, test_fraction: float = 0.05) -> tuple[list[prepare_audio.Source], int]:
  """Returns (audio files in a fixed order, how many files with other suffixes there are).

  A folder with a corpus.jsonl is read as prepare_audio does.  Of any other folder every name with
  an audio suffix is listed, whether or not it can be read.
  """
  if published.is_remote(input_dir):
    names = published.names(input_dir)
  elif not os.path.isdir(input_dir):
    raise errors.UserError(f'{input_dir} is not a directory, wanted a folder of audio files')
  elif os.path.exists(os.path.join(input_dir, prepare_audio.CORPUS_FILE)):
    return prepare_audio.find_sources(input_dir), 0
  else:
    names = list(_local_names(input_dir))
  found = sorted(name for name in names
                 if os.path.splitext(name)[1].lower() in audio.SUFFIXES)
  if not found:
    raise errors.UserError(f'{input_dir} holds no audio files ({" ".join(audio.SUFFIXES)})')
  readable = [name for name in found if not prepare_audio.undecodable(name)]
  test = prepare_audio.held_out(readable, test_fraction)
  base = input_dir.rstrip('/')
  return [prepare_audio.Source(f'{base}/{name}', name, 'test' if name in test else 'train')
          for name in found], len(names) - len(found)


def deal(sources: list[prepare_audio.Source], num_shards: int
         ) -> Iterator[tuple[str, int, int, list[prepare_audio.Source]]]:
  """Yields (split, index, count, sources): dealt out by the names' hashes, so shards are alike."""
  for split in sorted({source.split for source in sources}):
    members = sorted((source for source in sources if source.split == split),
                     key=lambda source: hashlib.sha1(os.fsencode(source.id)).digest())
    count = min(num_shards, len(members))
    for index in range(count):
      yield split, index, count, sorted(members[index::count], key=lambda source: source.id)


def read_clips(path: str, name: str, clip_seconds: int) -> list[tuple[str, np.ndarray]]:
  """Returns [(id, int16[S] at 24 kHz, mono), ..] as prepare_audio cuts the file called `name`."""
  if prepare_audio.undecodable(name):
    raise errors.UserError('the file name is not UTF-8, rename it')
  pieces, count = [], 0
  with _local_copy(path) as local:
    for block in audio.blocks(local):
      pieces.append(audio.to_pcm16(block))
      count += len(block)
      if count > MAX_HOURS * 3600 * audio.SAMPLE_RATE:
        raise errors.UserError(f'{path} lasts more than {MAX_HOURS} hours, cut it')
  if count < prepare_audio.MIN_SECONDS * audio.SAMPLE_RATE:
    raise errors.UserError(f'{path} lasts {count / audio.SAMPLE_RATE:.2f} s, wanted at least '
                           f'{prepare_audio.MIN_SECONDS} s')
  samples = np.concatenate(pieces)
  bounds = prepare_audio.clip_bounds(count, clip_seconds, audio.SAMPLE_RATE)
  return [(name if len(bounds) == 1 else f'{name}-{i:03d}', samples[start:end])
          for i, (start, end) in enumerate(bounds)]


@contextlib.contextmanager
def _local_copy(path: str) -> Iterator[str]:
  """Gives a local name of a file, which for an object of a store is a temporary one."""
  if not published.is_remote(path):
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would keep its reader waiting
      raise errors.UserError(f'{path} is not a regular file')
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    local = pathlib.Path(folder, 'audio').with_suffix(os.path.splitext(path)[1].lower())
    content = published.read(path)
    if content is None:
      raise errors.UserError(f'{path} does not exist, wanted an audio file')
    local.write_bytes(content)
    try:
      yield os.fspath(local)
    except errors.UserError as error:
      raise errors.UserError(str(error).replace(os.fspath(local), path)) from error


def _local_names(folder: str) -> Iterator[str]:
  """Yields the names of all that is no folder; a folder behind links is entered once."""
  entered, waiting = set(), [folder]
  while waiting:
    for root, folders, files in os.walk(waiting.pop(0)):
      here = os.path.realpath(root)
      if here in entered:
        folders.clear()
        continue
      entered.add(here)
      folders.sort()
      waiting += [path for name in folders if os.path.islink(path := os.path.join(root, name))]
      yield from (os.path.relpath(os.path.join(root, name), folder) for name in files)
