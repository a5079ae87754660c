"""L3. Windows in which a stage makes a stream that is longer than what it was trained on."""

from collections.abc import Sequence
from typing import NamedTuple


class Window(NamedTuple):
  """A stage sees [start, start + its trained length) and makes [first, last); whole seconds."""

  start: int
  first: int
  last: int


def sliding(total: int, length: int, step: int, begin: int = 0, changes: Sequence[int] = (),
            overlap: int | None = None) -> list[Window]:
  """Returns windows that make [begin, total), one after the other.

  Each makes at most `step` seconds behind what was made before (the very first fills its length),
  ends where what it makes ends, and makes nothing across one of `changes`:

    total 10, length 4, step 2:                 [0: 0-4] [2: 4-6] [4: 6-8] [6: 8-10]
    the same with a change at 7:                [0: 0-4] [2: 4-6] [3: 6-7] [5: 7-9] [6: 9-10]
    and an overlap of 1 there:                  [0: 0-4] [2: 4-6] [3: 6-7] [6: 7-10]
    total 7, length 3, step 3 (no overlap):     [0: 0-3] [3: 3-6] [4: 6-7]

  `overlap`: how much of what was made before is seen at a change; None for as much as elsewhere. Such
  a window may reach beyond `total`.
  """
  windows, first = [], begin
  while first < total:
    at_change = overlap is not None and first in changes
    seen = min(first, length - step, overlap if at_change else length)
    last = min([first + length - seen, total, *(change for change in changes if change > first)])
    windows.append(Window(max(last - length, first - seen if at_change else 0), first, last))
    first = last
  return windows
