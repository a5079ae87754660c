"""L2. Losses and distances shared by objectives.  Axes: B S T M V.

B batch, S samples, T frames or positions, M mel bands, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.models import discriminators, spectrogram

Judgements = Sequence[discriminators.Judgement]


def cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Returns (f32[] summed loss, f32[] summed weight) of f32[B, T, V] against int32[B, T].

  `z_loss` adds z_loss * log(Z)^2 per position, which keeps the logits from drifting.
  """
  logits = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  loss = log_z - chosen + z_loss * jnp.square(log_z)
  return jnp.sum(loss * weights), jnp.sum(weights)


@dataclasses.dataclass(frozen=True)
class SpectralScale:
  """A mel spectrogram of one window: hop a quarter of it, filters that average their bins.

  Magnitudes are divided by the root of the window's energy, so that noise of standard deviation x
  shows as about x at every scale, and one floor fits all.
  """

  window: int
  sample_rate: int = 24_000
  num_mels: int = 64  # fewer where a short window would leave filters empty
  floor: float = 1e-3

  def magnitudes(self, waveform: jax.Array) -> jax.Array:
    """Returns f32[B, T, M] of f32[B, S]."""
    size = self.window
    bands = spectrogram.most_mels(self.sample_rate, size, self.num_mels)
    filters = spectrogram.mel_filters(self.sample_rate, size, bands)
    filters = filters / filters.sum(axis=0)
    energy = np.square(spectrogram.hann_window(size, size)).sum()
    spectrum = spectrogram.stft(waveform, size, size, size // 4) / np.sqrt(energy)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.sqrt(power + 1e-9) @ filters

  def log(self, magnitudes: jax.Array) -> jax.Array:
    """Returns log(magnitude + floor): zero slope nowhere, so silence can be learned."""
    return jnp.log(magnitudes + self.floor)


def spectral_distance(
    target: jax.Array, estimate: jax.Array, scale: SpectralScale
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (linear f32[], log f32[], decibels f32[]) between two f32[B, S].

  linear: mean |S - S'| over frames and bands; log: mean over frames of the root mean square
  over bands of log S - log S'; decibels: mean |20 log10 (S / S')|, for reading.
  """
  first, second = scale.magnitudes(target), scale.magnitudes(estimate)
  linear = jnp.mean(jnp.abs(first - second))
  difference = scale.log(first) - scale.log(second)
  log = jnp.mean(jnp.sqrt(jnp.mean(jnp.square(difference), axis=-1) + 1e-8))
  return linear, log, jnp.mean(jnp.abs(difference)) * (20.0 / np.log(10.0))


def si_sdr(target: jax.Array, estimate: jax.Array) -> jax.Array:
  """Returns f32[B] decibels: energy of the target's share of the estimate over the rest's."""
  target = target - target.mean(axis=-1, keepdims=True)
  estimate = estimate - estimate.mean(axis=-1, keepdims=True)
  energy = jnp.sum(jnp.square(target), axis=-1, keepdims=True)
  share = jnp.sum(target * estimate, axis=-1, keepdims=True) / (energy + 1e-8) * target
  noise = estimate - share
  ratio = (jnp.sum(jnp.square(share), axis=-1) + 1e-8) / (
      jnp.sum(jnp.square(noise), axis=-1) + 1e-8
  )
  return 10.0 * jnp.log10(ratio)


def discriminator_hinge(real: Judgements, fake: Judgements) -> jax.Array:
  """Returns f32[]: mean of max(0, 1 - D(x)) + max(0, 1 + D(G(x))); SoundStream section III-E.

  Over time and batch first, then over the discriminators, so that each has one vote.
  """
  return sum(
      jnp.mean(nn.relu(1.0 - x.logits)) + jnp.mean(nn.relu(1.0 + y.logits))
      for x, y in zip(real, fake, strict=True)
  ) / len(real)


def generator_hinge(fake: Judgements) -> jax.Array:
  """Returns f32[]: mean of max(0, 1 - D(G(x))), as `discriminator_hinge` takes it."""
  return sum(jnp.mean(nn.relu(1.0 - x.logits)) for x in fake) / len(fake)


def feature_matching(real: Judgements, fake: Judgements) -> jax.Array:
  """Returns f32[]: mean |D_l(x) - D_l(G(x))| of the internal layers; each layer counts the same.

  The paper divides by the frames of a layer; here also by its channels, as peers do.
  """
  distances = [
      jnp.mean(jnp.abs(a - b))
      for x, y in zip(real, fake, strict=True)
      for a, b in zip(x.features, y.features, strict=True)
  ]
  return sum(distances) / len(distances)
