"""L5. What devices can do at most, as their makers say, and how timings are written.

TPUs are those of tpu_chips.py, GPUs those of NVIDIA's data sheets (SXM boards, dense bf16).
"""

import dataclasses
import statistics
from collections.abc import Sequence

from jax.sharding import Mesh

from musiclm_jax import tpu_chips

_TPUS = {'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5e': 'v5e', 'TPU v5': 'v5p', 'TPU v5p': 'v5p',
         'TPU v6 lite': 'v6e', 'TPU v6e': 'v6e'}
_GPUS = {'NVIDIA H100 80GB HBM3': (989e12, 3.35e12), 'NVIDIA H200': (989e12, 4.8e12)}


@dataclasses.dataclass(frozen=True)
class Device:
  """`count` devices of one kind; of each the bf16 FLOP/s and bytes/s of memory, None if not known."""

  kind: str
  count: int
  flops: float | None
  bandwidth: float | None


def known(kind: str, count: int) -> Device:
  """Returns what is known of devices of JAX's `device_kind`."""
  if kind in _TPUS:
    chip = tpu_chips.CHIPS[_TPUS[kind]]
    return Device(kind, count, chip.flops, chip.hbm_bandwidth)
  return Device(kind, count, *_GPUS.get(kind, (None, None)))


def of(mesh: Mesh) -> Device:
  """Returns the devices of a mesh."""
  return known(mesh.devices.flat[0].device_kind, mesh.size)


def spread(values: Sequence[float], factor: float = 1.0, digits: int = 2) -> str:
  """Returns 'median (least to most)' of values times a factor."""
  median, least, most = (
      f'{factor * each:,.{digits}f}' for each in (statistics.median(values), min(values), max(values)))
  return f'{median} ({least} to {most})'
