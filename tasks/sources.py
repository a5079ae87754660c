"""L5. Where records come from: one or more record directories as a seqio source."""

import os
from collections.abc import Mapping, Sequence

import seqio

from musiclm_jax import errors
from musiclm_jax.data import records

Directories = str | os.PathLike | Sequence[str]


def as_list(directories: Directories) -> list[str]:
  """Returns a list of directories for one or several."""
  if isinstance(directories, str | os.PathLike):
    return [os.fspath(directories)]
  return [os.fspath(directory) for directory in directories]


def records_source(
    directories: Directories, kind: str, features: Mapping) -> seqio.TFExampleDataSource:
  """Returns the splits of all `directories` together; each must be complete (info.json).

  `kind` is 'waveforms', 'melodies' or 'tokens'.
  """
  shards = {}
  for directory in as_list(directories):
    records.read_info(directory, kind)
    for split in records.splits(directory):
      shards.setdefault(split, []).extend(records.list_shards(directory, split))
  if not shards:
    raise errors.UserError(f'{as_list(directories)} hold no records')
  # Few files at a time, one record from each in turn: a waveform record is 1.4 MB.
  return seqio.TFExampleDataSource(shards, features, cycle_length=4, block_length=1)


def integers(dtype, rank: int = 1) -> seqio.Feature:
  """Returns the seqio feature of an array without a vocabulary."""
  return seqio.Feature(seqio.PassThroughVocabulary(size=1), add_eos=False, dtype=dtype, rank=rank)
