"""L2. What a program costs: FLOPs of a jaxpr, bytes that a compiled program's collectives send, and
those that a training step needs to send.

The compiler's own count of FLOPs takes the body of a scan once and knows no Pallas kernels.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

_COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4,
          's64': 8, 'u64': 8, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 'f8e4m3fn': 1, 'f8e5m2': 1,
          'c64': 8, 'c128': 16}
_INSTRUCTION = re.compile(r'\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)')
# Products over all of [T, S] in JAX's primitives of cuDNN attention: scores, values; backward the
# scores again, and the gradients of weights, values, queries and keys.
_CUDNN_PRODUCTS = {
    f'dot_product_attention_{way}{wrapper}': products
    for way, products in (('fwd', 2), ('bwd', 5)) for wrapper in ('', '_wrapper')}
_SHAPE = re.compile(r'\b([a-z]+[0-9a-z]*)\[([0-9,]*)\]')


# --- FLOPs of a jaxpr -------------------------------------------------------------------------


def flops(jaxpr: Any, unknown_trips: int | None = None) -> int:
  """Returns the FLOPs of the matrix products and convolutions of a jaxpr, on all devices together.

  A multiplication and an addition are two. A scan counts its body as often as it runs, a choice its
  dearest branch, and so does a Pallas kernel at every point of its grid; a loop of unknown length
  runs `unknown_trips` times and is a ValueError without, as is a grid of unknown size.  cuDNN's
  attention counts all of [T, S], like plain products: what a causal mask lets it skip, too.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  return sum(_equation_flops(equation, unknown_trips) for equation in jaxpr.eqns)


def _equation_flops(equation, unknown_trips: int | None) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    outputs = kernel[params['dimension_numbers'].rhs_spec[0]]  # each sees the others of the kernel
    return 2 * equation.outvars[0].aval.size * math.prod(kernel) // outputs
  if name in _CUDNN_PRODUCTS:
    query, key = (equation.invars[i].aval for i in (0, 1))
    keys = key.shape[1 if params['layout'] == 0 else 2]  # of [B, T, H, D], or [B, H, T, D]
    return 2 * _CUDNN_PRODUCTS[name] * query.size * keys
  inner = [flops(value, unknown_trips) for value in _jaxprs(params)]
  if name == 'scan':
    return params['length'] * sum(inner)
  if name == 'cond':
    return max(inner)
  if name == 'shard_map':  # what it holds is one device's part
    sizes = params['mesh'].shape
    return sum(inner) * math.prod(sizes[axis] for axis in params['newly_manual_axes'])
  if name == 'pallas_call' and all(isinstance(n, int) for n in params['grid_mapping'].grid):
    return sum(inner) * math.prod(params['grid_mapping'].grid)
  if name == 'while' and unknown_trips is not None:
    return unknown_trips * sum(inner)
  if name in ('while', 'pallas_call') and sum(inner):
    raise ValueError(f'the FLOPs of {name} cannot be counted: how often it runs is not known')
  return sum(inner)


def _jaxprs(params: Mapping[str, Any]):
  for value in params.values():
    for each in value if isinstance(value, (tuple, list)) else (value,):
      if hasattr(each, 'eqns') or hasattr(getattr(each, 'jaxpr', None), 'eqns'):
        yield each


# --- Collectives of a compiled program --------------------------------------------------------


class Collectives(NamedTuple):
  """Of one kind, in one run of the program: how many, and bytes that each device sends."""
  count: int
  sent: float


class _Sent(NamedTuple):
  kind: str
  times: int
  size: float


class _Instruction(NamedTuple):
  name: str
  shape: str
  opcode: str
  rest: str


def collectives(hlo: str, unknown_trips: int | None = None, branch: Callable = min
                ) -> dict[str, Collectives]:
  """Returns {kind: its count and bytes} of a compiled program's text, loops counted fully.

  A loop of unknown length runs `unknown_trips` times, and is a ValueError without.  Of a choice the
  branch counts that sends least, or most with `branch` max: codebooks that are started by k-means in
  the first step send for that once.

  Of n devices that share B bytes a ring sends: all-gather and reduce-scatter (n - 1) / n B, where B
  is the whole array; all-reduce twice that; a permute the bytes it passes on.

  The TPU compiler writes a reduce-scatter as a fusion of the computation 'all-reduce-scatter..',
  an all-reduce and a slice.  A collective that goes on beside other work stands in the fusion that
  starts it, in all those it goes on beside (maybe of an inner loop), and in the one that ends it,
  under one channel: it runs as often as it starts.
  """
  computations, entry = _computations(hlo)
  done = {}

  def found(name) -> dict[str, _Sent]:
    """Returns {channel: what it sends} of one run of a computation."""
    if name not in done:
      sent = {}
      for instruction in computations[name]:
        if (kind := _kind(instruction, name)):
          sent[_channel(instruction)] = _Sent(kind, 1, _bytes_sent(kind, instruction))
        times = 1
        if instruction.opcode == 'while':
          times = _trips(instruction, computations, unknown_trips)
        callees = () if _goes_on(instruction) else _callees(instruction)
        if instruction.opcode == 'conditional' and callees:
          callees = [branch(callees, key=lambda callee: sum(
              each.times * each.size for each in found(callee).values()))]
        for callee in callees:
          for channel, each in found(callee).items():
            before = sent[channel].times if channel in sent else 0
            sent[channel] = each._replace(times=before + times * each.times)
      done[name] = sent
    return done[name]

  total = {}
  for kind, times, size in found(entry).values():
    count, sent = total.get(kind, (0, 0.0))
    total[kind] = Collectives(count + times, sent + times * size)
  return total


def _kind(instruction: _Instruction, computation: str) -> str | None:
  """Returns which collective an instruction of a computation is, None when it is none."""
  kind = instruction.opcode.removesuffix('-start')
  if kind == 'all-reduce' and computation.startswith('all-reduce-scatter'):
    return 'reduce-scatter'
  return kind if kind in _COLLECTIVES else None


def _goes_on(instruction: _Instruction) -> bool:
  """Returns whether a fusion only carries on or ends collectives that another one started."""
  return instruction.opcode == 'fusion' and (
      instruction.name.startswith('async-collective-done')
      or any(callee.startswith('async_collective_fusion') for callee in _callees(instruction)))


def _channel(instruction: _Instruction) -> str:
  channel = re.search(r'channel_id=(\d+)', instruction.rest)
  return channel[1] if channel else instruction.name


def _computations(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
  """Returns ({computation: its instructions}, the name of the one that runs)."""
  found, entry, current = {}, None, None
  for line in hlo.splitlines():
    if head := re.match(r'(ENTRY )?%([\w.\-]+) \(.*\{$', line):
      current = found.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      current.append(_Instruction(*match.groups()))
  return found, entry


def _callees(instruction: _Instruction) -> list[str]:
  """Returns the computations that an instruction runs; of a reduction, what it adds is not one."""
  if instruction.opcode == 'while':
    return re.findall(r'body=%([\w.\-]+)', instruction.rest)
  if instruction.opcode in ('fusion', 'call', 'async-start', 'custom-call'):
    return re.findall(r'(?:calls|to_apply)=%([\w.\-]+)', instruction.rest)
  if instruction.opcode == 'conditional':
    names = re.search(r'branch_computations=\{([^}]*)\}', instruction.rest)
    found = re.findall(r'(?:true|false)_computation=%([\w.\-]+)', instruction.rest)
    return re.findall(r'%([\w.\-]+)', names[1]) if names else found
  return []


def _trips(loop: _Instruction, computations, unknown: int | None) -> int:
  """Returns how often a loop runs: as the compiler says, or for (i = 0; i < bound; i += step)."""
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
    return int(known[1])
  condition, body = (
      {each.name: each for each in computations[re.search(rf'{part}=%([\w.\-]+)', loop.rest)[1]]}
      for part in ('condition', 'body'))
  try:
    compared = next(each for each in condition.values() if each.opcode == 'compare')
    counter, bound = re.findall(r'%([\w.\-]+)', compared.rest)[:2]
    if 'direction=LT' not in compared.rest:
      raise LookupError
    place = int(re.search(r'index=(\d+)', condition[counter].rest)[1])
    results = re.findall(r'%([\w.\-]+)', list(body.values())[-1].rest)
    step = _step(body[results[place]], body)
    return -(-_constant(condition[bound]) // step)
  except (LookupError, TypeError, StopIteration) as error:
    if unknown is not None:
      return unknown
    raise ValueError(f'loop {loop.name}: how often it runs is not known') from error


def _step(addition: _Instruction, body: Mapping[str, _Instruction]) -> int:
  """Returns c of an instruction i + c, whatever it passes through on the way."""
  while addition.opcode in ('copy', 'bitcast'):
    addition = body[re.search(r'%([\w.\-]+)', addition.rest)[1]]
  terms = [body[name] for name in re.findall(r'%([\w.\-]+)', addition.rest)[:2]]
  if addition.opcode != 'add':
    raise LookupError(addition.name)
  return next(_constant(term) for term in terms if term.opcode == 'constant')


def _constant(instruction: _Instruction) -> int:
  if instruction.opcode != 'constant':
    raise LookupError(instruction.name)
  return int(re.match(r'(\d+)\)', instruction.rest)[1])


def _bytes_sent(kind: str, instruction: _Instruction) -> float:
  sizes = [_BYTES[dtype] * math.prod(int(n) for n in dims.split(',') if n)
           for dtype, dims in _SHAPE.findall(instruction.shape)]
  if instruction.opcode.endswith('-start') and kind != 'all-reduce':
    # (operands, results, ..): of a permute both are as large, of a gather the result is larger.
    size = max(sizes)
  else:
    size = sum(sizes)
  if kind == 'collective-permute':
    return size
  devices = _group_size(instruction.rest)
  whole = size * devices if instruction.opcode.startswith('reduce-scatter') else size
  return whole * (devices - 1) / devices * (2 if kind == 'all-reduce' else 1)


def _group_size(rest: str) -> int:
  if iota := re.search(r'replica_groups=\[(\d+),(\d+)\]<=', rest):
    return int(iota[2])
  if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
  if groups := re.search(r'replica_groups=\{\{([0-9,]*)\}', rest):
    return len(groups[1].split(','))
  raise ValueError(f'a collective of unknown groups: {rest[:200]}')


# --- What the sharding of a training step needs to send ---------------------------------------


class Sharded(NamedTuple):
  """A parameter: elements a chip would hold of it, were it whole along fsdp; over how many chips of
  the fsdp axis it is split; whether rows of it are looked up, not all of it multiplied with."""

  size: int
  fsdp: int
  is_table: bool


def needed_bytes(params: Iterable[Sharded], batch_shards: int, itemsize: int, microbatches: int = 1
                 ) -> dict[str, float]:
  """Returns {kind: bytes} that a chip has to send in a step, for its parameters alone.

  Of a matrix of P elements (of this chip's share under a model axis), b bytes each in the products,
  split over n chips of the fsdp axis, with d = batch_shards / n copies:
    all-gather      2 (n - 1)/n b P        whole for the forward and again for the backward pass
    reduce-scatter    (n - 1)/n b P        its gradient
    all-reduce      2 (d - 1)/d b P/n      of the share of the gradient, over the copies
  The gradient has b bytes as well: a kernel is cast inside the layer, and the devices' gradients
  are added before the cast is undone.  Gathers and scatters happen once a microbatch.  Of a table
  only rows are needed, and its gradient stays float32 and with its share: the all-reduce alone.
  """
  total = dict.fromkeys(('all-gather', 'reduce-scatter', 'all-reduce'), 0.0)
  for size, fsdp, is_table in params:
    copies = batch_shards // fsdp
    if not is_table:
      scatter = microbatches * (fsdp - 1) / fsdp * itemsize * size
      total['all-gather'] += 2 * scatter
      total['reduce-scatter'] += scatter
    width = 4 if is_table else itemsize
    total['all-reduce'] += 2 * (copies - 1) / copies * width * size / fsdp
  return total


def needed_for_activations(elements: int, num_layers: int, model: int, itemsize: int,
                           recomputes: bool) -> float:
  """Returns bytes that a chip sends around the model axis of `model` chips, for a Transformer.

  What attention and feed-forward give, `elements` of a chip's rows, is the sum over the axis, and
  so are the gradients of what goes in: four all-reduces a layer, five where the backward pass
  computes attention again.
  """
  return (5 if recomputes else 4) * num_layers * 2 * (model - 1) / model * itemsize * elements
