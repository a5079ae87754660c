"""L5. Linear probes: how well one matrix reads a label off what a model says of a stretch of time.

Axes: T frames, D dims, K codes, N spans, C classes.

A representation is either codes int[T] or vectors f[T, D] for each clip, at a frame rate.  A span is
described by the shares of the codes in it, or by the mean of its vectors.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from musiclm_jax import errors
from musiclm_jax.corpus.instruments import INSTRUMENTS

WINDOW_SECONDS = 2.0
SHORTEST_CHORD_SECONDS = 1.0
_INVERSE_REGULARIZATION = (1.0, 10.0, 100.0)
_MAX_ITERATIONS = 300
_RESAMPLES = 1000


class Span(NamedTuple):
  """A labelled stretch of a clip, in seconds."""

  clip: str
  start: float
  stop: float
  label: str


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """How a probe fares on held-out spans; fields ending in `majority` are of the constant guess.

  balanced: mean over the labels held out of the share found of each. error: standard error of
  `accuracy`, over draws of whole clips, as the spans of one are alike. Chance for `balanced` is one
  over the number of labels.
  """

  accuracy: float
  error: float
  balanced: float
  majority: float
  num_labels: int
  num_train: int
  num_test: int


# --- Labels -----------------------------------------------------------------------------------


def lead_families(row: Mapping, seconds: float) -> list[Span]:
  """Returns a span every 2 s of a clip, labelled with the family of the instrument that leads.

  Windows rather than whole clips: a language model hears tokens a moment at a time, and there are
  fifteen times as many. In some the lead rests, which no representation can know.
  `row` is one of corpus.jsonl; without a lead there is none. A lead is named by role: its family
  is that of its General MIDI program (corpus/instruments.py).
  """
  lead = _member(row, 'instruments', dict).get('lead')
  if lead is None:
    return []
  if not isinstance(lead, str) or lead not in INSTRUMENTS:
    raise errors.UserError(f'{row["id"]}: the lead is {lead!r}, wanted an instrument of the corpus')
  family = INSTRUMENTS[lead].family
  starts = np.arange(int(seconds / WINDOW_SECONDS + 1e-6)) * WINDOW_SECONDS
  return [Span(row['id'], float(s), float(s + WINDOW_SECONDS), family) for s in starts]


def chord_roots(row: Mapping, seconds: float) -> list[Span]:
  """Returns the chords of a clip that last a second or more, labelled with the root '0'..'11'."""
  spans = []
  for chord in _member(row, 'chords', list):
    try:
      start, stop, root, _ = chord
      if not (0 <= start < stop and root in range(12)):
        raise ValueError(chord)
    except (TypeError, ValueError) as error:
      raise errors.UserError(f'{row["id"]}: a chord is {chord!r}, wanted [start, end, root 0 to '
                             '11, quality]') from error
    stop = min(stop, seconds)
    if stop - start >= SHORTEST_CHORD_SECONDS - 1e-6:
      spans.append(Span(row['id'], float(start), float(stop), str(int(root))))
  return spans


def _member(row: Mapping, name: str, kind: type):
  """Returns a member of a row's metadata, empty when it has none."""
  metadata = row.get('metadata') or {}
  found = (metadata.get(name) or kind()) if isinstance(metadata, Mapping) else None
  if not isinstance(found, kind):
    raise errors.UserError(f'{row["id"]}: metadata.{name} is not a {kind.__name__}')
  return found


# --- Probing ----------------------------------------------------------------------------------


def probe_features(
    features_by_clip: Mapping[str, np.ndarray],
    train: Sequence[Span],
    test: Sequence[Span],
    *,
    frame_rate: float,
    num_codes: int | None = None,
    pieces: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Accuracy:
  """Returns how well a linear probe, fitted on spans, finds the labels of others.

  The probe is multinomial logistic regression; its regularisation is chosen on a fifth of the
  training pieces. Labels that no training span has count as errors.

  Args:
    features_by_clip: of each clip, int[T] codes below `num_codes`, or f[T, D] vectors.
    train: what the probe is fitted to.
    test: what it is scored on.
    frame_rate: T of one second.
    num_codes: K; None for vectors.
    pieces: the piece of each clip; by default each clip is one.
    seed: of the draws of the training fifth and of the standard error.
  """
  rng = np.random.default_rng(seed)
  x, x_test = (_descriptions(features_by_clip, spans, frame_rate, num_codes)
               for spans in (train, test))
  if num_codes is None:
    mean, std = x.mean(0), x.std(0)
    x, x_test = ((v - mean) / (std + 1e-6) / np.sqrt(x.shape[1]) for v in (x, x_test))
  y, y_test = (np.array([span.label for span in spans]) for spans in (train, test))
  if len(set(y)) < 2:
    raise errors.UserError(f'all {len(y)} training spans have the label {y[0]}, wanted two or more')
  groups = np.array([(pieces or {}).get(span.clip, span.clip) for span in train])
  model = _fit(x, y, _strength(x, y, groups, rng))
  found = model.predict(x_test)
  right = found == y_test
  labels, counts = np.unique(y, return_counts=True)
  return Accuracy(
      accuracy=float(right.mean()),
      error=_standard_error(right, np.array([span.clip for span in test]), rng),
      balanced=float(np.mean([right[y_test == label].mean() for label in np.unique(y_test)])),
      majority=float(np.mean(y_test == labels[counts.argmax()])),
      num_labels=len(np.unique(y_test)), num_train=len(y), num_test=len(y_test))


def shuffled(codes_by_clip: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
  """Returns the same codes int[T], dealt out anew over time and clips."""
  names = list(codes_by_clip)
  pool = np.random.default_rng(seed).permutation(np.concatenate([codes_by_clip[n] for n in names]))
  cuts = np.cumsum([len(codes_by_clip[name]) for name in names])[:-1]
  return dict(zip(names, np.split(pool, cuts), strict=True))


def _descriptions(features_by_clip, spans, frame_rate, num_codes) -> np.ndarray:
  """Returns f32[N, K] lengths-one roots of the shares of the codes, or f32[N, D] means of vectors.

  Of shares, the square root: so the few codes of long held notes do not hide all others.
  """
  rows = []
  for span in spans:
    first, last = (round(t * frame_rate) for t in (span.start, span.stop))
    frames = features_by_clip[span.clip][first:max(last, first + 1)]
    if not len(frames):
      raise errors.UserError(f'{span.clip} has features up to {first / frame_rate:g} s at most, '
                             f'wanted those of {span.start:g} to {span.stop:g} s')
    if num_codes is None:
      rows.append(np.mean(frames, axis=0, dtype=np.float32))
    else:
      shares = np.bincount(frames, minlength=num_codes) / len(frames)
      rows.append(np.sqrt(shares).astype(np.float32))
  return np.stack(rows)


def _fit(x: np.ndarray, y: np.ndarray, strength: float):
  import warnings

  from sklearn import exceptions, linear_model

  model = linear_model.LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS, tol=1e-3)
  with warnings.catch_warnings():  # far from rest is near enough for a choice by held-out score
    warnings.simplefilter('ignore', exceptions.ConvergenceWarning)
    return model.fit(x, y)


def _strength(x, y, groups, rng) -> float:
  """Returns the inverse regularisation that finds most labels in a fifth of the groups."""
  names = rng.permutation(np.unique(groups))
  held_out = np.isin(groups, names[:len(names) // 5])
  if not held_out.any() or len(set(y[~held_out])) < 2:
    return _INVERSE_REGULARIZATION[1]
  scores = [_fit(x[~held_out], y[~held_out], c).score(x[held_out], y[held_out])
            for c in _INVERSE_REGULARIZATION]
  return _INVERSE_REGULARIZATION[int(np.argmax(scores))]


def _standard_error(right: np.ndarray, clips: np.ndarray, rng) -> float:
  """Returns the standard deviation of the share of `right` bool[N] when clips are drawn again."""
  names, index = np.unique(clips, return_inverse=True)
  hits, counts = np.bincount(index, right), np.bincount(index)
  draws = rng.integers(len(names), size=(_RESAMPLES, len(names)))
  return float((hits[draws].sum(1) / counts[draws].sum(1)).std())
