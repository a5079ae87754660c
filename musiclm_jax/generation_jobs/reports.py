"""What a batch job tells of its pieces: a json each, and of every shard a manifest and a summary.

  job.json                            the settings; the first file of all
  ID.wav, ID.json                     a piece and what it was made of; the json comes last, so a
                                      piece that has one is finished
  manifest-00000-of-00004.jsonl       one line for each piece of a shard that is finished
  rejected-00000-of-00004.jsonl       {"line", "id", "reason"} of each row that was left out
  summary-00000-of-00004.json         counts

Each row of the list is in one shard's files, so those of all shards one after the other are the
whole's: `cat manifest-*-of-00004.jsonl`.  Apart from `time` nothing of them depends on when or by
how many processes the pieces were made.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from musiclm_jax import errors
from musiclm_jax.generation_jobs import object_store, prompts

JOB_FILE = 'job.json'


def names(share: tuple[int, int]) -> dict[str, str]:
  """Returns the names of a shard's files."""
  part = f'{share[0]:05d}-of-{share[1]:05d}'
  return {'manifest': f'manifest-{part}.jsonl', 'rejected': f'rejected-{part}.jsonl',
          'summary': f'summary-{part}.json'}


def to_json(value: Mapping[str, Any]) -> bytes:
  return (json.dumps(value, indent=2, ensure_ascii=False) + '\n').encode()


def read_json(store, name: str) -> dict[str, Any]:
  """Returns the JSON object of a file of the output folder."""
  try:
    value = json.loads(store.read(name))
    if not isinstance(value, dict):
      raise ValueError(f'a {type(value).__name__}')
    return value
  except (ValueError, RecursionError) as error:
    if isinstance(error, errors.UserError):
      raise
    raise errors.UserError(f'{store.url}: {name} is not a JSON object: {error}') from error


@functools.cache
def environment() -> dict[str, Any]:
  """Returns what the bytes of a piece may depend on beside its settings."""
  versions = {'python': platform.python_version()}
  for package in ('musiclm-jax', 'jax', 'jaxlib', 'flax', 'numpy'):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # used from the clone
      versions[package] = 'not installed'
  return {'device': jax.local_devices()[0].device_kind, 'versions': versions}


def write(store, pieces: Sequence[str], rejected: Sequence[prompts.Rejected],
          share: tuple[int, int]) -> dict[str, Any]:
  """Writes manifest, rejected rows and, last, the summary of a shard; returns the summary."""
  with concurrent.futures.ThreadPoolExecutor(object_store.MAX_AT_ONCE) as pool:
    found = list(pool.map(lambda name: read_json(store, f'{name}.json'), pieces))
  lines = [{key: value for key, value in each.items() if key != 'time'} for each in found]
  where = names(share)
  store.create(where['manifest'], _to_lines(lines))
  store.create(where['rejected'], _to_lines([dataclasses.asdict(each) for each in rejected]))
  scores = [each['similarity'] for each in found]
  summary = {
      'shard': list(share), 'pieces': len(found), 'rejected': len(rejected),
      'prompts': len({each['id'] for each in found}),
      'audio_seconds': sum(each['seconds'] for each in found),
      'similarity': {'mean': round(float(np.mean(scores)), 4), 'least': min(scores)} if found else {},
      'with_warnings': sum(bool(each['warnings']) for each in found),
      'time': {'wall_seconds': round(sum(each['time']['wall_seconds'] for each in found), 3)}}
  store.create(where['summary'], to_json(summary))
  return summary


def _to_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
  return ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows).encode()
