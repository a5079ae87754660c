"""The text tower against transformers' BertModel, random weights: all states, padding in the batch."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import pytest

from musiclm_jax.models import mulan
from musiclm_jax.pretrained import bert

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity


@pytest.mark.parametrize('pretraining_heads', [False, True])
def test_states_are_those_of_bert(tmp_path, randomize, relative_error, pretraining_heads):
  config = transformers.BertConfig(
      vocab_size=60, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
      intermediate_size=80, max_position_embeddings=20, layer_norm_eps=1e-5)
  kind = transformers.BertForPreTraining if pretraining_heads else transformers.BertModel
  model = randomize(kind(config))
  model.save_pretrained(tmp_path)
  ids = torch.randint(1, 60, (3, 16), generator=torch.manual_seed(0))
  lengths = torch.tensor([16, 9, 2])
  mask = torch.arange(16)[None] < lengths[:, None]
  ids = ids * mask
  with torch.no_grad():
    base = model.bert if pretraining_heads else model
    theirs = base(input_ids=ids, attention_mask=mask.long()).last_hidden_state

  tower = bert.read(str(tmp_path))
  module = mulan.TextTower(tower.fields['text'])
  params = flax.traverse_util.unflatten_dict(tower.params, sep='/')
  states = lambda module, _: module.name == 'encoder'
  first, found = jax.jit(lambda ids: module.apply(
      {'params': params}, ids, capture_intermediates=states))(jnp.asarray(ids.numpy()))
  ours = found['intermediates']['encoder']['__call__'][0]
  assert relative_error(first, theirs[:, 0], 'class token') <= 1e-4
  for row, length in enumerate(lengths):
    assert relative_error(ours[row, :length], theirs[row, :length], f'text {row}') <= 1e-4
