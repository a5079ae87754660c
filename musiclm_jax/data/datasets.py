"""L2. A seqio task as batches of numpy arrays, with a position that can be saved and restored.

A position is tf.data's own checkpoint of the iterator, one for each host: the places in the files
and everything that was read and not yet given out, above all the shuffle buffer.  A resumed run
sees exactly what the undisturbed one would have seen, however far it was, and saving takes as long
at the end of a run as at its start.  What follows from that:

  - It is as large as the shuffle buffers, two batches and a few records: 1 to 10 MB of tokens, 30 to
    120 MB of waveforms.  What reads ahead in files would be saved as well: tasks/sources.py does not.
  - It fits the same dataset, seed, batch size, shard and TensorFlow version only.  On other hosts a
    run goes on in a new order (training_checkpoints.py).
  - Every step must be a tf.data graph: py_function, from_generator and stateful random draws are
    errors when the position is saved.
  - It is written to a local or mounted directory, or to gs:// by TensorFlow itself.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax import errors


@dataclasses.dataclass(frozen=True)
class SeqioDataset:
  """Batches of a task's or mixture's split, repeated without end unless `num_epochs` is given.

  With `shuffle` (training) order and crops follow the iterator's seed. Without it (evaluation)
  records come in file order and every iterator gives the same crops, whatever its seed.
  A mixture takes examples of its tasks by their rates, each repeated for itself; with `num_epochs`
  it ends with the first task that ends.  With `cache_dir` the records are what seqio_cache_tasks
  wrote there of this very task (tasks/registered.py); random crops are taken when reading.
  """

  task: seqio.Task | seqio.Mixture
  feature_converter: seqio.FeatureConverter
  split: str = 'train'
  shuffle: bool = True
  sequence_length: Mapping[str, int] | None = None  # None: the lengths the task itself gives
  num_epochs: int | None = None
  num_threads: int = 2  # of the pipeline: training needs the other cores
  prefetch: int = 1  # batches made ahead, while the one before is copied to the devices
  cache_dir: str | None = None

  def iterator(self, batch_size: int, seed: int = 0, shard_index: int = 0,
               num_shards: int = 1) -> 'SeqioIterator':
    """Returns batches of `batch_size` examples, this shard's part of the records only."""
    for task in self._tasks:
      if self.split not in task.splits:
        raise errors.UserError(f'{_folders(task)}: task {task.name} has no split {self.split!r}, '
                               f'only {sorted(task.splits)}')
    if self.cache_dir is not None:
      self._use_cache(self.cache_dir)
    self._check_not_empty(seqio.ShardInfo(shard_index, num_shards))
    lengths = self.sequence_length or self._task_lengths()
    return SeqioIterator(
        lambda: iter(self._batches(batch_size, seed, shard_index, num_shards, lengths)))

  @property
  def _tasks(self) -> list[seqio.Task]:
    return self.task.tasks if isinstance(self.task, seqio.Mixture) else [self.task]

  @functools.cached_property
  def _not_empty(self) -> set[seqio.ShardInfo]:
    """The shards that were found to hold examples."""
    return set()

  def _batches(self, batch_size, seed, shard_index, num_shards, lengths) -> tf.data.Dataset:
    dataset = self._examples(
        self.task, sequence_length=lengths, shuffle=self.shuffle,
        seed=seed if self.shuffle else 0, shard_info=seqio.ShardInfo(shard_index, num_shards),
        num_epochs=self.num_epochs)
    dataset = self.feature_converter(dataset, lengths)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(self.prefetch)
    return dataset.with_options(self._options())

  def _examples(self, task: seqio.Task | seqio.Mixture, **options) -> tf.data.Dataset:
    if isinstance(task, seqio.Mixture):
      options['log_mixing_proportions'] = False  # it would read records to do so
    return task.get_dataset(
        split=self.split, use_cached=self.cache_dir is not None,
        try_in_mem_cache=False, **options)  # a cache in memory would be saved with every position

  def _task_lengths(self) -> dict[str, int]:
    spec = self._examples(self.task, shuffle=False).element_spec
    return {name: spec[name].shape[0] for name in self.task.output_features}

  def _use_cache(self, cache_dir: str) -> None:
    """Lets seqio find the tasks' records there, or raises an error when one is missing."""
    seqio.add_global_cache_dirs([cache_dir])
    for task in self._tasks:
      if not task.supports_caching:
        raise errors.UserError(f'task {task.name} cannot be cached')
      folder = os.path.join(cache_dir, seqio.get_task_dir_from_name(task.name))
      if not tf.io.gfile.exists(os.path.join(folder, 'COMPLETED')):
        raise errors.UserError(f'{cache_dir} has no complete {task.name}, the name of the task over '
                               'these records; seqio_cache_tasks writes it')

  def _check_not_empty(self, shard: seqio.ShardInfo) -> None:
    """Raises an error when a task has no example in a shard: repeating none would never end."""
    if shard in self._not_empty:
      return
    for task in self._tasks:
      once = self._examples(task, shuffle=False, seed=0, shard_info=shard, num_epochs=1)
      try:
        found = next(iter(once.with_options(self._options())), None)
      except tf.errors.OpError as error:
        raise _unreadable(error) from error
      if found is None:
        wanted = [step.wanted for step in task.preprocessors if hasattr(step, 'wanted')]
        part = f' in part {shard.index + 1} of {shard.num_shards}' if shard.num_shards > 1 else ''
        raise errors.UserError(
            f'{_folders(task)}: no record of split {self.split!r}{part} can be used, wanted records'
            f' with {" and ".join(wanted) or "anything in them"}')
    self._not_empty.add(shard)

  def _options(self) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = self.num_threads
    options.threading.max_intra_op_parallelism = 1
    options.autotune.cpu_budget = self.num_threads
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
      raise _unreadable(error) from error

  def save(self, path) -> None:
    """Writes PATH.index and PATH.data-*: what the file's docstring says."""
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


def _folders(task: seqio.Task) -> str:
  """Returns the directories of the records of a task, 'data/a, data/b'."""
  paths = [path for split in task.splits for path in task.source.list_shards(split)]
  return ', '.join(sorted({os.path.dirname(path) for path in paths}))


def _unreadable(error: tf.errors.OpError) -> errors.UserError:
  return errors.UserError(f'the records cannot be read: {str(error).splitlines()[0]}')
