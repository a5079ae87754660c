"""L2. A seqio task as batches of numpy arrays, with a position that can be saved and restored."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax import errors


@dataclasses.dataclass(frozen=True)
class SeqioDataset:
  """Batches of a task's split, repeated without end unless `num_epochs` is given.

  With `shuffle` (training) order and crops follow the iterator's seed. Without it (evaluation)
  records come in file order and every iterator gives the same crops, whatever its seed.
  """

  task: seqio.Task
  feature_converter: seqio.FeatureConverter
  split: str = 'train'
  shuffle: bool = True
  sequence_length: Mapping[str, int] | None = None  # None: the lengths the task itself gives
  num_epochs: int | None = None
  num_threads: int = 2  # of the pipeline: training needs the other cores
  prefetch: int = 2  # batches made ahead

  def iterator(self, batch_size: int, seed: int = 0, shard_index: int = 0,
               num_shards: int = 1) -> 'SeqioIterator':
    """Returns batches of `batch_size` examples, this shard's part of the records only."""
    if self.split not in self.task.splits:
      raise errors.UserError(f'task {self.task.name} has no split {self.split!r}, '
                             f'only {sorted(self.task.splits)}')
    lengths = self.sequence_length or self._task_lengths()
    return SeqioIterator(
        lambda: iter(self._batches(batch_size, seed, shard_index, num_shards, lengths)))

  def _batches(self, batch_size, seed, shard_index, num_shards, lengths) -> tf.data.Dataset:
    dataset = self.task.get_dataset(
        sequence_length=lengths, split=self.split, shuffle=self.shuffle,
        seed=seed if self.shuffle else 0, shard_info=seqio.ShardInfo(shard_index, num_shards),
        num_epochs=self.num_epochs, use_cached=False,
        try_in_mem_cache=False)  # a cache would be saved with every position
    dataset = self.feature_converter(dataset, lengths)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(self.prefetch)
    return dataset.with_options(self._options())

  def _task_lengths(self) -> dict[str, int]:
    dataset = self.task.get_dataset(sequence_length=None, split=self.split, shuffle=False,
                                    use_cached=False, try_in_mem_cache=False)
    spec = dataset.element_spec
    return {name: spec[name].shape[0] for name in self.task.output_features}

  def _options(self) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = self.num_threads
    options.threading.max_intra_op_parallelism = 1
    options.autotune.ram_budget = 512 * 2 ** 20
    # experimental_symbolic_checkpoint would make positions smaller, but in TensorFlow 2.21 it
    # crashes (segmentation fault) when an iterator is dropped.
    return options


class SeqioIterator:
  """Yields dicts of numpy arrays; `save` and `restore` move the exact position through a file."""

  def __init__(self, make_iterator: Callable[[], Iterator]):
    self._make_iterator = make_iterator
    self._iterator = make_iterator()

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    try:
      return {name: value.numpy() for name, value in next(self._iterator).items()}
    except tf.errors.OpError as error:  # a truncated shard, a record of other features
      raise errors.UserError(f'the records cannot be read: {str(error).splitlines()[0]}') from error

  def save(self, path) -> None:
    """Writes PATH.index and PATH.data-*: the shuffle buffer and what is read ahead, 50 to 150 MB."""
    tf.train.Checkpoint(iterator=self._iterator).write(os.fspath(path))

  def restore(self, path) -> None:
    """Moves to the position in `path`, saved by an iterator of the same dataset, seed and batch."""
    # A new iterator: one in use keeps the number of its epoch when the saved one had not begun.
    self._iterator = self._make_iterator()
    try:
      tf.train.Checkpoint(iterator=self._iterator).read(os.fspath(path)).assert_consumed()
    except (tf.errors.OpError, AssertionError, ValueError) as error:
      reason = str(error).splitlines()[0]
      raise errors.UserError(f'{path} holds no position of this dataset: {reason}') from error
