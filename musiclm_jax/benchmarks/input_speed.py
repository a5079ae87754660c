"""L5. How fast a run's input pipeline is by itself, beside what its train step takes."""

import dataclasses
import pathlib
import statistics
import tempfile
import time
from typing import Any

from musiclm_jax.benchmarks import devices, train_speed
from musiclm_jax.objectives import base

_WARM_UP = 3  # batches, more than a pipeline makes ahead


@dataclasses.dataclass(frozen=True)
class InputSpeed:
  """seconds: of a batch, the mean of each repeat's batches; first_seconds: until the first one.

  position_bytes and save_seconds: of the position in the data, as in a checkpoint.  step: the train
  step of the run on this machine, None when not measured.
  """

  batch_size: int
  batches: int
  seconds: list[float]
  first_seconds: float
  batch_bytes: int
  position_bytes: int
  save_seconds: float
  step: train_speed.TrainSpeed | None = None

  @property
  def batch_seconds(self) -> float:
    return statistics.median(self.seconds)

  @property
  def ratio(self) -> float | None:
    """Returns how many times what the step takes the pipeline gives, None without a step."""
    return None if self.step is None else self.step.step_seconds / self.batch_seconds

  def as_json(self) -> dict[str, Any]:
    found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return found | {
        'examples_per_second': self.batch_size / self.batch_seconds,
        'batches_per_second': 1 / self.batch_seconds, 'ratio': self.ratio,
        'step': self.step and self.step.as_json()}

  def describe(self) -> str:
    """Returns the figures as lines of text."""
    found = self.as_json()
    lines = [
        f'input: batches of {self.batch_size}, {self.batch_bytes / 1e6:.2f} MB; the first after '
        f'{self.first_seconds:.2f} s',
        f'milliseconds a batch, median (least to most) of {len(self.seconds)} x {self.batches} '
        f'batches: {devices.spread(self.seconds, 1000)}',
        f'{found["examples_per_second"]:,.1f} examples/s, {found["batches_per_second"]:,.2f} batches/s;'
        f' position in the data {self.position_bytes / 1e6:.1f} MB, written in '
        f'{self.save_seconds:.2f} s']
    if self.step:
      lines += [self.step.describe(),
                f'the pipeline alone gives {self.ratio:,.1f} times what the train step takes']
    return '\n'.join(lines)


def measure(dataset: base.Dataset, batch_size: int, batches: int = 20, repeats: int = 5,
            seed: int = 0, step: train_speed.TrainSpeed | None = None) -> InputSpeed:
  """Returns how fast `dataset` gives batches of one host to a reader that only reads.

  `step` is what train_speed measured of the run, in the same process or elsewhere.
  """
  start = time.perf_counter()
  iterator = dataset.iterator(batch_size, seed, 0, 1)
  batch = next(iterator)
  first_seconds = time.perf_counter() - start
  seconds = []
  for count in [_WARM_UP] + [batches] * repeats:
    start = time.perf_counter()
    for _ in range(count):
      next(iterator)
    seconds.append((time.perf_counter() - start) / count)
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    iterator.save(pathlib.Path(folder) / 'position')
    save_seconds = time.perf_counter() - start
    position = sum(path.stat().st_size for path in pathlib.Path(folder).rglob('*'))
  return InputSpeed(
      batch_size, batches, seconds[1:], first_seconds, sum(each.nbytes for each in batch.values()),
      position, save_seconds, step)
