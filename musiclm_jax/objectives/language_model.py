"""L2. Next-token prediction for the semantic, coarse and fine stages.

Axes: B batch, L ids of a sequence, P of its prefix, N of its target, F frames, Q levels.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from musiclm_jax import errors, token_layout
from musiclm_jax.models import transformer
from musiclm_jax.objectives import losses


@dataclasses.dataclass(frozen=True)
class LanguageModelObjective:
  """Cross entropy of the target ids given the prefix; the prefix itself is not predicted.

  Coarse stage of token_layout's example, P = 3 and N = 4; slot i reads id i - 1, predicts id i:
    decoder_input_tokens   [ 1  7  8 17 27 31 22]      1 is BOS
    decoder_target_tokens  [ 7  8 17 27 31 22 39]
    decoder_loss_weights   [ 0  0  0  1  1  1  1]

  softmax: 'legal' compares a target with the codebook_size ids its level may hold, the only ones
  that sampling ever draws; 'full' compares it with the whole vocabulary.
  z_loss: weight of log(Z)^2, which keeps logits from drifting; training only.
  condition_dropout: share of the examples whose music tokens are hidden in training, so that the
    model may be sampled with classifier-free guidance; MusicLM has none.
  melody_dropout: share of the examples whose melody is hidden in training, of half of them all of it,
    of the others each window with a chance of 1/2, as beyond the end of a tune: the model then serves
    with a melody and without. Of a layout without one, it is of no effect.
  tokens_dir: the token records trained on (of several, the first); the tokenizers that their
    layout.json names travel with the exported model.
  """

  config: transformer.DecoderConfig
  layout: token_layout.TokenLayout
  stage: str
  seconds: float
  softmax: str = 'legal'
  z_loss: float = 1e-4
  condition_dropout: float = 0.0
  melody_dropout: float = 0.5
  tokens_dir: str | tuple[str, ...] | None = None

  loss_is_mean_over_examples = True  # crops have one length, so microbatches weigh the same

  def __post_init__(self):
    if self.softmax not in ('legal', 'full'):
      raise errors.UserError(f"softmax is {self.softmax!r}, wanted 'legal' or 'full'")
    for name in ('condition_dropout', 'melody_dropout'):
      if not 0 <= getattr(self, name) < 1:
        raise errors.UserError(f'{name} is {getattr(self, name)}, wanted 0 or more and below 1')
    if self.condition_dropout:
      self.stage_layout.positions(token_layout.PROMPT)  # an error for a stage without it
    vocab_size = self.stage_layout.vocab_size
    if self.config.vocab_size not in (0, vocab_size):
      raise errors.UserError(
          f'vocab_size is {self.config.vocab_size}, the {self.stage} stage has {vocab_size} ids')
    config = dataclasses.replace(self.config, vocab_size=vocab_size)
    object.__setattr__(self, 'config', config)

  @property
  def model_name(self) -> str:
    return self.stage

  @functools.cached_property
  def stage_layout(self) -> token_layout.StageLayout:
    return self.layout.stage(self.stage, self.seconds)

  @property
  def export_extra(self) -> dict[str, Any]:
    """Returns what generation must know beside the config."""
    heard = token_layout.MELODY in self.stage_layout.conditions
    return {'seconds': self.seconds, 'condition_dropout': self.condition_dropout,
            **({'melody_dropout': self.melody_dropout} if heard else {})}

  @property
  def export_text_files(self) -> dict[str, str]:
    """Returns {'layout.json': this layout and the tokenizers of the records}; {} without records."""
    if self.tokens_dir is None:
      return {}
    first = self.tokens_dir if isinstance(self.tokens_dir, str) else self.tokens_dir[0]
    saved = token_layout.read_layout(first).used_by(self.layout)
    return {token_layout.LAYOUT_FILE: saved.to_text()}

  @property
  def model(self) -> transformer.Decoder:
    return transformer.Decoder(self.config)

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, self.stage_layout.sequence_length)
    return {
        'decoder_input_tokens': jax.ShapeDtypeStruct(shape, jnp.int32),
        'decoder_target_tokens': jax.ShapeDtypeStruct(shape, jnp.int32),
        'decoder_loss_weights': jax.ShapeDtypeStruct(shape, jnp.float32),
    }

  def init(self, rng, batch):
    """Returns (boxed params, {}); shapes of parameters do not depend on the sequence's length."""
    return self.model.init(rng, batch['decoder_input_tokens'][:1, :1])['params'], {}

  def loss_fn(self, params, model_state, batch, rng, step):
    """Returns (mean cross entropy f32[] + z loss, (model_state, metrics))."""
    rngs = {'dropout': jax.random.fold_in(rng, step)}
    batch = self._without_some_conditions(batch, rngs['dropout'])
    logits, targets, weights = self._predict(params, batch, rngs)
    entropy, total = losses.cross_entropy(logits, targets, weights)
    loss, _ = losses.cross_entropy(logits, targets, weights, self.z_loss)
    total = jnp.maximum(total, 1)
    return loss / total, (model_state, {'cross_entropy': entropy / total})

  def eval_fn(self, params, model_state, batch):
    """Returns {'loss', 'accuracy'}, and both for each level when the target has several."""
    del model_state
    logits, targets, weights = self._predict(params, batch, None)
    num_levels = self.stage_layout.target.num_levels
    start = self.stage_layout.prefix_length if self.softmax == 'full' else 0
    logits, targets, weights = (x[:, start:] for x in (logits, targets, weights))
    metrics = _metrics(logits, targets, weights)
    for level in range(num_levels if num_levels > 1 else 0):
      of_level = _metrics(*(x[:, level::num_levels] for x in (logits, targets, weights)))
      metrics |= {f'{name}_level_{level}': value for name, value in of_level.items()}
    return metrics

  def _without_some_conditions(self, batch, rng):
    """Returns the batch with conditions of some examples hidden from the model's input."""
    tokens, size = batch['decoder_input_tokens'], batch['decoder_input_tokens'].shape[0]
    draw = lambda number, share, *shape: jax.random.bernoulli(
        jax.random.fold_in(rng, number), share, (size, *shape))
    if self.condition_dropout:
      tokens = self._hidden(tokens, token_layout.PROMPT, draw(1, self.condition_dropout, 1))
    if self.melody_dropout and token_layout.MELODY in self.stage_layout.conditions:
      frames = self.stage_layout.stream(token_layout.MELODY).num_frames(self.seconds)
      hidden = draw(2, 0.5, 1) | draw(3, 0.5, frames)
      tokens = self._hidden(tokens, token_layout.MELODY, draw(4, self.melody_dropout, 1) & hidden)
    return batch | {'decoder_input_tokens': tokens}

  def _hidden(self, tokens, name, frames):
    """Returns input ids [B, L] with MASK for a stream's `frames` bool[B, T]."""
    positions, levels = self.stage_layout.positions(name), self.stage_layout.stream(name).num_levels
    slots = slice(positions.start + 1, positions.stop + 1)  # slot i reads id i - 1
    frames = jnp.repeat(frames, levels, axis=1)
    return tokens.at[:, slots].set(jnp.where(frames, token_layout.MASK_ID, tokens[:, slots]))

  def _predict(self, params, batch, rngs):
    """Returns (logits [B, T, V], targets [B, T], weights [B, T]); T = N, or L under 'full'."""
    tokens, targets = batch['decoder_input_tokens'], batch['decoder_target_tokens']
    weights, stage = batch['decoder_loss_weights'], self.stage_layout
    if tokens.shape[1] != stage.sequence_length:
      raise errors.UserError(f'{self.stage} batch has {tokens.shape[1]} ids a row, '
                             f'{self.seconds} s have {stage.sequence_length}')
    variables = {'params': params}
    positions = jnp.asarray(stage.times) if self.config.clock == 'time' else None
    x, _ = self.model.apply(variables, tokens, positions=positions, deterministic=rngs is None,
                            rngs=rngs, method='hidden')
    if self.softmax == 'full':
      return self.model.apply(variables, x, method='logits'), targets, weights
    start = stage.prefix_length
    first_ids = tuple(int(i) for i in stage.level_offsets(stage.target))
    logits = self.model.apply(
        variables, x[:, start:], first_ids, stage.codebook_size, method='level_logits')
    codes = targets[:, start:] - stage.first_ids
    weights = weights[:, start:]
    return logits, jnp.where(weights > 0, codes, 0), weights


def _metrics(logits, targets, weights):
  loss, total = losses.cross_entropy(logits, targets, weights)
  hits = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weights)
  return {'loss': loss / jnp.maximum(total, 1), 'accuracy': hits / jnp.maximum(total, 1)}
