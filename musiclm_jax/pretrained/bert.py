"""L4. The text tower from a directory of a BERT-type model (model_type "bert"), as Hugging Face's.

Axes: V wordpieces, N positions, S segments, D emb_dim.
"""

import os

from musiclm_jax import errors, text
from musiclm_jax.models import mulan
from musiclm_jax.pretrained import hugging_face

VOCABULARY_FILE = 'vocab.txt'
PREFIX = 'bert.'
_HEAD = 'a head of its pretraining'
LEFT_OUT = {
    'embeddings.position_ids': 'the numbers 0, 1, 2, ...',
    'embeddings.token_type_ids': 'zeros',
    'pooler.dense.weight': 'the tower ends with the state at [CLS]',
    'pooler.dense.bias': 'the tower ends with the state at [CLS]',
    'cls.predictions.bias': _HEAD,
    'cls.predictions.transform.dense.weight': _HEAD,
    'cls.predictions.transform.dense.bias': _HEAD,
    'cls.predictions.transform.LayerNorm.weight': _HEAD,
    'cls.predictions.transform.LayerNorm.bias': _HEAD,
    'cls.predictions.decoder.weight': _HEAD,
    'cls.predictions.decoder.bias': _HEAD,
    'cls.seq_relationship.weight': _HEAD,
    'cls.seq_relationship.bias': _HEAD,
}


def read(directory: str) -> hugging_face.Imported:
  """Returns the text tower: field `text` of MulanConfig and the parameters of TextTower.

  A caption is one segment, so row 0 of the token-type table belongs in the position table.
  """
  fields = read_fields(directory)
  config, segments = fields['text'], _settings(directory).size('type_vocab_size')
  moves = [
      hugging_face.Move('embeddings.word_embeddings.weight', 'words', 'V D -> V D'),
      hugging_face.Move('embeddings.position_embeddings.weight', 'positions', 'N D -> N D'),
      hugging_face.Move('embeddings.token_type_embeddings.weight', 'segments', 'S D -> S D'),
      *hugging_face.norm('embeddings.LayerNorm', 'norm'),
      *hugging_face.encoder(config.encoder.num_layers, 'attention.self',
                            'attention.output.LayerNorm', 'output.LayerNorm'),
  ]
  sizes = {
      'V': config.vocab_size, 'N': config.max_length, 'S': segments,
      **hugging_face.encoder_sizes(config.encoder),
  }  # fmt: skip
  params, notes = hugging_face.move(
      hugging_face.read_weights(directory, PREFIX), moves, sizes, LEFT_OUT,
      os.path.join(directory, hugging_face.WEIGHTS_FILE))
  rows = params.pop('segments')
  params['positions'] = params['positions'] + rows[0]
  notes.append('embeddings.token_type_embeddings.weight: row 0 was added to the positions, '
               f'{segments - 1} of other segments left out')
  return hugging_face.Imported(fields, params, notes)


def _settings(directory: str) -> hugging_face.Settings:
  return hugging_face.Settings.read(directory, hugging_face.CONFIG_FILE)


def read_fields(directory: str) -> dict[str, mulan.TextConfig]:
  """Returns {'text': config} for MulanConfig; a config.json the tower cannot honour is an error."""
  settings = _settings(directory)
  settings.require('model_type', 'bert', why='the text tower is a BERT')
  settings.require('position_embedding_type', 'absolute', None,
                   why='the tower has a table of positions')
  settings.require('pad_token_id', 0, None, why='0 is padding in this package')
  for name in ('is_decoder', 'add_cross_attention'):
    settings.require(name, False, None, why='the tower is an encoder')
  return {'text': mulan.TextConfig(
      encoder=hugging_face.encoder_config(settings, norm_first=False, dropout_rate=0.1),
      vocab_size=settings.size('vocab_size', 2**24),
      max_length=settings.size('max_position_embeddings'))}


def vocabulary(directory: str, config: mulan.TextConfig) -> str:
  """Returns the path of the directory's vocab.txt; one that our tokenizer cannot use is an error."""
  path = os.path.join(directory, VOCABULARY_FILE)
  if not os.path.isfile(path):
    raise errors.UserError(f'{directory} has no {VOCABULARY_FILE}, a wordpiece a line')
  settings = hugging_face.Settings.read_if_there(directory, 'tokenizer_config.json')
  why = 'our tokenizer is that of BERT uncased'
  settings.require('do_lower_case', True, None, why=why)
  settings.require('strip_accents', True, None, why=why)
  settings.require('tokenize_chinese_chars', True, None, why=why)
  tokens = text.read_vocabulary(path)
  if 'A' in tokens:
    raise errors.UserError(f"{path} has the wordpiece 'A', wanted lower case only: {why}")
  config.check_vocabulary(len(tokens), path)
  return path
