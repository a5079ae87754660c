"""ResNet-50 against transformers' ResNetModel, random weights and running statistics."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import pytest

from musiclm_jax.models import resnet
from musiclm_jax.pretrained import hugging_face

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.parity


def _moves(config):
  """Returns (source, target) of each convolution and, the same with 'norm', of what follows it."""
  yield 'embedder.embedder', 'stem', 'stem_norm'
  for stage, size in enumerate(config.depths):
    for block in range(size):
      theirs, ours = f'encoder.stages.{stage}.layers.{block}', f'stage_{stage}_block_{block}'
      for i in range(3):
        yield f'{theirs}.layer.{i}', f'{ours}/conv_{i}', f'{ours}/norm_{i}'
      if block == 0:
        yield f'{theirs}.shortcut', f'{ours}/conv_skip', f'{ours}/norm_skip'


def _variables(model):
  arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
  moved = {}
  for theirs, conv, norm in _moves(model.config):
    kernel = arrays[f'{theirs}.convolution.weight']
    out, channels, rows, columns = kernel.shape
    sizes = {'O': out, 'I': channels, 'T': rows, 'F': columns}
    moves = [hugging_face.Move(f'{theirs}.convolution.weight', f'params/{conv}/kernel',
                               'O I T F -> T F I O')]
    for collection, source, target in (
        ('params', 'weight', 'scale'), ('params', 'bias', 'bias'),
        ('batch_stats', 'running_mean', 'mean'), ('batch_stats', 'running_var', 'var')):
      moves.append(hugging_face.Move(
          f'{theirs}.normalization.{source}', f'{collection}/{norm}/batch/{target}', 'O -> O'))
    used = {move.source: arrays.pop(move.source) for move in moves}
    moved.update(hugging_face.move(used, moves, sizes, {}, theirs)[0])
  assert all(name.endswith('num_batches_tracked') for name in arrays)
  return flax.traverse_util.unflatten_dict(moved, sep='/')


def test_embedding_is_that_of_resnet_50(randomize, relative_error):
  model = randomize(transformers.ResNetModel(transformers.ResNetConfig(num_channels=1)))
  picture = torch.randn(2, 70, 48, generator=torch.manual_seed(0))
  with torch.no_grad():
    theirs = model(picture[:, None]).pooler_output[..., 0, 0]
  variables = _variables(model)
  module = resnet.ResNet(resnet.ResNetConfig())
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 32)))
  assert {k: v.shape for k, v in flax.traverse_util.flatten_dict(variables).items()} == {
      k: v.value.shape if hasattr(v, 'value') else v.shape
      for k, v in flax.traverse_util.flatten_dict(shapes).items()}
  ours = jax.jit(module.apply)(variables, jnp.asarray(picture.numpy()))
  assert relative_error(ours, theirs) <= 1e-4
