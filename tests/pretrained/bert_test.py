"""The text tower of a small BERT, against BERT written out in numpy."""

import json
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import errors
from musiclm_jax.models import mulan
from musiclm_jax.pretrained import bert


def _bert(arrays, config, ids):
  """Returns the state at [CLS] of a row of ids: the paper's equations, weights as torch keeps them."""
  def linear(x, name):
    return x @ arrays[f'{name}.weight'].T + arrays[f'{name}.bias']

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config['layer_norm_eps'])
    return x * arrays[f'{name}.weight'] + arrays[f'{name}.bias']

  embeddings = [arrays[f'embeddings.{name}_embeddings.weight']
                for name in ('word', 'position', 'token_type')]
  x = embeddings[0][ids] + embeddings[1][:len(ids)] + embeddings[2][0]
  x = norm(x, 'embeddings.LayerNorm')
  for i in range(config['num_hidden_layers']):
    layer, heads = f'encoder.layer.{i}', []
    query, key, value = (linear(x, f'{layer}.attention.self.{name}')
                         for name in ('query', 'key', 'value'))
    for part in np.split(np.arange(config['hidden_size']), config['num_attention_heads']):
      weights = np.exp(query[:, part] @ key[:, part].T / math.sqrt(len(part)))
      heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
    x = norm(x + linear(np.concatenate(heads, -1), f'{layer}.attention.output.dense'),
             f'{layer}.attention.output.LayerNorm')
    h = linear(x, f'{layer}.intermediate.dense')
    h = h * (1 + np.vectorize(math.erf)(h / math.sqrt(2))) / 2
    x = norm(x + linear(h, f'{layer}.output.dense'), f'{layer}.output.LayerNorm')
  return x[0]


def test_tower_computes_what_the_paper_says(make_bert):
  directory = make_bert(num_hidden_layers=2)
  tower = bert.read(str(directory))
  module = mulan.TextTower(tower.fields['text'])
  ids = jnp.array([[2, 5, 6, 7, 9, 3, 0, 0], [2, 6, 3, 0, 0, 0, 0, 0]])
  params = flax.traverse_util.unflatten_dict(tower.params, sep='/')
  ours = jax.jit(module.apply)({'params': params}, ids)
  for row, length in enumerate((6, 3)):
    wanted = _bert(directory.arrays, directory.config, np.asarray(ids[row, :length]))
    np.testing.assert_allclose(ours[row], wanted, rtol=1e-4, atol=1e-5)


def test_every_parameter_of_the_tower_is_set_and_the_rest_reported(make_bert):
  tower = bert.read(str(make_bert()))
  module = mulan.TextTower(tower.fields['text'])
  shapes = flax.traverse_util.flatten_dict(
      jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4), int))['params'], sep='/')
  assert {k: v.shape for k, v in tower.params.items()} == {k: v.value.shape for k, v in shapes.items()}
  assert tower.fields['text'] == mulan.TextConfig(
      mulan.EncoderConfig(num_layers=1, emb_dim=8, num_heads=2, mlp_dim=6, dropout_rate=0.1,
                          layer_norm_epsilon=1e-3), vocab_size=12, max_length=10)
  assert [note.split(' (')[0] for note in tower.notes[:2]] == [
      'left out: pooler.dense.bias', 'left out: pooler.dense.weight']
  assert 'row 0 was added to the positions, 1 of other segments left out' in tower.notes[2]


def test_a_pretraining_model_gives_the_same_tower(make_bert):
  directory = make_bert()
  plain = bert.read(str(directory)).params
  heads = {'cls.predictions.bias': np.zeros(12, np.float32),
           'cls.seq_relationship.weight': np.zeros((2, 8), np.float32)}
  directory.arrays = {f'bert.{name}'.replace('LayerNorm.weight', 'LayerNorm.gamma'): array
                      for name, array in directory.arrays.items()} | heads
  tower = bert.read(str(directory.write()))
  jax.tree.map(np.testing.assert_array_equal, tower.params, plain)
  assert any('cls.predictions.bias' in note for note in tower.notes)


@pytest.mark.parametrize('change, wanted', [
    ({'model_type': 'roberta'}, "model_type is 'roberta', wanted 'bert'"),
    ({'model_type': None}, "model_type is None, wanted 'bert'"),
    ({'hidden_act': 'relu'}, "hidden_act is 'relu', wanted 'gelu'"),
    ({'hidden_act': ['gelu']}, 'hidden_act is'),
    ({'position_embedding_type': 'relative_key'}, "'relative_key', wanted 'absolute'"),
    ({'pad_token_id': 1}, 'pad_token_id is 1, wanted 0'),
    ({'pad_token_id': False}, 'pad_token_id is False, wanted 0'),
    ({'is_decoder': True}, 'is_decoder is True, wanted False'),
    ({'num_attention_heads': 3}, 'hidden_size 8 is not divisible by num_attention_heads 3'),
    ({'num_hidden_layers': 10**12}, 'num_hidden_layers is 1000000000000, wanted 1 to 1000'),
    ({'num_hidden_layers': 2}, 'encoder.layer.1.attention.self.query.weight is missing'),
    ({'vocab_size': 13}, r'word_embeddings.weight is \(12, 8\), wanted \(13, 8\)'),
    ({'layer_norm_eps': '0'}, "layer_norm_eps is '0', wanted 0 to 1"),
    ({'hidden_dropout_prob': 1.0}, 'hidden_dropout_prob is 1.0, wanted 0 to 0.99'),
])  # fmt: skip
def test_a_config_that_cannot_be_honoured(make_bert, change, wanted):
  directory = make_bert()
  directory.config.update(change)
  with pytest.raises(errors.UserError, match=wanted):
    bert.read(str(directory.write()))


def test_one_layer_too_many_is_named(make_bert):
  directory = make_bert(num_hidden_layers=2)
  directory.config['num_hidden_layers'] = 1
  with pytest.raises(errors.UserError, match='tensor encoder.layer.1.attention.output.LayerNorm.bias'):
    bert.read(str(directory.write()))


@pytest.mark.parametrize('settings, wanted', [
    ({'do_lower_case': False}, 'do_lower_case is False, wanted True: our tokenizer is that of BERT'),
    ({'do_lower_case': 'yes'}, "do_lower_case is 'yes', wanted True"),
    ({'strip_accents': False}, 'strip_accents is False'),
])  # fmt: skip
def test_a_tokenizer_that_is_not_ours(make_bert, settings, wanted):
  directory = make_bert()
  config = bert.read_fields(str(directory))['text']
  assert bert.vocabulary(str(directory), config) == str(directory.path / 'vocab.txt')
  (directory.path / 'tokenizer_config.json').write_text(json.dumps(settings))
  with pytest.raises(errors.UserError, match=wanted):
    bert.vocabulary(str(directory), config)


@pytest.mark.parametrize('change, wanted', [
    (lambda text: text + 'A\n', "has the wordpiece 'A', wanted lower case only"),
    (lambda text: text + 'a\nb\nc\n', 'has 13 wordpieces, the text tower has room for vocab_size 12'),
    (lambda text: text.replace('[CLS]', 'x'), r'has no \[CLS\]'),
])  # fmt: skip
def test_a_vocabulary_that_cannot_be_used(make_bert, change, wanted):
  directory = make_bert()
  path = directory.path / 'vocab.txt'
  path.write_text(change(path.read_text()))
  with pytest.raises(errors.UserError, match=wanted):
    bert.vocabulary(str(directory), bert.read_fields(str(directory))['text'])
  path.unlink()
  with pytest.raises(errors.UserError, match='has no vocab.txt'):
    bert.vocabulary(str(directory), bert.read_fields(str(directory))['text'])
