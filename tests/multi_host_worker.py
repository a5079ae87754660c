"""One process of tests/multi_host_test.py: `multi_host_worker.py PLAN OUTPUT` does a list of jobs.

PLAN is JSON, [{'job': name of a function here, **its arguments}, ...]; OUTPUT is a folder for what
the processes found.  Which process this is, the variables of multi_host.connect say.
"""

import dataclasses
import json
import logging
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np
from train_test import RegressionConfig, RegressionObjective

from musiclm_jax import (
    errors,
    multi_host,
    optimizers,
    partitioning,
    run_files,
    train,
    train_state,
    training_checkpoints,
)

BATCH_SIZE = 16
KERNEL = (8, 24)  # of the first layer: embed x mlp
OBJECTIVE = RegressionObjective(RegressionConfig(KERNEL[1]))
OPTIMIZER = optimizers.adamw(optimizers.inverse_sqrt(0.01, 2))


class Rows:
  """This shard's rows of batches that are the same for any number of shards."""

  def __init__(self, batch_size, seed, shard_index, num_shards, stop_at, how):
    self.rows = slice(shard_index * batch_size, (shard_index + 1) * batch_size)
    self.seed, self.total = seed, batch_size * num_shards
    self.stop_at, self.how = stop_at, how
    self.position = 0

  def __next__(self):
    self.position += 1
    if self.position == self.stop_at:
      if self.how == 'error':
        raise errors.UserError('these rows are bad')
      os.kill(os.getpid(), getattr(signal, self.how))
    if 0 < self.stop_at <= self.position:
      time.sleep(0.05)  # JAX looks for signals once a second
    random = np.random.default_rng([self.seed, self.position])
    return {'x': random.standard_normal((self.total, 8), np.float32)[self.rows]}

  def save(self, path):
    pathlib.Path(path).write_text(str(self.position), encoding='utf-8')

  def restore(self, path):
    self.position = int(pathlib.Path(path).read_text(encoding='utf-8'))


@dataclasses.dataclass(frozen=True)
class RowsDataset:
  stop_at: int = 0  # the position at which this process gets a signal, or raises an error
  how: str = ''

  def iterator(self, batch_size, seed, shard_index, num_shards):
    return Rows(batch_size, seed, shard_index, num_shards, self.stop_at, self.how)


class Nowhere:
  """A position that fits every step, and is nowhere."""

  shard, is_owner = 'nowhere', False

  def start_anew(self, step):
    pass


def run(output, name, workdir, steps, mesh, stop=None, evaluate=False, **changes):
  """Trains; writes the state afterwards as NAME.npz.  `stop`: [process, position, signal or 'error']."""
  if evaluate:
    changes |= {'eval_dataset': RowsDataset(), 'eval_every': 2, 'eval_batches': 2}
  process, position, how = stop or (-1, 0, '')
  dataset = RowsDataset(position, how) if process == jax.process_index() else RowsDataset()
  state = train.train(**({
      'workdir': workdir, 'objective': OBJECTIVE, 'dataset': dataset, 'optimizer': OPTIMIZER,
      'total_steps': steps, 'batch_size': BATCH_SIZE, 'mesh_shape': tuple(mesh), 'log_every': 1,
      'checkpoint_every': 2, 'eval_every': 1000,
  } | changes))  # fmt: skip
  _check_shards(state, train_state.shapes(OBJECTIVE, OPTIMIZER, BATCH_SIZE, _mesh(mesh)))
  _write(output, name, state)


def run_apart(output, workdir):
  """Tries a run whose hosts have a WORKDIR each."""
  run_files._PATIENCE_SECONDS = 0.0
  try:
    run(output, 'apart', f'{workdir}_{jax.process_index()}', 2, (1, 8, 1))
  except errors.UserError as error:
    print(f'refused: {error}', file=sys.stderr)


def create(output, mesh):
  """Makes the state of a run: no device ever holds a whole kernel.  Then with other weights."""
  wanted = train_state.shapes(OBJECTIVE, OPTIMIZER, BATCH_SIZE, _mesh(mesh))
  state = train_state.create(OBJECTIVE, OPTIMIZER, BATCH_SIZE, 0, wanted)
  _check_shards(state, wanted)

  params, model_state = partitioning.to_host((state.params, state.model_state))
  twice = jax.tree.map(lambda leaf: 2 * leaf, params)
  variables = jax.tree.map(jax.numpy.asarray, {'params': twice, **model_state})
  state = train_state.with_variables(state, variables, '', OPTIMIZER, 'here')
  del params, variables
  _check_shards(state, wanted)
  jax.tree.map(np.testing.assert_array_equal, partitioning.to_host(state.params), twice)


def restore(output, name, workdir, mesh):
  """Reads the last state of a run onto a mesh; writes it as NAME.npz."""
  wanted = train_state.shapes(OBJECTIVE, OPTIMIZER, BATCH_SIZE, _mesh(mesh))
  saved = training_checkpoints.TrainingCheckpoints(workdir)
  state = saved.restore(wanted, Nowhere())
  saved.close()
  _check_shards(state, wanted)
  _write(output, name, state)


def scattered_rows(output):
  """A host's devices need not be neighbours in the mesh, as on a TPU slice: its rows neither."""
  order = [0, 4, 1, 5, 2, 6, 3, 7]
  mesh = partitioning.make_mesh((2, 4, 1), [jax.devices()[n] for n in order])
  index, num_shards = partitioning.host_shard(mesh)
  assert (index, num_shards) == (jax.process_index(), 2)
  x = np.arange(8) + 8 * index
  batch = partitioning.global_batch({'x': x}, 16, mesh)['x']
  assert batch.sharding == partitioning.batch_sharding(mesh)
  found = partitioning.to_host(batch)
  assert sorted(found) == list(range(16)), found
  for part, device in enumerate(order):
    assert (found[2 * part : 2 * part + 2] // 8 == device // 4).all(), found
  whole = partitioning.to_host({'local': jax.numpy.arange(3), 'number': np.ones(2)})
  assert whole['local'].shape == (3,) and whole['number'].shape == (2,)


def _mesh(shape):
  return partitioning.make_mesh(tuple(shape))


def _check_shards(state, wanted):
  """Every device holds its part only; kernels and their moments are in parts."""
  kernels = 0
  for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
    assert leaf.sharding == like.sharding, (leaf.sharding, like.sharding)
    shards = [shard.data.shape for shard in leaf.addressable_shards]
    assert set(shards) == {like.sharding.shard_shape(leaf.shape)}, (leaf.shape, shards)
    assert len(shards) == jax.local_device_count()
    kernels += leaf.shape == KERNEL
  assert kernels == 3  # the parameter and both of its moments
  for array in jax.live_arrays():
    assert all(shard.data.shape != KERNEL for shard in array.addressable_shards)


def _write(output, name, state):
  leaves = jax.tree.leaves(partitioning.to_host(state))
  if jax.process_index() == 0:
    np.savez(output / f'{name}.npz', *leaves)


def main(plan, output):
  opened = set()  # for writing, by Python code
  sys.addaudithook(lambda event, args: event == 'open' and isinstance(args[1], str)
                   and set(args[1]) & set('wax+') and opened.add(str(args[0])))
  logging.basicConfig(format='%(message)s', level=logging.WARNING)
  logging.getLogger('musiclm_jax').setLevel(logging.INFO)
  with multi_host.joined():
    for job in json.loads(plan):
      globals()[job.pop('job')](output, **job)
  (output / f'opened_{jax.process_index()}.json').write_text(json.dumps(sorted(opened)))


if __name__ == '__main__':
  main(sys.argv[1], pathlib.Path(sys.argv[2]))
