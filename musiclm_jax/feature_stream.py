"""L3. Features of every clip of a record directory: a stream on the devices, and a sample of it.

Axes: N points, D dim, B clips or windows, S samples.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from musiclm_jax import audio, partitioning


class Points(NamedTuple):
  """Points of one batch, each device holding those of its own clips."""
  values: jax.Array  # f32[N, D]
  weights: jax.Array  # f32[N]: 1, or 0 for those of clips that fill a batch up


class PointSample:
  """A uniform sample of at most `size` points of a stream, and the moments of all of them.

  Every point draws a random key; the `size` smallest keys stay.
  """

  def __init__(self, size: int, seed: int):
    self._size, self._rng = size, np.random.default_rng(seed)
    self._keys, self._points = [], []
    self._waiting = self.count = 0
    self._sum = self._squares = 0.0

  def add(self, points: np.ndarray) -> None:
    """Takes f32[N, D]."""
    self.count += len(points)
    self._sum = self._sum + points.sum(0, dtype=np.float64)
    self._squares = self._squares + np.square(points, dtype=np.float64).sum(0)
    self._keys.append(self._rng.random(len(points)))
    self._points.append(np.array(points, np.float32))
    self._waiting += len(points)
    if self._waiting > 2 * self._size:
      self._shrink()

  def _shrink(self):
    keys, points = np.concatenate(self._keys), np.concatenate(self._points)
    if len(keys) > self._size:
      kept = np.sort(np.argpartition(keys, self._size)[:self._size])
      keys, points = keys[kept], points[kept]
    self._keys, self._points, self._waiting = [keys], [points], len(keys)

  def points(self) -> np.ndarray:
    """Returns f32[min(size, count), D]."""
    self._shrink()
    return self._points[0]

  def moments(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns (mean, standard deviation) f32[D] of every point added."""
    mean = self._sum / self.count
    variance = np.maximum(self._squares / self.count - mean ** 2, 0.0)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


class FeatureStream:
  """The points of a split, batch by batch; every pass reads and computes them anew.

  Batches are split over all devices of this process.
  """

  def __init__(self, waveforms: str, split: str, cut: Callable[[np.ndarray], np.ndarray],
               features: Callable[[jax.Array], jax.Array], batch_size: int,
               max_clips: int | None = None, kind: str = 'waveforms'):
    """Args:
      waveforms: directory of records.
      split: of the records.
      cut: from a clip f32[S] to rows f32[B, S] to hear by themselves.
      features: from rows f32[B, S] to points f32[B, .., D].
      batch_size: rows at a time, rounded up to a multiple of the devices.
      max_clips: clips read; all by default.
      kind: of the records: 'waveforms', or 'melodies', whose clips are all versions.
    """
    self._mesh = partitioning.make_mesh(devices=jax.local_devices())
    self._waveforms, self._split, self._max_clips = waveforms, split, max_clips
    self._kind, self._cut, self._features = kind, cut, features
    self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size

  def __iter__(self) -> Iterator[Points]:
    with tqdm.tqdm(desc=f'features of {self._split}', unit=' clips') as progress:
      for rows in batches(self._clips(progress), self._cut, self._batch_size):
        yield self._points(rows)

  def _points(self, rows: np.ndarray) -> Points:
    padding = -len(rows) % self._mesh.size
    heard = np.arange(len(rows) + padding) < len(rows)
    sharding = partitioning.batch_sharding(self._mesh)
    rows = jax.device_put(np.pad(rows, ((0, padding), (0, 0))), sharding)
    values = self._features(rows)
    values = values.reshape(-1, values.shape[-1]).astype(jnp.float32)
    weights = np.repeat(heard, len(values) // len(heard)).astype(np.float32)
    return Points(values, jax.device_put(weights, sharding))

  def _clips(self, progress) -> Iterator[np.ndarray]:
    from musiclm_jax.data import records  # TensorFlow: not for the import of this module
    clips = records.read_clips(self._waveforms, self._split, self._kind)
    for index, clip in enumerate(clips):
      if self._max_clips is not None and index >= self._max_clips:
        return
      yield clip
      progress.update()

  def sample(self, size: int, seed: int) -> PointSample:
    """Returns a sample of at most `size` points of one pass."""
    sample = PointSample(size, seed)
    for values, weights in self:
      sample.add(np.asarray(values)[np.asarray(weights) > 0])
    return sample


def whole_seconds(clip: np.ndarray, hop: int) -> np.ndarray:
  """Returns f32[1, S]: the clip without its last fraction of a second, so that few shapes occur."""
  samples = len(clip) // audio.SAMPLE_RATE * audio.SAMPLE_RATE
  return clip[None, :samples] if samples >= hop else clip[None, :0]


def batches(clips: Iterator[np.ndarray], cut, batch_size: int) -> Iterator[np.ndarray]:
  """Yields f32[batch_size, S] rows of equal length; the last of each length may be fewer."""
  waiting = {}
  for clip in clips:
    rows = cut(clip)
    if not rows.shape[1]:
      continue
    queue = waiting.setdefault(rows.shape[1], [])
    queue.extend(rows)
    while len(queue) >= batch_size:
      yield np.stack(queue[:batch_size])
      del queue[:batch_size]
  for queue in waiting.values():
    if queue:
      yield np.stack(queue)
