"""L5. Clips of a corpus with what corpus.jsonl says of them."""

import json
import os
from collections.abc import Iterator, Mapping

import numpy as np

from musiclm_jax import audio, errors


def read_rows(path: str | os.PathLike) -> dict[str, dict]:
  """Returns {id: row} of a corpus.jsonl; captions are lists of texts, metadata is an object."""
  rows = {}
  with open(path, encoding='utf-8', errors='replace') as stream:
    for number, line in enumerate(stream, 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
        row = {'id': row['id'], 'captions': row.get('captions', []),
               'metadata': row.get('metadata', {})}
        valid = (isinstance(row['id'], str) and isinstance(row['metadata'], dict)
                 and isinstance(row['captions'], list)
                 and all(isinstance(text, str) for text in row['captions']))
      except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
      if not valid:
        raise errors.UserError(f'{path}, line {number}: not a JSON object with an `id`, a list '
                               '`captions` and an object `metadata`')
      rows[row['id']] = row
  if not rows:
    raise errors.UserError(f'{path} is empty, wanted a JSON object on each line')
  return rows


def clips(
    rows: Mapping[str, dict], waveforms_dir: str, split: str, max_clips: int | None,
    progress: bool = True,
) -> Iterator[tuple[dict, str, np.ndarray]]:
  """Yields (row, piece, float32[S]) of the records that have a row, cut to whole seconds.

  Records are dealt to shards by a hash, so the first `max_clips` are a fair sample.
  """
  import tqdm

  from musiclm_jax.data import records
  known = 0
  with tqdm.tqdm(desc=f'clips of {split}', unit=' clips', disable=not progress) as bar:
    for record in records.read_waveforms(waveforms_dir, split):
      if known == max_clips:
        break
      samples = len(record['waveform']) // audio.SAMPLE_RATE * audio.SAMPLE_RATE
      if record['id'] not in rows or not samples:
        continue
      known += 1
      yield rows[record['id']], record['piece'], record['waveform'][:samples]
      bar.update()
  if not known:
    raise errors.UserError(f'{waveforms_dir}: no record of {split} has an id of the corpus given, '
                           'wanted the records made from it (tools/prepare_audio.py)')
