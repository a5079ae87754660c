"""Training checkpoints: state and position of one step, steps that are damaged, other shards."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import errors, training_checkpoints


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


class Counter:
  """A position in nothing but numbers."""

  is_owner = True

  def __init__(self, position=0, shard='shard_0_of_1'):
    self.position, self.shard = position, shard

  def save(self, folder):
    (folder / 'position').write_text(str(self.position))

  def restore(self, folder):
    self.position = int((folder / 'position').read_text())

  def start_anew(self, step):
    self.position = f'anew at {step}'


def state_at(step):
  return {
    'params': {'w': jnp.full((2, 3), float(step))},
    'model_state': {},
    'step': jnp.asarray(step),
  }


@pytest.fixture
def workdir(tmp_path):
  saved = training_checkpoints.TrainingCheckpoints(tmp_path, max_to_keep=3)
  for step in (1, 2, 3, 4):
    saved.save(step, state_at(step), Counter(10 * step))
  saved.close()
  return tmp_path


def restore(workdir, **shard):
  saved, counter = training_checkpoints.TrainingCheckpoints(workdir), Counter(**shard)
  wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(0)
  )
  try:
    return saved.restore(wanted, counter), counter.position
  finally:
    saved.close()


def steps(workdir):
  return sorted(
    int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()
  )


def test_the_last_step_is_restored_with_its_position(workdir):
  assert steps(workdir) == [2, 3, 4]
  state, position = restore(workdir)
  assert position == 40
  assert_same(state, jax.device_get(state_at(4)))


def test_position_is_taken_at_the_save(tmp_path):
  saved, counter = training_checkpoints.TrainingCheckpoints(tmp_path), Counter(5)
  saved.save(1, state_at(1), counter)
  counter.position = 6
  saved.close()
  assert restore(tmp_path)[1] == 5


def test_a_shard_without_position_starts_anew_and_says_so(workdir, caplog):
  state, position = restore(workdir, shard='shard_1_of_2')
  assert (int(state['step']), position) == (4, 'anew at 4')
  assert 'step 4 has data positions of shard_0_of_1, but host 0 of 1 reads shard_1_of_2' in caplog.text


def test_a_step_without_any_position_is_damaged(workdir):
  shutil.rmtree(workdir / 'checkpoints' / '4' / 'data' / 'shard_0_of_1')
  state, position = restore(workdir)
  assert (int(state['step']), position) == (3, 30)


def test_damaged_steps_are_walked_over_and_set_aside(workdir, caplog):
  (workdir / 'checkpoints' / '4' / 'state' / 'manifest.ocdbt').unlink()
  for path in (workdir / 'checkpoints' / '3' / 'data').rglob('position'):
    path.write_text('not a number')
  state, position = restore(workdir)
  assert (int(state['step']), position) == (2, 20)
  assert 'checkpoints/4 cannot be read' in caplog.text
  assert steps(workdir) == [2]
  assert sorted(path.name for path in (workdir / 'damaged').iterdir()) == ['3', '4']
  saved = training_checkpoints.TrainingCheckpoints(workdir)  # the step can be written again
  saved.save(4, state_at(4), Counter(40))
  saved.close()
  assert restore(workdir)[1] == 40


def test_all_steps_damaged_is_an_error_and_moves_nothing(workdir):
  for path in (workdir / 'checkpoints').rglob('manifest.ocdbt'):
    path.unlink()
  with pytest.raises(errors.UserError, match='no checkpoint in .* can be restored; step 4'):
    restore(workdir)
  assert steps(workdir) == [2, 3, 4]
  with pytest.raises(errors.UserError, match='no checkpoint in .* can be read'):
    training_checkpoints.read_variables(workdir)


def test_variables_are_read_without_the_rest(workdir):
  step, found = training_checkpoints.read_variables(workdir)
  assert step == 4 and list(found) == ['params']
  np.testing.assert_array_equal(found['params']['w'], np.full((2, 3), 4.0))
  assert training_checkpoints.read_variables(workdir, step=2)[0] == 2
  with pytest.raises(errors.UserError, match=r'has no step 1, only \[2, 3, 4\]'):
    training_checkpoints.read_variables(workdir, step=1)
  (workdir / 'checkpoints' / '4' / 'state' / 'manifest.ocdbt').unlink()
  assert training_checkpoints.read_variables(workdir)[0] == 3
