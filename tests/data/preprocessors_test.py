"""Steps of the pipelines: crops, captions, and the M tokens of a crop."""

import collections

import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax.data import preprocessors
from musiclm_jax.models import quantizers


def _run(steps, dataset, seed=0):
  with seqio.utils.map_seed_manager(seed):
    for step in steps:
      dataset = step(dataset)
  return [{name: value.numpy() for name, value in example.items()} for example in dataset]


def _records(samples, count=1, **features):
  pcm = np.asarray(samples, '<i2').tobytes()
  features = {name: [value] * count for name, value in features.items()}
  return tf.data.Dataset.from_tensor_slices({'pcm': [pcm] * count, **features})


def test_crops_are_contiguous_reach_both_ends_and_differ():
  crops = _run([preprocessors.random_crops(4, crops_per_record=8)],
               _records(np.arange(10), 20, id='a'))
  assert len(crops) == 160
  starts = collections.Counter(int(crop['waveform'][0]) for crop in crops)
  assert sorted(starts) == list(range(7))
  for crop in crops:
    np.testing.assert_array_equal(crop['waveform'], crop['waveform'][0] + np.arange(4))
    assert crop['id'] == b'a' and crop['waveform'].dtype == np.int16


def test_crops_follow_the_seed():
  steps = [preprocessors.random_crops(4, 2)]
  first, again, other = (_run(steps, _records(np.arange(500), 5), seed) for seed in (1, 1, 2))
  starts = [[int(crop['waveform'][0]) for crop in crops] for crops in (first, again, other)]
  assert starts[0] == starts[1] != starts[2]


def test_a_short_clip_is_followed_by_silence():
  (crop,) = _run([preprocessors.random_crops(6)], _records([5, 6, -7]))
  np.testing.assert_array_equal(crop['waveform'], [5, 6, -7, 0, 0, 0])
  (crop,) = _run([preprocessors.random_crops(3)], _records([5, 6, -7]))
  np.testing.assert_array_equal(crop['waveform'], [5, 6, -7])


def test_every_caption_is_drawn_and_records_without_one_are_dropped():
  captions = tf.ragged.constant([['a', 'b', 'c'], []] * 60)
  dataset = tf.data.Dataset.from_tensor_slices({'captions': captions})
  drawn = _run([preprocessors.captioned, preprocessors.random_caption], dataset)
  counts = collections.Counter(example['caption'] for example in drawn)
  assert sum(counts.values()) == 60 and sorted(counts) == [b'a', b'b', b'c']


def test_quantize_equals_the_models_quantizer():
  rng = np.random.default_rng(0)
  scale = 0.5 ** np.arange(5)[:, None, None]
  codebooks = (rng.standard_normal((5, 16, 8)) * scale).astype(np.float32)
  vectors = rng.standard_normal((20, 8)).astype(np.float32)
  config = quantizers.ResidualVectorQuantizerConfig(dim=8, num_quantizers=5, codebook_size=16)
  wanted = quantizers.ResidualVectorQuantizer(config).apply(
      {'codebooks': quantizers.codebook_variables(jnp.asarray(codebooks))}, vectors[None],
      method='encode')[0]
  codes = [preprocessors.quantize(tf.constant(vector), codebooks) for vector in vectors]
  np.testing.assert_array_equal(np.stack(codes), wanted)
