import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import mulan, registry, resnet, spectrogram

ENCODER = mulan.EncoderConfig(num_layers=2, emb_dim=16, num_heads=2, mlp_dim=32)
MEL = spectrogram.MelConfig(sample_rate=16_000, n_fft=512, win_length=400, hop_length=400,
                            num_mels=16)
TINY = mulan.MulanConfig(
    resnet=resnet.ResNetConfig(stage_sizes=(1, 1), widths=(4, 8), expansion=2, stem_width=4),
    ast=mulan.AstConfig(encoder=dataclasses.replace(ENCODER, norm_first=True), patch_size=(8, 8),
                        patch_stride=(8, 8), num_frames=40),
    text=mulan.TextConfig(encoder=ENCODER, vocab_size=50, max_length=12), mel=MEL,
    time_mask_frames=4, mel_mask_bands=2)
TOKENS = jnp.array([[2, 7, 8, 3, 0, 0], [2, 9, 10, 11, 12, 3]])


def _waveform(batch=2):
  return 0.1 * jax.random.normal(jax.random.key(0), (batch, 24_000))


@pytest.fixture(scope='module', params=['resnet', 'ast'])
def apply(request):
  model = mulan.Mulan(dataclasses.replace(TINY, audio_tower=request.param))
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(1), _waveform(), TOKENS))

  @functools.partial(jax.jit, static_argnames='method')
  def apply(*inputs, method='__call__'):
    return model.apply(variables, *inputs, method=method)

  return apply


def _count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_paper_size_has_bert_base_and_resnet50():
  params = registry.variable_shapes('mulan', mulan.MulanConfig())['params']
  # BERT-base-uncased has 109,482,240: less the pooler and the two token-type rows.
  assert _count(params['text']) == 109_482_240 - (768 * 768 + 768) - 2 * 768
  assert _count(params['audio']) == 23_501_760
  assert params['audio_projection']['kernel'].shape == (2048, 128)
  assert params['text_projection']['kernel'].shape == (768, 128)


def test_ast_at_paper_size_is_vit_base():
  config = mulan.MulanConfig(
      audio_tower='ast', mel=dataclasses.replace(mulan.MulanConfig().mel, num_mels=128))
  audio = registry.variable_shapes('mulan', config)['params']['audio']
  assert audio['positions'].shape == (1 + 62 * 8, 768)
  # 12 layers and the last norm as in ViT-B/16; patches of one channel.
  assert _count(audio['encoder']) == 12 * 7_087_872 + 2 * 768
  assert audio['patches']['kernel'].shape == (16, 16, 1, 768)


def test_embeddings_are_unit_vectors(apply):
  audio, text, temperature = apply(_waveform(), TOKENS)
  assert audio.shape == text.shape == (2, 128)
  for embedding in (audio, text):
    np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=-1), 1.0, rtol=1e-5)
  np.testing.assert_allclose(temperature, 0.1, rtol=1e-5)


def test_silence_is_finite(apply):
  audio = apply(jnp.zeros((1, 24_000)), method='embed_audio')
  assert np.isfinite(audio).all()


def test_padding_of_text_changes_nothing(apply):
  short = apply(TOKENS[:1, :4], method='embed_text')
  padded = apply(jnp.pad(TOKENS[:1], ((0, 0), (0, 5))), method='embed_text')
  np.testing.assert_allclose(short, padded, atol=1e-6)
  changed = apply(TOKENS[:1].at[0, 1].set(20)[:, :4], method='embed_text')
  assert float(jnp.abs(short - changed).max()) > 1e-3


def test_an_example_does_not_depend_on_its_batch(apply):
  both = apply(_waveform(), method='embed_audio')
  one = apply(_waveform()[:1], method='embed_audio')
  np.testing.assert_allclose(both[:1], one, atol=1e-5)


@pytest.mark.parametrize('logit', [-1e4, -3.0, 0.0, 3.0, 1e4])
def test_temperature_stays_in_range(logit):
  model = mulan.Mulan(TINY)
  variables = {'params': {'temperature_logit': jnp.float32(logit)}}
  temperature = float(model.apply(variables, method='temperature'))
  assert TINY.min_temperature - 1e-7 <= temperature <= 1.0


def test_log_mel_has_one_frame_a_hop_and_sees_16_khz():
  config = mulan.MulanConfig()
  time = jnp.arange(24_000) / 24_000
  tones = 0.5 * jnp.sin(2 * jnp.pi * jnp.array([[440.0], [11_000.0]]) * time)
  variables = {'params': {'temperature_logit': jnp.zeros(())}}
  mel = mulan.Mulan(config).apply(variables, tones, method='log_mel')
  assert mel.shape == (2, 100, 64)
  assert float(mel[0].max()) > 0 > float(mel[1, 5:-5].max())  # 11 kHz is beyond 8 kHz


def test_log_mel_of_kaldi_has_one_frame_a_hop_and_zeros_where_no_window_fits():
  mel = spectrogram.MelConfig(sample_rate=16_000, n_fft=512, win_length=400, hop_length=160,
                              num_mels=8, center=False, front_end='kaldi')
  config = dataclasses.replace(TINY, sample_rate=16_000, mel=mel, mel_mean=-3.0, mel_scale=6.0)
  variables = {'params': {'temperature_logit': jnp.zeros(())}}
  x = _waveform()[:, :8_000]
  scaled = mulan.Mulan(config).apply(variables, x, method='log_mel')
  assert scaled.shape == (2, 50, 8)
  np.testing.assert_array_equal(scaled[:, 48:], 0.5)  # (0 + 3) / 6; 48 windows end within 8000 samples
  np.testing.assert_allclose(scaled[:, :48], (spectrogram.log_mel(x, mel) + 3) / 6, atol=1e-5)


@pytest.mark.parametrize('epsilon', [1e-12, 0.5])
def test_layer_norm_epsilon(epsilon):
  config = mulan.EncoderConfig(num_layers=0, emb_dim=4, num_heads=1, norm_first=True,
                               layer_norm_epsilon=epsilon)  # the last LayerNorm and nothing else
  x = jnp.array([[[1.0, 3.0, 1.0, 3.0]]])  # mean 2, variance 1
  y, _ = mulan.Encoder(config).init_with_output(jax.random.key(0), x, None, False)
  np.testing.assert_allclose(y[0, 0], np.array([-1, 1, -1, 1]) / np.sqrt(1 + epsilon), rtol=1e-6)


def test_spec_augment_hides_spans_of_frames_and_bands():
  x = jnp.ones((8, 40, 16))
  y = np.asarray(mulan.spec_augment(jax.random.key(0), x, TINY))
  frames, bands = (y == 0).all(axis=2), (y == 0).all(axis=1)
  assert frames.any() and bands.any()
  assert frames.sum(1).max() <= 2 * 4 and bands.sum(1).max() <= 2 * 2
  np.testing.assert_array_equal(y == 0, frames[:, :, None] | bands[:, None, :])
  assert len({row.tobytes() for row in frames}) > 1  # each example its own


def test_spec_augment_only_in_training():
  model = mulan.Mulan(TINY)

  @jax.jit
  def embed(rng, waveform):
    variables = model.init(jax.random.key(1), waveform, TOKENS)
    return model.apply(variables, waveform, train=True, method='embed_audio',
                       rngs={'augment': rng}, mutable=['batch_stats'])[0]

  one, other = (embed(jax.random.key(i), _waveform()) for i in range(2))
  assert float(jnp.abs(one - other).max()) > 0


def test_bad_input_names_what_came():
  with pytest.raises(ValueError, match="audio_tower 'vit'"):
    mulan.MulanConfig(audio_tower='vit')
  with pytest.raises(ValueError, match='initial_temperature 2'):
    mulan.MulanConfig(initial_temperature=2.0)
  with pytest.raises(ValueError, match='emb_dim 10.*num_heads 3'):
    mulan.EncoderConfig(emb_dim=10, num_heads=3)
  model = mulan.Mulan(TINY)
  variables = jax.eval_shape(model.init, jax.random.key(1), _waveform(), TOKENS)
  with pytest.raises(ValueError, match='13 tokens: at most max_length 12'):
    jax.eval_shape(lambda v: model.apply(v, jnp.ones((1, 13), int), method='embed_text'), variables)


def test_config_survives_json():
  values = registry.config_to_json(TINY)
  assert registry.config_from_json(mulan.MulanConfig, values) == TINY
