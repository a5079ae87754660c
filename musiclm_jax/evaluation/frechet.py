"""L5. Frechet audio distance: of Gaussians fitted to two sets of embeddings.  Axes: N points, D dims.

  |mean_a - mean_b|^2 + tr(a) + tr(b) - 2 tr((a b)^1/2)      of covariances a, b

Kilgour et al. 2019 (1812.08466). Nothing but moments is kept of a set, so memory does not grow.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from musiclm_jax import audio, errors

NUM_FOLDS = 8
_FORMAT = 1  # of saved moments


@dataclasses.dataclass(frozen=True)
class Moments:
  """Count, mean float64[D] and scatter float64[D, D], the sum of outer products around the mean.

  Sets join by `+`, in any order and number, to the moments of all their points (Chan et al. 1979).
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def of(cls, points: np.ndarray) -> 'Moments':
    """Returns the moments of float[N, D]; a set without points, or with NaN, is an error."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or not points.size:
      raise errors.UserError(f'moments of an array {list(points.shape)}, wanted points [N, D]')
    if not np.isfinite(points).all():
      raise errors.UserError('an embedding holds NaN or infinite values')
    mean = points.mean(axis=0)
    centred = points - mean
    return cls(len(points), mean, centred.T @ centred)

  def __add__(self, other: 'Moments') -> 'Moments':
    if len(self.mean) != len(other.mean):
      raise errors.UserError(
          f'embeddings of {len(self.mean)} and of {len(other.mean)} dimensions, wanted the same')
    count = self.count + other.count
    step = other.mean - self.mean
    return Moments(
        count, self.mean + step * (other.count / count),
        self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count))

  @property
  def covariance(self) -> np.ndarray:
    """Returns float64[D, D], unbiased (divided by N - 1)."""
    if self.count < 2:
      raise errors.UserError(f'a covariance of {self.count} embedding, wanted at least 2')
    return self.scatter / (self.count - 1)

  @functools.cached_property
  def _root(self) -> np.ndarray:
    """Returns the symmetric square root of the covariance."""
    values, vectors = np.linalg.eigh(self.covariance)
    # What is below rounding counts as 0: its root would be 1e8 times as large as the error.
    noise = len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return (vectors * np.sqrt(np.where(values > noise, values, 0.0))) @ vectors.T


def distance(a: Moments, b: Moments) -> float:
  """Returns the squared Frechet distance of the two Gaussians; covariances may be singular.

  tr((a b)^1/2) is the sum of the singular values of a^1/2 b^1/2: real, and as exact as those.
  """
  if len(a.mean) != len(b.mean):
    raise errors.UserError(
        f'embeddings of {len(a.mean)} and of {len(b.mean)} dimensions, wanted the same')
  step = a.mean - b.mean
  spread = np.trace(a.covariance) + np.trace(b.covariance)
  common = np.linalg.svd(a._root @ b._root, compute_uv=False).sum()
  return max(float(step @ step + spread - 2.0 * common), 0.0)


def warning(moments: Moments) -> str | None:
  """Returns why a distance to this set says little, None when there are points enough."""
  count, dims = moments.count, len(moments.mean)
  if count <= dims:
    return (f'{count} embeddings of {dims} dimensions: the covariance is singular and FAD says '
            'little; compare only with sets as large')
  if count < 10 * dims:
    return (f'{count} embeddings of {dims} dimensions are few: FAD is too high by an amount that '
            'depends on N; compare only with sets as large')
  return None


class Folds:
  """The moments of a set, dealt clip by clip into `NUM_FOLDS` disjoint parts."""

  def __init__(self, seed: int = 0):
    self._random, self._next = np.random.default_rng(seed), []
    self.parts: list[Moments | None] = [None] * NUM_FOLDS

  def add(self, moments: Moments) -> None:
    """Takes those of one clip; each round of clips goes to the parts in an order drawn anew."""
    if not self._next:
      self._next = self._random.permutation(NUM_FOLDS).tolist()
    fold = self._next.pop()
    held = self.parts[fold]
    self.parts[fold] = moments if held is None else held + moments

  def total(self) -> Moments:
    """Returns the moments of all clips."""
    found = [part for part in self.parts if part is not None]
    if not found:
      raise errors.UserError('there are no embeddings, wanted those of at least one clip')
    return functools.reduce(Moments.__add__, found)


@dataclasses.dataclass(frozen=True)
class Extrapolation:
  """FAD for endlessly many points: where the line through FAD over 1/N meets 0.

  counts, distances: N and the mean FAD of subsets of that size. The largest is the whole set.
  """

  distance: float
  counts: tuple[float, ...]
  distances: tuple[float, ...]


def extrapolate(folds: Folds, reference: Moments) -> Extrapolation | None:
  """Returns the distance to `reference` without the bias by N; None for too few clips.

  Chong and Forsyth 2020 (1911.07023), for FAD Gui et al. 2023 (2311.01616): the bias is linear in
  1/N. The reference stays whole. For each size from half of the folds on, the mean is over all
  `NUM_FOLDS` runs of neighbouring folds, so every clip counts as often as another.
  """
  parts = folds.parts
  smallest = NUM_FOLDS // 2
  if any(part is None for part in parts):
    return None
  counts, distances = [], []
  for size in range(smallest, NUM_FOLDS + 1):
    starts = range(NUM_FOLDS if size < NUM_FOLDS else 1)
    sets = [functools.reduce(Moments.__add__, [parts[(start + i) % NUM_FOLDS] for i in range(size)])
            for start in starts]
    if min(each.count for each in sets) < 2:
      return None
    counts.append(float(np.mean([each.count for each in sets])))
    distances.append(float(np.mean([distance(each, reference) for each in sets])))
  _, intercept = np.polyfit(1.0 / np.array(counts), distances, 1)
  return Extrapolation(float(intercept), tuple(counts), tuple(distances))


# --- Saved moments ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Origin:
  """What moments were made of: they are reused only where model and seconds are the same."""

  embedding: str
  fingerprint: str  # of the embedding model
  seconds: float  # heard of each clip
  clips: Sequence[str]  # ids


def save(path: str | os.PathLike, moments: Moments, origin: Origin) -> None:
  """Writes moments as .npz, without pickle; an existing file is replaced."""
  description = json.dumps({'format': _FORMAT, **dataclasses.asdict(origin)})
  with audio.atomic_path(path, overwrite=True) as temporary, open(temporary, 'wb') as stream:
    np.savez(stream, count=np.int64(moments.count), mean=moments.mean, scatter=moments.scatter,
             origin=np.array(description))


def load(path: str | os.PathLike) -> tuple[Moments, Origin]:
  """Returns saved moments and what they were made of; a file of anything else is an error."""
  if not pathlib.Path(path).is_file():
    raise errors.UserError(f'{path} is not a file, wanted statistics of a reference set')
  try:
    with np.load(path, allow_pickle=False) as stored:
      count, mean, scatter = (np.array(stored[name]) for name in ('count', 'mean', 'scatter'))
      description = json.loads(str(stored['origin'][()]))
    origin = _origin(description)
    dims = mean.shape[0]
    if mean.dtype != np.float64 or scatter.dtype != np.float64 or count.dtype != np.int64:
      raise ValueError('its arrays are not float64 and int64')
    if mean.shape != (dims,) or scatter.shape != (dims, dims) or count.shape or not dims:
      raise ValueError(f'shapes {count.shape} {mean.shape} {scatter.shape}')
    if count < 1 or not (np.isfinite(mean).all() and np.isfinite(scatter).all()):
      raise ValueError('its count is no count, or a value is not finite')
    if not np.allclose(scatter, scatter.T) or (np.diagonal(scatter) < 0).any():
      raise ValueError('its scatter is not that of any points')
  except Exception as error:  # a zip from anywhere: whatever may be wrong with it
    raise errors.UserError(f'{path} is not a file of statistics: {error}') from error
  return Moments(int(count), mean, scatter), origin


def _origin(stored: Mapping) -> Origin:
  if stored['format'] != _FORMAT:
    raise ValueError(f'format is {stored["format"]!r}, wanted {_FORMAT}')
  origin = Origin(stored['embedding'], stored['fingerprint'], stored['seconds'],
                  tuple(stored['clips']))
  strings = (origin.embedding, origin.fingerprint, *origin.clips)
  if not (all(isinstance(value, str) for value in strings)
          and isinstance(origin.seconds, int | float)):
    raise TypeError('its origin is not described')
  return origin


def check_reusable(path: str | os.PathLike, saved: Origin, wanted: Origin) -> None:
  """Raises an error when saved moments are of another model, or of clips heard for another time."""
  for name in ('embedding', 'fingerprint', 'seconds'):
    found, here = getattr(saved, name), getattr(wanted, name)
    if found != here:
      raise errors.UserError(f'{path}: its {name} is {found}, here it is {here}: remove the file, '
                             'or name another')
