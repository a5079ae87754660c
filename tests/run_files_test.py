"""A run stays with the files its ids refer to: another token layout is refused, not trained on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import (
    checkpoints,
    errors,
    run_files,
    token_layout,
    train_state,
    training_checkpoints,
)
from musiclm_jax.models import registry, soundstream, transformer
from musiclm_jax.objectives import gradient_balancer, language_model
from musiclm_jax.objectives import soundstream as soundstream_objective

LAYOUT = token_layout.TokenLayout(
    mulan=token_layout.TokenStream('mulan', 2, 8, 0),
    semantic=token_layout.TokenStream('semantic', 1, 16, 25),
    acoustic=token_layout.TokenStream('acoustic', 4, 16, 50), coarse_levels=2)
CONFIG = transformer.DecoderConfig(
    num_layers=1, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32)


def _objective(folder, name, weights):
  """Returns the semantic stage on token records whose codec has the sha256 `weights`."""
  tokens = folder / name
  tokens.mkdir()
  token_layout.write_layout(tokens, LAYOUT, {'soundstream': weights})
  return language_model.LanguageModelObjective(
      CONFIG, LAYOUT, 'semantic', 1.0, tokens_dir=str(tokens))


def test_the_same_run_written_again_is_the_same(tmp_path):
  objective = _objective(tmp_path, 'tokens', 'a')
  run_files.write(tmp_path / 'run', objective, 'TOTAL_STEPS = 2\n')
  first = (tmp_path / 'run' / 'model.json').read_text()
  moved = _objective(tmp_path, 'moved', 'a')  # the records may move
  run_files.write(tmp_path / 'run', moved, 'TOTAL_STEPS = 2\n')
  assert (tmp_path / 'run' / 'model.json').read_text() == first
  assert json.loads(first)['model'] == 'semantic'
  assert (tmp_path / 'run' / 'config.gin').read_text() == 'TOTAL_STEPS = 2\n'


def test_a_run_does_not_go_on_with_tokens_of_another_codec(tmp_path):
  run_files.write(tmp_path / 'run', _objective(tmp_path, 'tokens', 'a'), None)
  with pytest.raises(errors.UserError, match='run with another layout.json than'):
    run_files.write(tmp_path / 'run', _objective(tmp_path, 'other', 'b'), None)


def test_the_layout_that_travels_is_the_one_trained_with(tmp_path):
  """Which levels are coarse is the reader's choice: the records may say otherwise."""
  objective = _objective(tmp_path, 'tokens', 'a')
  objective = dataclasses.replace(
      objective, layout=dataclasses.replace(LAYOUT, coarse_levels=1), stage='coarse',
      config=CONFIG)
  text = objective.export_text_files['layout.json']
  (tmp_path / 'layout.json').write_text(text)
  saved = token_layout.read_layout(tmp_path)
  assert saved.layout.coarse_levels == 1 and saved.tokenizers == {'soundstream': 'a'}


def test_weights_of_another_layout_are_no_start(tmp_path):
  objective = _objective(tmp_path, 'tokens', 'a')
  for name, weights in (('same', 'a'), ('different', 'b')):
    (tmp_path / name).mkdir()
    token_layout.write_layout(tmp_path / name, LAYOUT, {'soundstream': weights})
  run_files.check_text_files(objective, tmp_path / 'same')
  with pytest.raises(errors.UserError, match='different/layout.json is not the layout.json of'):
    run_files.check_text_files(objective, tmp_path / 'different')
  with pytest.raises(errors.UserError, match='nowhere has no layout.json'):
    run_files.check_text_files(objective, tmp_path / 'nowhere')


@pytest.mark.parametrize('text', ['{', '[]', '{"model": "semantic"}'])
def test_a_broken_description_is_named(tmp_path, text):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'model.json').write_text(text)
  with pytest.raises(errors.UserError, match='model.json does not describe a model'):
    run_files.export(tmp_path / 'run', tmp_path / 'out')
  with pytest.raises(errors.UserError, match='model.json does not describe a model'):
    run_files.write(tmp_path / 'run', _objective(tmp_path, 'tokens', 'a'), None)


class Position:
  """A place in no data."""

  shard, is_owner = 'none', True

  def save(self, folder):
    (folder / 'position').write_text('')


def test_what_the_objective_keeps_for_itself_is_not_exported(tmp_path):
  """Discriminators and a gradient balancer's norms stay with the run."""
  config = soundstream.SoundStreamConfig(
      channels=2, strides=(2, 4), channel_multipliers=(1, 2), dilations=((1,), (1,)), dim=4,
      num_quantizers=2, codebook_size=8)
  judges = soundstream_objective.discriminators.DiscriminatorsConfig()
  objective = soundstream_objective.SoundStreamObjective(config, judges, balance_gradients=True)
  run_files.write(tmp_path / 'run', objective, None)
  shapes = registry.variable_shapes('soundstream', config)
  variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
  state = train_state.TrainState(
      step=jnp.ones((), jnp.int32), opt_state={}, average={}, rng=jax.random.PRNGKey(0),
      params={'generator': variables['params'], 'discriminators': {'kernel': jnp.ones(3)}},
      model_state={'codebooks': variables['codebooks'],
                   'balancer': gradient_balancer.initial(objective.weights)})
  saved = training_checkpoints.TrainingCheckpoints(tmp_path / 'run')
  saved.save(1, state, Position())
  saved.close()
  step, _ = run_files.export(tmp_path / 'run', tmp_path / 'model')
  model = checkpoints.load_model(tmp_path / 'model', 'soundstream')
  assert step == 1 and model.config == config
  jax.tree.map(np.testing.assert_array_equal, model.variables, variables)
