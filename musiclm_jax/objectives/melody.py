"""L2. Melody embedding: versions of a melody come closer than other melodies.

Axes: B melodies, N = 2 B windows, S samples, E embedding.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.models import melody
from musiclm_jax.objectives import mulan as mulan_objective

_SAME = 0.99  # mean cosine between different melodies from which the embeddings are all one


def squared_distances(embeddings: jax.Array) -> jax.Array:
  """Returns f32[N, N], 0 to 4, of unit vectors f32[N, E]; each row meets every column's device."""
  similarity = nn.with_logical_constraint(
      jnp.einsum('ie,je->ij', embeddings, embeddings, precision='highest'), ('batch', None))
  return jnp.maximum(2.0 - 2.0 * similarity, 0.0)


def semi_hard_triplets(distances: jax.Array, negatives: jax.Array,
                       margin: float) -> tuple[jax.Array, jax.Array]:
  """Returns (max(0, positive - negative + margin) f32[N], whether there was a negative bool[N]).

  FaceNet (1503.03832), section 3.2, on squared distances f32[N, N]; rows 2 i and 2 i + 1 are
  versions of one melody.  The negative of an anchor is the nearest one farther away than its
  positive: inside the margin it costs, beyond it nothing.  Where none is farther away, it is the
  farthest one (as most implementations do: the hardest ones would draw everything into one point).
  `negatives` bool[N, N] says which columns are other melodies.
  """
  rows = jnp.arange(distances.shape[0])
  positive = distances[rows, rows ^ 1][:, None]
  farther = jnp.where(negatives & (distances > positive), distances, jnp.inf).min(axis=1)
  farthest = jnp.where(negatives, distances, -jnp.inf).max(axis=1)
  chosen = jnp.where(jnp.isfinite(farther), farther, farthest)
  valid = jnp.any(negatives, axis=1)
  return jnp.where(valid, nn.relu(positive[:, 0] - jnp.where(valid, chosen, 0.0) + margin), 0.0), valid


@dataclasses.dataclass(frozen=True)
class MelodyObjective:
  """Eats {'waveform': f32[B, 2, S], two versions of each melody, 'piece': int32[B, 1]}.

  Melodies of the same piece (and a melody drawn twice) are never each other's negatives.
  """

  config: melody.MelodyConfig = melody.MelodyConfig()
  margin: float = 0.2  # of squared distances; not in the paper, FaceNet's value
  # From this step on, a run whose embeddings are all one ends (`check_metrics`); None: never.
  collapse_after: int | None = 500
  model_name = 'melody'

  def __post_init__(self):
    if not 0 < self.margin < 4:
      raise ValueError(f'margin {self.margin}: wanted between 0 and 4, the largest squared distance')

  @property
  def model(self) -> melody.Melody:
    return melody.Melody(self.config)

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, 2, self.config.window_samples)
    return {'waveform': jax.ShapeDtypeStruct(shape, jnp.float32),
            'piece': jax.ShapeDtypeStruct((batch_size, 1), jnp.int32)}

  def init(self, rng, batch):
    """Returns (params, {}): the model has no other state."""
    return self.model.init({'params': rng}, batch['waveform'][:, 0])['params'], {}

  def loss_fn(self, params, model_state, batch, rng, step):
    """Returns (mean triplet loss over the anchors of the global batch, (model_state, metrics))."""
    del step
    embeddings = self._embed(params, batch, train=True, rngs={'dropout': rng})
    loss, metrics = self._loss_and_metrics(embeddings, batch['piece'])
    return loss, (model_state, metrics)

  def eval_fn(self, params, model_state, batch):
    """Returns the metrics of a held-out batch, with recall@1: is the other version the nearest?"""
    del model_state
    embeddings = self._embed(params, batch)
    _, metrics = self._loss_and_metrics(embeddings, batch['piece'])
    similarity = jnp.einsum('ie,je->ij', embeddings[::2], embeddings[1::2], precision='highest')
    positive, rivals = jnp.diagonal(similarity), batch['piece'] != batch['piece'].T
    above = [mulan_objective.rivals_above(s, positive, rivals) for s in (similarity, similarity.T)]
    return metrics | {'recall_at_1': mulan_objective.recall(jnp.concatenate(above), 1)}

  def check_metrics(self, step: int, metrics: dict[str, float]) -> str | None:
    """Returns what has collapsed, or None: all embeddings are one, and the loss is the margin."""
    if self.collapse_after is None or step < self.collapse_after:
      return None
    if metrics['mean_cosine'] > _SAME:
      return (f'mean_cosine {metrics["mean_cosine"]:.3f} between different melodies, wanted at '
              f'most {_SAME:g}')
    return None

  def _embed(self, params, batch, **options) -> jax.Array:
    """Returns f32[N, E]; the two versions of a melody follow each other."""
    waveform = batch['waveform']
    waveform = waveform.reshape(-1, waveform.shape[-1])
    return self.model.apply({'params': params}, waveform, **options)

  def _loss_and_metrics(self, embeddings, pieces):
    pieces = jnp.repeat(pieces, 2, axis=0)
    negatives = pieces != pieces.T
    distances = squared_distances(embeddings)
    losses, valid = semi_hard_triplets(distances, negatives, self.margin)
    count = jnp.maximum(valid.sum(), 1)
    loss = losses.sum() / count
    rows = jnp.arange(len(distances))
    mean_negative = (distances * negatives).sum() / jnp.maximum(negatives.sum(), 1)
    centre = embeddings.mean(axis=0)
    return loss, {
        'loss': loss,
        'active': jnp.sum(losses > 0) / count,
        'positive_distance': distances[rows, rows ^ 1].mean(),
        'negative_distance': mean_negative,
        'mean_cosine': jnp.where(negatives.any(), 1.0 - mean_negative / 2.0, 0.0),
        'embedding_std': jnp.sqrt(jnp.mean(jnp.sum(jnp.square(embeddings - centre), axis=1))),
    }
