"""L5. Where records come from: one or more directories of them as a seqio source.

Waveform records may also be what `tfds build` made of tasks/musiccaps.py or tasks/audio_folder.py.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf
from etils import epath

from musiclm_jax import audio, errors, token_layout
from musiclm_jax.data import records

TFDS_FILE = 'dataset_info.json'  # of a dataset that TFDS wrote
MAX_CROP_SECONDS = 600  # records are shorter, and crops padded
Directories = str | os.PathLike | Sequence[str]


class RecordSource(seqio.TFExampleDataSource):
  """Reads a few files in turn, one record from each: the same order as seqio's own source.

  Seqio's reads ahead in every file, and what was read ahead is saved with a position: 85 MB of
  waveform records.  Here only the places in the files are; a file's buffer is not.
  """

  CYCLE = 4  # files open at a time
  BUFFER_BYTES = 4 * 2**20  # of a file: a request to gs:// takes as long for less

  def __init__(self, shards: Mapping[str, Sequence[str]], features: Mapping):
    super().__init__(shards, features, cycle_length=self.CYCLE, block_length=1)

  def get_dataset(self, split='train', shuffle=True, seed=None, shard_info=None, **unused):
    """Returns the parsed records of `split`, or of a shard of its files, once."""
    files = self.list_shards(split)
    names = tf.data.Dataset.from_tensor_slices(files)
    if shard_info:
      names = names.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      names = names.shuffle(len(files), seed=seed)
    read = lambda name: tf.data.TFRecordDataset(name, buffer_size=self.BUFFER_BYTES)
    serialised = names.interleave(read, cycle_length=self.CYCLE, block_length=1)
    return serialised.map(self.parse_fn, num_parallel_calls=tf.data.AUTOTUNE)


def as_list(directories: Directories) -> list[str]:
  """Returns a list of directories for one or several."""
  if isinstance(directories, str | os.PathLike):
    return [os.fspath(directories)]
  return [os.fspath(directory) for directory in directories]


def records_source(directories: Directories, kind: str, features: Mapping) -> RecordSource:
  """Returns the splits of all `directories` together; each must be complete.

  `kind` is 'waveforms', 'melodies' or 'tokens'.
  """
  return RecordSource(list_shards(directories, kind), features)


def list_shards(directories: Directories, kind: str) -> dict[str, list[str]]:
  """Returns {split: paths} of all directories together, each of which must be complete."""
  shards = {}
  for directory in as_list(directories):
    for split, paths in _list_shards(epath.Path(directory), kind).items():
      shards.setdefault(split, []).extend(paths)
  if not shards:
    raise errors.UserError(f'{as_list(directories)} hold no records')
  return shards


def task_name(prefix: str, directories: Directories, kind: str) -> str:
  """Returns 'PREFIX_0123abcd', another for other records: what is cached under it is of these.

  The digits stand for the names and sizes of all files of records and for what describes them.
  """
  digest = hashlib.sha256()
  for directory in as_list(directories):
    shards = itertools.chain(*_list_shards(epath.Path(directory), kind).values())
    described = [epath.Path(directory) / name
                 for name in ('info.json', TFDS_FILE, token_layout.LAYOUT_FILE)]
    found = {os.path.basename(path): epath.Path(path).stat().length for path in shards}
    found |= {path.name: path.read_text() for path in described if path.is_file()}
    digest.update(json.dumps(found, sort_keys=True).encode())
  return f'{prefix}_{digest.hexdigest()[:8]}'


def num_samples(crop_seconds: float) -> int:
  """Returns the samples of a crop, at least one."""
  if not 1 / audio.SAMPLE_RATE <= crop_seconds <= MAX_CROP_SECONDS:  # nor for NaN
    raise errors.UserError(f'a crop of {crop_seconds:g} s, wanted a sample or more and at most '
                           f'{MAX_CROP_SECONDS} s')
  return round(crop_seconds * audio.SAMPLE_RATE)


def integers(dtype, rank: int = 1) -> seqio.Feature:
  """Returns the seqio feature of an array without a vocabulary."""
  return seqio.Feature(seqio.PassThroughVocabulary(size=1), add_eos=False, dtype=dtype, rank=rank)


def is_tfds(directory: str | os.PathLike) -> bool:
  """Returns whether `tfds build` made a directory."""
  return (epath.Path(directory) / TFDS_FILE).is_file()


def _list_shards(directory: epath.Path, kind: str) -> dict[str, list[str]]:
  """Returns {split: paths} of a directory of records, or of a TFDS dataset where clips are wanted."""
  if kind == 'waveforms' and is_tfds(directory):
    return _tfds_shards(directory)
  records.read_info(directory, kind)
  return {split: records.list_shards(directory, split) for split in records.splits(directory)}


def _tfds_shards(directory: epath.Path) -> dict[str, list[str]]:
  """Returns {split: paths}; the description is read as JSON, so it can have no code imported."""
  path = directory / TFDS_FILE
  try:
    info = json.loads(path.read_bytes())
    name, file_format = info['name'], info.get('fileFormat', 'tfrecord')
    splits = {split['name']: len(split['shardLengths']) for split in info['splits']}
    if not splits:
      raise ValueError('it has no splits')
    if not all(re.fullmatch(r'\w+', word) for word in (name, *splits)):
      raise ValueError('its name or that of a split is not a word')
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise errors.UserError(f'{path} does not describe a dataset: {error!r}') from error
  if file_format != 'tfrecord':
    raise errors.UserError(f'{directory} has {file_format} files, wanted tfrecord')
  shards = {split: [directory / f'{name}-{split}.tfrecord-{i:05d}-of-{count:05d}'
                    for i in range(count)] for split, count in splits.items()}
  for shard in itertools.chain(*shards.values()):
    if not shard.is_file():
      raise errors.UserError(f'{directory} lacks {shard.name}, which {TFDS_FILE} names')
  return {split: [os.fspath(shard) for shard in paths] for split, paths in shards.items()}
