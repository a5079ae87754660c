"""Feature streams: the sample, the windows, and batches that every device gets its share of.

Run as a script (`python tests/feature_stream_test.py`) it prints the sums of a stream on eight
devices: their number is fixed when JAX starts.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import feature_stream
from musiclm_jax.data import records
from musiclm_jax.models import quantizers


def test_sample_is_everything_while_it_fits_and_uniform_after():
  sample = feature_stream.PointSample(100, seed=0)
  sample.add(np.arange(60.0)[:, None])
  np.testing.assert_array_equal(sample.points()[:, 0], np.arange(60))
  for start in range(60, 1000, 20):
    sample.add(np.arange(start, start + 20.0)[:, None])
  points = sample.points()[:, 0]
  assert points.shape == (100,) and sample.count == 1000
  assert len(np.unique(points)) == 100
  assert 380 < points.mean() < 620
  mean, std = sample.moments()  # of all thousand, not of the sample
  np.testing.assert_allclose(mean, [499.5])
  np.testing.assert_allclose(std, [np.arange(1000).std()], rtol=1e-6)


def test_batches_hold_one_length():
  clips = [np.full(n, n, np.float32) for n in (2, 3, 2, 2, 3)]
  batches = list(feature_stream.batches(iter(clips), lambda clip: clip[None], 2))
  assert [batch.shape for batch in batches] == [(2, 2), (2, 3), (1, 2)]


def _sums(directory) -> list[float]:
  """Returns [points, weight, centroids ..] of 13 clips of 2 s, in batches of 8, one k-means step
  a batch."""
  rng = np.random.default_rng(0)
  serialised = [
      records.waveform_record(str(i), rng.uniform(-1, 1, 48_000).astype(np.float32))
      for i in range(13)]
  records.write_shard(pathlib.Path(directory) / records.shard_name('train', 0, 1), serialised)
  stream = feature_stream.FeatureStream(
      directory, 'train', lambda clip: feature_stream.whole_seconds(clip, 960),
      lambda rows: jnp.abs(rows.reshape(len(rows), 48, -1)[..., :3]), batch_size=8)
  centroids, counts = jnp.asarray([[0.2, 0.2, 0.2], [0.8, 0.8, 0.8]]), jnp.zeros(2)
  for values, weights in stream:
    assert len(values) == len(weights)
    centroids, counts = quantizers.minibatch_kmeans_step(centroids, counts, values, weights)
  sample = stream.sample(1000, 0)
  return [sample.count, *np.asarray(counts).tolist(), *np.asarray(centroids).ravel().tolist()]


def test_eight_devices_give_the_points_of_one(tmp_path):
  """The last batch has five clips: those that fill it up to eight weigh nothing."""
  one = _sums(str(tmp_path))
  assert one[0] == 13 * 48 and one[1] + one[2] == 13 * 48
  environment = os.environ | {
      'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
  output = subprocess.run(
      [sys.executable, __file__], env=environment, check=True, capture_output=True, text=True)
  np.testing.assert_allclose(json.loads(output.stdout.splitlines()[-1]), one, rtol=1e-5)


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as folder:
    assert jax.device_count() == 8
    print(json.dumps(_sums(folder)))
