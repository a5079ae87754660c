"""L2. What a program costs, counted: FLOPs of a jaxpr, bytes that a compiled program's collectives move.

The compiler's own count of FLOPs takes the body of a scan once and does not know Pallas kernels.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4,
          's64': 8, 'u64': 8, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 'f8e4m3fn': 1, 'f8e5m2': 1,
          'c64': 8, 'c128': 16}
_INSTRUCTION = re.compile(r'\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)')
_SHAPE = re.compile(r'\b([a-z]+[0-9a-z]*)\[([0-9,]*)\]')


# --- FLOPs of a jaxpr -------------------------------------------------------------------------


def flops(jaxpr: Any) -> int:
  """Returns the FLOPs of the matrix products and convolutions of a jaxpr, on all devices together.

  A multiplication and an addition are two. A scan counts its body as often as it runs, a choice its
  dearest branch; a loop of unknown length and a kernel that cannot be read are a ValueError.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    outputs = kernel[params['dimension_numbers'].rhs_spec[0]]  # each sees the others of the kernel
    return 2 * equation.outvars[0].aval.size * math.prod(kernel) // outputs
  inner = [flops(value) for value in _jaxprs(params)]
  if name == 'scan':
    return params['length'] * sum(inner)
  if name == 'cond':
    return max(inner)
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


def collectives(hlo: str) -> dict[str, Collectives]:
  """Returns {kind: its count and bytes} of a compiled program's text, loops counted fully.

  Of n devices that share B bytes a ring sends: all-gather and reduce-scatter (n - 1) / n B, where B
  is the whole array; all-reduce twice that; a permute the bytes it passes on.
  """
  computations, entry = _computations(hlo)
  done = {}

  def found(name) -> dict[str, _Sent]:
    """Returns {channel: what it sends}: the TPU compiler repeats a collective in all the fusions
    that it goes on beside, so a channel counts once wherever it is met."""
    if name not in done:
      sent = {}
      for instruction in computations[name]:
        kind = instruction.opcode.removesuffix('-start')
        if kind in _COLLECTIVES:
          sent[_channel(instruction)] = _Sent(kind, 1, _bytes_sent(kind, instruction))
        times = _trips(instruction, computations) if instruction.opcode == 'while' else 1
        for callee in _callees(instruction):
          for channel, inner in found(callee).items():
            inner = inner._replace(times=times * inner.times)
            sent[channel] = max(inner, sent.get(channel, inner), key=lambda each: each.times)
      done[name] = sent
    return done[name]

  total = {}
  for kind, times, size in found(entry).values():
    count, sent = total.get(kind, (0, 0.0))
    total[kind] = Collectives(count + times, sent + times * size)
  return total


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


def _trips(loop: _Instruction, computations) -> int:
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
  whole = size * devices if kind == 'reduce-scatter' else size
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
