import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from musiclm_jax.models import mapper

CONFIG = mapper.MapperConfig(dim=6, hidden_dim=10, dropout_rate=0.5)


def _vectors():
  x = jax.random.normal(jax.random.key(0), (5, 6))
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def test_it_starts_as_the_identity_and_stays_on_the_sphere():
  module, x = mapper.Mapper(CONFIG), _vectors()
  params = nn.unbox(module.init(jax.random.key(1), x))
  np.testing.assert_allclose(module.apply(params, x), x, atol=1e-6)
  moved = jax.tree.map(lambda leaf: leaf + 0.3, params)
  y = module.apply(moved, x)
  assert np.abs(y - x).max() > 0.1
  np.testing.assert_allclose(np.linalg.norm(y, axis=-1), 1, atol=1e-6)
  dropped = [module.apply(moved, x, train=True, rngs={'dropout': jax.random.key(i)}) for i in (0, 1)]
  assert np.abs(dropped[0] - dropped[1]).max() > 1e-3


@pytest.mark.parametrize('field', [{'dim': 0}, {'hidden_dim': 0}, {'dropout_rate': 1.0}])
def test_bad_fields_are_named(field):
  with pytest.raises(ValueError, match='wanted at least 1, 1, and 0 to below 1'):
    mapper.MapperConfig(**field)
