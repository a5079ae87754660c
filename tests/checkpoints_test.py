"""Exported directories: exact round trip, every hostile directory a named error."""

import json
import pickle

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from musiclm_jax import checkpoints, errors
from musiclm_jax.models import quantizers, registry, transformer

CONFIG = transformer.DecoderConfig(
  vocab_size=128, num_layers=2, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32
)


@pytest.fixture(scope='module')
def variables():
  shapes = registry.variable_shapes('semantic', CONFIG)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.fixture
def exported(tmp_path, variables):
  checkpoints.export_model(
    tmp_path / 'm',
    'semantic',
    CONFIG,
    variables,
    extra={'step': 7},
    text_files={'vocab.txt': 'a\n'},
  )
  return tmp_path / 'm'


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_export_and_load_is_the_identity(exported, variables):
  model = checkpoints.load_model(exported)
  assert (model.name, model.config, model.extra) == ('semantic', CONFIG, {'step': 7})
  assert_same(model.variables, variables)
  on_host = checkpoints.load_model(exported, on_host=True).variables
  assert_same(on_host, variables)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(on_host))
  assert (exported / 'vocab.txt').read_text() == 'a\n'
  assert sorted(path.name for path in exported.iterdir()) == [
    'config.json',
    'model.safetensors',
    'vocab.txt',
  ]
  logits, _ = model.module.apply(model.variables, jnp.ones((1, 4), jnp.int32))
  assert logits.shape == (1, 4, 128)


def test_fingerprint_is_of_the_weights(exported, variables, tmp_path):
  same = checkpoints.export_model(tmp_path / 'other', 'semantic', CONFIG, variables)
  assert checkpoints.load_model(exported).fingerprint == same
  changed = jax.tree.map(lambda leaf: leaf + 1, variables)
  assert checkpoints.export_model(tmp_path / 'third', 'semantic', CONFIG, changed) != same


def test_tokens_of_a_codec_do_not_depend_on_its_decoder(export_codec, tmp_path, exported):
  prints = [
    checkpoints.token_fingerprint(export_codec(tmp_path / name, **seeds).model)
    for name, seeds in (('a', {}), ('b', {'decoder_seed': 1}), ('c', {'seed': 1}))
  ]
  assert prints[0] == prints[1] != prints[2]
  other = checkpoints.load_model(exported)
  assert checkpoints.token_fingerprint(other) == other.fingerprint


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_storage_loads_as_float32(tmp_path, variables, dtype):
  checkpoints.export_model(tmp_path, 'semantic', CONFIG, variables, dtype=dtype)
  loaded = checkpoints.load_model(tmp_path).variables
  rounded = jax.tree.map(
    lambda a: a.astype(checkpoints.STORAGE_DTYPES[dtype]).astype(np.float32), variables
  )
  assert_same(loaded, rounded)
  size = (tmp_path / 'model.safetensors').stat().st_size
  assert size < 2.2 * sum(leaf.size for leaf in jax.tree.leaves(variables)) + 4000


def test_what_float16_cannot_hold_stays_float32(tmp_path):
  config = quantizers.KMeansConfig(dim=2, num_centroids=3)
  shapes = registry.variable_shapes('semantic_quantizer', config)
  big = jax.tree.map(lambda leaf: np.full(leaf.shape, 1e6, np.float32), shapes)
  checkpoints.export_model(tmp_path, 'semantic_quantizer', config, big, dtype='float16')
  assert_same(checkpoints.load_model(tmp_path).variables, big)


def test_export_checks_what_it_writes(tmp_path, variables):
  with pytest.raises(errors.UserError, match='dtype .int8. is not one of float32'):
    checkpoints.export_model(tmp_path, 'semantic', CONFIG, variables, dtype='int8')
  with pytest.raises(errors.UserError, match='is missing'):
    checkpoints.export_model(tmp_path, 'semantic', CONFIG, {'params': {}})
  assert not list(tmp_path.iterdir())


def edit_config(directory, **changes):
  path = directory / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config_with(**changes):
  return registry.config_to_json(CONFIG) | changes


HOSTILE_CONFIGS = [
  ({'model': 'semantik'}, "unknown model 'semantik': did you mean 'semantic'"),
  ({'model': None}, 'unknown model None'),
  ({'model': ['semantic']}, 'unknown model'),
  ({'format_version': 2}, 'format_version is 2, wanted 1'),
  ({'config': 3}, 'config is 3, wanted a JSON object'),
  ({'config': config_with(nul_layers=3)}, "unknown field 'nul_layers'"),
  ({'config': config_with(num_layers='3')}, "num_layers is '3', wanted int"),
  ({'config': config_with(position='above')}, 'position'),
  ({'config': config_with(dtype='os.system')}, 'does not build a semantic'),
  ({'config': config_with(emb_dim=-1)}, 'does not build a semantic'),
  ({'config': config_with(mlp_dim=33)}, 'shape .*32.*, wanted .*33'),
  ({'config': config_with(tie_embeddings=True)}, 'is not part of a semantic'),
]


@pytest.mark.parametrize('changes, wanted', HOSTILE_CONFIGS, ids=lambda value: str(value)[:40])
def test_hostile_config_is_a_named_error(exported, changes, wanted):
  edit_config(exported, **changes)
  with pytest.raises(errors.UserError, match=wanted):
    checkpoints.load_model(exported)


def weights_of(exported):
  return safetensors.numpy.load_file(exported / 'model.safetensors')


def test_tensors_are_consumed_exactly(exported):
  path, tensors = exported / 'model.safetensors', weights_of(exported)
  name = sorted(tensors)[0]
  cases = [
    ({k: v for k, v in tensors.items() if k != name}, f'tensor {name} is missing'),
    (tensors | {'params/extra': np.zeros(2, np.float32)}, 'tensor params/extra is not part of'),
    (tensors | {name: tensors[name].astype(np.int32)}, f'tensor {name} is int32, wanted float32'),
    (tensors | {name: tensors[name].astype(np.float64)}, f'tensor {name} is F64, wanted one of'),
  ]
  for content, wanted in cases:
    path.write_bytes(safetensors.numpy.save(content))
    with pytest.raises(errors.UserError, match=wanted):
      checkpoints.load_model(exported)


class Bomb:
  def __reduce__(self):
    return (pytest.fail, ('a pickle was opened',))


def test_broken_files_are_named_and_nothing_is_run(exported, tmp_path):
  weights, config = exported / 'model.safetensors', exported / 'config.json'
  good = weights.read_bytes()
  for content in (b'', good[:-1], b'\xff' * 64, pickle.dumps(Bomb())):
    weights.write_bytes(content)
    with pytest.raises(errors.UserError, match='model.safetensors is not a safetensors file'):
      checkpoints.load_model(exported)
  weights.unlink()
  with pytest.raises(errors.UserError, match='it has no model.safetensors'):
    checkpoints.load_model(exported)
  for content in (b'\xff', b'{', b'[' * 100_000, pickle.dumps(Bomb())):
    config.write_bytes(content)
    with pytest.raises(errors.UserError, match='config.json is not JSON'):
      checkpoints.load_model(exported)
  config.write_text('[]')
  with pytest.raises(errors.UserError, match='wanted a JSON object'):
    checkpoints.load_model(exported)


def test_what_is_missing_is_not_called_broken(exported, tmp_path):
  (exported / 'config.json').unlink()
  for directory, wanted in (
    (exported, f'{exported} is not an exported model: it has no config.json'),
    (tmp_path / 'nowhere', f'{tmp_path}/nowhere does not exist, wanted a directory of an exported model'),
  ):
    with pytest.raises(errors.UserError) as raised:
      checkpoints.load_model(directory)
    assert str(raised.value) == wanted


def test_bfloat16_parses():
  content = safetensors.numpy.save({'a': np.ones(3, ml_dtypes.bfloat16)})
  assert checkpoints._parse_weights(content, 'x')['a'].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize('shape', [[0, 2**62], [0, 2**63], [1] * 65])
def test_shapes_beyond_any_array_are_named(shape):
  values = 4 * (0 not in shape)
  header = json.dumps({'a': {'dtype': 'F32', 'shape': shape, 'data_offsets': [0, values]}}).encode()
  content = len(header).to_bytes(8, 'little') + header + bytes(values)
  with pytest.raises(errors.UserError, match="x: tensor 'a' is no array|x is not a safetensors file"):
    checkpoints._parse_weights(content, 'x')


@pytest.mark.parametrize('name', ['soundstream', 'w2v_bert', 'mulan', 'semantic'])
def test_config_json_is_exact(name):
  config_class, _ = registry.classes(name)
  config = config_class()
  text = json.dumps(registry.config_to_json(config))
  assert registry.config_from_json(config_class, json.loads(text)) == config


@pytest.mark.parametrize('name', ['../x', '/tmp/x', 'a/b', '', '.', '..'])
def test_a_text_file_cannot_leave_the_directory(name, variables, tmp_path):
  with pytest.raises(errors.UserError, match='is not the name of a file'):
    checkpoints.export_model(
      tmp_path / 'm', 'semantic', CONFIG, variables, text_files={name: 'a'}
    )
