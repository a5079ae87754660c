"""Programs for NVIDIA GPUs that are not there: traced and lowered, never run."""

import collections
import contextlib
import re

import jax
from flax import linen as nn
from jax._src.cudnn import fused_attention_stablehlo

from musiclm_jax import partitioning

VERSION = 91200  # of cuDNN; JAX asks for the installed one while it traces


@contextlib.contextmanager
def mesh(monkeypatch, shape=(1, 1, 1), kind='NVIDIA H200', platform='gpu'):
  """Inside, JAX traces for devices of that kind."""
  monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: VERSION)
  axis_types = (jax.sharding.AxisType.Auto,) * len(shape)
  device = jax.sharding.AbstractDevice(kind, None, platform)
  found = jax.sharding.AbstractMesh(
      shape, partitioning.MESH_AXES, axis_types, abstract_device=device)
  with (jax.sharding.use_abstract_mesh(found),
        nn.logical_axis_rules(partitioning.LOGICAL_AXIS_RULES)):
    yield


def cuda_text(function, *args) -> str:
  """Returns the StableHLO of jit(function)(*args) for CUDA; inside of `mesh`."""
  text = jax.jit(function).trace(*args).lower(lowering_platforms=('cuda',)).as_text()
  return text.replace('\\22', '"')  # in the kernels' settings


def kernels(text: str) -> dict[str, int]:
  """Returns {cuDNN attention kernel: how often it stands in the text}, without '__cudnn$fmha'."""
  return dict(collections.Counter(re.findall(r'@__cudnn\$fmha(\w+)\(', text)))
