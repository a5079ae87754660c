"""w2v-BERT: exact frame rate, what is masked and what is not, straight-through codes, sizes."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import partitioning
from musiclm_jax.models import w2v_bert

TINY = w2v_bert.W2vBertConfig(
    num_mels=16, conv_channels=4, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
    contrastive_layers=1, prediction_layers=2, feature_layer=1, num_groups=2, num_codes=8,
    code_dim=12)
HOP = TINY.input_hop_length
RNGS = {name: jax.random.key(i) for i, name in enumerate(('params', 'mask', 'quantizer'))}


@pytest.fixture(name='waveform', scope='module')
def _waveform():
  return 0.1 * jax.random.normal(jax.random.key(0), (2, 30 * HOP))


@pytest.fixture(name='variables', scope='module')
def _variables(waveform):
  """Returns variables as after some training: no kernel is zero, as the Conformers' last ones start."""
  variables = nn.unbox(jax.jit(w2v_bert.W2vBert(TINY).init)(RNGS, waveform))
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(tree, [x + 0.1 * rng.standard_normal(x.shape, np.float32) for x in leaves])


@pytest.mark.parametrize('samples, frames', [
    (24_000, 25), (240_000, 250), (960, 1), (24_000 + 959, 25), (24_000 + 960, 26), (10_001, 10)])
def test_25_frames_a_second(variables, samples, frames):
  shape = jax.eval_shape(
      lambda x: w2v_bert.W2vBert(TINY).apply(variables, x, method='features'),
      jax.ShapeDtypeStruct((3, samples), jnp.float32))
  assert shape.shape == (3, frames, 16)
  assert TINY.frame_rate == 25 and HOP == 960


def test_less_than_a_frame_is_an_error(variables):
  with pytest.raises(ValueError, match='959 samples, fewer than one frame of 960'):
    w2v_bert.W2vBert(TINY).apply(variables, jnp.zeros((1, 959)), method='features')


def test_mel_frames_are_centred_on_their_hop(variables):
  # A click in the middle of hop 41 (10 ms each) is loudest in mel frame 41.
  click = jnp.zeros((1, 24_000)).at[0, 41 * 240 + 120].set(1.0)
  mel = w2v_bert.W2vBert(TINY).apply(variables, click, method='log_mel')
  assert mel.shape == (1, 100, 16)
  assert int(mel.sum(-1).argmax()) == 41


def test_features_are_deterministic_and_choose_their_layer(variables, waveform):
  features = jax.jit(
      lambda x, layer: w2v_bert.W2vBert(TINY).apply(variables, x, layer, method='features'),
      static_argnums=1)
  default = features(waveform, None)
  np.testing.assert_array_equal(default, features(waveform, None))
  np.testing.assert_array_equal(default, features(waveform, 1))
  assert np.abs(default - features(waveform, 2)).max() > 1e-3
  with pytest.raises(ValueError, match='layer 3 is not in 0 to 2'):
    features(waveform, 3)


def test_spans():
  starts = jnp.array([[0, 1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 0, 0, 0]], bool)
  np.testing.assert_array_equal(
      w2v_bert.spread(starts, 3), np.array([[0, 1, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 0, 0]], bool))


def test_share_of_masked_frames():
  mask = w2v_bert.span_mask(jax.random.key(0), (256, 250), 0.065, 10)
  # Away from the start of a clip: 1 - (1 - 0.065) ** 10 = 0.489.
  assert abs(mask[:, 10:].mean() - 0.489) < 0.02


def _apply(variables, waveform, mask, seed=0, **kwargs):
  rngs = {name: jax.random.fold_in(key, seed) for name, key in RNGS.items()}
  return w2v_bert.W2vBert(TINY).apply(variables, waveform, mask=mask, rngs=rngs, **kwargs)


def test_masked_frames_are_replaced_by_random_vectors(variables):
  encoded = jax.random.normal(jax.random.key(0), (2, 5, 16))
  mask = jnp.array([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], bool)
  masked = w2v_bert.W2vBert(TINY).apply(
      variables, encoded, mask, method='replace_masked', rngs={'mask': jax.random.key(1)})
  np.testing.assert_array_equal(masked[~mask], encoded[~mask])
  noise = np.asarray(masked[mask])
  assert 0.05 < noise.std() < 0.15
  assert len(np.unique(noise)) == noise.size  # not one learned vector repeated


def test_quantizer_sees_unmasked_frames_and_conformers_do_not(variables, waveform):
  nothing, everything = jnp.zeros((2, 30), bool), jnp.ones((2, 30), bool)
  seen = _apply(variables, waveform, nothing, deterministic=True)
  hidden = _apply(variables, waveform, everything, deterministic=True)
  np.testing.assert_array_equal(seen.codes, hidden.codes)
  np.testing.assert_array_equal(seen.quantized, hidden.quantized)
  # With every frame masked the Conformers know nothing of the waveform.
  other = _apply(variables, waveform[::-1] * 0.3, everything, deterministic=True)
  np.testing.assert_array_equal(hidden.context, other.context)
  np.testing.assert_array_equal(hidden.logits, other.logits)
  assert np.abs(seen.context - hidden.context).max() > 1e-3


def test_prediction_reads_the_context_of_the_contrastive_module(variables, waveform):
  gradient = jax.grad(lambda params: _apply(
      {'params': params}, waveform, None, deterministic=True).logits.sum())(variables['params'])
  assert np.abs(gradient['contrastive']['layer_0']['mlp_in']['wi']['kernel']).max() > 0
  # The prediction's targets are ids: it teaches the quantizer nothing directly.
  assert not np.any(gradient['quantizer']['codebook'])


def test_quantizer_is_one_code_forward_and_a_mixture_backward():
  module = w2v_bert.GumbelQuantizer(TINY)
  x = jax.random.normal(jax.random.key(0), (1, 6, 16))
  variables = nn.unbox(module.init(RNGS, x, 1.0, True))
  quantized, chosen, probs, codes = module.apply(variables, x, 1.0, True)
  np.testing.assert_array_equal(chosen, codes)  # without noise
  book = variables['params']['codebook']  # [G, V, code_dim / G]
  wanted = jnp.concatenate([book[g][codes[..., g]] for g in range(2)], -1)
  np.testing.assert_allclose(quantized, wanted, atol=1e-5)
  np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-5)
  gradient = jax.grad(lambda y: jnp.square(module.apply(variables, y, 1.0, True)[0]).sum())(x)
  assert np.abs(gradient).max() > 0


def test_codes_of_mel_frames_and_codes_that_stay(waveform):
  config = dataclasses.replace(TINY, quantizer_input='mel', quantizer_gradient=0.0)
  module = w2v_bert.W2vBert(config)
  params = nn.unbox(jax.jit(module.init)(RNGS, waveform))['params']
  assert params['quantizer']['logits']['kernel'].shape == (16, 2, 8)
  mel = module.apply({'params': params}, waveform, method='log_mel')
  frames = module.apply({'params': params}, mel, None, method='quantizer_frames')
  assert frames.shape == (2, 30, 16)
  np.testing.assert_allclose(frames.mean((0, 1)), 0.0, atol=1e-4)

  def loss(params):
    outputs = module.apply({'params': params}, waveform, rngs=RNGS)
    return outputs.quantized.sum() + outputs.code_probs[..., 0].sum()

  gradient = jax.grad(loss)(params)
  assert not np.any(gradient['quantizer']['logits']['kernel'])
  assert np.any(gradient['quantizer']['codebook'])


def test_noise_follows_the_temperature_free_distribution():
  # Gumbel-max: whatever the temperature, code v is drawn with probability softmax(logits)[v].
  module = w2v_bert.GumbelQuantizer(dataclasses.replace(TINY, num_groups=1, code_dim=8))
  x = jnp.broadcast_to(jax.random.normal(jax.random.key(3), (16,)), (1, 20_000, 16))
  variables = nn.unbox(module.init(RNGS, x[:, :1], 1.0, True))
  variables['params']['codebook'] = jnp.eye(8)[None]
  drawn, chosen, probs, _ = module.apply(
      variables, x, 2.0, False, rngs={'quantizer': jax.random.key(0)})
  np.testing.assert_array_equal(chosen[..., 0], drawn.argmax(-1))
  np.testing.assert_allclose(drawn.mean((0, 1)), probs[0, 0, 0], atol=0.02)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_xl_has_the_papers_size_and_named_axes(scan_layers):
  config = w2v_bert.W2vBertConfig(scan_layers=scan_layers)
  module = w2v_bert.W2vBert(config)
  with partitioning.activate(partitioning.make_mesh()):  # names are resolved: none may repeat
    variables = jax.eval_shape(
        module.init, RNGS, jax.ShapeDtypeStruct((1, 24_000), jnp.float32))
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
  assert round(count / 1e9, 1) == 0.6
  known = {name for name, _ in partitioning.LOGICAL_AXIS_RULES}
  assert partitioning.logical_names(variables) <= known
  features = jax.eval_shape(
      lambda v, x: module.apply(v, x, method='features'), nn.unbox(variables),
      jax.ShapeDtypeStruct((1, 240_000), jnp.float32))
  assert features.shape == (1, 250, 1024)


def test_bad_settings_are_named():
  with pytest.raises(ValueError, match='feature_layer 7 is not in 0 to prediction_layers 3'):
    w2v_bert.W2vBertConfig(prediction_layers=3)
  with pytest.raises(ValueError, match="quantizer_input 'pcm' is not 'encoded' or 'mel'"):
    w2v_bert.W2vBertConfig(quantizer_input='pcm')
  with pytest.raises(ValueError, match='code_dim 10 is not divisible by num_groups 3'):
    w2v_bert.W2vBertConfig(code_dim=10, num_groups=3)
  with pytest.raises(ValueError, match='not a whole number of samples at 22040 Hz'):
    w2v_bert.W2vBertConfig(input_sample_rate=22_040)
