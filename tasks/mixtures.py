"""L5. Mixtures of tasks by rates: relative numbers of examples."""

import math
from collections.abc import Callable, Sequence

import seqio

from musiclm_jax import errors
from tasks import sources

# 'a';  ['a', 'b'], read as one;  or [('a', 3.0), ('b', 1.0)], three examples of a for each of b.
Directories = sources.Directories | Sequence[tuple[sources.Directories, float]]


class Mixture(seqio.Mixture):
  """A mixture whose tasks do not share a seed: they would bring the same recording at once."""

  def get_task_dataset(self, task, output_feature_keys, sequence_length=None, split='train',
                       use_cached=False, shuffle=True, seed=None, *rest):
    if seed is not None:
      seed += 1_000_003 * self.tasks.index(task)
    return super().get_task_dataset(
        task, output_feature_keys, sequence_length, split, use_cached, shuffle, seed, *rest)


def by_rate(
    name: str, directories: Directories, make_task: Callable[[list[str], float], seqio.Task]
) -> seqio.Task | Mixture:
  """Returns a task of all directories as one or, when they come with rates, a mixture of tasks.

  `make_task` takes directories and their share of the examples: 1.0 or, of 3.0 and 1.0, 0.75. A
  mixture is unregistered, as its tasks are.
  """
  parts = _parts(directories)
  if parts is None:
    return make_task(sources.as_list(directories), 1.0)
  for folders, rate in parts:
    if not 0 < rate < math.inf:
      raise errors.UserError(f'the rate of {", ".join(folders)} is {rate}, wanted above 0')
  total = sum(rate for _, rate in parts)
  tasks = [(make_task(folders, rate / total), rate) for folders, rate in parts]
  for (task, _), (folders, _) in zip(tasks, parts, strict=True):
    if [other.name for other, _ in tasks].count(task.name) > 1:
      raise errors.UserError(f'{", ".join(folders)} holds the records of another part of the mixture')
  return Mixture(name, tasks)


def flat(directories: Directories) -> list[str]:
  """Returns all directories, without their rates."""
  parts = _parts(directories)
  if parts is None:
    return sources.as_list(directories)
  return [folder for folders, _ in parts for folder in folders]


def _parts(directories: Directories) -> list[tuple[list[str], float]] | None:
  """Returns [(directories, rate), ..], or None when they have no rates."""
  if isinstance(directories, str) or not isinstance(directories, Sequence):
    return None
  mixed = [_is_rated(each) for each in directories]
  if not any(mixed):
    return None
  if not all(mixed):
    raise errors.UserError(f'{list(directories)}: wanted (directory, rate) for each, or no rates')
  return [(sources.as_list(folders), float(rate)) for folders, rate in directories]


def _is_rated(each) -> bool:
  return (isinstance(each, tuple | list) and len(each) == 2
          and isinstance(each[1], int | float))
