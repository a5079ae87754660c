"""L5. A run's train step, or decoding, through the real TPU compiler, on a machine without a TPU.

What it costs each chip: memory as the compiler lays it out; FLOPs counted from the program
(program_costs.py), not the compiler's count, which takes a scan's body once; bytes of collectives
from the compiled text.  Times are bounds from these and the chip's peaks, not measurements.
"""

import dataclasses
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import topologies

from musiclm_jax import (
    compile_reports,
    errors,
    partitioning,
    program_costs,
    sampling,
    tpu_chips,
    train_state,
    train_step,
)
from musiclm_jax.objectives import language_model

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40, 'P': 2**50}


class OutOfMemory(errors.UserError):
  """The compiler found no layout that fits a chip's memory.

  needed, limit: bytes a chip, None when the compiler does not tell; state: of the arguments in it.
  """

  def __init__(self, message: str, needed: float | None, limit: float | None, state: int):
    super().__init__(message)
    self.needed, self.limit, self.state = needed, limit, state


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
    topology: str, microbatches: int = 1, average_decay: float | None = None,
) -> compile_reports.TrainReport:
  """Returns what a step of a run costs on a topology; raises OutOfMemory when it does not fit."""
  mesh = partitioning.make_mesh(mesh_shape, devices(topology))
  partitioning.check_batch_size(batch_size, mesh, microbatches)
  wanted = train_state.shapes(
      objective, optimizer, batch_size, mesh, averages=average_decay is not None)
  sharding = partitioning.batch_sharding(mesh)
  batch = {name: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding)
           for name, each in objective.input_shapes(batch_size).items()}
  state = {'parameters': _bytes(wanted.params)}
  state['optimizer'] = _bytes(wanted) - state['parameters']
  start = time.monotonic()
  with partitioning.activate(mesh):
    traced = train_step.make_train_step(
        objective, optimizer, wanted, microbatches, average_decay).trace(wanted, batch)
    compiled, text = _compile(traced, f'{topology}, batch {batch_size}', state)
    model_flops = train_step.model_flops(objective, wanted, batch)
  program_flops = program_costs.flops(traced.jaxpr)
  collectives = program_costs.collectives(text)
  chip, memory = tpu_chips.parse(topology), compiled.memory_analysis()
  seconds = {
      'compute': program_flops / mesh.size / chip.flops,
      # The state is read and written once, what lives within the step written and read.
      'memory': (memory.argument_size_in_bytes + memory.output_size_in_bytes
                 + 2 * memory.temp_size_in_bytes) / chip.hbm_bandwidth,
      'network': sum(each.sent for each in collectives.values()) / chip.ici_bandwidth,
  }
  return compile_reports.TrainReport(
      topology, mesh.size, dict(mesh.shape), batch_size, microbatches, train_state.num_params(wanted),
      state | _hbm(memory), int(chip.hbm), model_flops, program_flops, collectives,
      program_costs.collectives(text, branch=max),
      _needed(objective, wanted.params, mesh, batch_size, microbatches), seconds,
      time.monotonic() - start)


def _needed(objective, params, mesh, batch_size: int, microbatches: int) -> dict[str, float]:
  """Returns {kind: bytes that a chip has to send}, as program_costs works it out."""
  shapes = objective.input_shapes(batch_size)
  boxed, _ = jax.eval_shape(objective.init, jax.random.key(0), shapes)

  def sharded(leaf, names):
    ways = {axis: mesh.shape[axis] if axis in jax.tree.leaves(tuple(leaf.sharding.spec)) else 1
            for axis in ('fsdp', 'model')}
    return program_costs.Sharded(leaf.size // ways['model'], ways['fsdp'], 'vocab' in names)

  leaves = [sharded(leaf, names) for leaf, names in zip(
      jax.tree.leaves(params), _axis_names(boxed), strict=True)]
  itemsize = min((jnp.dtype(name).itemsize for name in _dtypes(objective.config)), default=4)
  batch_shards = mesh.shape['data'] * mesh.shape['fsdp']
  needed = program_costs.needed_bytes(leaves, batch_shards, itemsize, microbatches)
  if isinstance(objective, language_model.LanguageModelObjective):
    c = objective.config
    elements = batch_size // batch_shards * objective.stage_layout.sequence_length * c.emb_dim
    needed['all-reduce'] += program_costs.needed_for_activations(
        elements, c.num_layers, mesh.shape['model'], itemsize, c.remat == 'full')
  return needed


def _axis_names(boxed: Any) -> list[tuple[str | None, ...]]:
  """Returns the logical axes of every parameter, in the order of the tree's leaves."""
  leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
  return [getattr(leaf, 'names', ()) for leaf in leaves]


def _dtypes(config: Any) -> list[str]:
  """Returns every `dtype` that a config, or one within it, computes in."""
  if not dataclasses.is_dataclass(config):
    return []
  values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
  own = [values['dtype']] if 'dtype' in values else []
  return own + [name for value in values.values() for name in _dtypes(value)]


def _hbm(memory: Any) -> dict[str, int]:
  return {
      'activations': memory.temp_size_in_bytes, 'program': memory.generated_code_size_in_bytes,
      'total': (memory.argument_size_in_bytes + memory.output_size_in_bytes
                - memory.alias_size_in_bytes + memory.temp_size_in_bytes
                + memory.generated_code_size_in_bytes),
  }


def _compile(traced: Any, what: str, state: Mapping[str, int]) -> tuple[Any, str]:
  """Returns (the compiled program of a chip whose arguments take the bytes of `state`, its text).

  The text is what the compiler writes to a file: compiled.as_text() fails on some programs.
  """
  with tempfile.TemporaryDirectory() as folder:
    try:
      compiled = traced.lower().compile(
          compiler_options={'xla_dump_to': folder, 'xla_dump_hlo_as_text': True})
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      raise out_of_memory(str(error), what, state) from error
    [path] = pathlib.Path(folder).glob('*.after_optimizations.txt')
    return compiled, path.read_text(encoding='utf-8')


def out_of_memory(message: str, what: str, state: Mapping[str, int]) -> OutOfMemory:
  """Returns the error for a compiler's message: by how much, and what takes it.

  'Used 17.05G of 15.75G hbm', or, when what lives within the program is too much by itself,
  '.. for HLO temporaries (2.63T) exceeds available HBM (15.75G)'.
  """
  size = r'([\d.]+)([KMGTP]?)'
  whole = re.search(rf'Used {size} of {size} hbm', message)
  within = re.search(rf'\({size}\) exceeds available HBM \({size}\)', message)
  held = sum(state.values())
  if not (found := whole or within):
    return OutOfMemory(f'{what}: out of memory: {message.splitlines()[0]}', None, None, held)
  needed, limit = float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]
  needed += 0 if whole else held
  parts = dict(state) | {'activations': needed - held}
  return OutOfMemory(
      f'{what}: out of memory: needs {needed / 2**30:.2f} GiB of {limit / 2**30:.2f} GiB a chip, '
      f'{(needed - limit) / 2**30:.2f} GiB too much ({compile_reports.gib(parts)})',
      needed, limit, held)


def _bytes(tree: Any) -> int:
  """Returns the bytes of one chip's part of a tree of shapes with shardings."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
             for leaf in jax.tree.leaves(tree))


# --- Decoding ---------------------------------------------------------------------------------


def check_decode(
    *, objective: Any, batch_size: int, mesh_shape: tuple[int, int, int], topology: str,
    dtype: str = 'bfloat16',
) -> compile_reports.DecodeReport:
  """Returns what drawing tokens of a stage costs, its parameters kept in `dtype`.

  The cache is as long as the stage's sequence: the last, largest and slowest of its growths.
  """
  if not isinstance(objective, language_model.LanguageModelObjective):
    raise errors.UserError(
        f'decoding: wanted a language model, the run trains {objective.model_name}')
  mesh, start = partitioning.make_mesh(mesh_shape, devices(topology)), time.monotonic()
  partitioning.check_batch_size(batch_size, mesh)
  stage, what = objective.stage_layout, f'{topology}, decoding batch {batch_size}'
  boxed, _ = jax.eval_shape(objective.init, jax.random.key(0), objective.input_shapes(batch_size))
  params = jax.tree.map(_shape, nn.unbox(boxed), partitioning.param_shardings(boxed, mesh))
  with partitioning.activate(mesh):
    static = sampling.static(objective.config, stage, objective.config.dtype)
    variables = _outputs(
        sampling.serve.trace(static, objective.config.scan_layers, dtype, params), what, {})
    state = {'parameters': _bytes(variables)}
    shapes = _decode_shapes(stage.sequence_length, batch_size, mesh)
    prefill = sampling.prefill.trace(
        static, variables, shapes['tokens'], shapes['moments'], shapes['number'])
    cache = _outputs(prefill, what, state)
    state['cache'] = _bytes(cache)
    decode = sampling.decode.trace(
        static, variables, shapes['ids'], cache, shapes['moments'], shapes['keys'],
        shapes['number'], shapes['number'], shapes['temperature'], shapes['number'])
    compiled, text = _compile(decode, what, state)
  chip, flops = tpu_chips.parse(topology), program_costs.flops(decode.jaxpr, unknown_trips=1)
  read = {'parameters': _bytes(variables['served'])
          + _bytes(variables['tables']) // stage.target.num_levels, 'cache': state['cache']}
  collectives = program_costs.collectives(text, unknown_trips=1)
  seconds = {
      'compute': flops / mesh.size / chip.flops,
      'memory': sum(read.values()) / chip.hbm_bandwidth,
      'network': sum(each.sent for each in collectives.values()) / chip.ici_bandwidth,
  }
  return compile_reports.DecodeReport(
      topology, mesh.size, dict(mesh.shape), batch_size, stage.sequence_length, dtype,
      sum(leaf.size for leaf in jax.tree.leaves(params)),
      state | _hbm(compiled.memory_analysis()), int(chip.hbm),
      program_costs.flops(prefill.jaxpr), flops, read, collectives, seconds,
      time.monotonic() - start)


def _decode_shapes(length: int, batch_size: int, mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns what prefill and decode of sampling.py take beside variables and cache."""
  whole, rows = partitioning.replicated(mesh), partitioning.batch_sharding(mesh)
  shape = lambda sharding, dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
  return {
      'tokens': shape(rows, jnp.int32, batch_size, length),
      'ids': shape(rows, jnp.int32, batch_size, length + 1),
      'moments': shape(whole, jnp.int32, length),
      'keys': _shape(keys, rows),
      'number': shape(whole, jnp.int32),
      'temperature': shape(whole, jnp.float32),
  }


def _outputs(traced: Any, what: str, state: Mapping[str, int]) -> Any:
  """Returns the shapes of a program's outputs, with the shardings that the compiler gives them."""
  compiled, _ = _compile(traced, what, state)
  return jax.tree.map(_shape, traced.out_info, compiled.output_shardings)


def _shape(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


# --- The largest batch ------------------------------------------------------------------------


def smallest_batch(topology: str, mesh_shape: tuple[int, int, int], microbatches: int = 1) -> int:
  """Returns the examples of a batch that gives every chip one in each microbatch."""
  shape = partitioning.make_mesh(mesh_shape, devices(topology)).shape
  return shape['data'] * shape['fsdp'] * microbatches


def largest_batch(check: Callable[[int], Any], start: int, multiple: int
                  ) -> tuple[Any, dict[int, float | None]]:
  """Returns (report of the largest batch that fits, {batch tried: bytes a chip it takes}).

  `check` returns the report of a batch size or raises OutOfMemory.  Sizes are multiples of
  `multiple`; the last one that fits is within an eighth, or one multiple, of one that does not.
  """
  size = max(start // multiple, 1) * multiple
  tried, best, failure, state, limit = {}, None, None, 0, 0
  while size:
    try:
      report = check(size)
      tried[size], limit = report.hbm['total'], report.hbm_limit
      state = report.hbm['total'] - report.hbm['activations']
      best = report if best is None or size > best.batch_size else best
    except OutOfMemory as error:
      tried[size], limit = error.needed, error.limit or limit
      state, failure = error.state, error
    fits = best.batch_size if best else 0
    fails = min((each for each in tried if each > fits), default=None)
    size = next_batch(tried, fits, fails, state, limit, multiple)
  if best is None:
    raise failure
  return best, tried


def next_batch(tried: Mapping[int, float | None], fits: int, fails: int | None, state: float,
               limit: float, multiple: int) -> int | None:
  """Returns the batch size to try after these, None when `fits` is near enough to `fails`.

  Far from the limit, where the line from `state` bytes of no example through the last size meets
  it. Near it the compiler saves memory where it can, and a line misleads: a quarter more, or the
  middle.
  """
  grain = max(fits // 8 // multiple, 1) * multiple
  if fails is not None and fails - fits <= grain:
    return None
  nearest = fits or fails
  used = tried[nearest]
  far = used and not 0.8 * limit < used < 1.25 * limit
  if far and used > state:
    guess = (limit - state) / (used - state) * nearest
  else:
    guess = min(1.25 * fits or math.inf, (fits + (fails or math.inf)) / 2)
  size = max(int(guess) // multiple * multiple, fits + grain)
  return size if fails is None else min(size, max(fails - grain, fits + multiple))
