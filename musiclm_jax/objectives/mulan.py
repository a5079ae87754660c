"""L2. MuLan: clips and captions of a batch find each other.

Axes: B batch, C clips of a block, E embedding, N wordpieces.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath

from musiclm_jax import errors, text
from musiclm_jax.models import mulan

LOSSES = ('cmc', 'infonce')
_COLUMNS = 8  # of wordpieces that one sort looks at


class Terms(NamedTuple):
  """What a block of C clips and their captions gives, f32[C] each.

  loss: the examples' losses. positive: the cosines of the pairs.
  above_text: how many captions a clip likes better than its own, above_audio: the other way round.
  """
  loss: jax.Array
  positive: jax.Array
  above_text: jax.Array
  above_audio: jax.Array


def contrastive_terms(
    audio: jax.Array, captions: jax.Array, temperature: jax.Array, groups: jax.Array,
    loss: str = 'cmc', mask_same_text: bool = False, chunk: int | None = None) -> Terms:
  """Returns the terms f32[B] of unit vectors f32[B, E]; h = exp(cosine / temperature).

  'cmc', the paper's: -log(h_ii / sum over j != i of (h_ij + h_ji)). The positive pair is not in the
  denominator, so the loss has no lower bound.
  'infonce': softmax cross entropy, the mean of both directions.

  groups int32[B]: equal where the captions are. They are never rivals of each other for a place,
  and with `mask_same_text` not negatives either.
  chunk: rows of the [B, B] similarity that exist at a time, over all devices: the others are
  computed when needed, forwards and backwards. It divides B, and the devices divide it.
  """
  size = len(audio)
  # Every clip meets every caption of the global batch: both sides are whole on each device.
  everyone = [nn.with_logical_constraint(x, (None, None)) for x in (audio, captions)]

  def block(index, audio_rows, caption_rows):
    own = index[:, None] == jnp.arange(size)
    different = groups[index][:, None] != groups
    negative = different if mask_same_text else ~own
    sides = [_side(rows, whole, own, different, negative, temperature, loss)
             for rows, whole in ((audio_rows, everyone[1]), (caption_rows, everyone[0]))]
    (to_text, positive, above_text), (to_audio, _, above_audio) = sides
    both = jnp.logaddexp(to_text, to_audio) if loss == 'cmc' else (to_text + to_audio) / 2
    return Terms(both - positive / temperature, positive, above_text, above_audio)

  index = jnp.arange(size)
  if chunk is None or chunk == size:
    return block(index, audio, captions)
  if size % chunk:
    raise errors.UserError(f'similarity_chunk {chunk} does not divide the batch of {size}')
  rows = [_blocks(x, chunk) for x in (index, audio, captions)]
  terms = jax.lax.map(lambda part: jax.checkpoint(block)(*part), tuple(rows))
  return jax.tree.map(lambda x: x.T.reshape(size), terms)


def _blocks(x: jax.Array, chunk: int) -> jax.Array:
  """Returns [B / chunk, chunk, ..]: block k has every row r * B / chunk + k, some of each device."""
  x = jnp.swapaxes(x.reshape(chunk, -1, *x.shape[1:]), 0, 1)
  return nn.with_logical_constraint(x, (None, 'batch', *(None,) * (x.ndim - 2)))


def _side(rows, whole, own, different, negative, temperature, loss):
  """Returns (log sum over the denominator, positive cosine, rivals above), f32[C] of rows f32[C, E]."""
  cosine = nn.with_logical_constraint(
      jnp.einsum('ie,je->ij', rows, whole, precision='highest'), ('batch', None))
  positive = jnp.sum(cosine * own, axis=1)
  above = rivals_above(cosine, positive, different & ~own)
  counted = negative & ~own if loss == 'cmc' else negative | own
  # A finite value keeps a row with no negatives at all (every text the same) out of the NaNs.
  logits = jnp.where(counted, cosine / temperature, -1e9)
  return jax.nn.logsumexp(logits, axis=1), positive, above


def text_groups(token_ids: jax.Array) -> jax.Array:
  """Returns int32[B], equal where the captions int32[B, N] are: [[2 5 3] [2 6 3] [2 5 3]] -> 0 1 0.

  Groups are told apart by further columns, some at a time, by sorting: exact, and nothing of
  B x B x N is made.
  """
  token_ids = nn.with_logical_constraint(token_ids, (None, None))
  padded = jnp.pad(token_ids, ((0, 0), (0, -token_ids.shape[1] % _COLUMNS)))

  def refine(groups, columns):
    keys = jnp.stack([groups, *columns])
    order = jnp.lexsort(keys)
    keys = keys[:, order]
    changed = jnp.any(keys[:, 1:] != keys[:, :-1], axis=0)
    ranks = jnp.cumsum(jnp.pad(changed.astype(jnp.int32), (1, 0)))
    return jnp.zeros_like(groups).at[order].set(ranks), None

  start = jnp.zeros(len(token_ids), jnp.int32)
  return jax.lax.scan(refine, start, padded.T.reshape(-1, _COLUMNS, len(token_ids)))[0]


def rivals_above(cosine: jax.Array, positive: jax.Array, rivals: jax.Array) -> jax.Array:
  """Returns f32[C]: how many of `rivals` bool[C, B] have a higher f32[C, B] cosine than f32[C].

  A tie counts half a rival above, so that equal embeddings everywhere score 0 for small k, not 1.
  """
  higher, tie = cosine > positive[:, None], cosine == positive[:, None]
  return jnp.sum(rivals * (higher + 0.5 * tie), axis=1)


def recall(above: jax.Array, k: int) -> jax.Array:
  """Returns f32[]: how often fewer than k rivals are above, of f32[B] rivals above."""
  return jnp.mean((above < k).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class MulanObjective:
  """Eats {'waveform': f32[B, S], 'text_tokens': int32[B, N]}.

  The temperature is trained in (min_temperature, 1]: a sigmoid, which reaches 1 by rounding.
  """

  config: mulan.MulanConfig = mulan.MulanConfig()
  seconds: float = 10.0
  text_length: int = 128
  loss: str = 'cmc'
  # The paper counts every other pair as a negative. True: not those with the same caption.
  mask_same_text: bool = False
  # Rows of the similarity matrix held at a time, over all devices; None: all of them.
  similarity_chunk: int | None = None
  recall_at: tuple[int, ...] = (1, 10)  # of evaluation, within a batch
  vocab_file: str = ''  # travels with the exported model, as vocab.txt
  model_name = 'mulan'

  def __post_init__(self):
    if self.loss not in LOSSES:
      raise ValueError(f'loss {self.loss!r}: one of {LOSSES} wanted')
    if self.similarity_chunk is not None and self.similarity_chunk < 1:
      raise ValueError(f'similarity_chunk is {self.similarity_chunk}, wanted at least 1')
    if not 2 <= self.text_length <= self.config.text.max_length:
      raise ValueError(f'text_length {self.text_length}: wanted 2 to max_length '
                       f'{self.config.text.max_length} of the text tower')
    if self.vocab_file:
      tokens = text.read_vocabulary(self.vocab_file)
      self.config.text.check_vocabulary(len(tokens), self.vocab_file)

  @property
  def model(self) -> mulan.Mulan:
    return mulan.Mulan(self.config)

  @property
  def export_extra(self) -> dict:
    return {'seconds': self.seconds, 'text_length': self.text_length}

  @property
  def export_text_files(self) -> dict[str, str]:
    return {'vocab.txt': epath.Path(self.vocab_file).read_text()} if self.vocab_file else {}

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    samples = round(self.seconds * self.config.sample_rate)
    return {
        'waveform': jax.ShapeDtypeStruct((batch_size, samples), jnp.float32),
        'text_tokens': jax.ShapeDtypeStruct((batch_size, self.text_length), jnp.int32),
    }

  def init(self, rng, batch):
    """Returns (params, {'batch_stats': ...}), or {} for a tower without running statistics."""
    variables = self.model.init({'params': rng}, batch['waveform'], batch['text_tokens'])
    return variables['params'], {k: v for k, v in variables.items() if k != 'params'}

  def loss_fn(self, params, model_state, batch, rng, step):
    """Returns (contrastive loss over the global batch, (model_state, metrics))."""
    del step
    dropout, augment = jax.random.split(rng)
    (audio, captions, temperature), model_state = self.model.apply(
        {'params': params, **model_state}, batch['waveform'], batch['text_tokens'], train=True,
        rngs={'dropout': dropout, 'augment': augment}, mutable=list(model_state))
    return self._loss_and_metrics(
        audio, captions, temperature, batch['text_tokens'], model_state, (1,))

  def eval_fn(self, params, model_state, batch):
    """Returns the loss and recall@k both ways on a held-out batch; other captions are rivals."""
    audio, captions, temperature = self.model.apply(
        {'params': params, **model_state}, batch['waveform'], batch['text_tokens'])
    _, (_, metrics) = self._loss_and_metrics(
        audio, captions, temperature, batch['text_tokens'], model_state, self.recall_at)
    return metrics

  def _loss_and_metrics(self, audio, captions, temperature, token_ids, model_state, recall_at):
    terms = contrastive_terms(
        audio, captions, temperature, text_groups(token_ids), self.loss, self.mask_same_text,
        self.similarity_chunk)
    loss, size = jnp.mean(terms.loss), len(audio)
    all_pairs = jnp.sum(jnp.sum(audio, axis=0) * jnp.sum(captions, axis=0))
    metrics = {
        'loss': loss,
        'temperature': temperature,
        'positive_cosine': jnp.mean(terms.positive),
        'negative_cosine': (all_pairs - jnp.sum(terms.positive)) / max(size * (size - 1), 1),
    }
    for k in recall_at:
      metrics[f'audio_to_text_recall_at_{k}'] = recall(terms.above_text, k)
      metrics[f'text_to_audio_recall_at_{k}'] = recall(terms.above_audio, k)
    return loss, (model_state, metrics)
