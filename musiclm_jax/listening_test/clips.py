"""L5. The clips of a listening test: one of each system for every caption, made alike.

Raters must not see which system made a clip.  So every clip is decoded, mixed to mono, resampled
to one rate and written as a wav without metadata, and the clips of one caption are cut to the
shortest of them: their files differ in their samples only.  Loudness stays as it is.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from musiclm_jax import audio, errors, text

GROUND_TRUTH = 'ground_truth'
MAX_SECONDS = 60.0
_MIN_SECONDS = 0.2
_MAX_CAPTION = 4000
_SYSTEM_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9 _.+-]{0,39}')


@dataclasses.dataclass(frozen=True)
class Item:
  """A caption and the files of its clips, one of each system."""

  name: str
  caption: str
  files: tuple[pathlib.Path, ...]


@dataclasses.dataclass(frozen=True)
class Prepared:
  """An item as it is served."""

  name: str
  caption: str
  seconds: float  # of each clip
  files: tuple[pathlib.Path, ...]  # wav, one of each system


def items(captions: Mapping[str, str], files: Mapping[str, Mapping[str, str]]) -> list[Item]:
  """Returns the captions with their clips, in the order of the ids.

  Args:
    captions: {id: caption}, those of which every system has a clip.
    files: {system: {id: path}}.
  """
  if len(files) < 2:
    raise errors.UserError(f'{len(files)} system is no comparison, wanted at least 2')
  for name in files:
    if not _SYSTEM_NAME.fullmatch(name):
      raise errors.UserError(f'system {name!r}: wanted a name of letters, digits and . _ + -')
  return [Item(name, _one_line(captions[name]),
               tuple(pathlib.Path(found[name]) for found in files.values()))
          for name in sorted(captions)]


def _one_line(caption: str) -> str:
  """Returns what can be shown: 4000 printable characters at most."""
  printable = ''.join(c if c.isprintable() else ' ' for c in text.readable(caption))
  return ' '.join(printable.split())[:_MAX_CAPTION]


def prepare(items: Sequence[Item], folder: str, seconds: float = 10.0,
            rate: int = audio.SAMPLE_RATE) -> list[Prepared]:
  """Writes the clips as they are served, wav in `folder`; what is there already is kept.

  Args:
    items: of one test.
    folder: is made; a name in it is a digest of what the clip was made from.
    seconds: longer clips are cut.
    rate: samples a second of what is served.
  """
  import tqdm

  if not _MIN_SECONDS <= seconds <= MAX_SECONDS:
    raise errors.UserError(f'seconds is {seconds:g}, wanted {_MIN_SECONDS:g} to {MAX_SECONDS:g}')
  os.makedirs(folder, exist_ok=True)
  return [_prepare(item, pathlib.Path(folder), seconds, rate)
          for item in tqdm.tqdm(items, unit='caption', desc='clips', disable=None)]


def _prepare(item: Item, folder: pathlib.Path, seconds: float, rate: int) -> Prepared:
  stats = [path.stat() for path in item.files]
  made_from = [[os.path.realpath(path), stat.st_size, stat.st_mtime_ns]
               for path, stat in zip(item.files, stats, strict=True)]
  digest = hashlib.sha256(json.dumps([made_from, seconds, rate]).encode()).hexdigest()[:32]
  files = tuple(folder / f'{digest}_{system}.wav' for system in range(len(item.files)))
  if not all(path.exists() for path in files):
    waveforms = [audio.read_beginning(path, seconds, rate) for path in item.files]
    shortest = min(map(len, waveforms))
    if shortest < _MIN_SECONDS * rate:
      short = item.files[[len(waveform) for waveform in waveforms].index(shortest)]
      raise errors.UserError(f'{short} lasts {shortest / rate:.3f} s, wanted {_MIN_SECONDS:g} s '
                             'or more')
    for path, waveform in zip(files, waveforms, strict=True):
      audio.write(path, waveform[:shortest], rate, overwrite=True)
  return Prepared(item.name, item.caption, _wav_seconds(files), files)


def _wav_seconds(files: Sequence[pathlib.Path]) -> float:
  import soundfile

  lengths = {soundfile.info(path).duration for path in files}
  if len(lengths) != 1:
    raise errors.UserError(f'{files[0]} and its like last {sorted(lengths)} s, wanted the same; '
                           f'remove the folder {files[0].parent}, it is made again')
  return lengths.pop()
