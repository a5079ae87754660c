"""L4. Fits the map from text vectors towards audio vectors (models/mapper.py) of a frozen MuLan.

Axes: C clips, N captions, E embedding.
"""

import dataclasses
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from musiclm_jax import checkpoints, errors, music_tokens, optimizers
from musiclm_jax.models import mapper

log = logging.getLogger(__name__)
_STEPS_A_LOOK = 50  # between looks at the held-out pieces


@dataclasses.dataclass(frozen=True)
class FitReport:
  """The gap between text and audio of clips that were not fitted to, without and with the mapper.

  split: 'test', or 'train' where it is the pieces that stopped the fit. error: 1 - cosine of those.
  """
  split: str
  steps: int
  error: float
  without: music_tokens.TextAudioGap
  mapped: music_tokens.TextAudioGap


def fit_mapper(
    model: str, waveforms: str, output: str, *, quantizer: str | None = None,
    hidden_dim: int = 256, dropout_rate: float = 0.3, learning_rate: float = 1e-3,
    batch_size: int = 256, max_steps: int = 5000, patience: int = 8,
    held_out_share: float = 0.1, hop_seconds: float = 1.0, max_clips: int | None = None,
    seed: int = 0, dtype: str = 'float32',
) -> FitReport:
  """Writes an exported 'mulan_mapper' to `output`; returns its report.

  The mean of 1 - cosine between the mapped caption and its clip falls; both towers stay as they are.
  A share of the pieces of the train split is held out from it and says when to stop, so that the
  test split is only reported on.

  Args:
    model: directory of an exported mulan.
    waveforms: directory of waveform records with captions.
    output: directory to write.
    quantizer: directory of an exported mulan_quantizer, whose codes the report then compares.
    hidden_dim, dropout_rate: of the mapper.
    learning_rate: of AdamW.
    batch_size: captions a step.
    max_steps: at most.
    patience: looks at the held-out pieces, one every 50 steps, without improvement.
    held_out_share: of the pieces of the train split.
    hop_seconds: between the windows whose mean a clip's vector is.
    max_clips: clips read of each split; all by default.
    seed: of the held-out pieces, the first weights and the order.
    dtype: how the weights are stored.
  """
  if not 0 < held_out_share < 1:
    raise errors.UserError(f'held_out_share is {held_out_share}, wanted between 0 and 1')
  mulan = checkpoints.load_model(model, 'mulan')
  codebooks = _codebooks(quantizer, mulan)
  from musiclm_jax.data import records  # TensorFlow: not for a look at a bad directory
  records.read_info(waveforms, 'waveforms')
  train = _embedded(mulan, waveforms, 'train', hop_seconds, max_clips)
  held_out = _held_out(train.pieces, held_out_share, seed)
  config = mapper.MapperConfig(train.audio.shape[1], hidden_dim, dropout_rate)
  params, steps, error = _fit(
      config, train.of(~held_out), train.of(held_out), learning_rate, batch_size, max_steps,
      patience, seed)
  split = 'test' if 'test' in records.splits(waveforms) else 'train'
  captions, audio = (
      _embedded(mulan, waveforms, 'test', hop_seconds, max_clips).of()
      if split == 'test' else train.of(held_out))
  mapped = mapper.Mapper(config).apply({'params': params}, captions)
  report = FitReport(split, steps, error, *(
      music_tokens.text_audio_gap(audio, x, codebooks) for x in (captions, np.asarray(mapped))))
  checkpoints.export_model(
      output, 'mulan_mapper', config, {'params': params}, dtype=dtype,
      extra={'fitted_to': mulan.fingerprint, 'captions': len(train.captions),
             'report': dataclasses.asdict(report)})
  log.info('%d steps, held-out pieces: 1 - cosine %.4f', steps, error)
  for name, gap in (('without', report.without), ('with', report.mapped)):
    for line in gap.describe().splitlines():
      log.info('%s mapper, %s split: %s', name, split, line)
  return report


def _codebooks(quantizer: str | None, mulan: checkpoints.ExportedModel) -> np.ndarray:
  """Returns f32[Q, K, E], no levels at all without a quantizer."""
  if quantizer is None:
    return np.zeros((0, 1, mulan.config.embedding_dim), np.float32)
  return music_tokens.codebooks(quantizer, mulan)


def _embedded(mulan, waveforms, split, hop_seconds, max_clips) -> music_tokens.Pairs:
  """Returns the vectors of the clips of a split that have captions, and of their captions."""
  pairs = music_tokens.embed_pairs(mulan, waveforms, split, hop_seconds, max_clips)
  if pairs is None:
    raise errors.UserError(f'{waveforms} has no captions in its {split} split')
  return pairs


def _held_out(pieces: np.ndarray, share: float, seed: int) -> np.ndarray:
  """Returns bool[C], the clips of a share of the pieces: at least one of them, and not all."""
  names = np.unique(pieces)
  if len(names) < 2:
    raise errors.UserError(f'{len(names)} piece to fit to, wanted at least 2: one is held out')
  count = min(max(round(share * len(names)), 1), len(names) - 1)
  chosen = np.random.default_rng(seed).permutation(len(names))[:count]
  return np.isin(pieces, names[chosen])


def _fit(config, fitted, held_out, learning_rate, batch_size, max_steps, patience, seed):
  """Returns (params at the lowest error, steps until then, the error); both f32[n, E] pairs."""
  module, optimizer = mapper.Mapper(config), optimizers.adamw(learning_rate)
  captions, audio = map(jnp.asarray, fitted)

  def error(params, captions, audio, **options):
    return 1 - jnp.mean(jnp.sum(module.apply({'params': params}, captions, **options) * audio, -1))

  @jax.jit
  def steps(params, state, rng):
    def one(carry, rng):
      params, state = carry
      rows = jax.random.randint(rng, (batch_size,), 0, len(captions))
      gradients = jax.grad(error)(
          params, captions[rows], audio[rows], train=True, rngs={'dropout': rng})
      updates, state = optimizer.update(gradients, state, params)
      return (optax.apply_updates(params, updates), state), None
    return jax.lax.scan(one, (params, state), jax.random.split(rng, _STEPS_A_LOOK))[0]

  look = jax.jit(error)
  rng = jax.random.key(seed)
  params = nn.unbox(module.init(rng, captions[:1]))['params']
  best, best_error, best_step = params, float(look(params, *held_out)), 0
  state = optimizer.init(params)
  for step in range(_STEPS_A_LOOK, max_steps + 1, _STEPS_A_LOOK):
    params, state = steps(params, state, jax.random.fold_in(rng, step))
    now = float(look(params, *held_out))
    if now < best_error:
      best, best_error, best_step = params, now, step
    elif step - best_step >= patience * _STEPS_A_LOOK:
      break
  return best, best_step, best_error
