"""L5. Who else plays the same tune: melodies nobody trained on, found from other versions of them.

Axes: N melodies, V versions of one, Q queries, S samples, E embedding.
"""

import collections
import dataclasses
import os

import jax.numpy as jnp
import numpy as np

from musiclm_jax import audio, checkpoints, errors
from musiclm_jax.objectives import mulan as mulan_objective


@dataclasses.dataclass(frozen=True)
class Report:
  """How often the melody of a version is found among those stored.

  recall_at_1: over all queries; by_kind: over those of a kind.  chance: of a guess, the mean of
  1 / candidates.
  """

  num_melodies: int
  recall_at_1: float
  chance: float
  by_kind: dict[str, float]


def evaluate(model_dir: str | os.PathLike, melodies_dir: str, split: str = 'test',
             max_melodies: int | None = None) -> Report:
  """Returns how an exported melody model does on melody records.

  The first version of each melody is stored; every other one looks for it, among the stored ones of
  its own and of all other pieces.  A version is its first window (4 s), as heard from the start of
  the melody; a shorter one is followed by silence.

  Args:
    model_dir: of an exported 'melody'.
    melodies_dir: melody records; their first version is of kind 'instrument' when
      corpus/melody_versions.py made them.
    split: of the records.
    max_melodies: melodies read; all by default.  Records are dealt to shards by a hash of their
      names, so the first ones are a fair sample.
  """
  from musiclm_jax.data import records  # TensorFlow: not for the import of this module
  model = checkpoints.load_model(model_dir, 'melody')
  if model.config.sample_rate != audio.SAMPLE_RATE:
    raise errors.UserError(f'{model_dir} hears {model.config.sample_rate} Hz, wanted '
                           f'{audio.SAMPLE_RATE}')
  pieces, stored, queries, owners, kinds = [], [], [], [], []
  for record in records.read_melodies(melodies_dir, split):
    if len(pieces) == max_melodies:
      break
    first, *others = np.asarray(model.apply(
        'embed', _starts(record['versions'], model.config.window_samples)))
    stored.append(first)
    queries += others
    owners += [len(pieces)] * len(others)
    kinds += record['kinds'][1:]
    pieces.append(record['piece'])
  if len(set(pieces)) < 2:
    raise errors.UserError(
        f'{melodies_dir} holds melodies of {len(set(pieces))} pieces in {split}, wanted two or more')
  owners, pieces = np.array(owners), np.array(pieces)
  rivals = pieces[owners][:, None] != pieces
  return _report(np.stack(queries) @ np.stack(stored).T, owners, rivals, kinds)


def _starts(versions: list[np.ndarray], size: int) -> np.ndarray:
  """Returns f32[V, size], the start of each version f32[S]."""
  return np.stack([np.pad(v[:size], (0, max(size - len(v), 0))) for v in versions])


def _report(cosine: np.ndarray, owners: np.ndarray, rivals: np.ndarray, kinds: list[str]) -> Report:
  """Returns the report of queries with f32[Q, N] cosines to what is stored, and bool[Q, N] rivals."""
  positive = np.take_along_axis(cosine, owners[:, None], axis=1)[:, 0]
  above = mulan_objective.rivals_above(
      jnp.asarray(cosine), jnp.asarray(positive), jnp.asarray(rivals))
  of_kind = collections.defaultdict(list)
  for kind, count in zip(kinds, above, strict=True):
    of_kind[kind].append(count)
  return Report(
      num_melodies=cosine.shape[1],
      recall_at_1=float(mulan_objective.recall(above, 1)),
      chance=float(np.mean(1 / (1 + rivals.sum(axis=1)))),
      by_kind={kind: float(mulan_objective.recall(jnp.stack(of_kind[kind]), 1))
               for kind in sorted(of_kind)})
