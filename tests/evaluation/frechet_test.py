"""Frechet distance: the textbook's number, exact streaming, singular sets, saved moments."""

import functools
import json
import pickle

import numpy as np
import pytest
import scipy.linalg

from musiclm_jax import errors
from musiclm_jax.evaluation import frechet


def _points(count, dims, seed, rank=None):
  """Returns f64[count, dims] of a random Gaussian, in a space of `rank` dimensions."""
  random = np.random.default_rng(seed)
  mix = random.normal(size=(rank or dims, dims))
  return random.normal(size=(count, rank or dims)) @ mix + random.normal(size=dims)


def _textbook(a, b):
  """Returns the distance by scipy's matrix square root."""
  step, (cov_a, cov_b) = a.mean(0) - b.mean(0), (np.cov(x, rowvar=False) for x in (a, b))
  root = scipy.linalg.sqrtm(cov_a @ cov_b)
  return step @ step + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root).real


@pytest.mark.parametrize('count, dims', [(50, 2), (500, 16), (1000, 128)])
def test_it_is_the_textbook_formula(count, dims):
  a, b = _points(count, dims, 0), _points(2 * count, dims, 1)
  found = frechet.distance(frechet.Moments.of(a), frechet.Moments.of(b))
  np.testing.assert_allclose(found, _textbook(a, b), rtol=1e-6)


def test_by_hand_where_covariances_are_diagonal():
  a = frechet.Moments(11, np.array([1.0, 0.0]), 10 * np.diag([4.0, 9.0]))
  b = frechet.Moments(21, np.array([0.0, 2.0]), 20 * np.diag([1.0, 16.0]))
  assert frechet.distance(a, b) == pytest.approx((1 + 4) + (2 - 1) ** 2 + (3 - 4) ** 2)


@pytest.mark.parametrize('count, dims, rank', [(300, 8, None), (10, 40, None), (300, 40, 5)])
def test_a_set_has_no_distance_to_itself(count, dims, rank):
  """Also where the covariance is singular: fewer points than dimensions, or a flat set."""
  points = _points(count, dims, 0, rank)
  found = frechet.distance(frechet.Moments.of(points), frechet.Moments.of(points))
  assert 0 <= found < 1e-9 * np.trace(np.cov(points, rowvar=False))


def test_singular_sets_by_projection():
  """Two sets in one plane of 30 dimensions are as far apart as in the plane."""
  plane = np.linalg.qr(np.random.default_rng(3).normal(size=(30, 2)))[0].T
  a, b = _points(100, 2, 0), _points(100, 2, 1)
  flat = frechet.distance(frechet.Moments.of(a), frechet.Moments.of(b))
  found = frechet.distance(frechet.Moments.of(a @ plane), frechet.Moments.of(b @ plane))
  assert found == pytest.approx(flat, rel=1e-6)


def test_moments_join_in_any_order_to_those_of_all_points():
  points = _points(1000, 6, 0) + 1e4  # far from 0, where sums of squares lose their digits
  whole = frechet.Moments.of(points)
  parts = [frechet.Moments.of(part) for part in np.split(points, [1, 7, 400, 999])]
  for order in (parts, parts[::-1]):
    joined = functools.reduce(frechet.Moments.__add__, order)
    assert joined.count == 1000
    np.testing.assert_allclose(joined.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(joined.covariance, np.cov(points, rowvar=False), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_compared_is_said():
  moments = frechet.Moments.of(_points(20, 3, 0))
  for other, message in [(frechet.Moments.of(_points(20, 4, 0)), '3 and of 4 dimensions'),
                         (frechet.Moments.of(_points(1, 3, 0)), 'covariance of 1 embedding')]:
    with pytest.raises(errors.UserError, match=message):
      frechet.distance(moments, other)
  with pytest.raises(errors.UserError, match='3 and of 4 dimensions'):
    moments + frechet.Moments.of(_points(20, 4, 0))
  for points in (np.zeros((0, 3)), np.zeros(3), np.array([[1.0, np.nan]])):
    with pytest.raises(errors.UserError):
      frechet.Moments.of(points)


def test_few_points_are_warned_of():
  warned = [frechet.warning(frechet.Moments.of(_points(count, 4, 0))) for count in (4, 20, 40)]
  assert 'singular' in warned[0] and 'are few' in warned[1] and warned[2] is None


def _folds(points, per_clip):
  folds = frechet.Folds()
  for clip in np.split(points, len(points) // per_clip):
    folds.add(frechet.Moments.of(clip))
  return folds


def test_extrapolation_takes_most_of_the_bias_away():
  """Two samples of one Gaussian: the true distance is 0, and FAD of few points is far above."""
  random = np.random.default_rng(0)
  reference = frechet.Moments.of(random.normal(size=(200_000, 16)))
  plain, found = [], []
  for _ in range(10):
    folds = _folds(random.normal(size=(320, 16)), 5)
    plain.append(frechet.distance(folds.total(), reference))
    found.append(frechet.extrapolate(folds, reference).distance)
  assert np.mean(plain) > 0.2 and abs(np.mean(found)) < 0.2 * np.mean(plain)


def test_extrapolation_is_over_subsets_of_whole_clips():
  points = _points(64, 2, 0)
  folds, reference = _folds(points, 4), frechet.Moments.of(_points(500, 2, 1))
  found = frechet.extrapolate(folds, reference)
  assert found.counts == (32, 40, 48, 56, 64) and [part.count for part in folds.parts] == [8] * 8
  whole = frechet.distance(frechet.Moments.of(points), reference)
  assert found.distances[-1] == pytest.approx(whole)
  assert frechet.extrapolate(_folds(points[:28], 4), reference) is None  # 7 clips


# --- Saved moments ----------------------------------------------------------------------------

ORIGIN = frechet.Origin('mulan', 'abc', 10.0, ('a', 'b'))


def test_saved_moments_come_back(tmp_path):
  moments = frechet.Moments.of(_points(20, 3, 0))
  frechet.save(tmp_path / 'mulan.npz', moments, ORIGIN)
  found, origin = frechet.load(tmp_path / 'mulan.npz')
  assert origin == ORIGIN and found.count == 20
  np.testing.assert_array_equal(found.scatter, moments.scatter)
  frechet.check_reusable('x', origin, ORIGIN)


@pytest.mark.parametrize('change', [{'fingerprint': 'other'}, {'seconds': 5.0}, {'embedding': 'x'}])
def test_moments_of_another_model_or_length_are_refused(change):
  wanted = frechet.Origin(**{**vars(ORIGIN), **change})
  with pytest.raises(errors.UserError, match=f'its {next(iter(change))} is'):
    frechet.check_reusable('mulan.npz', ORIGIN, wanted)


def _stored(**change):
  origin = json.dumps({'format': 1, **vars(ORIGIN), **change.pop('origin', {})})
  return {'count': np.int64(5), 'mean': np.zeros(2), 'scatter': np.eye(2),
          'origin': np.array(origin), **change}


class _Code:
  def __reduce__(self):
    return (open, ('executed.txt', 'w'))


@pytest.mark.parametrize('change', [
    {'mean': np.zeros(3)}, {'mean': np.zeros(2, np.float32)}, {'scatter': np.full((2, 2), np.nan)},
    {'scatter': -np.eye(2)}, {'scatter': np.array([[1.0, 2.0], [0.0, 1.0]])}, {'count': np.int64(0)},
    {'origin': {'format': 2}}, {'origin': {'clips': 3}}, {'origin': {'seconds': 'x'}},
    {'mean': np.array([_Code()], dtype=object)}])
def test_files_of_anything_else_are_refused_and_run_nothing(change, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with open('bad.npz', 'wb') as stream:
    np.savez(stream, **_stored(**change))
  with pytest.raises(errors.UserError, match='bad.npz is not a file of statistics'):
    frechet.load('bad.npz')
  assert not (tmp_path / 'executed.txt').exists()


def test_no_zip_and_no_file_are_refused(tmp_path):
  (tmp_path / 'pickled.npz').write_bytes(pickle.dumps([1, 2]))
  (tmp_path / 'noise.npz').write_bytes(b'PK\x03\x04noise')
  for name in ('pickled.npz', 'noise.npz', 'none.npz', '.'):
    with pytest.raises(errors.UserError):
      frechet.load(tmp_path / name)
