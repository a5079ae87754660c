"""Reading a stranger's directory, and moving tensors by a table: each used exactly once."""

import json

import numpy as np
import pytest
import safetensors.numpy

from musiclm_jax import errors
from musiclm_jax.pretrained import hugging_face

MOVES = [hugging_face.Move('q', 'query', '(H K) D -> D H K'), hugging_face.Move('b', 'bias', 'D -> D')]
SIZES = {'H': 2, 'K': 3, 'D': 6}  # square: a transposition by shape would not be noticed
LEFT_OUT = {'pooler': 'it has no place'}


def _arrays(**changes):
  arrays = {'q': np.arange(36, dtype=np.float32).reshape(6, 6), 'b': np.ones(6, np.float32)}
  return {**arrays, **changes}


def _move(arrays):
  return hugging_face.move(arrays, MOVES, SIZES, LEFT_OUT, 'FILE')


def test_axes_go_where_the_table_says():
  moved, notes = _move(_arrays())
  assert moved['query'].shape == (6, 2, 3) and not notes
  for d, h, k in np.ndindex(6, 2, 3):
    assert moved['query'][d, h, k] == (3 * h + k) * 6 + d


def test_what_is_left_out_is_reported():
  _, notes = _move(_arrays(pooler=np.ones((2, 3))))
  assert notes == ['left out: pooler (2, 3), it has no place']


def test_half_precision_becomes_float32():
  assert _move(_arrays(b=np.ones(6, np.float16)))[0]['bias'].dtype == np.float32


@pytest.mark.parametrize('changes, wanted', [
    ({'more': np.ones((2, 3))}, r'FILE: tensor more \(2, 3\) has no place'),
    ({'b': np.ones(5, np.float32)}, r'FILE: tensor b is \(5,\), wanted \(6,\)'),
    ({'q': np.ones((36,), np.float32)}, r'FILE: tensor q is \(36,\), wanted \(6, 6\)'),
    ({'b': np.ones(6, np.int32)}, 'FILE: tensor b is int32, wanted float32'),
    ({'b': np.full(6, np.nan, np.float32)}, 'FILE: tensor b has values that are not finite'),
    ({'b': np.full(6, 1e300)}, 'FILE: tensor b has values that are not finite'),  # in float32
    ({'b': np.ones(6, np.complex64)}, 'FILE: tensor b is complex64, wanted float32'),
])  # fmt: skip
@pytest.mark.filterwarnings('error')  # a warning would be a second line
def test_tensors_that_do_not_fit_are_named(changes, wanted):
  with pytest.raises(errors.UserError, match=wanted):
    _move(_arrays(**changes))


def test_a_missing_tensor_is_named():
  arrays = _arrays()
  del arrays['b']
  with pytest.raises(errors.UserError, match=r'FILE: tensor b is missing, wanted \(6,\)'):
    _move(arrays)


@pytest.mark.parametrize('content, wanted', [
    (b'{', 'config.json is not JSON'),
    (b'\xff\xfe\xff', 'config.json is not JSON'),
    (b'[' * 100_000, 'config.json is not JSON'),
    (b'[1]', 'config.json holds list'),
    (b'{"n": 1' + b'0' * 5000 + b'}', 'config.json is not JSON'),
])  # fmt: skip
def test_a_config_that_is_none(tmp_path, content, wanted):
  (tmp_path / 'config.json').write_bytes(content)
  with pytest.raises(errors.UserError, match=wanted):
    hugging_face.Settings.read(str(tmp_path), 'config.json')


@pytest.mark.parametrize(
    'value', [None, 0, -1, True, 2.0, '8', [8], {}, 2**30, float('nan'), 'x' * 10**6])
def test_a_size_is_a_whole_number_in_range(tmp_path, value):
  (tmp_path / 'config.json').write_text(json.dumps({'n': value}))
  settings = hugging_face.Settings.read(str(tmp_path), 'config.json')
  with pytest.raises(errors.UserError, match='config.json: n is .*, wanted 1 to 1048576$') as caught:
    settings.size('n')
  assert len(str(caught.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize('value', ['1', True, None, float('nan'), float('inf'), -1.0, 10**400])
def test_a_number_is_in_range(tmp_path, value):
  (tmp_path / 'config.json').write_text(json.dumps({'n': value}))
  settings = hugging_face.Settings.read(str(tmp_path), 'config.json')
  assert settings.number('absent', 0.25, 0, 1) == 0.25
  with pytest.raises(errors.UserError, match='n is .*, wanted 0 to 1$'):
    settings.number('n', 0.5, 0, 1)


def test_a_pickle_is_refused(tmp_path):
  (tmp_path / 'pytorch_model.bin').write_bytes(b'anything')
  with pytest.raises(errors.UserError, match=r'no model.safetensors \(it has pytorch_model.bin, a pickle'):
    hugging_face.read_weights(str(tmp_path), '')


def test_several_files_of_weights_are_refused(tmp_path):
  (tmp_path / 'model.safetensors.index.json').write_text('{}')
  with pytest.raises(errors.UserError, match='no model.safetensors .its weights are in several files'):
    hugging_face.read_weights(str(tmp_path), '')


def _file(header, data=b'', header_length=None):
  """Returns the bytes of a safetensors file, which may lie about its header's length."""
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(header) if header_length is None else header_length
  return length.to_bytes(8, 'little') + header + data


def _tensor(shape, dtype='F32', size=0):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [0, size]}


DAMAGED = {
    'empty': b'', 'text': b'no weights', 'noise': b'\xff' * 100,
    'header longer than memory': _file({}, header_length=2**64 - 1),
    'header longer than the file': _file({}, header_length=99_000_000),
    'deep header': _file(b'{"a":' + b'[' * 100_000),
    'size that overflows': _file({'a': _tensor([2**62, 8], size=4)}, bytes(4)),
    'shape beyond numpy': _file({'a': _tensor([0, 2**63])}),
    'size beyond numpy': _file({'a': _tensor([0, 2**62])}),
    'axes beyond numpy': _file({'a': _tensor([1] * 100, size=4)}, bytes(4)),
    'negative shape': _file({'a': _tensor([-1], size=4)}, bytes(4)),
    'cut off': _file({'a': _tensor([1], size=4)}, bytes(3)),
    'one place for two': _file({name: _tensor([1], size=4) for name in 'ab'}, bytes(4)),
}  # fmt: skip


@pytest.mark.parametrize('content', DAMAGED.values(), ids=DAMAGED)
def test_damaged_weights_are_refused(tmp_path, content):
  (tmp_path / 'model.safetensors').write_bytes(content)
  with pytest.raises(errors.UserError, match='model.safetensors is not a safetensors file') as caught:
    hugging_face.read_weights(str(tmp_path), '')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('dtype, size', [('BF16', 2), ('F8_E4M3', 1)])
def test_a_type_that_numpy_lacks_is_refused(tmp_path, dtype, size):
  content = _file({'a': _tensor([1], dtype, size)}, bytes(size))
  (tmp_path / 'model.safetensors').write_bytes(content)
  with pytest.raises(errors.UserError, match=f"tensor of type '{dtype}', wanted F32 or F16"):
    hugging_face.read_weights(str(tmp_path), '')


@pytest.mark.parametrize('name', ['a\nb', '\x1b[31mred', 'a' * 10**5])
def test_a_name_that_is_no_name_is_refused(tmp_path, name):
  (tmp_path / 'model.safetensors').write_bytes(_file({name: _tensor([1], size=4)}, bytes(4)))
  with pytest.raises(errors.UserError, match='a tensor is called') as caught:
    hugging_face.read_weights(str(tmp_path), '')
  message = str(caught.value)
  assert message.isprintable() and len(message) < 200 + len(str(tmp_path))


def test_files_beyond_all_reason_are_not_read(tmp_path):
  for name, size, read in (
      ('config.json', 100 * 2**20, lambda: hugging_face.Settings.read(str(tmp_path), 'config.json')),
      ('model.safetensors', 2**40, lambda: hugging_face.read_weights(str(tmp_path), ''))):
    with open(tmp_path / name, 'wb') as f:
      f.truncate(size)  # a hole: it takes no room
    with pytest.raises(errors.UserError, match=f'{name} has {size} bytes, wanted at most'):
      read()


def test_names_lose_their_prefix_and_old_names_are_understood(tmp_path):
  one = np.ones(1, np.float32)
  names = ['bert.a', 'cls.b', 'bert.LayerNorm.gamma', 'bert.x.LayerNorm.beta']
  safetensors.numpy.save_file(dict.fromkeys(names, one), tmp_path / 'model.safetensors')
  assert set(hugging_face.read_weights(str(tmp_path), 'bert.')) == {
      'a', 'cls.b', 'LayerNorm.weight', 'x.LayerNorm.bias'}
  safetensors.numpy.save_file({'bert.a': one, 'a': one}, tmp_path / 'model.safetensors')
  with pytest.raises(errors.UserError, match='tensor a is there twice'):
    hugging_face.read_weights(str(tmp_path), 'bert.')
