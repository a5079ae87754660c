"""L2. What the training loop asks for: the Objective, Dataset and Evaluation protocols.  Axes: B batch.

An objective is a frozen dataclass that pairs a model with its loss.  It holds no parameters: they
come in and go out.  A new model brings an objective, never a second loop.
"""

import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
PyTree = Any


@runtime_checkable
class Objective(Protocol):
  """A model and its loss, as the loop sees them.

  Optional members, looked up by name:
    media_fn(params, model_state, batch): dict of name -> ('audio', f32[N, S], sample rate), shown
      in TensorBoard as audio and spectrogram pictures.  Called outside jit, after each evaluation.
    loss_is_mean_over_examples: bool. True when the examples of a batch do not meet, neither in the
      loss nor in model_state, so that a batch may be computed in parts.  Default: False.
    check_metrics(step, metrics): str | None.  Sees the mean training metrics at every report; a
      sentence that says what has collapsed ends the run.
    export_subtree: str. Top-level key of `params` that holds the model (others, as a GAN's
      discriminators, stay out of the exported model).  Default: all of `params`.
    export_extra: dict of JSON values written to the exported model's config.json.
    export_text_files: dict of file name -> text of a small file (a vocabulary) that travels
      with the exported model.
  """

  model_name: str  # key of models.registry.MODELS
  config: Any  # the model's config, as exported

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of the batch this objective eats."""

  def init(self, rng: jax.Array, batch: Batch) -> tuple[PyTree, PyTree]:
    """Returns (params, model_state): params keep their boxes with logical axis names.

    `model_state` is the dict of collections other than 'params', {} when there are none:
      {'codebooks': {'quantizer': {'embeddings': f32[Q, K, D], ...}}}
    """

  def loss_fn(
      self, params: PyTree, model_state: PyTree, batch: Batch, rng: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
    """Returns (loss f32[], (new model_state, metrics f32[])), with dropout and EMA updates."""

  def eval_fn(self, params: PyTree, model_state: PyTree, batch: Batch) -> Metrics:
    """Returns metrics f32[] of a held-out batch; deterministic."""


class DatasetIterator(Protocol):
  """Batches without end, and a position that can be written down."""

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns the next batch, arrays [batch_size, ...]."""

  def save(self, path: str | os.PathLike) -> None:
    """Writes the position to `path`, a file name prefix in an existing directory."""

  def restore(self, path: str | os.PathLike) -> None:
    """Continues after the batch at which `save(path)` was called."""


@runtime_checkable
class Dataset(Protocol):
  """A source of batches."""

  def iterator(
      self, batch_size: int, seed: int, shard_index: int, num_shards: int
  ) -> DatasetIterator:
    """Returns an iterator over shard `shard_index` of `num_shards` (one shard per host).

    `batch_size` is what each yielded batch holds: this host's share of the global batch.
    """


@runtime_checkable
class Evaluation(Protocol):
  """What a run measures, beside the loss of held-out batches, with models and data of its own."""

  name: str  # of its metrics: NAME/METRIC
  every: int  # steps

  def __call__(self, objective: Objective, variables: PyTree
               ) -> tuple[dict[str, float], dict[str, tuple[str, np.ndarray, int]]]:
    """Returns (metrics, media as of media_fn) of the objective's model; on one host and device.

    `variables` are {'params': .., **model_state}, on the host.
    """
