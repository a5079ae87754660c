"""L1. w2v-BERT (Chung et al. 2021): Conformers trained by contrast, then by masked prediction.

  mel -> 2 convs, 4x -+-> quantizer (unmasked) -> quantized, codes: the targets
                      |
                      +-> mask -> contrastive Conformers -> masked-prediction Conformers -> logits
                                        |                          |
                                     context                 features (layer 7)

Axes: B batch, S samples, M mel frames (100 Hz), T frames (25 Hz), D emb_dim, G groups of V codes.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax.models import conformer, spectrogram

SUBSAMPLING = 4  # two convolutions of stride 2
# Of the quantizer's logits at the start, against the Gumbel noise's 1.3: codes that are noise would
# teach nothing, and the contrastive loss would stay at chance.
_LOGIT_STD = 5.0


@dataclasses.dataclass(frozen=True)
class W2vBertConfig:
  """Sizes and unknowns; the defaults are w2v-BERT XL as AudioLM and MusicLM use it."""
  input_sample_rate: int = 24_000
  sample_rate: int = 16_000  # MusicLM does not say; the mel front end hears this rate
  num_mels: int = 80
  hop_length: int = 160  # 10 ms, so 25 Hz after the convolutions
  win_length: int = 400
  n_fft: int = 512
  mel_mean: float = -6.0  # fixed normalisation: a frame's features do not depend on the crop
  mel_std: float = 4.0
  conv_channels: int = 128
  emb_dim: int = 1024
  num_heads: int = 8
  head_dim: int = 128
  mlp_dim: int = 4096
  kernel_size: int = 5
  contrastive_layers: int = 12
  prediction_layers: int = 12
  feature_layer: int = 7  # of the masked-prediction module, counted from 1
  num_groups: int = 1  # product quantizer; wav2vec 2.0 has 2, w2v-BERT does not say
  num_codes: int = 1024
  code_dim: int = 1024
  quantizer_input: str = 'encoded'  # 'mel': see W2vBert.quantizer_frames
  quantizer_gradient: float = 1.0  # on the way back to the codes; 0 keeps them as they start
  mask_start_rate: float = 0.065
  mask_span: int = 10
  mask_scale: float = 0.1  # standard deviation of the random vectors
  dropout_rate: float = 0.0
  rotary_max_wavelength: float = 10_000.0
  scan_layers: bool = False
  remat: str = 'none'
  dtype: str = 'float32'

  def __post_init__(self):
    if self.quantizer_input not in ('encoded', 'mel'):
      raise ValueError(f"quantizer_input {self.quantizer_input!r} is not 'encoded' or 'mel'")
    if self.code_dim % self.num_groups:
      raise ValueError(f'code_dim {self.code_dim} is not divisible by num_groups {self.num_groups}')
    if not 0 <= self.feature_layer <= self.prediction_layers:
      raise ValueError(f'feature_layer {self.feature_layer} is not in 0 to prediction_layers '
                       f'{self.prediction_layers}')
    if self.input_hop_length * self.sample_rate != self.frame_length * self.input_sample_rate:
      raise ValueError(f'a frame of {self.frame_length} samples at {self.sample_rate} Hz is not a '
                       f'whole number of samples at {self.input_sample_rate} Hz')

  @property
  def frame_length(self) -> int:
    """Samples a frame at `sample_rate`."""
    return self.hop_length * SUBSAMPLING

  @property
  def input_hop_length(self) -> int:
    """Samples a frame at `input_sample_rate`: 960."""
    return self.frame_length * self.input_sample_rate // self.sample_rate

  @property
  def frame_rate(self) -> int:
    return self.input_sample_rate // self.input_hop_length

  def stack(self, num_layers: int) -> conformer.ConformerConfig:
    shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(conformer.ConformerConfig)
              if f.name != 'num_layers'}
    return conformer.ConformerConfig(num_layers=num_layers, **shared)


class Outputs(NamedTuple):
  """What training needs, for every frame; the losses look at masked frames only."""
  context: jax.Array  # f32[B, T, code_dim], from the contrastive module
  quantized: jax.Array  # f32[B, T, code_dim], its targets
  code_probs: jax.Array  # f32[B, T, G, V], the quantizer's softmax without noise
  chosen: jax.Array  # int32[B, T, G], the ids of the vectors in `quantized`, drawn with noise
  codes: jax.Array  # int32[B, T, G], the quantizer's ids without noise
  logits: jax.Array  # f32[B, T, G, V], the masked-prediction module's guess at `codes`
  mask: jax.Array  # bool[B, T]


def span_mask(rng: jax.Array, shape: tuple[int, int], start_rate: float, span: int) -> jax.Array:
  """Returns bool[B, T]: every frame starts a span with probability `start_rate`; spans may overlap.

  span 3, starts 0 1 0 0 0 0 1 -> mask 0 1 1 1 0 0 1
  """
  return spread(jax.random.bernoulli(rng, start_rate, shape), span)


def spread(starts: jax.Array, span: int) -> jax.Array:
  """Returns bool[B, T], true for `span` frames from each start."""
  count = jnp.cumsum(starts.astype(jnp.int32), axis=1)
  return count > jnp.pad(count, ((0, 0), (span, 0)))[:, :count.shape[1]]


class ConvSubsampling(nn.Module):
  """Two 3 x 3 convolutions of stride (2, 2) over time and mel, then LayerNorm."""
  config: W2vBertConfig

  @nn.compact
  def __call__(self, mel: jax.Array) -> jax.Array:
    """Returns f32[B, M / 4, num_mels / 4 * conv_channels]."""
    cfg = self.config
    x = mel[..., None].astype(cfg.dtype)
    for i in range(2):
      x = nn.Conv(
          cfg.conv_channels, (3, 3), (2, 2), dtype=cfg.dtype, name=f'conv_{i}',
          kernel_init=nn.with_logical_partitioning(
              nn.initializers.he_normal(), ('kernel', None, 'conv_in', 'conv_out')),
          bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ('conv_out',)))(x)
      x = nn.relu(x)
    x = x.reshape(*x.shape[:2], -1)
    return conformer.layer_norm(cfg, 'norm')(x)


class CodeLogits(nn.Module):
  """A linear layer to [B, T, G, V]; its outputs start at a standard deviation of `scale`."""

  num_groups: int
  num_codes: int
  scale: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.num_groups, self.num_codes)
    init = nn.initializers.normal(self.scale * x.shape[-1] ** -0.5)
    kernel = self.param(
        'kernel', nn.with_logical_partitioning(init, ('embed', None, 'codes')), shape)
    bias = self.param(
        'bias', nn.with_logical_partitioning(nn.initializers.zeros, (None, 'codes')), shape[1:])
    return jnp.einsum('BTD,DGV->BTGV', x, kernel.astype(x.dtype)) + bias.astype(x.dtype)


class GumbelQuantizer(nn.Module):
  """Product quantizer; noise and a temperature choose in training, the arg max otherwise."""
  config: W2vBertConfig

  @nn.compact
  def __call__(self, x: jax.Array, temperature, deterministic: bool):
    """Returns (f32[B, T, code_dim], its ids int32[B, T, G], softmax f32[B, T, G, V], arg max).

    The last two are without noise.  Straight-through: forward, the chosen code vector; backward,
    the softmax's mixture of them.
    """
    cfg = self.config
    groups, codes = cfg.num_groups, cfg.num_codes
    logits = CodeLogits(groups, codes, _LOGIT_STD, name='logits')(x.astype(jnp.float32))
    logits = logits * cfg.quantizer_gradient + jax.lax.stop_gradient(
        logits * (1.0 - cfg.quantizer_gradient))
    codebook = self.param(
        'codebook',
        nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, 'codes', 'code_dim')),
        (groups, codes, cfg.code_dim // groups))
    noisy = logits
    if not deterministic and cfg.quantizer_gradient:  # fixed codes have nothing to explore
      noisy = (logits + jax.random.gumbel(self.make_rng('quantizer'), logits.shape)) / temperature
    soft, chosen = jax.nn.softmax(noisy), jnp.argmax(noisy, -1).astype(jnp.int32)
    one_hot = jax.nn.one_hot(chosen, codes) + soft - jax.lax.stop_gradient(soft)
    quantized = jnp.einsum('btgv,gvd->btgd', one_hot, codebook)
    quantized = quantized.reshape(*x.shape[:2], cfg.code_dim)
    return quantized, chosen, jax.nn.softmax(logits), jnp.argmax(logits, -1).astype(jnp.int32)


class W2vBert(nn.Module):
  """Waveforms at `input_sample_rate` in; 25 features a second out."""
  config: W2vBertConfig

  def setup(self):
    cfg = self.config
    self.subsampling = ConvSubsampling(cfg)
    self.projection = self._dense(cfg.emb_dim, ('mel', 'embed'))
    self.contrastive = conformer.ConformerStack(cfg.stack(cfg.contrastive_layers))
    self.prediction = conformer.ConformerStack(cfg.stack(cfg.prediction_layers))
    self.quantizer = GumbelQuantizer(cfg)
    self.context_projection = self._dense(cfg.code_dim, ('embed', 'code_dim'))
    self.target_projection = self._dense(cfg.code_dim, ('code_dim', 'joint'))
    self.head = CodeLogits(cfg.num_groups, cfg.num_codes)

  def _dense(self, features, axes):
    return nn.Dense(
        features, dtype=self.config.dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.xavier_uniform(), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]))

  def log_mel(self, waveform: jax.Array) -> jax.Array:
    """Returns f32[B, M, num_mels], normalised; M = 4 * floor(S / 960) exactly.

    Samples beyond the last whole frame are dropped; silence on either side centres window m on the
    middle of hop m.
    """
    cfg = self.config
    frames = waveform.shape[1] // cfg.input_hop_length
    if not frames:
      raise ValueError(f'waveform has {waveform.shape[1]} samples, fewer than one frame of '
                       f'{cfg.input_hop_length}')
    waveform = waveform[:, :frames * cfg.input_hop_length].astype(jnp.float32)
    waveform = spectrogram.resample(waveform, cfg.input_sample_rate, cfg.sample_rate)
    edge = cfg.n_fft - cfg.hop_length
    waveform = jnp.pad(waveform, ((0, 0), (edge // 2, edge - edge // 2)))
    mel = spectrogram.log_mel(waveform, spectrogram.MelConfig(
        sample_rate=cfg.sample_rate, n_fft=cfg.n_fft, win_length=cfg.win_length,
        hop_length=cfg.hop_length, num_mels=cfg.num_mels, center=False))
    assert mel.shape[1] == SUBSAMPLING * frames, (mel.shape, frames)
    return (mel - cfg.mel_mean) / cfg.mel_std

  def features(self, waveform: jax.Array, layer: int | None = None) -> jax.Array:
    """Returns f32[B, floor(S / 960), emb_dim]: masked-prediction block `layer`, nothing masked.

    Blocks count from 1; 0 is the contrastive module's output; None is `config.feature_layer`.
    """
    layer = self.config.feature_layer if layer is None else layer
    x = self.contrastive(self.projection(self.subsampling(self.log_mel(waveform))))
    return self.prediction(x, num_layers=layer).astype(jnp.float32)

  def __call__(
      self, waveform: jax.Array, temperature=1.0, mask: jax.Array | None = None,
      deterministic: bool = False) -> Outputs:
    """Returns `Outputs` for f32[B, S]; draws a mask unless given bool[B, T].

    Random streams: 'mask' (spans and the vectors in them) and, unless deterministic, 'quantizer'
    and 'dropout'.
    """
    cfg = self.config
    mel = self.log_mel(waveform)
    encoded = self.subsampling(mel)
    quantized, chosen, probs, codes = self.quantizer(
        self.quantizer_frames(mel, encoded), temperature, deterministic)
    if mask is None:
      mask = span_mask(
          self.make_rng('mask'), encoded.shape[:2], cfg.mask_start_rate, cfg.mask_span)
    x = self.projection(self.replace_masked(encoded, mask))
    context = self.contrastive(x, deterministic)
    predicted = self.prediction(context, deterministic)
    return Outputs(
        context=self.context_projection(context).astype(jnp.float32),
        quantized=self.target_projection(quantized).astype(jnp.float32),
        code_probs=probs,
        chosen=chosen,
        codes=codes,
        logits=self.head(predicted).astype(jnp.float32),
        mask=mask,
    )

  def quantizer_frames(self, mel: jax.Array, encoded: jax.Array) -> jax.Array:
    """Returns what the quantizer codes: `encoded`, as in the paper, or f32[B, T, num_mels] of mel.

    For a run of a few thousand steps.  Codes of an untrained encoder change at every frame, and
    training them chases noise: after 1100 steps the contrastive accuracy was 2 %.  'mel' is the
    mean of the frame's mel spectra, each band with mean 0 and deviation 1 over the batch; with
    `quantizer_gradient` 0 its codes are a fixed random projection (Chiu et al. 2022, BEST-RQ).
    """
    if self.config.quantizer_input == 'encoded':
      return encoded
    mel = mel.reshape(mel.shape[0], -1, SUBSAMPLING, mel.shape[-1]).mean(2)
    return (mel - mel.mean((0, 1))) / (mel.std((0, 1)) + 1e-2)

  def replace_masked(self, encoded: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `encoded` with fresh normal vectors of scale `mask_scale` in the masked frames."""
    noise = jax.random.normal(self.make_rng('mask'), encoded.shape, encoded.dtype)
    return jnp.where(mask[..., None], noise * self.config.mask_scale, encoded)
