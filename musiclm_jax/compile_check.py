"""L5. A run's train step through the real TPU compiler, on a machine without a TPU.

What it costs each chip: memory as the compiler lays it out; FLOPs counted from the program
(program_costs.py), not the compiler's count, which takes a scan's body once; bytes of collectives
from the compiled text.  Times are bounds from these and the chip's peaks, not measurements.
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax
from jax.experimental import topologies

from musiclm_jax import errors, partitioning, program_costs, tpu_chips, train_state, train_step


class OutOfMemory(errors.UserError):
  """The compiler found no layout that fits a chip's memory."""


@dataclasses.dataclass(frozen=True)
class Report:
  """Of one training step; bytes are per chip, FLOPs of all chips.

  hbm: {'parameters', 'optimizer', 'activations', 'program', 'total'}; activations are all that lives
    within the step. model_flops: three times the forward pass; program_flops: with what the backward
    pass computes again. collectives: {kind: (how many, bytes a chip sends)}. seconds:
    {'compute', 'memory', 'network'}: lower bounds of a step, each as if the others took no time.
  """

  topology: str
  num_chips: int
  mesh: dict[str, int]
  batch_size: int
  num_params: int
  hbm: dict[str, int]
  hbm_limit: int
  model_flops: int
  program_flops: int
  collectives: dict[str, program_costs.Collectives]
  seconds: dict[str, float]
  compile_seconds: float

  @property
  def mfu_bound(self) -> float:
    """Returns the largest model FLOPs utilisation that the bounds allow, when all overlaps."""
    chip = tpu_chips.parse(self.topology)
    return self.model_flops / self.num_chips / chip.flops / max(self.seconds.values())

  def describe(self) -> str:
    """Returns the report as lines of text."""
    hbm = ', '.join(f'{name} {size / 2**30:.2f}' for name, size in self.hbm.items())
    moved = ', '.join(f'{kind} {each.sent / 2**20:,.0f} MiB in {each.count}'
                      for kind, each in sorted(self.collectives.items())) or 'none'
    times = ', '.join(f'{name} {1e3 * each:.1f} ms' for name, each in self.seconds.items())
    return '\n'.join([
        f'{self.topology}: {self.num_chips} chips, mesh {self.mesh}, batch {self.batch_size}, '
        f'{self.num_params:,} parameters; compiled in {self.compile_seconds:.0f} s',
        f'HBM per chip, GiB: {hbm}, of {self.hbm_limit / 2**30:.0f}',
        f'FLOPs per step: model {self.model_flops:.3e}, program {self.program_flops:.3e} '
        f'({self.program_flops / self.model_flops:.2f} times the model)',
        f'collectives, sent by a chip per step: {moved}',
        f'at least, per step: {times}; model FLOPs utilisation at most {100 * self.mfu_bound:.0f}%',
    ])


def devices(topology: str) -> list[Any]:
  """Returns the chips of 'v5e:16x16' as devices to compile for; needs libtpu."""
  chip = tpu_chips.parse(topology)
  options = {'chip_config_name': 'megacore'} if chip.name == 'v4' else {}  # two cores, one device
  try:
    return list(topologies.get_topology_desc(
        platform='tpu', topology_name=topology, **options).devices)
  except Exception as error:  # of several types: no libtpu, or a shape that this chip has not
    raise errors.UserError(
        f'topology {topology!r}: {str(error).splitlines()[0]} (the TPU compiler comes by '
        "pip install 'musiclm-jax[tpu_compile]')") from error


def check_train_step(
    *, objective: Any, optimizer: Any, batch_size: int, mesh_shape: tuple[int, int, int],
    topology: str,
) -> Report:
  """Returns what a step of a run costs on a topology; raises OutOfMemory when it does not fit."""
  mesh = partitioning.make_mesh(mesh_shape, devices(topology))
  partitioning.check_batch_size(batch_size, mesh)
  wanted = train_state.shapes(objective, optimizer, batch_size, mesh)
  sharding = partitioning.batch_sharding(mesh)
  batch = {name: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding)
           for name, each in objective.input_shapes(batch_size).items()}
  start = time.monotonic()
  with partitioning.activate(mesh):
    traced = train_step.make_train_step(objective, optimizer, wanted).trace(wanted, batch)
    compiled = _compile(traced, topology)
    forward = jax.make_jaxpr(
        lambda params, state, batch: objective.loss_fn(params, state, batch, jax.random.key(0), 0)
    )(wanted.params, wanted.model_state, batch)
  model_flops, program_flops = 3 * program_costs.flops(forward), program_costs.flops(traced.jaxpr)
  collectives = program_costs.collectives(compiled.as_text())
  chip, num_chips, memory = tpu_chips.parse(topology), mesh.size, compiled.memory_analysis()
  hbm = {
      'parameters': _bytes(wanted.params), 'optimizer': _bytes(wanted.opt_state),
      'activations': memory.temp_size_in_bytes, 'program': memory.generated_code_size_in_bytes,
      'total': (memory.argument_size_in_bytes + memory.output_size_in_bytes
                - memory.alias_size_in_bytes + memory.temp_size_in_bytes
                + memory.generated_code_size_in_bytes),
  }
  state = memory.argument_size_in_bytes + memory.output_size_in_bytes
  seconds = {
      'compute': program_flops / num_chips / chip.flops,
      # The state is read and written once, what lives within the step written and read.
      'memory': (state + 2 * memory.temp_size_in_bytes) / chip.hbm_bandwidth,
      'network': sum(each.sent for each in collectives.values()) / chip.ici_bandwidth,
  }
  return Report(
      topology, num_chips, dict(mesh.shape), batch_size, train_state.num_params(wanted), hbm,
      int(chip.hbm), model_flops, program_flops, collectives, seconds, time.monotonic() - start)


def _compile(traced: Any, topology: str):
  try:
    return traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    text = str(error)
    if 'RESOURCE_EXHAUSTED' not in text:
      raise
    # 'Used 52.5G of 15.75G hbm', or '.. temporaries (52.5G) exceeds available HBM (15.75G)'.
    sizes = (re.search(r'Used ([\d.]+)G of ([\d.]+)G hbm', text)
             or re.search(r'\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)', text))
    what = text.splitlines()[0]
    if sizes:
      needed, there = float(sizes[1]), float(sizes[2])
      what = f'needs {needed:.2f} GiB of {there:.2f} GiB a chip, {needed - there:.2f} GiB too much'
    raise OutOfMemory(f'{topology}: out of memory: {what}') from error


def _bytes(tree: Any) -> int:
  """Returns the bytes of one chip's part of a tree of shapes with shardings."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
             for leaf in jax.tree.leaves(tree))
