"""L5. Which file is which clip: captions by id, and folders of audio whose file stems are ids.

  captions.csv   id,caption              or path,caption, where the id is the stem of the path
  corpus.jsonl   of tools/make_corpus.py: the longest caption of each clip of a split
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from musiclm_jax import audio, errors, musiccaps, prepare_audio, text

REFERENCE = 'reference'  # the name of that folder among the systems


@dataclasses.dataclass(frozen=True)
class Match:
  """The clips that everyone has.

  ids: sorted. captions: of each. files: {system: {id: path}}, the reference among them where there
  is one. missing: {system: ids with a caption that it lacks}. unknown: {system: ids without a
  caption}.
  """

  ids: tuple[str, ...]
  captions: Mapping[str, str]
  files: Mapping[str, Mapping[str, str]]
  missing: Mapping[str, tuple[str, ...]]
  unknown: Mapping[str, tuple[str, ...]]


def read_captions(path: str | os.PathLike, split: str = 'test') -> dict[str, str]:
  """Returns {id: caption}; of several captions of a clip, the longest.

  `split` is that of a corpus.jsonl; a csv has all its rows taken.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f'{path} does not exist, wanted a csv with captions, or a corpus.jsonl')
  if path.name == prepare_audio.CORPUS_FILE:
    pairs = [(source.id, caption) for source in prepare_audio.find_sources(os.fspath(path.parent))
             if source.split == split for caption in source.captions]
    wanted = f'no clip of split {split!r} with a caption'
  else:
    pairs, wanted = _csv_pairs(os.fspath(path)), 'no rows with an id and a caption'
  found = {}
  for name, caption in pairs:
    caption = text.one_line(caption)
    if name and caption:
      found[name] = max(found.get(name, ''), caption, key=len)
  if not found:
    raise errors.UserError(f'{path} holds {wanted}')
  return found


def _csv_pairs(path: str) -> list[tuple[str, str]]:
  rows = text.read_table(path, ('caption',))
  column = next((name for name in ('id', 'path') if rows and name in rows[0]), None)
  if rows and column is None:
    raise errors.UserError(f'{path} has columns {list(rows[0])}, wanted id or path beside caption')
  stem = lambda row: pathlib.PurePosixPath(row['path']).stem
  return [(row['id'].strip() if column == 'id' else stem(row), row['caption']) for row in rows]


def read(path: str | os.PathLike, split: str | None = None
         ) -> tuple[dict[str, str], Callable[[str], dict[str, str]]]:
  """Returns ({id: caption}, a function from a folder to {id: file}), of any table of captions.

  `split` is by default 'test' of a corpus.jsonl and 'eval' of the csv of MusicCaps, whose ids are
  YTID_START.
  """
  if not musiccaps.is_table(path):
    return read_captions(path, split or 'test'), find_clips
  splits, split = musiccaps.split_rows(musiccaps.read_rows(os.fspath(path))), split or 'eval'
  if split not in splits:
    raise errors.UserError(f'MusicCaps has no split {split!r}, wanted one of {", ".join(splits)}')
  return {row.id: row.caption for row in splits[split]}, _find_musiccaps


def _find_musiccaps(folder: str) -> dict[str, str]:
  found = musiccaps.find_clips(folder)
  if not found:
    raise errors.UserError(f'{folder} holds no clips of MusicCaps, wanted YTID_START.wav')
  return {musiccaps.clip_id(*key): paths[0] for key, paths in found.items()}


def named(generated: Sequence[str], reference: str | None) -> dict[str, str]:
  """Returns {name: folder} of 'NAME=DIR' or 'DIR', called by its last part; the reference is last."""
  found = {}
  for given in generated:
    name, separator, folder = given.partition('=')
    if not separator or os.path.isdir(given):
      name, folder = os.path.basename(os.path.abspath(given)), given
    if not name.strip() or not folder:
      raise errors.UserError(f'{given!r} is no folder, wanted DIR or NAME=DIR')
    if name in found or name == REFERENCE:
      raise errors.UserError(f'two folders are called {name!r}, wanted another NAME in NAME=DIR')
    found[name] = folder
  return found | ({REFERENCE: reference} if reference else {})


def find_clips(folder: str | os.PathLike) -> dict[str, str]:
  """Returns {file stem: path} of the audio below a folder; of several with a stem, the first."""
  if not os.path.isdir(folder):
    raise errors.UserError(f'{os.fspath(folder)} is not a directory, wanted a folder of audio')
  found = {}
  for path in sorted(pathlib.Path(folder).rglob('*')):
    if path.suffix.lower() in audio.SUFFIXES and path.is_file():
      if not prepare_audio.undecodable(path.name):
        found.setdefault(path.stem, os.fspath(path))
  if not found:
    raise errors.UserError(
        f'{os.fspath(folder)} holds no audio files ({" ".join(audio.SUFFIXES)})')
  return found


def sample(ids: Iterable[str], count: int | None) -> list[str]:
  """Returns at most `count` ids, sorted: those with the smallest hashes, a fair sample."""
  ordered = sorted(ids, key=lambda name: hashlib.sha1(name.encode()).hexdigest())
  return sorted(ordered[:count])


def match(captions: Mapping[str, str], files: Mapping[str, Mapping[str, str]],
          max_clips: int | None = None) -> Match:
  """Returns the clips that have a caption and that all systems have, or `max_clips` of them."""
  common = set(captions).intersection(*(set(clips) for clips in files.values()))
  if not common:
    counts = ', '.join(f'{name} {len(clips)}' for name, clips in files.items())
    some = next(iter(captions))
    raise errors.UserError(
        f'no clip has a caption and is in all folders ({len(captions)} captions, {counts}): wanted '
        f'files named by the ids of the captions, as {some[:80]}.wav')
  missing = {name: tuple(sorted(set(captions) - set(clips))) for name, clips in files.items()}
  unknown = {name: tuple(sorted(set(clips) - set(captions))) for name, clips in files.items()}
  ids = tuple(sample(common, max_clips))
  return Match(ids, {name: captions[name] for name in ids}, files, missing, unknown)
