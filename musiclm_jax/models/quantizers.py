"""L1. Vectors to codes: k-means, and residual vector quantization.  Axes: B T N D K Q.

B batch, T frames, N points (B * T flattened), D dim, K codebook size, Q quantizers (levels).
All statistics are sums over the batch axis of a global array: under jit with a sharded batch
they are global without further words.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

_CODEBOOK_AXES = (None, 'codes', 'code_dim')


def nearest(points: jax.Array, centroids: jax.Array) -> jax.Array:
  """Returns int32[...] index of the nearest of f32[K, D] for each of f32[..., D].

  |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 does not change the order.
  """
  product = jnp.einsum('...d,kd->...k', points, centroids, precision='highest')
  distance = jnp.sum(jnp.square(centroids), axis=-1) - 2.0 * product
  return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def cluster_sums(
    points: jax.Array, index: jax.Array, size: int, weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns (f32[K] counts, f32[K, D] sums) of f32[N, D] points by their int32[N] cluster."""
  weights = jnp.ones_like(points[:, 0]) if weights is None else weights
  counts = jax.ops.segment_sum(weights, index, size)
  return counts, jax.ops.segment_sum(points * weights[:, None], index, size)


def _kmeans_start(rng: jax.Array, points: jax.Array, size: int) -> jax.Array:
  """Returns f32[K, D] of the points, far ones likelier (k-means++).

  Once every distinct point is taken (N < K), the rest are drawn evenly, a little displaced.
  """
  first_rng, noise_rng, rng = jax.random.split(rng, 3)
  num_points = points.shape[0]
  first = points[jax.random.randint(first_rng, (), 0, num_points)]
  spread = jnp.sqrt(jnp.mean(jnp.square(points - points.mean(axis=0))) + 1e-12)
  noise = 1e-2 * spread * jax.random.normal(noise_rng, (size, points.shape[1]), points.dtype)

  def choose(k, carry):
    centroids, distance = carry
    exhausted = jnp.max(distance) <= 1e-6 * jnp.square(spread)
    weights = jnp.where(exhausted, jnp.ones_like(distance), distance)
    # Inverse of the cumulative sum: K draws of one uniform number, not of N Gumbels.
    cumulative = jnp.cumsum(weights)
    threshold = jax.random.uniform(jax.random.fold_in(rng, k)) * cumulative[-1]
    chosen = jnp.minimum(jnp.searchsorted(cumulative, threshold, side='right'), num_points - 1)
    centroid = points[chosen] + jnp.where(exhausted, noise[k], 0.0)
    distance = jnp.minimum(distance, jnp.sum(jnp.square(points - centroid), axis=-1))
    return centroids.at[k].set(centroid), distance

  centroids = jnp.zeros((size, points.shape[1]), points.dtype).at[0].set(first)
  distance = jnp.sum(jnp.square(points - first), axis=-1)
  return jax.lax.fori_loop(1, size, choose, (centroids, distance))[0]


def kmeans(
    rng: jax.Array,
    points: jax.Array,
    num_centroids: int,
    num_iterations: int = 10,
    max_start_points: int = 65_536,
) -> jax.Array:
  """Returns f32[K, D] centroids of f32[N, D] points: k-means++ start, then Lloyd's steps.

  Jittable.  The start looks at `max_start_points` random points at most; a cluster that
  loses its last point stays where it is.
  """
  start_rng, rng = jax.random.split(rng)
  points = points.astype(jnp.float32)
  start_points = points
  if points.shape[0] > max_start_points:
    chosen = jax.random.randint(rng, (max_start_points,), 0, points.shape[0])
    start_points = points[chosen]

  def step(centroids, _):
    counts, sums = cluster_sums(points, nearest(points, centroids), num_centroids)
    mean = sums / jnp.maximum(counts, 1.0)[:, None]
    return jnp.where(counts[:, None] > 0, mean, centroids), None

  start = _kmeans_start(start_rng, start_points, num_centroids)
  return jax.lax.scan(step, start, None, length=num_iterations)[0]


def minibatch_kmeans_step(
    centroids: jax.Array, counts: jax.Array, points: jax.Array, weights: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns f32[K, D] centroids and f32[K] counts after one more batch f32[N, D] (Sculley 2010).

  A centroid is the mean of all points it was ever nearest to, `counts` how many those are.
  `weights` f32[N] is 0 for rows that fill a batch up.
  """
  new, sums = cluster_sums(points, nearest(points, centroids), len(centroids), weights)
  counts = counts + new
  moved = centroids + (sums - new[:, None] * centroids) / jnp.maximum(counts, 1.0)[:, None]
  return moved, counts


def fit_residual_codebooks(
    rng: jax.Array,
    points: jax.Array,
    num_quantizers: int,
    codebook_size: int,
    num_iterations: int = 20,
) -> jax.Array:
  """Returns f32[Q, K, D]: k-means on f32[N, D] points, then on what each level leaves over."""

  def level(residual, level_rng):
    centroids = kmeans(level_rng, residual, codebook_size, num_iterations)
    return residual - centroids[nearest(residual, centroids)], centroids

  return jax.lax.scan(level, points.astype(jnp.float32), jax.random.split(rng, num_quantizers))[1]


def _first_codebook(rng: jax.Array, points: jax.Array, size: int, iterations: int) -> jax.Array:
  """Returns f32[K, D] for training to go on from: k-means, on at least 4 points a centroid.

  With fewer points than that, a codebook would learn them by heart and leave nothing for the
  next level: k-means then finds N / 4 centroids, and the rest of the K are scattered about them
  as widely as the points are.
  """
  fitted = min(size, max(1, points.shape[0] // 4))
  fit_rng, noise_rng = jax.random.split(rng)
  centroids = kmeans(fit_rng, points, fitted, iterations)
  if fitted == size:
    return centroids
  spread = jnp.std(points - centroids[nearest(points, centroids)], axis=0)
  noise = spread * jax.random.normal(noise_rng, (size - fitted, points.shape[1]))
  return jnp.concatenate([centroids, centroids[jnp.arange(size - fitted) % fitted] + noise])


@dataclasses.dataclass(frozen=True)
class ResidualVectorQuantizerConfig:
  dim: int
  num_quantizers: int = 12
  codebook_size: int = 1024
  decay: float = 0.99
  dead_code_threshold: float = 2.0  # in frames per step; scale it with the batch
  kmeans_iterations: int = 10
  quantizer_dropout: bool = True
  dtype: str = 'float32'


def codebook_variables(embeddings: jax.Array, count: float = 1.0) -> dict:
  """Returns the 'codebooks' collection of a fitted quantizer from f32[Q, K, D]."""
  counts = jnp.full(embeddings.shape[:2], count, jnp.float32)
  return {
      'embeddings': embeddings,
      'counts': counts,
      'initialized': jnp.ones((), jnp.bool_),
  }


def perplexity(counts: jax.Array) -> jax.Array:
  """Returns f32[...] exp(entropy) of f32[..., K]: how many codes are in use, evenly counted."""
  share = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1e-9)
  return jnp.exp(-jnp.sum(share * jnp.log(share + 1e-10), axis=-1))


class ResidualVectorQuantizer(nn.Module):
  """Q codebooks, each coding what the levels before it left over.

  Codebooks are not trained by gradient: they follow the mean of the frames assigned to them (by
  moving averages, in the collection 'codebooks'), start from k-means on the first training batch,
  and a code used less than `dead_code_threshold` times a step becomes a random frame of the batch.
  """

  config: ResidualVectorQuantizerConfig

  def setup(self):
    c = self.config
    shape = (c.num_quantizers, c.codebook_size, c.dim)

    def state(name, init, axes, *args):
      boxed = nn.with_logical_partitioning(init, axes)
      return self.variable('codebooks', name, lambda: boxed(*args))

    self.embeddings = state('embeddings', jnp.zeros, _CODEBOOK_AXES, shape)
    self.counts = state('counts', jnp.zeros, _CODEBOOK_AXES[:2], shape[:2])
    self.initialized = self.variable('codebooks', 'initialized', lambda: jnp.zeros((), jnp.bool_))

  def encode(self, x: jax.Array, num_quantizers: int | None = None) -> jax.Array:
    """Returns int32[B, T, Q] codes of f32[B, T, D]; Q is `num_quantizers` or all levels."""
    embeddings = self.embeddings.value[:num_quantizers].astype(jnp.float32)

    def level(residual, codebook):
      codes = nearest(residual, codebook)
      return residual - codebook[codes], codes

    codes = jax.lax.scan(level, x.astype(jnp.float32), embeddings)[1]
    return jnp.moveaxis(codes, 0, -1)

  def decode(self, codes: jax.Array) -> jax.Array:
    """Returns f32[B, T, D], the sum over levels, of int32[B, T, q] codes; q <= Q.

    A code of -1 adds nothing: frames of fewer levels are filled up with it.
    """
    embeddings = self.embeddings.value.astype(jnp.float32)
    if codes.shape[-1] > embeddings.shape[0]:
      raise ValueError(
          f'decode got {codes.shape[-1]} levels of codes, wanted at most {embeddings.shape[0]}'
      )

    def level(total, inputs):
      codebook, index = inputs
      return total + jnp.where(index[..., None] >= 0, codebook[index], 0.0), None

    levels = codes.shape[-1]
    start = jnp.zeros((*codes.shape[:-1], embeddings.shape[-1]), jnp.float32)
    return jax.lax.scan(level, start, (embeddings[:levels], jnp.moveaxis(codes, -1, 0)))[0]

  def __call__(
      self, x: jax.Array, train: bool = False, num_quantizers: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    """Returns (f32[B, T, D] quantized, int32[B, T, Q] codes, f32[] commitment loss, metrics).

    `num_quantizers` int32[B] is the number of levels each example hears; left out, it is drawn
    from U[1, Q] per example when training with quantizer dropout, else all Q.  The gradient of
    `quantized` goes straight through to `x`.  Needs the rng stream 'quantizer' when training.
    """
    c = self.config
    frames = x.reshape(-1, c.dim).astype(jnp.float32)
    if num_quantizers is None:
      if train and c.quantizer_dropout and not self.is_initializing():
        rng = self.make_rng('quantizer')
        num_quantizers = jax.random.randint(rng, (x.shape[0],), 1, c.num_quantizers + 1)
      else:
        num_quantizers = jnp.full((x.shape[0],), c.num_quantizers, jnp.int32)
    update = train and not self.is_initializing()
    limit = jnp.broadcast_to(num_quantizers[:, None], x.shape[:2]).reshape(-1)
    rngs = jax.random.split(self.make_rng('quantizer') if update else jax.random.key(0),
                            c.num_quantizers)

    def level(carry, inputs):
      residual, quantized = carry
      index, codebook, rng = inputs
      if update:
        codebook = self._started(rng, residual, codebook)
      embeddings, counts = codebook
      codes = nearest(jax.lax.stop_gradient(residual), embeddings)
      chosen = embeddings[codes]
      active = (index < limit).astype(jnp.float32)
      error = jnp.mean(jnp.square(residual - chosen), axis=-1)
      commitment = jnp.sum(error * active) / jnp.maximum(jnp.sum(active), 1.0)
      if update:
        # Every frame teaches every level, heard or not: all levels are used when encoding.
        codebook = self._moved(rng, jax.lax.stop_gradient(residual), codes, embeddings, counts)
      carry = (residual - chosen, quantized + chosen * active[:, None])
      return carry, (codes, commitment, codebook)

    state = (self.embeddings.value, self.counts.value)
    (residual, quantized), (codes, commitment, state) = jax.lax.scan(
        level,
        (frames, jnp.zeros_like(frames)),
        (jnp.arange(c.num_quantizers), state, rngs),
    )
    if update:
      self.embeddings.value, self.counts.value = state
      self.initialized.value = jnp.ones((), jnp.bool_)
    quantized = frames + jax.lax.stop_gradient(quantized - frames)
    in_use = perplexity(state[1])
    metrics = {
        'perplexity': jnp.mean(in_use),
        'perplexity_first': in_use[0],
        'perplexity_last': in_use[-1],
        'perplexity_min': jnp.min(in_use),
        'residual': jnp.mean(jnp.square(residual)) / (jnp.var(frames) + 1e-9),
    }
    codes = jnp.moveaxis(codes, 0, -1).reshape(*x.shape[:2], c.num_quantizers)
    return quantized.reshape(x.shape).astype(x.dtype), codes, jnp.mean(commitment), metrics

  def _started(self, rng, residual, codebook):
    """Returns the level's (embeddings, counts), from k-means on the first batch."""
    c = self.config
    residual = jax.lax.stop_gradient(residual)

    def start():
      centroids = _first_codebook(rng, residual, c.codebook_size, c.kmeans_iterations)
      counts, _ = cluster_sums(residual, nearest(residual, centroids), c.codebook_size)
      return centroids, counts

    return jax.lax.cond(self.initialized.value, lambda: codebook, start)

  def _moved(self, rng, residual, codes, embeddings, counts):
    """Returns (embeddings, counts) one step on: moving averages, dead codes replaced.

    The paper's sums are not kept: they are embeddings * counts.
    """
    c = self.config
    batch_counts, batch_sums = cluster_sums(residual, codes, c.codebook_size)
    sums = c.decay * embeddings * counts[:, None] + (1.0 - c.decay) * batch_sums
    counts = c.decay * counts + (1.0 - c.decay) * batch_counts
    dead = counts < c.dead_code_threshold
    frames = jax.random.randint(
        jax.random.fold_in(rng, 1), (c.codebook_size,), 0, residual.shape[0]
    )
    # A newcomer weighs twice the threshold: it has time to find frames before it is judged.
    embeddings = jnp.where(
        dead[:, None], residual[frames], sums / jnp.maximum(counts, 1e-9)[:, None])
    return embeddings, jnp.where(dead, 2.0 * c.dead_code_threshold, counts)


@dataclasses.dataclass(frozen=True)
class KMeansConfig:
  dim: int
  num_centroids: int = 1024
  dtype: str = 'float32'


class KMeans(nn.Module):
  """Features to one code per frame: normalise each dimension, take the nearest centroid."""

  config: KMeansConfig

  def setup(self):
    c = self.config

    def state(name, init, axes, shape):
      boxed = nn.with_logical_partitioning(init, axes)
      return self.variable('codebooks', name, lambda: boxed(shape))

    self.mean = state('mean', jnp.zeros, ('code_dim',), (c.dim,))
    self.std = state('std', jnp.ones, ('code_dim',), (c.dim,))
    self.centroids = state('centroids', jnp.zeros, _CODEBOOK_AXES[1:], (c.num_centroids, c.dim))

  def encode(self, features: jax.Array) -> jax.Array:
    """Returns int32[B, T] of f32[B, T, D] features."""
    normalised = (features.astype(jnp.float32) - self.mean.value) / self.std.value
    return nearest(normalised, self.centroids.value.astype(jnp.float32))

  def decode(self, codes: jax.Array) -> jax.Array:
    """Returns f32[B, T, D] centroids, on the scale of the features, of int32[B, T] codes."""
    return self.centroids.value[codes] * self.std.value + self.mean.value

  def __call__(self, features: jax.Array) -> jax.Array:
    return self.encode(features)
