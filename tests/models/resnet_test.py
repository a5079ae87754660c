import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models import resnet

TINY = resnet.ResNetConfig(stage_sizes=(1, 1), widths=(4, 8), expansion=2, stem_width=4,
                           norm_groups=2)


def test_resnet50_has_the_published_number_of_parameters():
  model = resnet.ResNet(resnet.ResNetConfig())
  picture = jax.ShapeDtypeStruct((2, 1000, 64), jnp.float32)
  output, variables = jax.eval_shape(
      lambda x: model.init_with_output(jax.random.key(0), x), picture)
  count = sum(x.size for x in jax.tree.leaves(variables['params']))
  # torchvision's resnet50 has 25,557,032: less its 1000-way layer, and 1 input channel for 3.
  assert count == 25_557_032 - (2048 * 1000 + 1000) - 7 * 7 * 2 * 64
  assert output.shape == (2, 2048)


@pytest.mark.parametrize('size', [7, 8])
def test_max_pool_equals_reduce_window(size):
  x = nn.relu(jax.random.normal(jax.random.key(0), (2, size, size + 3, 3)))
  want = nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])
  np.testing.assert_array_equal(resnet.max_pool(x), want)


@pytest.mark.parametrize('stride', [1, 2])
def test_1x1_convolution_equals_lax(stride):
  x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
  conv = resnet.Conv(TINY, 4, 1, stride)
  variables = nn.unbox(conv.init(jax.random.key(1), x))
  want = jax.lax.conv_general_dilated(
      x, variables['params']['kernel'], (stride, stride), 'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  np.testing.assert_allclose(conv.apply(variables, x), want, rtol=1e-5, atol=1e-6)


def test_batch_norm_keeps_running_statistics_and_group_norm_has_none():
  x = jax.random.normal(jax.random.key(0), (2, 16, 16)) + 3.0
  model = resnet.ResNet(TINY)

  @jax.jit
  def init_and_train(x):
    variables = model.init(jax.random.key(1), x)
    return variables, model.apply(variables, x, train=True, mutable=['batch_stats'])[1]

  before, after = (v['batch_stats']['stem_norm']['batch']['mean'] for v in init_and_train(x))
  assert float(jnp.abs(after - before).max()) > 0
  group = resnet.ResNet(dataclasses.replace(TINY, norm='group'))
  assert set(jax.eval_shape(group.init, jax.random.key(1), x)) == {'params'}


def test_bad_config_names_the_field():
  with pytest.raises(ValueError, match="norm 'layer'.*batch"):
    resnet.ResNetConfig(norm='layer')
  with pytest.raises(ValueError, match='stage_sizes'):
    resnet.ResNetConfig(stage_sizes=(1,))
