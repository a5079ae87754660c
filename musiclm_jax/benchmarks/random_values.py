"""L5. Batches that look like a run's, of random values: benchmarks read no data."""

import math

import numpy as np

from musiclm_jax import errors, token_layout
from musiclm_jax.objectives import base, language_model

_MAX_TEXT_ID = 1000  # every vocabulary of the runs is larger


def batch(objective: base.Objective, rows: int) -> dict[str, np.ndarray]:
  """Returns a batch of legal random values, as the objective's input_shapes: noise and ids."""
  if isinstance(objective, language_model.LanguageModelObjective):
    stage = objective.stage_layout
    ids = stage.flatten(codes(stage, rows))
    first = np.full((rows, 1), token_layout.BOS_ID, np.int32)
    weights = np.arange(ids.shape[1]) >= stage.prefix_length
    return {
        'decoder_input_tokens': np.concatenate([first, ids[:, :-1]], axis=1),
        'decoder_target_tokens': ids,
        'decoder_loss_weights': np.broadcast_to(weights, ids.shape).astype(np.float32)}

  random = np.random.default_rng(0)

  def values(name, shape):
    if np.issubdtype(shape.dtype, np.floating):
      return (0.1 * random.standard_normal(shape.shape)).astype(shape.dtype)
    if name == 'piece':
      return np.arange(math.prod(shape.shape), dtype=shape.dtype).reshape(shape.shape)
    if name == 'text_tokens':
      return random.integers(1, _MAX_TEXT_ID, shape.shape, shape.dtype)
    raise errors.UserError(f'{objective.model_name}: no random values are known for {name!r}')

  return {name: values(name, each) for name, each in objective.input_shapes(rows).items()}


def codes(stage: token_layout.StageLayout, rows: int) -> dict[str, np.ndarray]:
  """Returns {name of each stream: random codes int64[rows, T, Q]} of a stage's sequence."""
  random = np.random.default_rng(0)
  return {each.name: random.integers(
      each.codebook_size, size=(rows, each.num_frames(stage.seconds), each.num_levels))
      for each in stage.streams}
