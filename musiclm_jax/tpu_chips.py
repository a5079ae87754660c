"""L0. TPU chips: what one has, and how the TPU compiler is found on a machine without any.

Peak and bandwidths are those of cloud.google.com/tpu/docs (system architecture of each version),
HBM is what the compiler lets a program have.
"""

import dataclasses
import re
from collections.abc import MutableMapping

from musiclm_jax import errors


@dataclasses.dataclass(frozen=True)
class Chip:
  """bf16 FLOP/s, bytes of HBM for a program, bytes/s of it and of all links to other chips."""

  name: str
  flops: float
  hbm: float
  hbm_bandwidth: float
  ici_bandwidth: float


CHIPS = {
    'v4': Chip('v4', 275e12, 30.75 * 2**30, 1228e9, 300e9),
    'v5e': Chip('v5e', 197e12, 15.75 * 2**30, 819e9, 200e9),
    'v5p': Chip('v5p', 459e12, 95.73 * 2**30, 2765e9, 600e9),
    'v6e': Chip('v6e', 918e12, 31.24 * 2**30, 1640e9, 448e9),
}


def parse(topology: str) -> Chip:
  """Returns the chip of a topology 'v5e:16x16'."""
  name = topology.partition(':')[0]
  if name not in CHIPS or not re.fullmatch(r'\w+:\d+x\d+(x\d+)?', topology):
    raise errors.UserError(
        f'topology {topology!r}, wanted a chip of {", ".join(CHIPS)} and its shape, like v5e:4x4 or '
        'v4:2x2x1')
  return CHIPS[name]


def use_compiler_without_chips(environment: MutableMapping[str, str]) -> None:
  """Sets what libtpu needs to compile on a machine without a TPU; before jax is imported."""
  environment.update(
      JAX_PLATFORMS='cpu',
      TPU_SKIP_MDS_QUERY='1',  # do not ask the metadata server which TPU this is
      TPU_ACCELERATOR_TYPE='v5litepod-4', TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0',
      ALLOW_MULTIPLE_LIBTPU_LOAD='1',
      TPU_STDERR_LOG_LEVEL='3',
  )
