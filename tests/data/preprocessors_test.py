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


def _melodies(versions, count=1, piece=b'song'):
  """A dataset of `count` melody records with versions int16[S]."""
  pcm = [np.asarray(version, '<i2').tobytes() for version in versions]
  return tf.data.Dataset.from_tensor_slices(
      {'id': [b'a'] * count, 'piece': [piece] * count, 'versions': [pcm] * count})


def test_pairs_are_the_same_share_of_two_versions():
  """Version 0 has room for a shift of 40 samples, version 1 of 20: crops move in step."""
  versions = [np.arange(50), 1000 + np.arange(30), 2000 + np.arange(10)]
  pairs = [example['waveform'] for example in
           _run([preprocessors.version_pairs(10, 0)], _melodies(versions, 300))]
  starts = collections.defaultdict(list)
  for pair in pairs:
    assert pair.shape == (2, 10) and pair.dtype == np.int16
    np.testing.assert_array_equal(pair, pair[:, :1] + np.arange(10))  # whole samples, in order
    sources = pair[:, 0] // 1000
    starts[tuple(sources)].append(pair[:, 0] - 1000 * sources)
  assert starts.keys() == {(i, j) for i in range(3) for j in range(3) if i != j}
  both = np.array(starts[0, 1] + [pair[::-1] for pair in starts[1, 0]])
  assert np.abs(both[:, 0] / 40 - both[:, 1] / 20).max() < 0.06
  assert both[:, 0].min() < 8 and both[:, 0].max() > 32  # from the start to the end
  assert {start[1] for start in starts[0, 2]} == {0}  # as long as a crop: all of it


def test_shifted_pairs_stay_inside_and_near():
  versions = [np.arange(50), 1000 + np.arange(50)]
  pairs = [example['waveform'][:, 0] % 1000 for example in
           _run([preprocessors.version_pairs(10, 4)], _melodies(versions, 300))]
  apart = np.abs(np.diff(np.array(pairs), axis=1))
  assert 4 < apart.max() <= 9 and np.min(pairs) >= 0 and np.max(pairs) <= 40
  assert apart.mean() > 1


def test_a_short_version_is_followed_by_silence_and_pieces_by_name():
  versions = [[1, 2, 3], [4, 5, 6, 7]]
  (one,), (other,) = (_run([preprocessors.version_pairs(4, 2)], _melodies(versions, piece=piece))
                      for piece in (b'song', b'other'))
  assert sorted(one['waveform'].tolist()) == [[1, 2, 3, 0], [4, 5, 6, 7]]
  assert one['piece'].shape == (1,) and one['piece'].dtype == np.int32
  assert one['piece'] != other['piece']
  (again,) = _run([preprocessors.version_pairs(4, 2)], _melodies(versions), seed=5)
  assert again['piece'] == one['piece']


def test_versions_of_other_kinds_are_left_out_and_melodies_of_one():
  versions = tf.ragged.constant([[b'a', b'b', b'c'], [b'd', b'e'], [b'f', b'g']])
  kinds = tf.ragged.constant([['hum', 'key', 'vocals'], ['hum', 'key'], ['hum', 'hum']])
  dataset = tf.data.Dataset.from_tensor_slices({'versions': versions, 'kinds': kinds})
  first, last = _run([preprocessors.versions_of(('hum', 'vocals'))], dataset)
  assert first['versions'].tolist() == [b'a', b'c'] and first['kinds'].tolist() == [b'hum', b'vocals']
  assert last['versions'].tolist() == [b'f', b'g']


def test_pairs_follow_the_seed():
  versions = [np.arange(50), np.arange(40)]
  first, again, other = (
      [example['waveform'][:, 0].tolist() for example in
       _run([preprocessors.version_pairs(10, 2)], _melodies(versions, 5), seed)]
      for seed in (1, 1, 2))
  assert first == again != other
