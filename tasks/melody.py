"""L5. Pairs of versions of a melody, for the melody embedding."""

import seqio
import tensorflow as tf

from musiclm_jax import audio
from musiclm_jax.data import preprocessors, records
from tasks import sources


def melody(directory: sources.Directories, crop_seconds: float, max_shift_seconds: float = 0.2,
           shuffle_buffer_seconds: float = 512) -> seqio.Task:
  """Returns an unregistered task of two versions of each melody.

  {'waveform': int16[2, crop_seconds at 24 kHz], 'piece': int32[1]}; both crops hold the same part
  of the melody, apart from up to twice `max_shift_seconds`.
  """
  return seqio.Task(
      'melody',
      source=sources.records_source(directory, 'melodies', records.MELODY_FEATURES),
      preprocessors=[preprocessors.version_pairs(
          round(crop_seconds * audio.SAMPLE_RATE), round(max_shift_seconds * audio.SAMPLE_RATE))],
      output_features={'waveform': sources.integers(tf.int16, rank=2),
                       'piece': sources.integers(tf.int32)},
      shuffle_buffer_size=max(1, int(shuffle_buffer_seconds / (2 * crop_seconds))),
  )
