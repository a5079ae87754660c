"""L2. SoundStream's objective: reconstruction, adversarial and feature losses.  Axes: B S.

SoundStream section III-E.  Generator and discriminators learn in the same step of the one loop:
`params` is {'generator': .., 'discriminators': ..}, the loss the sum of both sides', and
stop_gradient keeps each side's share of it from the other.  Without discriminators (the field is
None) `params` is the generator alone.

Departures from the paper, all of them fields: a time-domain L1 term, which gives the phase early in
a short run; spectral terms are means, where the paper has sums (`window_weights` and
gin/models/soundstream_base.gin say what the paper's weights become); steps before
`adversarial_start_step` train the generator only.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from musiclm_jax.models import discriminators, soundstream
from musiclm_jax.objectives import gradient_balancer, losses

_OF_THE_OUTPUT = ('linear', 'log', 'waveform', 'adversarial', 'feature')  # and of nothing else


@dataclasses.dataclass(frozen=True)
class SoundStreamObjective:
  """Batches: 'waveform' f32[B, seconds * sample_rate] in [-1, 1]; to learn denoising, also 'noise'.

  With `balance_gradients` the weights of all terms but the commitment are shares of the gradient
  with respect to the reconstruction (`gradient_balancer`), else they are plain factors.  With
  `train_encoder` False the encoder and the codebooks stay as they are, and so do the tokens.
  """

  model_name: ClassVar[str] = 'soundstream'

  config: soundstream.SoundStreamConfig
  discriminator: discriminators.DiscriminatorsConfig | None = None
  seconds: float = 3.0
  spectral_windows: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
  num_mels: int = 64
  spectral_floor: float = 1e-3
  linear_weight: float = 1.0
  log_weight: float = 1.0
  window_weighting: str = 'paper'  # or 'even': see `window_weights`
  waveform_weight: float = 1.0
  commitment_weight: float = 0.25
  adversarial_weight: float = 1.0
  feature_weight: float = 100.0
  adversarial_start_step: int = 0
  balance_gradients: bool = False
  balancer_decay: float = 0.999
  train_encoder: bool = True
  noise_gain_db: tuple[float, float] = (-30.0, 0.0)

  @property
  def model(self) -> soundstream.SoundStream:
    return soundstream.SoundStream(self.config)

  @property
  def export_subtree(self) -> str:
    return 'generator' if self.discriminator else ''

  @property
  def num_samples(self) -> int:
    return round(self.seconds * self.config.sample_rate)

  @property
  def weights(self) -> dict[str, float]:
    """Returns the weight of each term of the generator's loss."""
    names = ('linear', 'log', 'waveform', 'commitment')
    names += ('adversarial', 'feature') if self.discriminator else ()
    return {name: getattr(self, f'{name}_weight') for name in names}

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    names = ('waveform',) if self.config.denoising == 'off' else ('waveform', 'noise')
    shape = jax.ShapeDtypeStruct((batch_size, self.num_samples), jnp.float32)
    return dict.fromkeys(names, shape)

  def init(self, rng: jax.Array, batch: dict) -> tuple[dict, dict]:
    """Returns (params, {'codebooks': ...}); codebooks start in the first training step."""
    waveform = batch['waveform'][:1]
    variables = dict(self.model.init(rng, waveform[:, : self.config.hop_length]))
    params = variables.pop('params')
    if self.discriminator:
      judge = discriminators.Discriminators(self.discriminator)
      judges = judge.init(jax.random.fold_in(rng, 1), waveform)['params']
      params = {'generator': params, 'discriminators': judges}
    if self.balance_gradients:
      variables['balancer'] = gradient_balancer.initial(self._balanced())
    return params, variables

  def window_weights(self) -> list[float]:
    """Returns a weight per window, mean 1.

    paper: |S - S'| + alpha_s |log S - log S'| with alpha_s = sqrt(s / 2).  Our S is divided by
    the window's root energy, itself in proportion to sqrt(s): alpha_s moves in front of both.
    """
    if self.window_weighting == 'even':
      return [1.0] * len(self.spectral_windows)
    if self.window_weighting != 'paper':
      raise ValueError(f"window_weighting is {self.window_weighting!r}, wanted 'paper' or 'even'")
    alphas = [(window / 2) ** 0.5 for window in self.spectral_windows]
    return [alpha * len(alphas) / sum(alphas) for alpha in alphas]

  def terms(self, waveform: jax.Array, reconstruction: jax.Array) -> dict[str, jax.Array]:
    """Returns the unweighted reconstruction terms, and 'mel_distance' in decibels."""
    totals = jnp.zeros((3,))
    for window, weight in zip(self.spectral_windows, self.window_weights(), strict=True):
      scale = losses.SpectralScale(
          window, self.config.sample_rate, self.num_mels, self.spectral_floor
      )
      linear, log, decibels = losses.spectral_distance(waveform, reconstruction, scale)
      totals += jnp.stack([weight * linear, weight * log, decibels])
    linear, log, decibels = totals / len(self.spectral_windows)
    difference = jnp.mean(jnp.abs(waveform - reconstruction))
    return {'linear': linear, 'log': log, 'waveform': difference, 'mel_distance': decibels}

  def total(self, terms: dict[str, jax.Array]) -> jax.Array:
    """Returns f32[]: the weighted sum of those terms that have a weight."""
    return sum(weight * terms[name] for name, weight in self.weights.items() if name in terms)

  def loss_fn(self, params, model_state, batch, rng, step):
    """Returns (f32[] loss, (model_state, metrics)); the loss holds both sides' (see above)."""
    waveform, target, denoise = self._examples(batch, jax.random.fold_in(rng, 1))
    reconstruction, aux, codebooks = self._generate(params, model_state, waveform, denoise, rng)
    model_state = {**model_state, **codebooks}
    terms = self._all_terms(params, target, reconstruction, step)
    discriminator = terms.pop('discriminator', 0.0)
    terms['commitment'] = aux['commitment']
    generator = self.total(terms)
    loss = generator + discriminator
    metrics = {'loss': loss, **terms, **aux['metrics']}
    if self.discriminator:
      metrics |= {'generator': generator, 'discriminator': discriminator}
    if self.balance_gradients:
      surrogate, model_state['balancer'] = gradient_balancer.balance(
          lambda output: self._all_terms(params, target, output, step),
          reconstruction, self._balanced(), model_state['balancer'], self.balancer_decay,
      )  # fmt: skip
      loss = self.commitment_weight * aux['commitment'] + surrogate + discriminator
      loss += jax.lax.stop_gradient(generator + discriminator - loss)
    return loss, (model_state, metrics)

  def eval_fn(self, params, model_state, batch) -> dict[str, jax.Array]:
    """Returns the reconstruction losses at all levels, and distance and SI-SDR at all and half.

    With denoising also the SI-SDR of the music with noise in it, before and after.
    """
    waveform = batch['waveform']
    reconstruction, aux = self._reconstruct(params, model_state, waveform)
    terms = self.terms(waveform, reconstruction) | {'commitment': aux['commitment']}
    half, _ = self._reconstruct(params, model_state, waveform, self.config.num_quantizers // 2)
    denoised = {}
    if self.config.denoising != 'off':
      noisy = waveform + 10.0 ** (sum(self.noise_gain_db) / 40.0) * batch['noise']
      clean, _ = self._reconstruct(params, model_state, noisy, denoise=True)
      denoised = {'si_sdr_noisy': jnp.mean(losses.si_sdr(waveform, noisy)),
                  'si_sdr_denoised': jnp.mean(losses.si_sdr(waveform, clean))}
    return {
        **denoised,
        'loss': self.total(terms),
        **terms,
        'mel_distance_half': self.terms(waveform, half)['mel_distance'],
        'si_sdr': jnp.mean(losses.si_sdr(waveform, reconstruction)),
        'si_sdr_half': jnp.mean(losses.si_sdr(waveform, half)),
    }

  def media_fn(self, params, model_state, batch) -> dict:
    """Returns {'original' | 'reconstruction': ('audio', f32[n, S], rate)} of up to 4 clips."""
    waveform = batch['waveform'][:4]
    reconstruction, _ = self._reconstruct(params, model_state, waveform)
    rate = self.config.sample_rate
    return {
        'original': ('audio', waveform, rate),
        'reconstruction': ('audio', reconstruction, rate),
    }

  def _examples(self, batch, rng):
    """Returns (input f32[B, S], target f32[B, S], denoise bool[B] or None); section III-F.

    Half of the inputs have noise in them, half are asked to be clean, whatever they hold:

      noisy, denoise -> clean    noisy -> noisy    clean, denoise -> clean    clean -> clean
    """
    waveform = batch['waveform']
    if self.config.denoising == 'off':
      return waveform, waveform, None
    gain_rng, noisy_rng, denoise_rng = jax.random.split(rng, 3)
    count = (waveform.shape[0], 1)
    decibels = jax.random.uniform(gain_rng, count, minval=self.noise_gain_db[0],
                                  maxval=self.noise_gain_db[1])  # fmt: skip
    noisy, denoise = (jax.random.bernoulli(key, 0.5, count) for key in (noisy_rng, denoise_rng))
    heard = waveform + noisy * 10.0 ** (decibels / 20.0) * batch['noise']
    return heard, jnp.where(denoise, waveform, heard), denoise[:, 0]

  def _generator(self, params):
    return params['generator'] if self.discriminator else params

  def _generate(self, params, model_state, waveform, denoise, rng):
    """Returns (reconstruction f32[B, S], aux, {'codebooks': moved by their own rule})."""
    params, codebooks = self._generator(params), {'codebooks': model_state['codebooks']}
    if not self.train_encoder:
      frozen = {name: params[name] for name in self.config.encoding_params}
      params = {**params, **jax.lax.stop_gradient(frozen)}
    (reconstruction, aux), moved = self.model.apply(
        {'params': params, **codebooks}, waveform, train=True, denoise=denoise,
        rngs={'quantizer': rng}, mutable=['codebooks'],
    )  # fmt: skip
    return reconstruction, aux, dict(moved) if self.train_encoder else codebooks

  def _all_terms(self, params, target, reconstruction, step) -> dict[str, jax.Array]:
    """Returns `terms` and, with discriminators, those of both sides: f32[] each."""
    terms = self.terms(target, reconstruction)
    if not self.discriminator:
      return terms
    judge = discriminators.Discriminators(self.discriminator)
    judges = params['discriminators']
    real = judge.apply({'params': judges}, target)
    shown = judge.apply({'params': judges}, jax.lax.stop_gradient(reconstruction))
    fake = judge.apply({'params': jax.lax.stop_gradient(judges)}, reconstruction)
    started = (step >= self.adversarial_start_step).astype(jnp.float32)
    return terms | {
        'discriminator': started * losses.discriminator_hinge(real, shown),
        'adversarial': started * losses.generator_hinge(fake),
        'feature': started * losses.feature_matching(jax.lax.stop_gradient(real), fake),
    }

  def _balanced(self) -> dict[str, float]:
    return {name: weight for name, weight in self.weights.items() if name in _OF_THE_OUTPUT}

  def _reconstruct(self, params, model_state, waveform, num_quantizers=None, denoise=False):
    levels = num_quantizers or self.config.num_quantizers
    levels = jnp.full((waveform.shape[0],), levels, jnp.int32)
    variables = {'params': self._generator(params), 'codebooks': model_state['codebooks']}
    denoise = jnp.ones(levels.shape, bool) if denoise else None
    return self.model.apply(variables, waveform, num_quantizers=levels, denoise=denoise)
