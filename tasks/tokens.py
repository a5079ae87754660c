"""L5. Crops of token records as ids of one stage, for the semantic, coarse and fine models."""

import dataclasses
import io

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from musiclm_jax import errors, token_layout
from musiclm_jax.data import preprocessors, records
from tasks import mixtures, sources


def tokens(directory: mixtures.Directories, layout: token_layout.TokenLayout, stage: str,
           seconds: float, crops_per_record: int = 1,
           shuffle_buffer_size: int = 1024) -> seqio.Task | seqio.Mixture:
  """Returns an unregistered task of {'prefix': int32[P], 'targets': int32[N]}, ids of `stage`.

  `layout` must have the streams the records were written with (layout.json); which levels are
  coarse, how many of MuLan's and of the melody's are used, and whether the melody is, is the
  reader's choice. All directories must come from the same tokenizers; [('a', 3.0), ('b', 1.0)]
  mixes them by rates, with one shuffle buffer's memory.  What is cached of a task
  (seqio_cache_tasks) are whole records, for every stage.
  """
  if not 1 <= seconds <= sources.MAX_CROP_SECONDS or seconds % 1:
    raise errors.UserError(f'a crop of {seconds} s, wanted whole seconds, where streams stay aligned,'
                           f' and at most {sources.MAX_CROP_SECONDS}')
  directories = mixtures.flat(directory)
  for path in directories:
    records.read_info(path, 'tokens')
  first, *others = [token_layout.read_layout(path) for path in directories]
  token_layout.check_same(
      layout, _as_used(first.layout, layout, directories[0]), 'the configured layout', directories[0])
  for other, path in zip(others, directories[1:], strict=True):
    token_layout.check_same(first, other, directories[0], path)
  codebooks = _codebooks(directories[0])
  window_seconds = int(records.read_info(directories[0], 'tokens')['window_seconds'])
  stage_layout = layout.stage(stage, seconds)

  def task(folders: list[str], share: float) -> seqio.Task:
    return seqio.Task(
        sources.task_name('tokens', folders, 'tokens'),
        source=sources.records_source(folders, 'tokens', records.TOKEN_FEATURES),
        preprocessors=[
            preprocessors.parse_tokens(first.layout, embedding_dim=codebooks.shape[-1]),
            seqio.CacheDatasetPlaceholder(),
            preprocessors.crop_tokens(layout, stage_layout, codebooks, window_seconds,
                                      crops_per_record),
        ],
        output_features={'prefix': sources.integers(tf.int32),
                         'targets': sources.integers(tf.int32)},
        shuffle_buffer_size=max(1, round(share * shuffle_buffer_size)),
    )

  return mixtures.by_rate('tokens', directory, task)


def _as_used(recorded: token_layout.TokenLayout, layout: token_layout.TokenLayout,
             directory: str) -> token_layout.TokenLayout:
  """Returns the recorded layout with what the reader may choose taken from `layout`."""
  levels = {}
  for name in set(token_layout.CONDITIONS) & layout.recorded.keys() & recorded.recorded.keys():
    used, most = (each.recorded[name].num_levels for each in (layout, recorded))
    if not 1 <= used <= most:
      raise errors.UserError(
          f'the configured layout uses {used} levels of {name}, {directory} has {most}')
    levels[name] = dataclasses.replace(recorded.recorded[name], num_levels=used)
  if layout.melody is None:
    levels[token_layout.MELODY] = None
  return dataclasses.replace(
      recorded, coarse_levels=layout.coarse_levels, fine_uses_mulan=layout.fine_uses_mulan, **levels)


def _codebooks(directory: str) -> np.ndarray:
  """Returns float32[Q, K, D], the MuLan quantizer that extract_tokens left beside the records."""
  path = epath.Path(directory) / records.CODEBOOKS_FILE
  if not path.exists():
    raise errors.UserError(f'{directory} has no {records.CODEBOOKS_FILE}')
  return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False).astype(np.float32)
