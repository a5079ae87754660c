"""L2. MuLan: clips and captions of a batch find each other.  Axes: B batch, E embedding."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath

from musiclm_jax import text
from musiclm_jax.models import mulan

LOSSES = ('cmc', 'infonce')


def contrastive_loss(similarity: jax.Array, temperature: jax.Array, loss: str = 'cmc',
                     negatives: jax.Array | None = None) -> jax.Array:
  """Returns f32[], the mean over the batch, of similarity f32[B audio, B text].

  'cmc', the paper's: -log(h_ii / sum over j != i of (h_ij + h_ji)), h = exp(similarity /
  temperature). The positive pair is not in the denominator, so the loss has no lower bound.
  'infonce': softmax cross entropy, the mean of both directions. `negatives` bool[B, B] says which
  pairs (i, j) count as negatives; default all i != j.
  """
  logits = similarity.astype(jnp.float32) / temperature
  positive = jnp.diagonal(logits)
  others = ~jnp.eye(logits.shape[0], dtype=bool)
  negatives = others if negatives is None else negatives & others
  negative = jnp.where(negatives, logits, -jnp.inf)
  if loss == 'cmc':
    # A finite value keeps a row with no negatives at all (every text the same) out of the NaNs.
    both = jnp.concatenate([negative, negative.T, jnp.full_like(logits[:, :1], -1e9)], axis=1)
    return jnp.mean(jax.nn.logsumexp(both, axis=1) - positive)
  if loss == 'infonce':
    rows = jnp.where(negatives | ~others, logits, -jnp.inf)
    to_text, to_audio = (jax.nn.logsumexp(rows, axis=axis) - positive for axis in (1, 0))
    return jnp.mean(to_text + to_audio) / 2
  raise ValueError(f'loss {loss!r}: one of {LOSSES} wanted')


def recall(similarity: jax.Array, k: int, rivals: jax.Array) -> jax.Array:
  """Returns f32[]: how often the diagonal is among the k best of its row, of `rivals` bool[B, B].

  A tie counts half a rival above, so that equal embeddings everywhere score 0 for small k, not 1.
  """
  positive = jnp.diagonal(similarity)[:, None]
  rivals = rivals & ~jnp.eye(similarity.shape[0], dtype=bool)
  above = jnp.sum(rivals * ((similarity > positive) + 0.5 * (similarity == positive)), axis=1)
  return jnp.mean((above < k).astype(jnp.float32))


def same_text(token_ids: jax.Array) -> jax.Array:
  """Returns bool[B, B]: which captions are the same."""
  return jnp.all(token_ids[:, None] == token_ids[None], axis=-1)


@dataclasses.dataclass(frozen=True)
class MulanObjective:
  """Eats {'waveform': f32[B, S], 'text_tokens': int32[B, N]}."""

  config: mulan.MulanConfig = mulan.MulanConfig()
  seconds: float = 10.0
  text_length: int = 128
  loss: str = 'cmc'
  # The paper counts every other pair as a negative. True: not those with the same caption.
  mask_same_text: bool = False
  recall_at: tuple[int, ...] = (1, 10)  # of evaluation, within a batch
  vocab_file: str = ''  # travels with the exported model, as vocab.txt
  model_name = 'mulan'

  def __post_init__(self):
    if self.loss not in LOSSES:
      raise ValueError(f'loss {self.loss!r}: one of {LOSSES} wanted')
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
    # Every clip meets every caption of the global batch: the text side is whole on each device.
    similarity = nn.with_logical_constraint(
        jnp.einsum('ie,je->ij', audio, captions, precision='highest'), ('batch', None))
    different = ~same_text(token_ids)
    negatives = different if self.mask_same_text else None
    loss = contrastive_loss(similarity, temperature, self.loss, negatives)
    off_diagonal = ~jnp.eye(similarity.shape[0], dtype=bool)
    metrics = {
        'loss': loss,
        'temperature': temperature,
        'positive_cosine': jnp.mean(jnp.diagonal(similarity)),
        'negative_cosine': (jnp.sum(similarity * off_diagonal)
                            / jnp.maximum(jnp.sum(off_diagonal), 1)),
    }
    for k in recall_at:
      metrics[f'audio_to_text_recall_at_{k}'] = recall(similarity, k, different)
      metrics[f'text_to_audio_recall_at_{k}'] = recall(similarity.T, k, different)
    return loss, (model_state, metrics)
