"""L5. How fast the train step of a run is on this machine.

Seconds are measured; FLOPs are counted from the program (program_costs.py).
"""

import dataclasses
import statistics
import time
from typing import Any

import jax

from musiclm_jax import partitioning, program_costs, train_state, train_step
from musiclm_jax.benchmarks import devices, kernel_times, random_values
from musiclm_jax.objectives import base


@dataclasses.dataclass(frozen=True)
class TrainSpeed:
  """seconds: of a step, the mean of each repeat's steps; tokens: ids a step, None without ids.

  model_flops: three times the forward pass; program_flops: with what the backward pass computes
  again.  Both of a step, of all devices.
  """

  model: str
  device: devices.Device
  mesh: dict[str, int]
  batch_size: int
  tokens: int | None
  num_params: int
  steps: int
  seconds: list[float]
  compile_seconds: float
  model_flops: int
  program_flops: int
  loss: float
  kernels: kernel_times.KernelTimes | None = None

  @property
  def step_seconds(self) -> float:
    return statistics.median(self.seconds)

  @property
  def mfu(self) -> float | None:
    """Returns the model's FLOP/s over the devices' bf16 peak, None where that is not known."""
    if self.device.flops is None:
      return None
    return self.model_flops / self.step_seconds / self.device.count / self.device.flops

  def as_json(self) -> dict[str, Any]:
    per_second = {
        'examples_per_second': self.batch_size / self.step_seconds,
        'tokens_per_second': self.tokens and self.tokens / self.step_seconds,
        'flops_per_second': self.model_flops / self.step_seconds}
    return dataclasses.asdict(self) | {
        'step_seconds': self.step_seconds, 'mfu': self.mfu,
        'kernels': self.kernels and self.kernels.as_json()} | per_second

  def describe(self) -> str:
    """Returns the figures as lines of text."""
    found = self.as_json()
    tokens = f', {found["tokens_per_second"]:,.0f} tokens/s' if self.tokens else ''
    used = ("MFU not given: the device's peak is not known" if self.mfu is None
            else f'MFU {100 * self.mfu:.1f}% of the bf16 peak')
    return '\n'.join([
        f'{self.model}: {self.num_params:,} parameters, batch {self.batch_size}, on '
        f'{self.device.count} x {self.device.kind}, mesh {self.mesh}; '
        f'compiled in {self.compile_seconds:.1f} s',
        f'milliseconds a step, median (least to most) of {len(self.seconds)} x {self.steps} steps: '
        f'{devices.spread(self.seconds, 1000)}',
        f'{found["examples_per_second"]:,.2f} examples/s{tokens}; loss at the end {self.loss:.3f}',
        f'FLOPs a step: model {self.model_flops:.3e}, program {self.program_flops:.3e}; '
        f'{found["flops_per_second"]:.3e} FLOP/s of the model; {used}',
        *([self.kernels.describe()] if self.kernels else []),
    ])


def measure(
    *, objective: base.Objective, optimizer: Any, batch_size: int,
    mesh_shape: tuple[int, int, int] = (-1, 1, 1), microbatches: int = 1,
    average_decay: float | None = None, steps: int = 10, repeats: int = 5,
    kernels: bool = False,
) -> TrainSpeed:
  """Returns how fast the step of train.train is, always on the same batch of random values.

  kernels: profiles three steps more.
  """
  mesh = partitioning.make_mesh(mesh_shape)
  partitioning.check_batch_size(batch_size, mesh, microbatches)
  wanted = train_state.shapes(
      objective, optimizer, batch_size, mesh, averages=average_decay is not None)
  state = train_state.create(objective, optimizer, batch_size, 0, wanted)
  rows = batch_size // partitioning.host_shard(mesh)[1]
  batch = partitioning.global_batch(random_values.batch(objective, rows), batch_size, mesh)
  with partitioning.activate(mesh):
    start = time.perf_counter()
    traced = train_step.make_train_step(
        objective, optimizer, wanted, microbatches, average_decay).trace(state, batch)
    step = traced.lower().compile()
    compile_seconds = time.perf_counter() - start
    model_flops = train_step.model_flops(objective, wanted, batch)
    metrics = None

    def run(count):
      nonlocal state, metrics
      for _ in range(count):
        state, metrics = step(state, batch)
      jax.block_until_ready((state, metrics))

    seconds = []
    for count in [1] + [steps] * repeats:  # the first warms up
      start = time.perf_counter()
      run(count)
      seconds.append((time.perf_counter() - start) / count)
    profile = kernel_times.measure(lambda: run(3), 3, 'step') if kernels else None
  stage = getattr(objective, 'stage_layout', None)
  return TrainSpeed(
      objective.model_name, devices.of(mesh), dict(mesh.shape), batch_size,
      batch_size * stage.sequence_length if stage else None, train_state.num_params(state), steps,
      seconds[1:], compile_seconds, model_flops,
      program_costs.flops(traced.jaxpr), float(metrics['loss']), profile)
