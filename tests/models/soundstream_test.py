"""The codec: causal, exact in its lengths, of the paper's size, and JSON-able."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import soundstream

CONFIG = soundstream.SoundStreamConfig(
    channels=4,
    strides=(2, 4),
    channel_multipliers=(2, 4),
    dilations=((1, 3), (1,)),
    dim=8,
    num_quantizers=3,
    codebook_size=16,
)


@pytest.fixture(scope='module')
def variables():
  variables = nn.unbox(soundstream.SoundStream(CONFIG).init(jax.random.key(0), jnp.zeros((1, 80))))
  embeddings = variables['codebooks']['quantizer']['embeddings']
  variables['codebooks']['quantizer']['embeddings'] = (
      jax.random.normal(jax.random.key(1), embeddings.shape) * 0.1
  )
  return variables


def _apply(variables, *args, **kwargs):
  return soundstream.SoundStream(CONFIG).apply(variables, *args, **kwargs)


@pytest.mark.parametrize('samples,frames', [(80, 10), (81, 11), (1, 1)])
def test_lengths(variables, samples, frames):
  waveform = jax.random.normal(jax.random.key(0), (2, samples)) * 0.1
  codes = _apply(variables, waveform, method='encode')
  assert codes.shape == (2, frames, 3) and codes.dtype == jnp.int32
  decoded = _apply(variables, codes, method='decode')
  assert decoded.shape == (2, frames * 8) and decoded.dtype == jnp.float32
  reconstruction, aux = _apply(variables, waveform)
  assert reconstruction.shape == waveform.shape
  np.testing.assert_array_equal(aux['codes'], codes)
  np.testing.assert_allclose(reconstruction, decoded[:, :samples], atol=1e-5)


def test_fewer_levels_encode_to_a_prefix(variables):
  waveform = jax.random.normal(jax.random.key(0), (1, 80)) * 0.1
  codes = _apply(variables, waveform, method='encode')
  np.testing.assert_array_equal(_apply(variables, waveform, 2, method='encode'), codes[..., :2])
  assert _apply(variables, codes[..., :1], method='decode').shape == (1, 80)


@pytest.mark.parametrize('frames', [(1,) * 12, (5, 1, 6), (12,), (2, 3, 3, 4)])
def test_chunks_of_any_length_give_the_whole(variables, frames):
  waveform = jax.random.normal(jax.random.key(0), (2, 12 * CONFIG.hop_length)) * 0.1
  whole = _apply(variables, waveform, method='embed')
  codes = _apply(variables, waveform, method='encode')
  want = _apply(variables, codes, method='decode')
  heard, known, embedded, decoded = {}, {}, [], []
  for start, length in zip(np.cumsum((0, *frames))[:-1], frames, strict=True):
    chunk = waveform[:, start * CONFIG.hop_length : (start + length) * CONFIG.hop_length]
    x, heard = _apply(variables | heard, chunk, method='embed', mutable=['past'])
    embedded.append(x)
    rows = codes[:, start : start + length]
    y, known = _apply(variables | known, rows, method='decode', mutable=['past'])
    decoded.append(y)
  np.testing.assert_allclose(jnp.concatenate(embedded, 1), whole, atol=1e-5)
  np.testing.assert_allclose(jnp.concatenate(decoded, 1), want, atol=1e-5)


def test_latency_is_one_frame(variables):
  """What comes out waits for the rest of its own frame, and for nothing later."""
  assert CONFIG.latency == CONFIG.hop_length / 24_000
  assert soundstream.SoundStreamConfig().latency == 0.02  # MusicLM's

  def through(waveform):
    vectors = _apply(variables, waveform, method='embed')
    return soundstream.CodeDecoder(CONFIG).apply({'params': variables['params']['decoder']}, vectors)

  waveform = jax.random.normal(jax.random.key(0), (1, 80)) * 0.1
  influence = jax.jacrev(through)(waveform)[0, :, 0]  # [output, input]
  assert (np.abs(influence) > 0).any(axis=1).all()
  for frame in range(10):
    rows = influence[frame * 8 : (frame + 1) * 8]
    assert (rows[:, (frame + 1) * 8 :] == 0).all() and (rows[:, (frame + 1) * 8 - 1] != 0).any()


def test_a_code_of_minus_one_is_not_heard(variables):
  codes = _apply(variables, jax.random.normal(jax.random.key(0), (1, 80)), method='encode')
  fewer = _apply(variables, codes[..., :2], method='decode')
  np.testing.assert_array_equal(
      _apply(variables, codes.at[..., 2].set(-1), method='decode'), fewer)


@pytest.mark.parametrize('side', ['encoder', 'decoder'])
def test_film_starts_as_the_identity_and_may_change_over_time(variables, side):
  config = dataclasses.replace(CONFIG, denoising=side)
  model = soundstream.SoundStream(config)
  waveform = jax.random.normal(jax.random.key(0), (2, 80)) * 0.1
  fresh = nn.unbox(model.init(jax.random.key(0), waveform))
  known = {**variables, 'params': variables['params'] | {'film': fresh['params']['film']}}
  plain, _ = _apply(variables, waveform)
  for flag in (None, jnp.array([True, False])):
    np.testing.assert_array_equal(model.apply(known, waveform, denoise=flag)[0], plain)
  kernel = 0.5 * jax.random.normal(jax.random.key(1), fresh['params']['film']['dense']['kernel'].shape)
  learned = {**known, 'params': known['params'] | {'film': {'dense': {'kernel': kernel}}}}
  kept, cleaned, switched = (
      model.apply(learned, waveform, denoise=flag)[0]
      for flag in (jnp.zeros((2, 10), bool), jnp.ones(2, bool), jnp.arange(10) >= jnp.full((2, 1), 5)))
  np.testing.assert_array_equal(switched[:, :40], kept[:, :40])  # frame 5 starts at sample 40
  assert np.abs(kept - cleaned).max() > 1e-3 and np.abs(switched - kept)[:, 40:].max() > 1e-3


def test_denoise_without_film_is_refused(variables):
  with pytest.raises(ValueError, match="denoising is 'off'"):
    _apply(variables, jnp.zeros((1, 80)), denoise=jnp.ones(1, bool))
  with pytest.raises(ValueError, match="'both', wanted one of off, encoder, decoder"):
    dataclasses.replace(CONFIG, denoising='both')


def test_bitrates():
  config = soundstream.SoundStreamConfig()
  assert (config.kbps(1), config.kbps(12), config.bits_per_code) == (0.5, 6.0, 10)
  paper = soundstream.SoundStreamConfig(strides=(2, 4, 5, 8), num_quantizers=24)
  assert (paper.frame_rate, paper.kbps(8), paper.kbps(24)) == (75, 6.0, 18.0)


def test_encoder_sees_no_later_sample():
  encoder = soundstream.Encoder(CONFIG)
  x = jax.random.normal(jax.random.key(0), (1, 160))
  params = encoder.init(jax.random.key(1), x)
  changed = x.at[:, 80:].set(7.0)
  before, after = encoder.apply(params, x), encoder.apply(params, changed)
  np.testing.assert_array_equal(before[:, :10], after[:, :10])  # frame 9 ends at sample 79
  assert np.abs(before[:, 10] - after[:, 10]).max() > 1e-4
  # And frame 10 does see the last sample of its own hop, 87, but not sample 88.
  gradient = jax.grad(lambda x: encoder.apply(params, x)[0, 10].sum())(x)[0]
  assert gradient[87] != 0 and (gradient[88:] == 0).all()


def test_decoder_sees_no_later_frame():
  decoder = soundstream.CodeDecoder(CONFIG)
  x = jax.random.normal(jax.random.key(0), (1, 20, 8))
  params = decoder.init(jax.random.key(1), x)
  before = decoder.apply(params, x)
  after = decoder.apply(params, x.at[:, 10:].set(7.0))
  np.testing.assert_allclose(before[:, :80], after[:, :80], atol=1e-6)
  assert np.abs(before[:, 80:88] - after[:, 80:88]).max() > 1e-5


def test_transposed_convolution_equals_its_definition():
  layer = soundstream.CausalConvTranspose(features=3, stride=4)
  x = np.random.RandomState(0).randn(1, 5, 2).astype(np.float32)
  params = nn.unbox(layer.init(jax.random.key(0), x))
  kernel = np.asarray(params['params']['conv']['kernel'])  # [2, C, stride * features]
  want = np.zeros((1, 6 * 4, 3))
  for t in range(5):  # every input adds a kernel of 2 * stride outputs, starting at t * stride
    now, later = ((x[0, t] @ kernel[i]).reshape(4, 3) for i in (1, 0))
    want[0, t * 4 : t * 4 + 8] += np.concatenate([now, later])
  np.testing.assert_allclose(layer.apply(params, x), want[:, :20], atol=1e-5)


def test_musiclm_size():
  config = soundstream.SoundStreamConfig()
  assert config.hop_length == 480 and config.frame_rate == 50
  model = soundstream.SoundStream(config)
  waveform = jax.ShapeDtypeStruct((1, 24_000), jnp.float32)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), waveform))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
  assert count == 10_502_401  # 12 x 1024 x 256 codebooks not counted
  assert shapes['codebooks']['quantizer']['embeddings'].shape == (12, 1024, 256)
  encode = lambda v, w: model.apply(v, w, method='encode')
  codes = jax.eval_shape(encode, shapes, jax.ShapeDtypeStruct((2, 24_000), jnp.float32))
  assert codes.shape == (2, 50, 12)
  decode = lambda v, c: model.apply(v, c, method='decode')
  assert jax.eval_shape(decode, shapes, codes).shape == (2, 24_000)


def test_config_survives_json():
  config = soundstream.SoundStreamConfig(**json.loads(json.dumps(dataclasses.asdict(CONFIG))))
  assert config == CONFIG and hash(config) == hash(CONFIG)


def test_mismatched_blocks_are_named():
  with pytest.raises(ValueError, match='dilations has 4 blocks, wanted 2 as strides'):
    soundstream.SoundStreamConfig(strides=(2, 4), channel_multipliers=(2, 4))
