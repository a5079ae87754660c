"""What tests of several modules share: a small codec with random weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import checkpoints, codec
from musiclm_jax.models import quantizers, soundstream

CONFIG = soundstream.SoundStreamConfig(
    sample_rate=400, channels=4, strides=(2, 4), channel_multipliers=(2, 4),
    dilations=((1, 3), (1,)), dim=8, num_quantizers=4, codebook_size=12)  # fmt: skip


def pytest_collection_modifyitems(config, items):
  """Leaves out what is slow unless `-m` names it."""
  if 'slow' not in config.option.markexpr:
    for item in items:
      if item.get_closest_marker('slow'):
        item.add_marker(pytest.mark.skip(reason='needs -m slow'))


def _drawn(tree, seed):
  """Returns random values for a tree of shapes: kernels that keep the loudness, some bias."""
  random = np.random.RandomState(seed)

  def leaf(shape):
    scale = 0.8 * np.prod(shape[:-1]) ** -0.5 if len(shape) == 3 else 0.05
    return (scale * random.randn(*shape)).astype(np.float32)

  return jax.tree.map(lambda leaf_: leaf(leaf_.shape), tree)


def _export(directory, config=CONFIG, seed=0, decoder_seed=0) -> codec.Codec:
  """Returns a codec with random weights; models of one seed have the same encoder and codebooks."""
  model = soundstream.SoundStream(config)
  frame = jnp.zeros((1, config.hop_length))
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), frame))
  params = {name: _drawn(part, decoder_seed if name == 'decoder' else seed)
            for name, part in shapes['params'].items()}
  shape = shapes['codebooks']['quantizer']['embeddings'].shape
  scales = 0.3 * 0.4 ** np.arange(shape[0])[:, None, None]  # each level finer than the one before
  codebooks = jnp.asarray(scales * np.random.RandomState(seed).randn(*shape), jnp.float32)
  variables = {
      'params': params,
      'codebooks': {'quantizer': quantizers.codebook_variables(codebooks)}}
  checkpoints.export_model(directory, 'soundstream', config, variables)
  return codec.Codec.load(directory)


@pytest.fixture(scope='session')
def export_codec():
  """Returns a function of a directory, a config and seeds: a codec with random weights."""
  return _export


@pytest.fixture(scope='session')
def small_codec(tmp_path_factory):
  """Returns a codec at 400 Hz, 50 frames a second, with 4 levels of 12 codes."""
  return _export(tmp_path_factory.mktemp('models') / 'small')


@pytest.fixture(scope='session')
def system(tmp_path_factory):
  """Returns the directory of a whole MusicLM of small random models."""
  import small_system

  return small_system.export(tmp_path_factory.mktemp('system'))


@pytest.fixture(scope='session')
def musiclm(system):
  """Returns that system, loaded."""
  from musiclm_jax import generate

  return generate.MusicLM.from_pretrained(system)
