"""What the comparisons with transformers' models in PyTorch share.

  pip install -e '.[parity]' && pytest -m parity tests/parity
"""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def threads():
  """One thread, so that torch and JAX do not wait for each other's."""
  import torch
  torch.set_num_threads(1)


@pytest.fixture
def randomize():
  """Returns a function that gives a torch model weights with which no part of it does nothing."""
  import torch

  def fill(model, seed=0):
    """Returns `model`, in evaluation mode: no scale is 1, no bias is 0."""
    random = np.random.default_rng(seed)
    norms = (torch.nn.LayerNorm, torch.nn.BatchNorm2d)
    for module in model.modules():
      tensors = {**dict(module.named_parameters(recurse=False)),
                 **dict(module.named_buffers(recurse=False))}
      for name, tensor in tensors.items():
        if not tensor.is_floating_point():
          continue
        values = random.standard_normal(tensor.shape)
        if name == 'running_var':
          values = 0.5 + random.random(tensor.shape)
        elif isinstance(module, norms) and name == 'weight':
          values = 1.0 + 0.3 * values
        elif tensor.ndim > 1 and not isinstance(module, torch.nn.Embedding):
          values = values * np.prod(tensor.shape[1:]) ** -0.5
        else:
          values = 0.3 * values
        tensor.data.copy_(torch.from_numpy(values))
    return model.eval()

  return fill


@pytest.fixture
def relative_error(record_property):
  """Returns a function: the largest difference, as a share of the expected values' deviation."""

  def measure(ours, theirs, what='relative_error'):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs.detach(), np.float64)
    assert ours.shape == theirs.shape
    error = float(np.abs(ours - theirs).max() / theirs.std())
    print(f'{what}: {error:.1e}')
    record_property(what, error)
    return error

  return measure
