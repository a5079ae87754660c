"""L2. SoundStream's objective: spectral, waveform and commitment losses.  Axes: B S.

Departures from the paper: no discriminators yet, so neither the adversarial nor the
feature-matching term; a time-domain L1 term, which gives the phase early in a short run.  The loss
is a sum of named terms with a weight each (`terms`).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from musiclm_jax.models import soundstream
from musiclm_jax.objectives import losses


@dataclasses.dataclass(frozen=True)
class SoundStreamObjective:
  """Batches: 'waveform' f32[B, seconds * sample_rate] in [-1, 1]."""

  model_name: ClassVar[str] = 'soundstream'

  config: soundstream.SoundStreamConfig
  seconds: float = 3.0
  spectral_windows: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
  num_mels: int = 64
  spectral_floor: float = 1e-3
  linear_weight: float = 1.0
  log_weight: float = 1.0
  window_weighting: str = 'paper'  # or 'even': see `window_weights`
  waveform_weight: float = 1.0
  commitment_weight: float = 0.25

  @property
  def model(self) -> soundstream.SoundStream:
    return soundstream.SoundStream(self.config)

  @property
  def num_samples(self) -> int:
    return round(self.seconds * self.config.sample_rate)

  def input_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {'waveform': jax.ShapeDtypeStruct((batch_size, self.num_samples), jnp.float32)}

  def init(self, rng: jax.Array, batch: dict) -> tuple[dict, dict]:
    """Returns (params, {'codebooks': ...}); codebooks start in the first training step."""
    waveform = batch['waveform'][:1, : self.config.hop_length]
    variables = dict(self.model.init(rng, waveform))
    return variables.pop('params'), variables

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
    """Returns f32[]: the terms that have a weight, weighted."""
    weights = {
        'linear': self.linear_weight,
        'log': self.log_weight,
        'waveform': self.waveform_weight,
        'commitment': self.commitment_weight,
    }
    return sum(weight * terms[name] for name, weight in weights.items())

  def loss_fn(self, params, model_state, batch, rng, step):
    """Returns (f32[] loss, ({'codebooks': ...}, metrics)); codebooks move by their own rule."""
    del step
    (reconstruction, aux), model_state = self.model.apply(
        {'params': params, **model_state},
        batch['waveform'],
        train=True,
        rngs={'quantizer': rng},
        mutable=['codebooks'],
    )
    terms = self.terms(batch['waveform'], reconstruction) | {'commitment': aux['commitment']}
    loss = self.total(terms)
    return loss, (dict(model_state), {'loss': loss, **terms, **aux['metrics']})

  def eval_fn(self, params, model_state, batch) -> dict[str, jax.Array]:
    """Returns the losses at all levels, and distance and SI-SDR at all and at half of them."""
    waveform = batch['waveform']
    reconstruction, aux = self._reconstruct(params, model_state, waveform)
    terms = self.terms(waveform, reconstruction) | {'commitment': aux['commitment']}
    half, _ = self._reconstruct(params, model_state, waveform, self.config.num_quantizers // 2)
    return {
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

  def _reconstruct(self, params, model_state, waveform, num_quantizers=None):
    levels = num_quantizers or self.config.num_quantizers
    levels = jnp.full((waveform.shape[0],), levels, jnp.int32)
    return self.model.apply({'params': params, **model_state}, waveform, num_quantizers=levels)
