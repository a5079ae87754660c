"""L4. A table of recordings that share melodies -> melody records, for the melody embedding.

The table is what melody_versions.py writes, or a csv of your own covers:

  path,melody,start
  covers/studio.flac,autumn,12.4
  covers/my_humming.wav,autumn,0

Optional columns: seconds (how long this version takes for the same notes; give it where versions
differ much in tempo), kind, piece (melodies of one piece stay in one split), split.
Names and numbers come from outside: paths stay inside the folder.
"""

import concurrent.futures
import dataclasses
import hashlib
import logging
import math
import os
import re
import shutil

import numpy as np

from musiclm_jax import audio, errors, text

log = logging.getLogger(__name__)

SECONDS = 6.0  # of a version whose row does not say
_LONGEST = 30.0
_SHORTEST = 1.0


@dataclasses.dataclass(frozen=True)
class Version:
  """One row: where a melody is heard."""

  path: str
  kind: str
  start: float
  seconds: float

  def read(self) -> np.ndarray:
    """Returns float32[S] at 24 kHz, from where the melody starts."""
    waveform = audio.read(self.path)
    first = round(self.start * audio.SAMPLE_RATE)
    waveform = waveform[first:first + round(self.seconds * audio.SAMPLE_RATE)]
    if len(waveform) < _SHORTEST * audio.SAMPLE_RATE:
      raise errors.UserError(f'{self.path} holds {len(waveform) / audio.SAMPLE_RATE:.2f} s from its '
                             f'start at {self.start} s, wanted at least {_SHORTEST} s')
    return waveform


@dataclasses.dataclass
class Melody:
  """A melody and its versions."""

  name: str
  piece: str
  split: str
  versions: list[Version] = dataclasses.field(default_factory=list)


def read_table(folder: str, table: str, test_fraction: float) -> list[Melody]:
  """Returns the melodies of a csv, in its order; those of one version only are left out."""
  if not os.path.isdir(folder):
    raise errors.UserError(f'{folder!r} is not a folder')
  found = {}
  for number, row in enumerate(text.read_table(table, ('path', 'melody')), start=2):
    where = f'{table!r} line {number}'
    name, path = row['melody'].strip(), row['path'].strip()
    if not name or not path:
      raise errors.UserError(f'{where}: path and melody must not be empty')
    piece = (row.get('piece') or '').strip() or name
    split = (row.get('split') or '').strip() or _split(piece, test_fraction)
    if not re.fullmatch(r'[A-Za-z0-9_]+', split):
      raise errors.UserError(f'{where}: split {split!r} is not a word')
    entry = found.setdefault(name, Melody(name, piece, split))
    if (entry.piece, entry.split) != (piece, split):
      raise errors.UserError(f'{where}: melody {name!r} is of piece {piece!r} and split {split!r}, '
                             f'before of {entry.piece!r} and {entry.split!r}')
    entry.versions.append(Version(
      audio.path_inside(folder, path, where), (row.get('kind') or '').strip() or 'cover',
      _number(row.get('start'), 0.0, 0.0, 86_400.0, f'{where}: start'),
      _number(row.get('seconds'), SECONDS, _SHORTEST, _LONGEST, f'{where}: seconds')))
  melodies = [melody for melody in found.values() if len(melody.versions) > 1]
  if not melodies:
    raise errors.UserError(f'{table!r} holds no melody of two versions or more')
  if single := len(found) - len(melodies):
    log.warning('%s: %d melodies of a single version are left out', table, single)
  return melodies


def write_records(*, input_dir: str, table: str, output_dir: str, test_fraction: float = 0.1,
                  num_shards: int = 16, num_workers: int = 2) -> dict[str, int]:
  """Writes melody records and returns {split: melodies}; a file that cannot be read is left out."""
  from tqdm import tqdm

  from musiclm_jax.data import records  # TensorFlow: not for a look at a bad table
  if not 0 <= test_fraction < 1:
    raise errors.UserError(f'test_fraction is {test_fraction}, wanted 0 or more and below 1')
  if os.path.exists(output_dir) and (not os.path.isdir(output_dir) or os.listdir(output_dir)):
    raise errors.UserError(f'{output_dir} is not an empty directory: remove it or choose another')
  melodies = read_table(input_dir, table, test_fraction)
  counts, known, failed = {}, set(), 0
  with concurrent.futures.ThreadPoolExecutor(num_workers) as pool, tqdm(
      total=len(melodies), unit='melody', desc='melodies') as bar:

    def serialised(members):
      nonlocal failed
      for melody, versions in zip(members, pool.map(_read, members), strict=True):
        bar.update()
        failed += len(melody.versions) - len(versions)
        if len(versions) > 1:
          kinds, waveforms = zip(*versions, strict=True)
          known.update(kinds)
          yield records.melody_record(melody.name, melody.piece, waveforms, kinds)

    for split in sorted({melody.split for melody in melodies}):
      members = sorted((m for m in melodies if m.split == split), key=lambda m: _hash(m.name))
      shards = min(num_shards, len(members))
      counts[split] = sum(
        records.write_shard(os.path.join(output_dir, records.shard_name(split, i, shards)),
                            serialised(members[i::shards])) for i in range(shards))
  if not sum(counts.values()):
    shutil.rmtree(output_dir)  # empty shards only, and the directory was empty before
    raise errors.UserError(f'{table!r}: no melody has two versions that can be read')
  records.write_info(output_dir, {'kind': 'melodies', 'sample_rate': audio.SAMPLE_RATE,
                                  'melodies': counts, 'kinds': sorted(known), 'failed': failed})
  return counts


def _read(melody: Melody) -> list[tuple[str, np.ndarray]]:
  """Returns (kind, float32[S]) of the versions that can be read; of the others, why not is logged."""
  found = []
  for version in melody.versions:
    try:
      found.append((version.kind, version.read()))
    except (errors.UserError, OSError) as error:
      log.warning('left out: %s', error)
  return found


def _number(value: str | None, default: float, low: float, high: float, where: str) -> float:
  if not (value or '').strip():
    return default
  try:
    number = float(value)
  except ValueError:
    number = math.nan
  if not low <= number <= high:
    raise errors.UserError(f'{where} is {value!r}, wanted a number from {low:g} to {high:g}')
  return number


def _hash(name: str) -> str:
  return hashlib.sha1(name.encode('utf-8', 'surrogatepass')).hexdigest()


def _split(piece: str, test_fraction: float) -> str:
  """Returns 'test' for a share of the names: adding pieces moves no other piece."""
  return 'test' if int(_hash(piece)[:8], 16) / 2**32 < test_fraction else 'train'
