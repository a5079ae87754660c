"""A Conformer block against Wav2Vec2-BERT's layer, and rotary attention against Llama's."""

import dataclasses
import importlib

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import pytest

from musiclm_jax.models import conformer, layers
from musiclm_jax.pretrained import hugging_face

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
modeling_llama = importlib.import_module('transformers.models.llama.modeling_llama')
modeling_wav2vec2_bert = importlib.import_module(
    'transformers.models.wav2vec2_bert.modeling_wav2vec2_bert')
pytestmark = pytest.mark.parity

D, H, K, M, KERNEL, T = 48, 4, 12, 96, 5, 17
SIZES = {'D': D, 'H': H, 'K': K, 'M': M, 'E': D, 'C': 2 * D, 'L': KERNEL}
CONFIG = conformer.ConformerConfig(
    emb_dim=D, num_heads=H, head_dim=K, mlp_dim=M, kernel_size=KERNEL, rotary_max_wavelength=0.0)


class _Centred(torch.nn.Module):
  """A depthwise convolution that sees as far ahead as back; its caller pads by kernel_size - 1."""

  kernel_size = (1,)

  def __init__(self, convolution):
    super().__init__()
    self.weight = convolution.weight

  def forward(self, x):
    return torch.nn.functional.conv1d(x, self.weight, padding=(KERNEL - 1) // 2, groups=D)


def _params(layer):
  move = hugging_face.Move
  moves = []
  for theirs, ours in (('ffn1', 'mlp_in'), ('ffn2', 'mlp_out')):
    moves += [
        *hugging_face.norm(f'{theirs}_layer_norm', f'{ours}/norm'),
        *hugging_face.dense(f'{theirs}.intermediate_dense', f'{ours}/wi', 'M D -> D M', 'M -> M'),
        *hugging_face.dense(f'{theirs}.output_dense', f'{ours}/wo', 'D M -> M D', 'D -> D')]
  moves += [
      *hugging_face.norm('self_attn_layer_norm', 'attention/norm'),
      move('self_attn.linear_q.weight', 'attention/query', '(H K) D -> D H K'),
      move('self_attn.linear_k.weight', 'attention/key', '(H K) D -> D H K'),
      move('self_attn.linear_v.weight', 'attention/value', '(H K) D -> D H K'),
      move('self_attn.linear_out.weight', 'attention/out', 'D (H K) -> H K D'),
      *hugging_face.norm('conv_module.layer_norm', 'conv/norm'),
      move('conv_module.pointwise_conv1.weight', 'conv/wi/kernel', 'C D -> D C'),
      move('conv_module.depthwise_conv.weight', 'conv/depthwise', 'D L -> L D'),
      *hugging_face.norm('conv_module.depthwise_layer_norm', 'conv/depthwise_norm'),
      move('conv_module.pointwise_conv2.weight', 'conv/wo/kernel', 'D E -> E D'),
      *hugging_face.norm('final_layer_norm', 'norm')]
  zero = {f'self_attn.linear_{name}.bias': 'zeros' for name in ('q', 'k', 'v', 'out')}
  arrays = {name: tensor.detach().squeeze().numpy() for name, tensor in layer.state_dict().items()}
  params, _ = hugging_face.move(arrays, moves, SIZES, zero, 'Wav2Vec2-BERT')
  return flax.traverse_util.unflatten_dict(params, sep='/')


def test_block_is_that_of_wav2vec2_bert(randomize, relative_error):
  config = transformers.Wav2Vec2BertConfig(
      hidden_size=D, num_attention_heads=H, intermediate_size=M, conv_depthwise_kernel_size=KERNEL,
      position_embeddings_type=None, layer_norm_eps=1e-6, attn_implementation='eager')
  layer = randomize(modeling_wav2vec2_bert.Wav2Vec2BertEncoderLayer(config))
  for name, parameter in layer.self_attn.named_parameters():
    if name.endswith('bias'):  # ours have none
      parameter.data.zero_()
  params = _params(layer)
  layer.conv_module.depthwise_conv = _Centred(layer.conv_module.depthwise_conv)
  x = torch.randn(2, T, D, generator=torch.manual_seed(0))
  with torch.no_grad():
    theirs = layer(x)
  block = conformer.ConformerBlock(CONFIG)
  shapes = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, T, D)))
  assert jax.tree.structure(params) == jax.tree.structure(nn.unbox(shapes)['params'])
  ours = jax.jit(block.apply)({'params': params}, jnp.asarray(x.numpy()))
  assert relative_error(ours, theirs) <= 1e-4


def _rotary(length, wavelength):
  """Returns Llama's (cos, sin) for positions 0 to length - 1."""
  config = transformers.LlamaConfig(
      hidden_size=D, num_attention_heads=H, head_dim=K,
      rope_parameters={'rope_type': 'default', 'rope_theta': wavelength})
  embedding = modeling_llama.LlamaRotaryEmbedding(config)
  return embedding(torch.zeros(1), torch.arange(length)[None])


@pytest.mark.parametrize('wavelength', [10_000.0, 100.0])
def test_rotation_is_that_of_llama(relative_error, wavelength):
  cos, sin = _rotary(T, wavelength)
  query, key = torch.randn(2, 2, H, T, K, generator=torch.manual_seed(0))
  rotated = modeling_llama.apply_rotary_pos_emb(query, key, cos, sin)
  for ours, theirs in zip((query, key), rotated, strict=True):
    ours = layers.rotate(jnp.asarray(ours.transpose(1, 2).numpy()), jnp.arange(T), wavelength)
    assert relative_error(ours, theirs.transpose(1, 2)) <= 1e-4


def test_rotary_attention_is_that_of_llama(randomize, relative_error):
  layer = torch.nn.ModuleDict({
      name: torch.nn.Linear(D, D, bias=False) for name in ('query', 'key', 'value', 'out')})
  layer['norm'] = torch.nn.LayerNorm(D, eps=1e-6)
  randomize(layer)
  x = torch.randn(2, T, D, generator=torch.manual_seed(0))
  with torch.no_grad():
    query, key, value = (
        layer[name](layer['norm'](x)).reshape(2, T, H, K).transpose(1, 2)
        for name in ('query', 'key', 'value'))
    query, key = modeling_llama.apply_rotary_pos_emb(query, key, *_rotary(T, 10_000.0))
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    theirs = layer['out'](attended.transpose(1, 2).reshape(2, T, D))
  move = hugging_face.Move
  arrays = {name: tensor.detach().numpy() for name, tensor in layer.state_dict().items()}
  moves = [*hugging_face.norm('norm', 'norm'), move('out.weight', 'out', 'D (H K) -> H K D')]
  moves += [move(f'{name}.weight', name, '(H K) D -> D H K') for name in ('query', 'key', 'value')]
  params = flax.traverse_util.unflatten_dict(
      hugging_face.move(arrays, moves, SIZES, {}, 'attention')[0], sep='/')
  attention = conformer.SelfAttention(dataclasses.replace(CONFIG, rotary_max_wavelength=10_000.0))
  ours = jax.jit(attention.apply)({'params': params}, jnp.asarray(x.numpy()))
  assert relative_error(ours, theirs) <= 1e-4
