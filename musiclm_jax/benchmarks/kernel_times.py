"""L5. Which kernels the time of a program goes to: JAX's profiler, added up.

A kernel is what the profiler times: on GPUs a launch, on CPUs and TPUs an operation of XLA.  Its
kind is told by its name alone: a fusion is elementwise unless it is named after something else.
"""

import collections
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from musiclm_jax import errors

# The first pattern that a kernel's name has is its kind.
_KINDS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in (
    ('attention', r'sdpa|fmha|flash|splash|cudnn::fusion::(compute_dot_do_o|convert_dq)'),
    ('matrix product', r'gemm|gemv|nvjet|xmma|cutlass|cublas|split_?k|ynn|dot|convolution'),
    ('collective', r'nccl|all-?(reduce|gather|to)|reduce-?scatter|collective|permute'),
    ('cache or slice', r'dynamic[-_](update[-_])?slice'),
    ('copy', r'memcpy|copy|transpose'),
    ('memset', r'memset'),
    ('scatter or gather', r'scatter|gather'),
    ('reduction', r'reduce'),
    ('elementwise', r'fusion|wrapped|loop_|add|multiply|select|convert|broadcast'),
    ('other', ''))}


class Event(NamedTuple):
  """One run of a kernel; in nanoseconds."""
  name: str
  start: float
  spent: float


class Share(NamedTuple):
  """Of a step or token: seconds, and how often the kernels ran."""
  seconds: float
  launches: float


@dataclasses.dataclass(frozen=True)
class KernelTimes:
  """Of one `unit`, a step or a token, the mean of `count`.

  span_seconds: from the first kernel's start to the last one's end, all devices at once.
  kinds, kernels (names without their numbers): the largest first; their seconds add up over devices
  and streams, or a CPU's threads.
  """

  unit: str
  count: int
  span_seconds: float
  kinds: dict[str, Share]
  kernels: dict[str, Share]

  @property
  def busy_seconds(self) -> float:
    return sum(each.seconds for each in self.kinds.values())

  def as_json(self) -> dict[str, Any]:
    named = lambda shares: {name: each._asdict() for name, each in shares.items()}
    return {'unit': self.unit, 'count': self.count, 'span_seconds': self.span_seconds,
            'busy_seconds': self.busy_seconds, 'kinds': named(self.kinds),
            'kernels': named(self.kernels)}

  def describe(self, most: int = 15) -> str:
    """Returns the kinds and the `most` longest kernels as lines of text."""
    lines = [f'kernels of a {self.unit}, mean of {self.count}: busy {1000 * self.busy_seconds:.3f} ms, '
             f'from first to last {1000 * self.span_seconds:.3f} ms']
    for title, shares in (('kind', self.kinds), ('kernel', self.kernels)):
      lines.append(f'{"ms":>10} {"busy":>7} {"runs":>8}  {title}')
      lines += [f'{1000 * each.seconds:10.3f} {100 * each.seconds / self.busy_seconds:6.1f}% '
                f'{each.launches:8.1f}  {name[:70]}' for name, each in list(shares.items())[:most]]
    return '\n'.join(lines)


def measure(call: Callable[[], Any], count: int, unit: str) -> KernelTimes:
  """Returns the kernels of call(), which runs `count` units that are compiled, to their end."""
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      call()
    files = pathlib.Path(folder).glob('**/*.xplane.pb')
    events = [each for file in files
              for each in _events(jax.profiler.ProfileData.from_file(str(file)))]
  if not events:
    raise errors.UserError(f'the profiler saw no kernel of {jax.devices()[0].device_kind}')
  return added_up(events, count, unit)


def added_up(events: Iterable[Event], count: int, unit: str) -> KernelTimes:
  """Returns the times of `count` units' events, one or more."""
  events = list(events)
  kinds, kernels = collections.defaultdict(list), collections.defaultdict(list)
  for each in events:
    kinds[kind_of(each.name)].append(each.spent)
    kernels[re.sub(r'([_.]\d+)+$', '', each.name)].append(each.spent)
  span = max(each.start + each.spent for each in events) - min(each.start for each in events)

  def shares(found):
    rows = {name: Share(sum(spent) / 1e9 / count, len(spent) / count)
            for name, spent in found.items()}
    return dict(sorted(rows.items(), key=lambda row: -row[1].seconds))

  return KernelTimes(unit, count, span / 1e9 / count, shares(kinds), shares(kernels))


def kind_of(kernel: str) -> str:
  """Returns the kind of a kernel of that name."""
  return next(kind for kind, pattern in _KINDS.items() if pattern.search(kernel))


def _events(profile: Any) -> Iterator[Event]:
  """Yields the kernels of a profile's devices; of a GPU's lines all but the streams tell them again."""
  for plane in profile.planes:
    for line in plane.lines:
      if plane.name.startswith('/device:GPU') and line.name.startswith('Stream'):
        chosen = line.events
      elif plane.name.startswith('/device:TPU') and line.name == 'XLA Ops':
        chosen = line.events
      elif plane.name == '/host:CPU':
        chosen = [each for each in line.events if any(name == 'hlo_op' for name, _ in each.stats)]
      else:
        continue
      yield from without_inner(Event(each.name, each.start_ns, each.duration_ns) for each in chosen)


def without_inner(events: Iterable[Event]) -> list[Event]:
  """Returns the events of one line, of each the time in which none that began within it ran."""
  found, open_ = [], []  # open_: [place in found, end]
  for each in sorted(events, key=lambda each: (each.start, -each.spent)):
    while open_ and open_[-1][1] <= each.start:
      open_.pop()
    if open_:
      place, end = open_[-1]
      outer, inner = found[place], min(each.start + each.spent, end) - each.start
      found[place] = outer._replace(spent=outer.spent - inner)
    open_.append((len(found), each.start + each.spent))
    found.append(each)
  return found
