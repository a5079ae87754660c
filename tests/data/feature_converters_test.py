"""What an objective eats, on literal arrays."""

import seqio
import tensorflow as tf

from musiclm_jax.data import feature_converters


def test_waveform():
  dataset = tf.data.Dataset.from_tensors({'waveform': tf.constant([0, 16384, -32768], tf.int16)})
  converted = feature_converters.WaveformFeatureConverter()(dataset, {'waveform': 3})
  seqio.test_utils.assert_dataset(converted, {'waveform': [0., 0.5, -1.]})


def test_music_text():
  dataset = tf.data.Dataset.from_tensors({
      'waveform': tf.constant([16384], tf.int16), 'text_tokens': tf.constant([2, 7, 3, 0])})
  converted = feature_converters.MusicTextFeatureConverter()(
      dataset, {'waveform': 1, 'text_tokens': 4})
  seqio.test_utils.assert_dataset(converted, {'waveform': [0.5], 'text_tokens': [2, 7, 3, 0]})


def test_tokens_score_targets_only_and_never_padding():
  dataset = tf.data.Dataset.from_tensors({
      'prefix': tf.constant([7, 8]), 'targets': tf.constant([17, 18, 0])})
  converted = feature_converters.TokenFeatureConverter()(dataset, {'prefix': 2, 'targets': 3})
  seqio.test_utils.assert_dataset(converted, {
      'decoder_target_tokens': [7, 8, 17, 18, 0],
      'decoder_input_tokens': [1, 7, 8, 17, 18],
      'decoder_loss_weights': [0, 0, 1, 1, 0],
  })
