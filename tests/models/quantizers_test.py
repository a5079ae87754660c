"""k-means and residual quantization: equal to numpy, healthy codebooks, straight-through."""

import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import quantizers


def _rvq(num_quantizers=3, codebook_size=8, dim=4, **kwargs):
  config = quantizers.ResidualVectorQuantizerConfig(
      dim=dim, num_quantizers=num_quantizers, codebook_size=codebook_size, **kwargs
  )
  embeddings = np.random.RandomState(0).randn(num_quantizers, codebook_size, dim)
  scale = 0.5 ** np.arange(num_quantizers)[:, None, None]
  variables = quantizers.codebook_variables(
      jnp.asarray(embeddings * scale, jnp.float32), count=10.0
  )
  return quantizers.ResidualVectorQuantizer(config), {'codebooks': variables}


def _numpy_rvq(x, embeddings):
  codes = np.zeros((*x.shape[:-1], len(embeddings)), np.int32)
  total = np.zeros_like(x)
  for index in np.ndindex(x.shape[:-1]):
    residual = x[index].copy()
    for q, codebook in enumerate(embeddings):
      code = np.argmin(((residual - codebook) ** 2).sum(axis=-1))
      codes[index + (q,)] = code
      residual -= codebook[code]
      total[index] += codebook[code]
  return codes, total


def _x(batch=2, frames=6, dim=4, seed=1):
  return np.random.RandomState(seed).randn(batch, frames, dim).astype(np.float32)


def test_equals_a_numpy_loop():
  rvq, variables = _rvq()
  x = _x()
  want_codes, want = _numpy_rvq(x, np.asarray(variables['codebooks']['embeddings']))
  codes = rvq.apply(variables, x, method='encode')
  assert codes.dtype == jnp.int32
  np.testing.assert_array_equal(codes, want_codes)
  np.testing.assert_allclose(rvq.apply(variables, codes, method='decode'), want, atol=1e-5)
  quantized, same_codes, _, _ = rvq.apply(variables, x)
  np.testing.assert_array_equal(same_codes, want_codes)
  np.testing.assert_allclose(quantized, want, atol=1e-5)


def test_fewer_levels_are_a_prefix():
  rvq, variables = _rvq()
  x = _x()
  codes = rvq.apply(variables, x, method='encode')
  two = rvq.apply(variables, x, 2, method='encode')
  np.testing.assert_array_equal(two, codes[..., :2])
  heard, _, _, _ = rvq.apply(variables, x, num_quantizers=jnp.array([2, 2]))
  np.testing.assert_allclose(rvq.apply(variables, two, method='decode'), heard, atol=1e-5)


def test_decode_refuses_more_levels_than_it_has():
  rvq, variables = _rvq()
  with pytest.raises(ValueError, match='4 levels of codes, wanted at most 3'):
    rvq.apply(variables, jnp.zeros((1, 2, 4), jnp.int32), method='decode')


def test_levels_are_chosen_per_example():
  rvq, variables = _rvq()
  x = _x()
  quantized, codes, _, _ = rvq.apply(variables, x, num_quantizers=jnp.array([1, 3]))
  for example, levels in enumerate((1, 3)):
    want = rvq.apply(variables, codes[example : example + 1, :, :levels], method='decode')
    np.testing.assert_allclose(quantized[example], want[0], atol=1e-5)


def test_training_draws_levels_per_example():
  rvq, variables = _rvq()
  x = np.repeat(_x(batch=1), 16, axis=0)  # the same example sixteen times
  (quantized, _, _, _), _ = rvq.apply(
      variables, x, train=True, rngs={'quantizer': jax.random.key(0)}, mutable=['codebooks']
  )
  assert len(np.unique(np.asarray(quantized)[:, 0, 0].round(4))) == 3


def test_commitment_by_hand():
  config = quantizers.ResidualVectorQuantizerConfig(dim=1, num_quantizers=2, codebook_size=2)
  rvq = quantizers.ResidualVectorQuantizer(config)
  embeddings = jnp.array([[[0.0], [4.0]], [[-1.0], [1.0]]])
  variables = {'codebooks': quantizers.codebook_variables(embeddings)}
  # 5 -> 4, left 1 -> 1, left 0; 0.5 -> 0, left 0.5 -> 1, left -0.5
  x = jnp.array([[[5.0], [0.5]]])
  quantized, codes, commitment, _ = rvq.apply(variables, x)
  np.testing.assert_array_equal(codes, [[[1, 1], [0, 1]]])
  np.testing.assert_allclose(quantized, [[[5.0], [1.0]]])
  level_1, level_2 = (1.0 + 0.25) / 2, (0.0 + 0.25) / 2
  np.testing.assert_allclose(commitment, (level_1 + level_2) / 2)


def test_gradient_goes_straight_through():
  rvq, variables = _rvq()
  gradient = jax.grad(lambda x: jnp.sum(rvq.apply(variables, x)[0] * 3.0))(_x())
  np.testing.assert_allclose(gradient, 3.0 * np.ones((2, 6, 4)), atol=1e-6)


def test_moving_average_by_hand():
  config = quantizers.ResidualVectorQuantizerConfig(
      dim=1, num_quantizers=1, codebook_size=2, decay=0.5, dead_code_threshold=0.1
  )
  rvq = quantizers.ResidualVectorQuantizer(config)
  variables = {'codebooks': quantizers.codebook_variables(jnp.array([[[0.0], [10.0]]]), count=2.0)}
  x = jnp.array([[[1.0], [2.0], [9.0]]])
  _, state = rvq.apply(
      variables, x, train=True, rngs={'quantizer': jax.random.key(0)}, mutable=['codebooks']
  )
  # counts: (2 + 2) / 2 and (2 + 1) / 2; sums: (0 + 3) / 2 and (20 + 9) / 2
  np.testing.assert_allclose(state['codebooks']['counts'], [[2.0, 1.5]])
  want = [[[1.5 / 2.0], [14.5 / 1.5]]]
  np.testing.assert_allclose(state['codebooks']['embeddings'], want, rtol=1e-6)


def test_dead_codes_become_frames_of_the_batch():
  rvq, variables = _rvq(num_quantizers=1, dead_code_threshold=2.0)
  books = variables['codebooks']
  books['embeddings'] = books['embeddings'].at[0, 5].set(1000.0)  # no frame will come here
  books['counts'] = books['counts'].at[0, 5].set(2.01)
  x = _x()
  _, state = rvq.apply(
      variables, x, train=True, rngs={'quantizer': jax.random.key(0)}, mutable=['codebooks']
  )
  replaced = np.asarray(state['codebooks']['embeddings'][0, 5])
  assert np.abs(x.reshape(-1, 4) - replaced).sum(axis=-1).min() < 1e-5
  np.testing.assert_allclose(state['codebooks']['counts'][0, 5], 4.0)


EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from musiclm_jax import partitioning
from musiclm_jax.models import quantizers

config = quantizers.ResidualVectorQuantizerConfig(
    dim=4, num_quantizers=2, codebook_size=8, dead_code_threshold=1.0)
rvq = quantizers.ResidualVectorQuantizer(config)

def codebooks(mesh):
  variables = rvq.init(jax.random.key(0), jnp.zeros((8, 5, 4)))
  step = jax.jit(lambda v, x, rng: rvq.apply(
      v, x, train=True, rngs={'quantizer': rng}, mutable=['codebooks'])[1])
  for i in range(3):  # the k-means start, and two steps on frames far from it: codes die
    x = np.random.RandomState(i).randn(8, 5, 4).astype(np.float32) + 3.0 * i
    x = partitioning.global_batch({'x': x}, 8, mesh)['x']
    assert len(x.sharding.device_set) == mesh.size
    variables = step(variables, x, jax.random.key(i))
  return jax.tree.leaves(variables)

one, eight = (codebooks(partitioning.make_mesh((-1, 1, 1), jax.devices()[:n])) for n in (1, 8))
for a, b in zip(one, eight, strict=True):
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  for shard in b.addressable_shards[1:]:  # and every device holds the same, bit for bit
    np.testing.assert_array_equal(shard.data, b.addressable_shards[0].data)
  assert len(b.addressable_shards) == 8
"""


def test_eight_devices_have_the_codebooks_of_one():
  environment = dict(
      os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=8', JAX_PLATFORMS='cpu')
  root = pathlib.Path(__file__).resolve().parents[2]
  subprocess.run([sys.executable, '-c', EIGHT_DEVICES], check=True, env=environment, cwd=root)


def test_first_batch_starts_every_level():
  config = quantizers.ResidualVectorQuantizerConfig(
      dim=4, num_quantizers=3, codebook_size=16, dead_code_threshold=0.01
  )
  rvq = quantizers.ResidualVectorQuantizer(config)
  x = _x(batch=8, frames=50)
  variables = rvq.init(jax.random.key(0), x)
  assert not variables['codebooks']['initialized']
  step = jax.jit(
      lambda v, rng: rvq.apply(v, x, train=True, rngs={'quantizer': rng}, mutable=['codebooks'])
  )
  (_, _, _, metrics), variables = step(variables, jax.random.key(1))
  assert variables['codebooks']['initialized']
  assert metrics['perplexity_min'] > 8
  errors = []
  for levels in (1, 2, 3):
    codes = rvq.apply(variables, x, levels, method='encode')
    errors.append(float(np.mean((rvq.apply(variables, codes, method='decode') - x) ** 2)))
  assert errors[0] < 0.6 and errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]
  before = np.asarray(nn.unbox(variables)['codebooks']['embeddings'])
  _, variables = step(variables, jax.random.key(2))  # a second step moves, and does not restart
  after = np.asarray(nn.unbox(variables)['codebooks']['embeddings'])
  assert 0 < np.abs(after - before).mean() < 0.05


def test_small_first_batch_is_not_learned_by_heart():
  points = jnp.asarray(_x(batch=1, frames=40)[0])
  codebook = quantizers._first_codebook(jax.random.key(0), points, 64, 5)
  assert codebook.shape == (64, 4) and np.isfinite(codebook).all()
  left = points - codebook[quantizers.nearest(points, codebook)]
  assert 0.02 < jnp.var(left) / jnp.var(points) < 0.9


def test_kmeans_finds_separate_clusters():
  rng = np.random.RandomState(0)
  centres = rng.randn(6, 3) * 20
  points = (centres[rng.randint(6, size=300)] + rng.randn(300, 3) * 0.1).astype(np.float32)
  fit = jax.jit(quantizers.kmeans, static_argnums=(2, 3))
  found = np.asarray(fit(jax.random.key(0), points, 6, 5))
  distance = np.abs(centres[:, None] - found[None]).sum(axis=-1)
  assert distance.min(axis=1).max() < 0.2


@pytest.mark.parametrize('num_points', [1, 3])
def test_kmeans_with_fewer_points_than_centroids(num_points):
  points = jnp.arange(num_points * 2.0).reshape(num_points, 2)
  centroids = quantizers.kmeans(jax.random.key(0), points, 5, 3)
  assert centroids.shape == (5, 2) and np.isfinite(centroids).all()
  distance = np.abs(np.asarray(points)[:, None] - np.asarray(centroids)[None]).sum(axis=-1)
  assert distance.min(axis=1).max() < 0.1


def test_fitted_residual_codebooks_shrink_the_error():
  points = jnp.asarray(_x(batch=1, frames=300)[0])
  embeddings = quantizers.fit_residual_codebooks(jax.random.key(0), points, 3, 16)
  assert embeddings.shape == (3, 16, 4)
  config = quantizers.ResidualVectorQuantizerConfig(dim=4, num_quantizers=3, codebook_size=16)
  rvq = quantizers.ResidualVectorQuantizer(config)
  variables = {'codebooks': quantizers.codebook_variables(embeddings)}
  codes = rvq.apply(variables, points[None], method='encode')
  error = rvq.apply(variables, codes, method='decode')[0] - points
  assert jnp.mean(error**2) < 0.1


def test_kmeans_module_normalises():
  features = _x(batch=4, frames=50, dim=2) * np.array([1.0, 100.0]) + np.array([0.0, 5.0])
  points = jnp.asarray(features.reshape(-1, 2))
  mean, std = points.mean(0), points.std(0)
  centroids = quantizers.kmeans(jax.random.key(0), (points - mean) / std, 8)
  variables = {'codebooks': {'mean': mean, 'std': std, 'centroids': centroids}}
  module = quantizers.KMeans(quantizers.KMeansConfig(dim=2, num_centroids=8))
  fresh = module.init(jax.random.key(0), features)
  shapes = jax.tree.map(jnp.shape, nn.unbox(fresh))
  assert shapes == jax.tree.map(jnp.shape, variables)
  codes = module.apply(variables, features, method='encode')
  assert codes.shape == (4, 50) and codes.dtype == jnp.int32 and len(np.unique(codes)) == 8
  error = (module.apply(variables, codes, method='decode') - features) / features.std(axis=(0, 1))
  assert (np.square(error).mean(axis=(0, 1)) < 0.4).all()  # the small dimension counts as much


def test_perplexity():
  np.testing.assert_allclose(quantizers.perplexity(jnp.array([2.0, 2.0, 0.0, 0.0])), 2.0, rtol=1e-5)


def test_minibatch_centroids_are_means_of_all_they_were_nearest_to():
  centroids, counts = jnp.array([[0.0], [10.0]]), jnp.array([1.0, 3.0])
  batch, weights = jnp.array([[2.0], [3.0], [12.0], [99.0]]), jnp.array([1.0, 1.0, 1.0, 0.0])
  moved, more = quantizers.minibatch_kmeans_step(centroids, counts, batch, weights)
  np.testing.assert_allclose(more, [3.0, 4.0])
  np.testing.assert_allclose(moved, [[(0 + 2 + 3) / 3], [(3 * 10 + 12) / 4]], rtol=1e-6)
  same, as_many = quantizers.minibatch_kmeans_step(moved, more, batch, jnp.zeros(4))
  np.testing.assert_array_equal(same, moved)
  np.testing.assert_array_equal(as_many, more)
