"""L5. Crops of waveforms, for the codec and w2v-BERT."""

import seqio
import tensorflow as tf

from musiclm_jax.data import preprocessors, records
from tasks import sources


def waveforms(directory: sources.Directories, crop_seconds: float, crops_per_record: int = 4,
              shuffle_buffer_seconds: float = 512,
              noise_directory: sources.Directories | None = None) -> seqio.Task:
  """Returns an unregistered task of {'waveform': int16[crop_seconds at 24 kHz]}.

  The shuffle buffer is bounded in seconds (48 kB each) and is saved with the position.  With
  `noise_directory`, records of noise, examples have a crop of one as 'noise', too.
  """
  num_samples = sources.num_samples(crop_seconds)
  crops = [preprocessors.keep('pcm'), preprocessors.random_crops(num_samples, crops_per_record)]
  names, noise = ['waveform'], []
  if noise_directory:
    names.append('noise')
    source = _source(noise_directory)
    noise = [preprocessors.beside('noise', 'waveform', source, crops)]
  return seqio.Task(
      'waveforms',
      source=_source(directory),
      preprocessors=crops + noise,
      output_features={name: sources.integers(tf.int16) for name in names},
      shuffle_buffer_size=max(1, int(shuffle_buffer_seconds / crop_seconds)),
  )


def _source(directory: sources.Directories) -> seqio.TFExampleDataSource:
  return sources.records_source(directory, 'waveforms', records.WAVEFORM_FEATURES)
