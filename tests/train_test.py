"""The loop on a small regression: exact resume, divergence, signals, sharding, evaluation, media.

Run as a script (`python tests/train_test.py WORKDIR`) it trains once and writes WORKDIR/out.npz:
the number of devices is fixed when JAX starts, so the eight-device run is a process of its own.
"""

import dataclasses
import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental.compilation_cache import compilation_cache

from musiclm_jax import errors, metric_writers, optimizers, train, training_checkpoints
from musiclm_jax.objectives import base

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class RegressionConfig:
  features: int = 16


class Regression(nn.Module):
  config: RegressionConfig

  @nn.compact
  def __call__(self, x, deterministic):
    def dense(features, axes):
      init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
      return nn.Dense(features, kernel_init=init)

    x = nn.relu(dense(self.config.features, ('embed', 'mlp'))(x))
    x = nn.with_logical_constraint(x, ('batch', 'mlp'))
    x = nn.Dropout(0.1, deterministic=deterministic)(x)
    return dense(1, ('mlp', None))(x)[:, 0]


@dataclasses.dataclass(frozen=True)
class RegressionObjective:
  """Learns the sum of eight numbers; model_state counts the steps; `bad_step` gives NaN."""

  config: RegressionConfig = RegressionConfig()
  bad_step: int = -1
  model_name = 'regression'

  def input_shapes(self, batch_size):
    return {'x': jax.ShapeDtypeStruct((batch_size, 8), jnp.float32)}

  def init(self, rng, batch):
    params = Regression(self.config).init(rng, batch['x'], True)['params']
    return params, {'counters': {'steps': jnp.zeros((), jnp.int32)}}

  def _loss(self, params, batch, deterministic, rngs=None):
    y = Regression(self.config).apply({'params': params}, batch['x'], deterministic, rngs=rngs)
    return jnp.mean((y - batch['x'].sum(-1)) ** 2)

  def loss_fn(self, params, model_state, batch, rng, step):
    loss = self._loss(params, batch, False, {'dropout': rng})
    loss = jnp.where(step + 1 == self.bad_step, jnp.nan, loss)
    return loss, ({'counters': {'steps': model_state['counters']['steps'] + 1}}, {'mse': loss})

  def eval_fn(self, params, model_state, batch):
    return {'mse': self._loss(params, batch, True)}

  def media_fn(self, params, model_state, batch):
    return {'tone': ('audio', 0.5 * jnp.sin(jnp.arange(4000.0))[None], 8000)}


class Batches:
  """Batches drawn from (seed, position); raises SIGTERM in its own process at `stop_at`."""

  def __init__(self, batch_size, seed, stop_at, length):
    self.batch_size, self.seed, self.stop_at, self.length = batch_size, seed, stop_at, length
    self.position = 0

  def __next__(self):
    self.position += 1
    if self.position == self.stop_at:
      os.kill(os.getpid(), signal.SIGTERM)
    if self.length is not None and self.position > self.length:
      raise StopIteration
    rng = np.random.default_rng([self.seed, self.position])
    return {'x': rng.standard_normal((self.batch_size, 8), np.float32), 'unused': np.zeros(1)}

  def save(self, path):
    pathlib.Path(path).write_text(str(self.position), encoding='utf-8')

  def restore(self, path):
    self.position = int(pathlib.Path(path).read_text(encoding='utf-8'))


@dataclasses.dataclass(frozen=True)
class RandomDataset:
  stop_at: int = 0
  length: int | None = None

  def iterator(self, batch_size, seed, shard_index, num_shards):
    assert (shard_index, num_shards) == (0, 1)
    return Batches(batch_size, seed, self.stop_at, self.length)


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Compiles each program once, whatever the number of runs."""
  folder = tmp_path_factory.mktemp('compiled')
  keep_programs(str(folder), 0.0)
  yield folder
  keep_programs(None, 1.0)  # JAX's defaults


def keep_programs(folder, min_seconds):
  jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', min_seconds)
  compilation_cache.reset_cache()


def run(workdir, total_steps, **changes):
  arguments = {
    'workdir': str(workdir),
    'objective': RegressionObjective(),
    'dataset': RandomDataset(),
    'optimizer': optimizers.adamw(optimizers.inverse_sqrt(0.01, 2)),
    'total_steps': total_steps,
    'batch_size': 8,
    'log_every': 1,
    'checkpoint_every': 2,
    'eval_every': 1000,
  }
  return train.train(**(arguments | changes))


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def metrics_of(workdir, prefix='train/'):
  lines = (workdir / 'metrics.csv').read_text().splitlines()
  assert lines[0] == 'step,name,value'
  return [line for line in lines[1:] if line.split(',')[1].startswith(prefix)]


def test_the_protocols_are_met():
  assert isinstance(RegressionObjective(), base.Objective)
  assert isinstance(RandomDataset(), base.Dataset)


def test_two_and_two_steps_are_four_bit_for_bit(tmp_path):
  whole = run(tmp_path / 'whole', 4)
  half = run(tmp_path / 'halves', 2)
  assert int(half.step) == 2 and int(half.model_state['counters']['steps']) == 2
  resumed = run(tmp_path / 'halves', 4)
  assert int(whole.step) == 4
  assert_same(whole, resumed)
  assert metrics_of(tmp_path / 'whole') == metrics_of(tmp_path / 'halves')
  assert len(metrics_of(tmp_path / 'whole')) == 4 * 5  # loss, mse, two norms, learning rate
  positions = [
    next((tmp_path / name / 'checkpoints' / '4').rglob('position')).read_text()
    for name in ('whole', 'halves')
  ]
  assert positions == ['4', '4']


def test_async_checkpoints_do_not_see_later_steps(tmp_path):
  """Donated buffers are written while training goes on: step 3 of 9 is a run of 3 steps."""
  long = {'checkpoint_every': 1, 'max_to_keep': None, 'log_every': 100}
  run(tmp_path / 'long', 9, **long)
  for step in range(4, 10):
    for path in (tmp_path / 'long' / 'checkpoints').glob(str(step)):
      path.rename(tmp_path / f'moved_{step}')
  assert_same(run(tmp_path / 'long', 3), run(tmp_path / 'short', 3))


def test_compiled_programs_are_kept_for_the_next_run(tmp_path, compiled):
  try:
    run(tmp_path / 'run', 1, compilation_cache=str(tmp_path / 'kept'))
    assert list((tmp_path / 'kept').iterdir())
  finally:
    keep_programs(str(compiled), 0.0)


def test_a_finished_run_does_nothing_more(tmp_path):
  first = run(tmp_path, 2)
  assert_same(first, run(tmp_path, 2))


def test_learning_happens_and_evaluation_sees_it(tmp_path):
  run(tmp_path, 60, log_every=20, checkpoint_every=100, eval_every=30, eval_dataset=RandomDataset(),
      eval_batches=2, optimizer=optimizers.adamw(0.02))  # fmt: skip
  found = metrics_of(tmp_path, 'eval/')
  assert [line.split(',')[:2] for line in found] == [['30', 'eval/mse'], ['60', 'eval/mse']]
  first, last = (float(line.split(',')[2]) for line in found)
  assert last < first < 8.0
  assert sorted({line.split(',')[0] for line in metrics_of(tmp_path)}) == ['20', '40', '60']
  events = b''.join(path.read_bytes() for path in (tmp_path / 'tensorboard').iterdir())
  for tag in (b'train/loss', b'eval/mse', b'tone/0', b'timing/steps_per_second'):
    assert tag in events


def test_the_average_is_saved_evaluated_and_exported(tmp_path):
  changes = {'average_decay': 0.5, 'eval_dataset': RandomDataset(), 'eval_batches': 1, 'eval_every': 4}
  state = run(tmp_path, 4, **changes)
  resumed = run(tmp_path / 'halves', 2, **changes)
  resumed = run(tmp_path / 'halves', 4, **changes)
  assert_same(state, resumed)
  assert_same(training_checkpoints.read_variables(tmp_path)[1]['params'], state.average)
  (line,) = metrics_of(tmp_path, 'eval/mse')
  objective, batch = RegressionObjective(), next(RandomDataset().iterator(8, 0, 0, 1))
  mse = lambda params: float(objective.eval_fn(params, state.model_state, batch)['mse'])
  np.testing.assert_allclose(float(line.split(',')[2]), mse(state.average), rtol=1e-5)
  assert abs(mse(state.average) - mse(state.params)) > 1e-4


@pytest.mark.parametrize('log_every', [1, 100])
def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path, log_every):
  with pytest.raises(
    train.TrainingDiverged, match='at step 5: loss nan.*last good checkpoint: step 4'
  ):
    run(
      tmp_path, 20, objective=RegressionObjective(bad_step=5), log_every=log_every, max_to_keep=None
    )
  steps = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
  assert steps == ['2', '4']


def test_divergence_before_any_checkpoint(tmp_path):
  with pytest.raises(train.TrainingDiverged, match='at step 1: .*last good checkpoint: none'):
    run(tmp_path, 20, objective=RegressionObjective(bad_step=1))


class CollapsingObjective(RegressionObjective):
  """Says that it has collapsed, from step 5 on."""

  def check_metrics(self, step, metrics):
    assert metrics.keys() >= {'loss', 'mse'}
    return f'loss {metrics["loss"]:.3f} is not what we want' if step >= 5 else None


def test_collapse_names_the_step_the_reason_and_the_last_checkpoint(tmp_path):
  with pytest.raises(train.TrainingCollapsed, match=(
      r'collapsed by step 5: loss \d+\.\d+ is not what we want; last checkpoint: step 4')):
    run(tmp_path, 20, objective=CollapsingObjective())
  assert metrics_of(tmp_path)[-1].startswith('5,')  # what it was like is on record


def test_sigterm_saves_and_the_run_goes_on(tmp_path, caplog):
  caplog.set_level('INFO', 'musiclm_jax')
  before = signal.getsignal(signal.SIGTERM)
  stopped = run(tmp_path / 'a', 6, dataset=RandomDataset(stop_at=3), checkpoint_every=100)
  assert int(stopped.step) == 3
  assert 'stopped at step 3 of 6' in caplog.text
  assert signal.getsignal(signal.SIGTERM) is before
  assert_same(run(tmp_path / 'a', 6), run(tmp_path / 'b', 6))


def test_another_model_in_the_workdir_is_named(tmp_path):
  run(tmp_path, 1)
  with pytest.raises(errors.UserError, match='config.features is 16 there and 32 here'):
    run(tmp_path, 2, objective=RegressionObjective(RegressionConfig(32)))


def test_another_optimizer_in_the_workdir_does_not_start_over(tmp_path):
  run(tmp_path, 1)
  with pytest.raises(errors.UserError, match='no checkpoint in .* can be restored; step 1'):
    run(tmp_path, 2, optimizer=optimizers.adafactor(0.01, momentum=0.9))


@dataclasses.dataclass(frozen=True)
class WrongDataset:
  batch: dict

  def iterator(self, batch_size, seed, shard_index, num_shards):
    return iter([self.batch])


@pytest.mark.parametrize('batch, wanted', [
    ({'y': np.zeros((8, 8), np.float32)}, "gives .'y'., the objective wants 'x'"),
    ({'x': np.zeros((8, 9), np.float32)}, r"gives 'x' as float32\[8, 9\].* wants float32\[8, 8\]"),
    ({'x': np.zeros((8, 8), np.int64)}, r"gives 'x' as int64\[8, 8\]"),
])  # fmt: skip
def test_batches_that_do_not_fit_are_named(tmp_path, batch, wanted):
  with pytest.raises(errors.UserError, match=wanted):
    run(tmp_path, 2, dataset=WrongDataset(batch))


def test_a_dataset_that_ends_is_named(tmp_path):
  with pytest.raises(errors.UserError, match='the dataset ended'):
    run(tmp_path, 5, dataset=RandomDataset(length=3))


class SlowObjective(RegressionObjective):
  """A step takes a large part of a second on the device."""

  def loss_fn(self, params, model_state, batch, rng, step):
    loss, rest = super().loss_fn(params, model_state, batch, rng, step)
    work = jax.lax.fori_loop(0, 60, lambda _, x: jnp.tanh(x @ x), jnp.full((512, 512), 1e-3))
    return loss + 0 * work.sum(), rest


def test_batches_are_read_while_steps_run(tmp_path):
  moments = []

  class Timed(Batches):
    def __next__(self):
      moments.append(time.perf_counter())
      return super().__next__()

  class TimedDataset:
    def iterator(self, batch_size, seed, shard_index, num_shards):
      return Timed(batch_size, seed, 0, None)

  run(tmp_path, 8, objective=SlowObjective(), dataset=TimedDataset(), log_every=100,
      checkpoint_every=100)
  waits = np.diff(moments)  # the first is that for the first step, which compiles
  assert min(waits[1:3]) < 0.5 * np.median(waits[3:])  # two steps ahead, then at their pace


def test_describe_counts_and_shows_the_batch(tmp_path):
  text = train.describe(
      workdir=str(tmp_path / 'new'), objective=RegressionObjective(), dataset=RandomDataset(),
      optimizer=optimizers.adamw(1e-3), total_steps=3, batch_size=4,
  )  # fmt: skip
  assert 'regression, 161 parameters' in text  # 8 x 16 + 16, 16 x 1 + 1
  assert 'x: float32[4, 8]' in text
  assert not (tmp_path / 'new').exists()


def test_eight_devices_train_as_one(tmp_path):
  reference = run(tmp_path / 'one', 4)
  environment = dict(
    os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=8', JAX_PLATFORMS='cpu'
  )
  command = [sys.executable, __file__, str(tmp_path / 'eight')]
  subprocess.run(command, check=True, env=environment, cwd=ROOT)
  found = np.load(tmp_path / 'eight' / 'out.npz')
  leaves = jax.tree.leaves(jax.device_get(reference))
  for n, leaf in enumerate(leaves):
    np.testing.assert_allclose(found[f'arr_{n}'], leaf, rtol=2e-5, atol=1e-6)
  # A checkpoint of eight devices goes on with one.
  assert int(run(tmp_path / 'eight', 5).step) == 5


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_rewrites_one_line_on_a_terminal_only():
  for stream, wanted in (
    (Terminal(), '\r\x1b[Kstep 2/4  loss 0.5'),
    (io.StringIO(), 'step 2/4  loss 0.5\n'),
  ):
    progress = metric_writers.ProgressLine(0, 4, stream)
    progress.report(2, 0.5)
    assert stream.getvalue() == wanted
    progress.report(3, 0.25)
    assert 'steps/s' in stream.getvalue() and 'left' in stream.getvalue()


@pytest.mark.parametrize('seconds, wanted', [(0, '0:00'), (61, '1:01'), (3661, '1:01:01')])
def test_time_left(seconds, wanted):
  assert metric_writers._clock(seconds) == wanted


def test_spectrogram_picture_shows_a_tone_at_its_height():
  time = np.arange(24_000) / 24_000
  picture = metric_writers.spectrogram_picture(np.sin(2 * np.pi * 3000 * time).astype(np.float32))
  assert picture.dtype == np.uint8 and picture.shape[0] == 513 and picture.shape[2] == 3
  brightest = picture.sum(axis=(1, 2), dtype=int).argmax()
  assert abs((512 - brightest) - 128) <= 1  # 3000 Hz is a quarter of 12 kHz
  assert metric_writers.spectrogram_picture(np.zeros(3)).shape[0] == 513  # short and silent


if __name__ == '__main__':
  final = run(sys.argv[1], 4, mesh_shape=(2, 2, 2))
  assert len(final.params['Dense_0']['kernel'].sharding.device_set) == 8
  shard = final.params['Dense_0']['kernel'].addressable_shards[0].data
  assert shard.shape == (4, 8)  # [8, 16] over fsdp 2 and model 2
  moments = jax.tree.leaves(final.opt_state)
  assert any(tuple(leaf.sharding.spec) == ('fsdp', 'model') for leaf in moments)
  np.savez(f'{sys.argv[1]}/out.npz', *jax.tree.leaves(jax.device_get(final)))
