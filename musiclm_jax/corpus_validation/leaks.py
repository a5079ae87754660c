"""Recordings that a model must not be trained on: those that it is evaluated with."""

import os
import re
from collections.abc import Iterable

from musiclm_jax import errors, text

_ID = 11  # characters of a YouTube id


def read_musiccaps(path: str) -> dict[str, str]:
  """Returns {YouTube id: 'balanced', 'eval' or 'train'} of the public csv of MusicCaps.

  Balanced is a part of eval.
  """
  if not os.path.isfile(path):
    raise errors.UserError(f'{path} does not exist, wanted the public csv of MusicCaps')
  parts = {}
  for row in text.read_table(path, ('ytid', 'is_balanced_subset', 'is_audioset_eval')):
    if re.fullmatch(r'[A-Za-z0-9_-]{11}', row['ytid']):
      parts[row['ytid']] = ('balanced' if row['is_balanced_subset'] == 'True' else
                            'eval' if row['is_audioset_eval'] == 'True' else 'train')
  if not parts:
    raise errors.UserError(f'{path} names no YouTube id in the column ytid')
  return parts


def by_name(names: Iterable[str], parts: dict[str, str]) -> dict[str, dict[str, str]]:
  """Returns {part: {name: YouTube id}} of files whose name has an id of MusicCaps anywhere.

  'a/-0Gj8-vB1q4_30.wav' and 'Title [-0Gj8-vB1q4].opus' are clips of the same video.
  """
  found = {}
  for name in names:
    base = os.path.basename(name)
    for start in range(len(base) - _ID + 1):
      if part := parts.get(base[start:start + _ID]):
        found.setdefault(part, {})[name] = base[start:start + _ID]
        break
  return found
