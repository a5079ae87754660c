"""L2. w2v-BERT: beta (contrastive + alpha diversity) + gamma masked prediction.

Axes: B batch, S samples, T frames, K distractors, G groups, V codes a group.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from musiclm_jax.models import quantizers, w2v_bert


def sample_distractors(rng: jax.Array, mask: jax.Array, num_distractors: int) -> jax.Array:
  """Returns int32[B, T, K]: for each frame, other masked frames of the same clip, uniformly.

  mask 0 1 1 0 1, frame 2: each entry is 1 or 4. A frame without any other gets itself.
  """
  length = mask.shape[1]
  count = mask.sum(1)[:, None, None]
  masked_first = jnp.argsort(~mask, axis=1, stable=True)  # [B, T]: positions, masked ones in front
  rank = (jnp.cumsum(mask, 1) - 1)[..., None]  # of a masked frame among the masked ones
  others = jnp.maximum(count - 1, 1)
  draw = jax.random.randint(rng, (*mask.shape, num_distractors), 0, others)
  draw = jnp.where((draw >= rank) & (count > 1), draw + 1, draw)
  flat = jnp.clip(draw, 0, length - 1).reshape(mask.shape[0], -1)
  return jnp.take_along_axis(masked_first, flat, 1).reshape(draw.shape)


def contrastive_logits(context, quantized, codes, distractors, temperature) -> jax.Array:
  """Returns f32[B, T, 1 + K]: cosine / temperature to the frame's own target, then to distractors.

  A distractor with the target's own code is no distractor: its logit is -inf.
  """
  def unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-8)

  batch, length, num_distractors = distractors.shape
  flat = distractors.reshape(batch, -1)
  # All pairs, then a gather of scalars: T * T numbers where vectors would be T * K * D.
  scores = jnp.einsum('btd,bsd->bts', unit(context), unit(quantized)) / temperature
  positive = jnp.diagonal(scores, axis1=1, axis2=2)[..., None]
  negative = jnp.take_along_axis(scores, distractors, axis=2)
  others = jnp.take_along_axis(codes, flat[..., None], axis=1)
  others = others.reshape(batch, length, num_distractors, -1)
  same = jnp.all(others == codes[:, :, None], -1)
  return jnp.concatenate([positive, jnp.where(same, -jnp.inf, negative)], -1)


def diversity_loss(code_probs: jax.Array) -> jax.Array:
  """Returns f32[]: 1 - exp(entropy of the mean softmax) / V, a mean over groups; 0 is even use."""
  mean = code_probs.mean((0, 1))  # [G, V]
  return 1.0 - quantizers.perplexity(mean).mean() / mean.shape[-1]


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  return jnp.sum(x * mask) / jnp.maximum(mask.sum(), 1)


@dataclasses.dataclass(frozen=True)
class W2vBertObjective:
  """Eats {'waveform': f32[B, S]}.

  The weights alpha, beta and gamma are w2v-BERT's; distractors, contrastive temperature and the
  Gumbel schedule are wav2vec 2.0's, which w2v-BERT follows without giving its own.
  """
  model_name: ClassVar[str] = 'w2v_bert'

  config: w2v_bert.W2vBertConfig = w2v_bert.W2vBertConfig()
  seconds: float = 10.0
  num_distractors: int = 100
  contrastive_temperature: float = 0.1
  alpha: float = 0.1  # diversity within the contrastive loss
  beta: float = 1.0
  gamma: float = 1.0
  gumbel_start: float = 2.0  # wav2vec 2.0's schedule: from start to end by a constant factor a step
  gumbel_end: float = 0.5
  gumbel_steps: int = 277_000  # 2 * 0.999995 ** 277_000 = 0.5
  # From this step on, a run whose codes say nothing ends (`check_metrics`); None: never.  In the
  # paper, codes without the contrastive loss collapsed within 50 000 steps.
  collapse_after: int | None = 5_000
  collapse_perplexity: float = 2.0  # codes in use, of a group
  collapse_accuracy: float = 0.98  # of masked prediction: such codes are trivial
  collapse_contrast: float = 0.98  # contrastive loss, as a share of a blind guess's

  @property
  def model(self) -> w2v_bert.W2vBert:
    return w2v_bert.W2vBert(self.config)

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    samples = round(self.seconds * self.config.input_sample_rate)
    return {'waveform': jax.ShapeDtypeStruct((batch_size, samples), jnp.float32)}

  def init(self, rng, batch):
    """Returns (params, {}): the model keeps no state."""
    names = ('params', 'mask', 'quantizer', 'dropout')
    rngs = dict(zip(names, jax.random.split(rng, 4), strict=True))
    return self.model.init(rngs, batch['waveform'])['params'], {}

  def gumbel_temperature(self, step) -> jax.Array:
    done = jnp.clip(jnp.float32(step) / self.gumbel_steps, 0.0, 1.0)
    return self.gumbel_start * (self.gumbel_end / self.gumbel_start) ** done

  def loss_fn(self, params, model_state, batch, rng, step):
    """Returns (loss f32[], (model_state, metrics)), with masks, noise and dropout from `rng`."""
    *keys, sample_rng = jax.random.split(rng, 4)
    temperature = self.gumbel_temperature(step)
    outputs = self.model.apply(
        {'params': params}, batch['waveform'], temperature,
        rngs=dict(zip(('mask', 'quantizer', 'dropout'), keys, strict=True)))
    metrics = self.losses(outputs, sample_rng)
    return metrics['loss'], (model_state, metrics | {'gumbel_temperature': temperature})

  def eval_fn(self, params, model_state, batch):
    """Returns the metrics with one fixed mask, no noise and no dropout."""
    mask_rng, sample_rng = jax.random.split(jax.random.key(0))
    outputs = self.model.apply(
        {'params': params}, batch['waveform'], deterministic=True, rngs={'mask': mask_rng})
    return self.losses(outputs, sample_rng)

  def check_metrics(self, step: int, metrics: dict[str, float]) -> str | None:
    """Returns what has collapsed, or None.

    Few codes in use; codes that anyone can guess; codes that a frame's neighbours do not tell from
    others.  w2v-BERT section 5: without the contrastive loss the codes collapse, and the masked
    prediction becomes right every time.
    """
    if self.collapse_after is None or step < self.collapse_after:
      return None
    used, right = metrics['code_perplexity'], metrics['masked_accuracy']
    contrast, blind = metrics['contrastive'], metrics['contrastive_chance']
    if used < self.collapse_perplexity:
      return (f'code_perplexity {used:.2f} of {self.config.num_codes} codes, wanted at least '
              f'{self.collapse_perplexity:g}')
    if right > self.collapse_accuracy:
      return (f'masked_accuracy {right:.3f} with code_perplexity {used:.2f}, wanted at most '
              f'{self.collapse_accuracy:g}')
    if contrast > self.collapse_contrast * blind:
      return (f'contrastive {contrast:.3f} where a blind guess has {blind:.3f}, wanted at most '
              f'{self.collapse_contrast:g} of that')
    return None

  def losses(self, outputs: w2v_bert.Outputs, rng: jax.Array) -> dict[str, jax.Array]:
    """Returns 'loss', its terms, two accuracies over masked frames, and the code perplexity.

    'contrastive_chance' is the contrastive loss of scores that are all equal.
    """
    mask = outputs.mask
    distractors = sample_distractors(rng, mask, self.num_distractors)
    scores = contrastive_logits(outputs.context, outputs.quantized, outputs.chosen, distractors,
                                self.contrastive_temperature)
    contrastive = masked_mean(jax.nn.logsumexp(scores, -1) - scores[..., 0], mask)
    diversity = diversity_loss(outputs.code_probs)
    log_probs = jax.nn.log_softmax(outputs.logits)
    nll = -jnp.take_along_axis(log_probs, outputs.codes[..., None], -1)[..., 0].mean(-1)
    masked = masked_mean(nll, mask)
    right = jnp.all(jnp.argmax(outputs.logits, -1) == outputs.codes, -1)
    found = scores[..., 0] > jnp.max(scores[..., 1:], -1)
    usage = jax.nn.one_hot(outputs.codes, self.config.num_codes).mean((0, 1))
    loss = self.beta * (contrastive + self.alpha * diversity) + self.gamma * masked
    return {
        'loss': loss,
        'contrastive': contrastive,
        'contrastive_chance': masked_mean(jnp.log(jnp.isfinite(scores).sum(-1)), mask),
        'diversity': diversity,
        'masked_prediction': masked,
        'contrastive_accuracy': masked_mean(found, mask),
        'masked_accuracy': masked_mean(right, mask),
        'code_perplexity': quantizers.perplexity(usage).mean(),
        'masked_fraction': mask.mean(),
    }
