"""A step on any mesh and in any number of parts is the same step.

Run as a script (`python tests/train_step_test.py`) with eight devices it prints, for each mesh, how
far loss and gradients are from those of one device: their number is fixed when JAX starts.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import errors, optimizers, partitioning, token_layout, train_state, train_step
from musiclm_jax.models import transformer
from musiclm_jax.objectives import language_model

ROOT = pathlib.Path(__file__).resolve().parents[1]
MESHES = {'data': (8, 1, 1), 'fsdp': (1, 8, 1), 'model': (1, 1, 8), 'all': (2, 2, 2)}
LAYOUT = token_layout.TokenLayout(
    mulan=token_layout.TokenStream('mulan', 2, 16, 0),
    semantic=token_layout.TokenStream('semantic', 1, 16, 4),
    acoustic=token_layout.TokenStream('acoustic', 2, 16, 4), coarse_levels=1)
CONFIG = transformer.DecoderConfig(
    num_layers=2, emb_dim=16, num_heads=8, head_dim=4, mlp_dim=32, dropout_rate=0.1, remat='full')
OPTIMIZER = optimizers.adamw(1e-2)
BATCH = 16


def _objective(**changes):
  return language_model.LanguageModelObjective(
      dataclasses.replace(CONFIG, **changes), LAYOUT, 'semantic', 2.0)


def _batch(objective):
  random, stage = np.random.RandomState(0), objective.stage_layout
  codes = {
      'mulan': random.randint(16, size=(BATCH, 1, 2)), 'semantic': random.randint(16, size=(BATCH, 8, 1))}
  ids = stage.flatten(codes)
  weights = np.arange(ids.shape[1]) >= stage.prefix_length
  return {
      'decoder_input_tokens': np.pad(ids, ((0, 0), (1, 0)), constant_values=1)[:, :-1],
      'decoder_target_tokens': ids,
      'decoder_loss_weights': np.broadcast_to(weights, ids.shape).astype(np.float32)}


def _started(objective, mesh_shape, devices=None, averages=False):
  mesh = partitioning.make_mesh(mesh_shape, devices)
  wanted = train_state.shapes(objective, OPTIMIZER, BATCH, mesh, averages)
  state = train_state.create(objective, OPTIMIZER, BATCH, 0, wanted)
  return mesh, wanted, state, partitioning.global_batch(_batch(objective), BATCH, mesh)


def _loss_and_gradients(mesh_shape, devices=None, **changes):
  """Returns the loss of a step, with dropout unless changed, and its gradients, on the host."""
  objective = _objective(**changes)
  mesh, wanted, state, batch = _started(objective, mesh_shape, devices)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, wanted.params)
  compute = lambda state, batch: jax.value_and_grad(objective.loss_fn, has_aux=True)(
      state.params, state.model_state, batch, state.rng, state.step)
  with partitioning.activate(mesh):
    (loss, _), gradients = jax.jit(compute, out_shardings=(None, shardings))(state, batch)
  return jax.device_get((loss, gradients))


def _steps(objective, count=3, microbatches=1, average_decay=None):
  mesh, wanted, state, batch = _started(
      objective, (-1, 1, 1), averages=average_decay is not None)
  step = train_step.make_train_step(objective, OPTIMIZER, wanted, microbatches, average_decay)
  states = []
  with partitioning.activate(mesh):
    for _ in range(count):
      state, metrics = step(state, batch)
      states.append(jax.device_get(state))
  return states, jax.device_get(metrics)


def _distance(found, wanted):
  """Returns the largest difference of two trees' leaves, as a share of each leaf's largest value."""
  leaves = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
  return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in leaves)


def test_loss_and_gradients_are_those_of_one_device_on_every_mesh():
  environment = dict(
      os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=8', JAX_PLATFORMS='cpu')
  done = subprocess.run([sys.executable, __file__], check=True, env=environment, cwd=ROOT,
                        stdout=subprocess.PIPE, text=True)
  distances = json.loads(done.stdout)
  assert distances.keys() == {*MESHES, 'splash'}
  assert max(distances.values()) < 2e-5, distances


def test_microbatches_make_the_step_of_the_whole_batch():
  objective = _objective(dropout_rate=0.0)
  whole, metrics = _steps(objective)
  parts, of_parts = _steps(objective, microbatches=4)
  assert _distance(parts[-1].params, whole[-1].params) < 1e-3  # Adam divides by small gradients
  assert of_parts.keys() == metrics.keys()
  for name, value in metrics.items():
    np.testing.assert_allclose(of_parts[name], value, rtol=1e-4, err_msg=name)


def test_microbatches_draw_their_own_dropout():
  step = lambda **options: _steps(_objective(), count=1, **options)[1]['loss']
  assert abs(step(microbatches=2) - step()) > 1e-4


@dataclasses.dataclass(frozen=True)
class DrawingObjective(language_model.LanguageModelObjective):
  """Tells what it draws from the key as it is given."""

  def loss_fn(self, params, model_state, batch, rng, step):
    loss, (model_state, metrics) = super().loss_fn(params, model_state, batch, rng, step)
    return loss, (model_state, metrics | {'drawn': jax.random.uniform(rng)})


@pytest.mark.parametrize('microbatches', [1, 2])
def test_every_step_draws_from_a_key_of_its_own(microbatches):
  objective = DrawingObjective(CONFIG, LAYOUT, 'semantic', 2.0)
  drawn = [_steps(objective, count, microbatches)[1]['drawn'] for count in (1, 2, 3)]
  assert len(set(map(float, drawn))) == 3


def test_average_follows_the_parameters():
  states, _ = _steps(_objective(), average_decay=0.15)
  expected = jax.device_get(_started(_objective(), (-1, 1, 1))[2].params)
  for number, state in enumerate(states):
    decay = min(0.15, (1 + number) / (10 + number))  # 1/10, then 0.15
    expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, expected, state.params)
    assert _distance(state.average, expected) < 1e-5
  assert states[-1].trained is states[-1].average
  assert _distance(states[-1].average, states[-1].params) > 1e-4


def test_a_loss_across_examples_is_not_cut_up():
  objective = _objective()
  train_step.check_microbatches(objective, 4)
  with pytest.raises(errors.UserError, match='microbatches is 0, wanted at least 1'):
    train_step.check_microbatches(objective, 0)

  class Contrastive:
    model_name = 'mulan'

  with pytest.raises(errors.UserError, match='microbatches is 2, wanted 1 with mulan'):
    train_step.check_microbatches(Contrastive(), 2)


def main():
  wanted = _loss_and_gradients((1, 1, 1), jax.devices()[:1])
  assert jnp.isfinite(wanted[0])
  distances = {name: _distance(_loss_and_gradients(shape), wanted) for name, shape in MESHES.items()}
  rotary = {'position': 'rotary', 'dropout_rate': 0.0}
  distances['splash'] = _distance(
      _loss_and_gradients(MESHES['all'], attention='splash', **rotary),
      _loss_and_gradients((1, 1, 1), jax.devices()[:1], **rotary))
  print(json.dumps(distances))


if __name__ == '__main__':
  main()
