"""L5. Crops of waveforms, for the codec and w2v-BERT."""

import seqio
import tensorflow as tf

from musiclm_jax import audio
from musiclm_jax.data import preprocessors, records
from tasks import sources


def waveforms(directory: sources.Directories, crop_seconds: float, crops_per_record: int = 4,
              shuffle_buffer_seconds: float = 512) -> seqio.Task:
  """Returns an unregistered task of {'waveform': int16[crop_seconds at 24 kHz]}.

  The shuffle buffer is bounded in seconds (48 kB each) and is saved with the position.
  """
  return seqio.Task(
      'waveforms',
      source=sources.records_source(directory, 'waveforms', records.WAVEFORM_FEATURES),
      preprocessors=[
          preprocessors.keep('pcm'),
          preprocessors.random_crops(round(crop_seconds * audio.SAMPLE_RATE), crops_per_record),
      ],
      output_features={'waveform': sources.integers(tf.int16)},
      shuffle_buffer_size=max(1, int(shuffle_buffer_seconds / crop_seconds)),
  )
