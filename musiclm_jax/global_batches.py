"""L3. Global batches of the data that the hosts of a run read, each its own rows."""

import os
import time

import jax
import numpy as np
from etils import epath

from musiclm_jax import errors, partitioning


class GlobalBatches:
  """Global batches of a dataset, checked against what the objective eats.

  As a training_checkpoints.Position it is the iterator's own and the seed that the iterator had. A
  batch is read when it is asked for, so the position is always that of the batches given out.
  `count` and `seconds` say how many that were, and how long the loop was held up by them.
  """

  def __init__(self, dataset, objective, batch_size, seed, mesh):
    index, num_shards = partitioning.host_shard(mesh)
    rows = batch_size // num_shards
    self.shard = f'shard_{index}_of_{num_shards}_batch_{rows}'
    self.is_owner = jax.process_index() == partitioning.shard_owner(mesh)
    self._make_iterator = lambda seed: dataset.iterator(rows, seed, index, num_shards)
    self._wanted = objective.input_shapes(rows)
    self._batch_size, self._mesh = batch_size, mesh
    self._run_seed = seed
    self.count, self.seconds = 0, 0.0
    self._start(seed)

  def _start(self, seed: int) -> None:
    self._seed, self._iterator = seed, self._make_iterator(seed)

  def save(self, folder: epath.Path) -> None:
    (folder / 'seed').write_text(str(self._seed))
    self._iterator.save(os.fspath(folder / 'position'))

  def restore(self, folder: epath.Path) -> None:
    seed = int((folder / 'seed').read_text())
    if seed != self._seed:
      self._start(seed)
    self._iterator.restore(os.fspath(folder / 'position'))

  def start_anew(self, step: int) -> None:
    self._start(int(np.random.SeedSequence([self._run_seed, step]).generate_state(1)[0]) // 2)

  def next_host_batch(self) -> dict[str, np.ndarray]:
    """Returns this host's rows of the next batch."""
    try:
      batch = {name: np.asarray(array) for name, array in next(self._iterator).items()}
    except StopIteration:
      raise errors.UserError('the dataset ended: it has no full batch left') from None
    for name, wanted in self._wanted.items():
      if name not in batch:
        raise errors.UserError(f'the dataset gives {sorted(batch)}, the objective wants {name!r}')
      got = batch[name]
      if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise errors.UserError(
            f'the dataset gives {name!r} as {got.dtype}{list(got.shape)},'
            f' the objective wants {wanted.dtype}{list(wanted.shape)}'
        )
    return {name: batch[name] for name in self._wanted}

  def __next__(self) -> dict[str, jax.Array]:
    start = time.perf_counter()
    batch = partitioning.global_batch(self.next_host_batch(), self._batch_size, self._mesh)
    self.count, self.seconds = self.count + 1, self.seconds + time.perf_counter() - start
    return batch
