"""The models that ship with the package: complete, small, and made for each other."""

import pathlib

import numpy as np
import pytest

from musiclm_jax import checkpoints, errors, generate, token_layout

TINY = generate.TINY
MODELS = ('soundstream', 'w2v_bert', 'semantic_quantizer', 'mulan', 'mulan_quantizer', *token_layout.STAGES)


@pytest.fixture(scope='module')
def musiclm():
  return generate.load()


def test_at_most_32_mebibytes():
  size = sum(path.stat().st_size for path in pathlib.Path(TINY).rglob('*') if path.is_file())
  assert 0 < size <= 32 * 2**20


@pytest.mark.parametrize('name', MODELS)
def test_every_model_loads(name):
  model = checkpoints.load_model(TINY / name)
  assert model.name == name


def test_tokenizers_are_those_of_the_layout():
  saved = token_layout.read_layout(TINY)
  for stream, name in generate.TOKENIZERS.items():
    assert checkpoints.load_model(TINY / name).fingerprint == saved.tokenizers[stream]


def test_model_card_states_data_steps_and_limits():
  card = (TINY / 'MODEL_CARD.md').read_text()
  for word in ('hours', 'steps', 'loss', 'cannot', 'Groove', 'OpenScore', 'recall@10'):
    assert word in card, word


def test_different_prompts_get_different_music_tokens(musiclm):
  prompts = ['a calm solo piano piece', 'fast metal with distorted guitar', 'a calm solo piano piece']
  codes = musiclm.mulan_codes(prompts)
  np.testing.assert_array_equal(codes[0], codes[2])
  assert (codes[0] != codes[1]).any()


def test_empty_prompt_is_refused(musiclm):
  with pytest.raises(errors.UserError, match='prompt is empty'):
    musiclm.generate([''])
