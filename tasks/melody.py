"""L5. Pairs of versions of a melody, for the melody embedding."""

from collections.abc import Sequence

import seqio
import tensorflow as tf

from musiclm_jax import audio, errors
from musiclm_jax.data import preprocessors, records
from tasks import sources


def melody(directory: sources.Directories, crop_seconds: float, max_shift_seconds: float = 0.2,
           kinds: Sequence[str] | None = None, shuffle_buffer_seconds: float = 512) -> seqio.Task:
  """Returns an unregistered task of two versions of each melody.

  {'waveform': int16[2, crop_seconds at 24 kHz], 'piece': int32[1]}; both crops hold the same part
  of the melody, apart from up to twice `max_shift_seconds`.  `kinds` are those of the versions to
  choose from; all by default.
  """
  steps = [preprocessors.version_pairs(
      sources.num_samples(crop_seconds), round(max_shift_seconds * audio.SAMPLE_RATE))]
  if kinds is not None:
    _check_kinds(directory, kinds)
    steps.insert(0, preprocessors.versions_of(kinds))
  return seqio.Task(
      'melody',
      source=sources.records_source(directory, 'melodies', records.MELODY_FEATURES),
      preprocessors=steps,
      output_features={'waveform': sources.integers(tf.int16, rank=2),
                       'piece': sources.integers(tf.int32)},
      shuffle_buffer_size=max(1, int(shuffle_buffer_seconds / (2 * crop_seconds))),
  )


def _check_kinds(directory: sources.Directories, kinds: Sequence[str]) -> None:
  """Raises an error when the records have no version of one of the kinds: less than meant is left."""
  found = set()
  for path in sources.as_list(directory):
    known = records.read_info(path, 'melodies').get('kinds')
    found |= {kind for kind in known if isinstance(kind, str)} if isinstance(known, list) else set()
  if not kinds or set(kinds) - found:
    raise errors.UserError(f'melody kinds are {list(kinds)}, wanted some of {sorted(found)}, which '
                           f'{sources.as_list(directory)} hold')
