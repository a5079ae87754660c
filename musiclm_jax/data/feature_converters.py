"""L2. Examples of a task -> what an objective eats (seqio feature converters, no packing)."""

import seqio
import tensorflow as tf

from musiclm_jax import token_layout

_Spec = seqio.FeatureConverter.FeatureSpec


class _Unpacked(seqio.FeatureConverter):
  """A converter that keeps lengths; takes no arguments, so it can be named in gin as it is."""

  def __init__(self):
    super().__init__(pack=False)

  def get_model_feature_lengths(self, task_feature_lengths):
    return dict(task_feature_lengths)


class _Waveforms(_Unpacked):
  """A converter whose int16 features, kept small until here, become float32 in [-1, 1)."""

  def _convert_features(self, ds, task_feature_lengths):
    return ds.map(_to_float)


class WaveformFeatureConverter(_Waveforms):
  """int16 samples, kept small through the shuffle buffer, become float32 in [-1, 1).

    {'waveform': [0, 16384, -32768]}  ->  {'waveform': [0., 0.5, -1.]}
  """

  TASK_FEATURES = {'waveform': _Spec(tf.int16)}
  MODEL_FEATURES = {'waveform': _Spec(tf.float32)}


class NoisyWaveformFeatureConverter(_Waveforms):
  """As WaveformFeatureConverter, with 'noise' of the same form beside 'waveform'."""

  TASK_FEATURES = {'waveform': _Spec(tf.int16), 'noise': _Spec(tf.int16)}
  MODEL_FEATURES = {'waveform': _Spec(tf.float32), 'noise': _Spec(tf.float32)}


class MusicTextFeatureConverter(_Waveforms):
  """As WaveformFeatureConverter, with 'text_tokens' int32[N] passed on, 0 where padded."""

  TASK_FEATURES = {'waveform': _Spec(tf.int16), 'text_tokens': _Spec(tf.int32)}
  MODEL_FEATURES = {'waveform': _Spec(tf.float32), 'text_tokens': _Spec(tf.int32)}


class MelodyFeatureConverter(_Waveforms):
  """As WaveformFeatureConverter, of pairs [2, S], with 'piece' int32[1] passed on."""

  TASK_FEATURES = {'waveform': _Spec(tf.int16, rank=2), 'piece': _Spec(tf.int32)}
  MODEL_FEATURES = {'waveform': _Spec(tf.float32, rank=2), 'piece': _Spec(tf.int32)}


class TokenFeatureConverter(_Unpacked):
  """Prefix and targets become one sequence, shifted right for the input; only targets are scored.

    {'prefix': [7, 8], 'targets': [17, 18, 0]}   (0: PAD, after the end of a short clip)
    -> {'decoder_target_tokens': [7, 8, 17, 18,  0],
        'decoder_input_tokens':  [1, 7,  8, 17, 18],      1: BOS
        'decoder_loss_weights':  [0, 0,  1,  1,  0]}
  """

  TASK_FEATURES = {'prefix': _Spec(tf.int32), 'targets': _Spec(tf.int32)}
  MODEL_FEATURES = {'decoder_target_tokens': _Spec(tf.int32),
                    'decoder_input_tokens': _Spec(tf.int32),
                    'decoder_loss_weights': _Spec(tf.float32)}

  def _convert_features(self, ds, task_feature_lengths):
    def convert(example):
      prefix, targets = example['prefix'], example['targets']
      sequence = tf.concat([prefix, targets], axis=0)
      scored = tf.concat([tf.zeros_like(prefix, tf.bool), targets != token_layout.PAD_ID], axis=0)
      return {
          'decoder_target_tokens': sequence,
          'decoder_input_tokens': tf.concat([[token_layout.BOS_ID], sequence[:-1]], axis=0),
          'decoder_loss_weights': tf.cast(scored, tf.float32),
      }

    return ds.map(convert)

  def get_model_feature_lengths(self, task_feature_lengths):
    return dict.fromkeys(self.MODEL_FEATURES, sum(task_feature_lengths.values()))


def _to_float(example):
  """Returns the example with int16 features as float32 in [-1, 1)."""
  return {name: tf.cast(value, tf.float32) / 32768 if value.dtype == tf.int16 else value
          for name, value in example.items()}
