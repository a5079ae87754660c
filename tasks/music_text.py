"""L5. Crops of waveforms with one of their captions, for MuLan."""

import seqio
import tensorflow as tf

from musiclm_jax import audio
from musiclm_jax.data import preprocessors, records
from tasks import sources


def music_text(directory: sources.Directories, vocabulary, crop_seconds: float, text_length: int,
               crops_per_record: int = 1, shuffle_buffer_seconds: float = 1280) -> seqio.Task:
  """Returns an unregistered task of a random crop and a random caption of each record.

  {'waveform': int16[crop_seconds at 24 kHz], 'text_tokens': int32[text_length], padded with 0};
  `vocabulary` is a data.vocabularies.WordPieceVocabulary. Records without captions are left out.
  """
  return seqio.Task(
      'music_text',
      source=sources.records_source(directory, 'waveforms', records.WAVEFORM_FEATURES),
      preprocessors=[
          preprocessors.captioned,
          preprocessors.keep('pcm', 'captions'),
          preprocessors.random_crops(round(crop_seconds * audio.SAMPLE_RATE), crops_per_record),
          preprocessors.random_caption,
          preprocessors.tokenize_caption(vocabulary, text_length),
      ],
      output_features={
          'waveform': sources.integers(tf.int16),
          'text_tokens': seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32),
      },
      shuffle_buffer_size=max(1, int(shuffle_buffer_seconds / crop_seconds)),
  )
