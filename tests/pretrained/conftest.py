"""Small model directories as Hugging Face writes them, with random weights."""

import json

import numpy as np
import pytest
import safetensors.numpy

BERT = {
    'model_type': 'bert', 'vocab_size': 12, 'hidden_size': 8, 'num_hidden_layers': 1,
    'num_attention_heads': 2, 'intermediate_size': 6, 'hidden_act': 'gelu',
    'hidden_dropout_prob': 0.1, 'max_position_embeddings': 10, 'type_vocab_size': 2,
    'layer_norm_eps': 1e-3, 'pad_token_id': 0, 'position_embedding_type': 'absolute',
}  # fmt: skip
AST = {
    'model_type': 'audio-spectrogram-transformer', 'hidden_size': 8, 'num_hidden_layers': 1,
    'num_attention_heads': 2, 'intermediate_size': 6, 'hidden_act': 'gelu',
    'hidden_dropout_prob': 0.0, 'layer_norm_eps': 1e-3, 'patch_size': 4, 'time_stride': 3,
    'frequency_stride': 2, 'max_length': 19, 'num_mel_bins': 8, 'qkv_bias': True,
}  # fmt: skip
VOCABULARY = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'calm', 'piano', 'drum', '##s', ',']


def _layers(config, attention, norms):
  d, m = config['hidden_size'], config['intermediate_size']
  shapes = {}
  for i in range(config['num_hidden_layers']):
    name = f'encoder.layer.{i}'
    parts = {f'attention.{attention}.{part}': (d, d) for part in ('query', 'key', 'value')}
    parts.update({'attention.output.dense': (d, d), 'intermediate.dense': (m, d),
                  'output.dense': (d, m), **dict.fromkeys(norms, (d,))})
    for part, shape in parts.items():
      shapes[f'{name}.{part}.weight'], shapes[f'{name}.{part}.bias'] = shape, shape[:1]
  return shapes


def bert_shapes(config):
  d = config['hidden_size']
  return {
      'embeddings.word_embeddings.weight': (config['vocab_size'], d),
      'embeddings.position_embeddings.weight': (config['max_position_embeddings'], d),
      'embeddings.token_type_embeddings.weight': (config['type_vocab_size'], d),
      'embeddings.LayerNorm.weight': (d,), 'embeddings.LayerNorm.bias': (d,),
      **_layers(config, 'self', ('attention.output.LayerNorm', 'output.LayerNorm')),
      'pooler.dense.weight': (d, d), 'pooler.dense.bias': (d,),
  }  # fmt: skip


def ast_shapes(config):
  d, patch = config['hidden_size'], config['patch_size']
  times = (config['max_length'] - patch) // config['time_stride'] + 1
  bands = (config['num_mel_bins'] - patch) // config['frequency_stride'] + 1
  return {
      'embeddings.cls_token': (1, 1, d), 'embeddings.distillation_token': (1, 1, d),
      'embeddings.position_embeddings': (1, 2 + times * bands, d),
      'embeddings.patch_embeddings.projection.weight': (d, 1, patch, patch),
      'embeddings.patch_embeddings.projection.bias': (d,),
      **_layers(config, 'attention', ('layernorm_before', 'layernorm_after')),
      'layernorm.weight': (d,), 'layernorm.bias': (d,),
  }  # fmt: skip


class Directory:
  """A directory of a small model; `arrays` and `config` are what `write` writes."""

  def __init__(self, path, config, shapes):
    self.path, self.config = path, config
    random = np.random.default_rng(0)
    self.arrays = {name: random.standard_normal(shape).astype(np.float32) * 0.5
                   for name, shape in shapes.items()}

  def __str__(self):
    return str(self.path)

  def write(self):
    (self.path / 'config.json').write_text(json.dumps(self.config))
    safetensors.numpy.save_file(self.arrays, self.path / 'model.safetensors')
    return self


@pytest.fixture(scope='session')
def make_bert(tmp_path_factory):
  """Returns a function of changes to the config: a written BERT with a vocab.txt."""

  def make(**changes):
    config = {**BERT, **changes}
    made = Directory(tmp_path_factory.mktemp('bert'), config, bert_shapes(config)).write()
    (made.path / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n')
    return made

  return make


@pytest.fixture(scope='session')
def make_ast(tmp_path_factory):
  """Returns a function of changes to the config: a written AST."""

  def make(**changes):
    config = {**AST, **changes}
    return Directory(tmp_path_factory.mktemp('ast'), config, ast_shapes(config)).write()

  return make
