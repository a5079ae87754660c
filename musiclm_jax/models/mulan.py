"""L1. MuLan (2208.12415): an audio tower and a text tower into one space of unit vectors.

Axes: B batch, S samples, T frames, F mel bands, P patches, N text tokens, D emb_dim, H heads,
K head_dim, E joint embedding.

Departures: BERT's token-type table and pooler are left out (one segment: its row belongs in the
position table), and so is its dropout of attention weights; the temperature has a floor, since the
paper's loss has no lower bound.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax import errors
from musiclm_jax.models import resnet as resnet_lib
from musiclm_jax.models import spectrogram

AUDIO_TOWERS = ('resnet', 'ast')


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """A bidirectional Transformer; the defaults are BERT-base's and ViT-base's."""

  num_layers: int = 12
  emb_dim: int = 768
  num_heads: int = 12
  head_dim: int | None = None  # None: emb_dim / num_heads
  mlp_dim: int = 3072
  dropout_rate: float = 0.1
  norm_first: bool = False  # False: BERT, True: ViT
  layer_norm_epsilon: float = 1e-12
  remat: bool = False
  dtype: str = 'float32'

  def __post_init__(self):
    if self.head_dim is None and self.emb_dim % self.num_heads:
      raise ValueError(f'emb_dim {self.emb_dim} is not divisible by num_heads {self.num_heads}')


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """BERT-base, uncased."""

  encoder: EncoderConfig = EncoderConfig()
  vocab_size: int = 30_522
  max_length: int = 512
  token_drop_rate: float = 0.0  # in training, share of wordpieces hidden from attention

  def check_vocabulary(self, size: int, where: str) -> None:
    """Raises an error when a vocabulary has more wordpieces than the table: their rows are NaN."""
    if size > self.vocab_size:
      raise errors.UserError(
          f'{where} has {size} wordpieces, the text tower has room for vocab_size {self.vocab_size}')


@dataclasses.dataclass(frozen=True)
class AstConfig:
  """Audio Spectrogram Transformer over [T, F] pictures; strides below the patch size overlap."""

  encoder: EncoderConfig = EncoderConfig(norm_first=True, dropout_rate=0.0)
  patch_size: tuple[int, int] = (16, 16)
  patch_stride: tuple[int, int] = (16, 16)
  num_frames: int = 1000  # of the learned positions
  num_class_tokens: int = 1  # 2 in the public distilled checkpoints; their mean is the output

  def num_patches(self, num_frames: int, num_mels: int) -> tuple[int, int]:
    """Returns how many patches fit along time and mel."""
    return tuple((n - size) // stride + 1 for n, size, stride in zip(
        (num_frames, num_mels), self.patch_size, self.patch_stride, strict=True))


@dataclasses.dataclass(frozen=True)
class MulanConfig:
  """Both towers and what joins them; the defaults are the ResNet-50 variant, MusicLM's."""

  audio_tower: str = 'resnet'
  resnet: resnet_lib.ResNetConfig = resnet_lib.ResNetConfig()
  ast: AstConfig = AstConfig()
  text: TextConfig = TextConfig()
  sample_rate: int = 24_000  # of the input; resampled to mel.sample_rate
  mel: spectrogram.MelConfig = spectrogram.MelConfig(
      sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, num_mels=64,
      fmin=60.0, fmax=7_800.0)  # edges not in the paper
  mel_mean: float = -4.0  # of the log-mel values; they are brought near zero mean and unit scale
  mel_scale: float = 4.0
  time_masks: int = 2  # SpecAugment, in training; widths not in the paper
  time_mask_frames: int = 100
  mel_masks: int = 2
  mel_mask_bands: int = 12
  embedding_dim: int = 128
  initial_temperature: float = 0.1
  min_temperature: float = 0.01

  def __post_init__(self):
    if self.audio_tower not in AUDIO_TOWERS:
      raise ValueError(f'audio_tower {self.audio_tower!r}: one of {AUDIO_TOWERS} wanted')
    if not 0 <= self.min_temperature < self.initial_temperature < 1:
      raise ValueError(
          f'initial_temperature {self.initial_temperature}: wanted between min_temperature '
          f'{self.min_temperature} and 1')


def _init(*axes: str, init=None):
  return nn.with_logical_partitioning(init or nn.initializers.truncated_normal(0.02), axes)


class _Projection(nn.Module):
  """[..., axes[:-n]] -> [..., axes[-n:]] for n = len(features), plus a bias.

  nn.DenseGeneral boxes its kernel before giving it its shape, which logical axes do not survive.
  """

  features: tuple[int, ...]
  axes: tuple[str, ...]
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    num_in, num_out = len(self.axes) - len(self.features), len(self.features)
    init = nn.initializers.lecun_normal(
        in_axis=tuple(range(num_in)), out_axis=tuple(range(num_in, num_in + num_out)))
    shape = (*x.shape[-num_in:], *self.features)
    kernel = self.param('kernel', _init(*self.axes, init=init), shape)
    outputs = self.axes[num_in:]
    bias = self.param('bias', _init(*outputs, init=nn.initializers.zeros), self.features)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    return jnp.tensordot(x, kernel, num_in) + bias.astype(self.dtype)


def _dense(features: int | tuple[int, ...], *axes: str, dtype: str, name: str) -> _Projection:
  features = (features,) if isinstance(features, int) else features
  return _Projection(features, axes, dtype, name=name)


def _layer_norm(config: EncoderConfig, name: str):
  return nn.LayerNorm(
      epsilon=config.layer_norm_epsilon, dtype=jnp.float32, name=name,
      scale_init=_init('embed', init=nn.initializers.ones),
      bias_init=_init('embed', init=nn.initializers.zeros))


def unit(x: jax.Array) -> jax.Array:
  """Returns f32[..., E] of length one."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))


class EncoderLayer(nn.Module):
  """f32[B, N, D] -> f32[B, N, D]; `mask` bool[B, N] says which positions may be looked at."""

  config: EncoderConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
    cfg = self.config
    drop = functools.partial(nn.Dropout(cfg.dropout_rate), deterministic=not train)
    for name, sublayer in (('attention', self._attend), ('mlp', self._feed_forward)):
      norm = _layer_norm(cfg, f'{name}_norm')
      if cfg.norm_first:
        x = x + drop(sublayer(norm(x), mask))
      else:
        x = norm(x + drop(sublayer(x, mask)))
      x = nn.with_logical_constraint(x, ('batch', 'length', None))
    return x

  def _attend(self, x, mask):
    cfg = self.config
    heads = (cfg.num_heads, cfg.head_dim or cfg.emb_dim // cfg.num_heads)
    query, key, value = (
        _dense(heads, 'embed', 'heads', 'kv', dtype=cfg.dtype, name=name)(x)
        for name in ('query', 'key', 'value'))
    mask = None if mask is None else mask[:, None, None, :]
    x = jax.nn.dot_product_attention(query, key, value, mask=mask)
    return _dense(cfg.emb_dim, 'heads', 'kv', 'embed', dtype=cfg.dtype, name='out')(x)

  def _feed_forward(self, x, mask):
    del mask
    cfg = self.config
    x = _dense(cfg.mlp_dim, 'embed', 'mlp', dtype=cfg.dtype, name='wi')(x)
    return _dense(cfg.emb_dim, 'mlp', 'embed', dtype=cfg.dtype, name='wo')(
        nn.gelu(x, approximate=False))


class Encoder(nn.Module):
  """`num_layers` layers named layer_0, layer_1, ...; a last LayerNorm when `norm_first`."""

  config: EncoderConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
    layer = nn.remat(EncoderLayer, static_argnums=(3,)) if self.config.remat else EncoderLayer
    for i in range(self.config.num_layers):
      x = layer(self.config, name=f'layer_{i}')(x, mask, train)
    return _layer_norm(self.config, 'norm')(x) if self.config.norm_first else x


class TextTower(nn.Module):
  """Token ids int32[B, N], 0 padding -> f32[B, D], the state at [CLS]."""

  config: TextConfig

  @nn.compact
  def __call__(self, token_ids: jax.Array, train: bool = False) -> jax.Array:
    cfg, emb_dim = self.config, self.config.encoder.emb_dim
    length = token_ids.shape[1]
    if length > cfg.max_length:
      raise ValueError(f'text of {length} tokens: at most max_length {cfg.max_length} wanted')
    words = self.param('words', _init('vocab', 'embed'), (cfg.vocab_size, emb_dim))
    positions = self.param('positions', _init('length', 'embed'), (cfg.max_length, emb_dim))
    x = jnp.take(words, token_ids, axis=0) + positions[:length]
    x = _layer_norm(cfg.encoder, 'norm')(x)
    x = nn.Dropout(cfg.encoder.dropout_rate)(x, deterministic=not train)
    mask = token_ids > 0
    if train and cfg.token_drop_rate:
      mask &= jax.random.bernoulli(self.make_rng('augment'), 1 - cfg.token_drop_rate, mask.shape)
    mask = mask.at[:, 0].set(True)  # [CLS] stays, and a row is never empty
    return Encoder(cfg.encoder, name='encoder')(x.astype(cfg.encoder.dtype), mask, train)[:, 0]


class Ast(nn.Module):
  """Spectrogram f32[B, T, F] -> f32[B, D], the mean over the class tokens."""

  config: AstConfig

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    cfg, enc = self.config, self.config.encoder
    frames, mels = x.shape[1:]
    if frames != cfg.num_frames:
      raise ValueError(f'AST got {frames} frames; wanted num_frames {cfg.num_frames}')
    x = nn.Conv(enc.emb_dim, cfg.patch_size, cfg.patch_stride, padding='VALID', dtype=enc.dtype,
                kernel_init=_init('kernel', None, 'conv_in', 'embed'),
                bias_init=_init('embed', init=nn.initializers.zeros), name='patches')(x[..., None])
    x = x.reshape(x.shape[0], -1, enc.emb_dim)  # [B, P, D], mel the inner axis
    classes = self.param('classes', _init('length', 'embed'), (cfg.num_class_tokens, enc.emb_dim))
    x = jnp.concatenate([jnp.broadcast_to(classes, (x.shape[0], *classes.shape)), x], axis=1)
    rows, columns = cfg.num_patches(cfg.num_frames, mels)
    x += self.param('positions', _init('length', 'embed'),
                    (cfg.num_class_tokens + rows * columns, enc.emb_dim))
    x = nn.Dropout(enc.dropout_rate)(x, deterministic=not train).astype(enc.dtype)
    return Encoder(enc, name='encoder')(x, None, train)[:, :cfg.num_class_tokens].mean(1)


def spec_augment(rng: jax.Array, x: jax.Array, config: MulanConfig) -> jax.Array:
  """Returns f32[B, T, F] with random spans of frames and of bands set to 0, for each example."""
  for axis, masks, width in ((1, config.time_masks, config.time_mask_frames),
                             (2, config.mel_masks, config.mel_mask_bands)):
    if not masks or not width:
      continue
    rng, rng_width, rng_start = jax.random.split(rng, 3)
    size = x.shape[axis]
    widths = jax.random.randint(rng_width, (x.shape[0], masks, 1), 0, min(width, size) + 1)
    starts = jax.random.randint(rng_start, (x.shape[0], masks, 1), 0, size)
    starts = jnp.minimum(starts, size - widths)
    index = jnp.arange(size)
    hidden = jnp.any((index >= starts) & (index < starts + widths), axis=1)  # [B, size]
    x = jnp.where(jnp.expand_dims(hidden, 3 - axis), 0.0, x)
  return x


class Mulan(nn.Module):
  """Waveforms and captions to unit vectors whose inner product says how well they match."""

  config: MulanConfig

  def setup(self):
    cfg = self.config
    if cfg.audio_tower == 'resnet':
      self.audio = resnet_lib.ResNet(cfg.resnet)
    else:
      self.audio = Ast(cfg.ast)
    self.text = TextTower(cfg.text)
    self.audio_projection = _dense(
        cfg.embedding_dim, 'embed', 'joint', dtype='float32', name='audio_projection')
    self.text_projection = _dense(
        cfg.embedding_dim, 'embed', 'joint', dtype='float32', name='text_projection')
    share = ((cfg.initial_temperature - cfg.min_temperature) / (1 - cfg.min_temperature))
    self.temperature_logit = self.param(
        'temperature_logit', nn.initializers.constant(jnp.log(share / (1 - share))), ())

  def temperature(self) -> jax.Array:
    """Returns f32[] between min_temperature and 1."""
    low = self.config.min_temperature
    return low + (1 - low) * jax.nn.sigmoid(self.temperature_logit)

  def log_mel(self, waveform: jax.Array) -> jax.Array:
    """Returns f32[B, T, F] of f32[B, S] at `sample_rate`: scaled log-mel, a frame each hop.

    Kaldi's front end has no frame that reaches beyond the end: where one is missing its values are 0
    before they are scaled, as public AST models learned it.
    """
    cfg = self.config
    waveform = spectrogram.resample(waveform, cfg.sample_rate, cfg.mel.sample_rate)
    frames = waveform.shape[1] // cfg.mel.hop_length
    mel = spectrogram.log_mel(waveform, cfg.mel)[:, :frames]
    mel = jnp.pad(mel, ((0, 0), (0, frames - mel.shape[1]), (0, 0)))
    return (mel - cfg.mel_mean) / cfg.mel_scale

  def embed_audio(self, waveform: jax.Array, train: bool = False) -> jax.Array:
    """Returns f32[B, E], unit vectors, of f32[B, S] at `sample_rate` (10 s in the paper)."""
    x = self.log_mel(waveform)
    if train:
      x = spec_augment(self.make_rng('augment'), x, self.config)
    return unit(self.audio_projection(self.audio(x, train).astype(jnp.float32)))

  def embed_text(self, token_ids: jax.Array, train: bool = False) -> jax.Array:
    """Returns f32[B, E], unit vectors, of int32[B, N]; 0 is padding and changes nothing."""
    return unit(self.text_projection(self.text(token_ids, train).astype(jnp.float32)))

  def __call__(self, waveform: jax.Array, token_ids: jax.Array, train: bool = False):
    """Returns (audio f32[B, E], text f32[B, E], temperature f32[])."""
    return (self.embed_audio(waveform, train), self.embed_text(token_ids, train),
            self.temperature())
