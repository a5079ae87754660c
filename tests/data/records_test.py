"""Records: what is read is what was written, whole or not at all."""

import numpy as np
import pytest

from musiclm_jax import errors
from musiclm_jax.data import records


def _token_arrays():
  return {'mulan_tokens': np.array([[1, 2], [3, 4], [5, 6]]),
          'mulan_embeddings': np.linspace(-1, 1, 12).reshape(3, 4),
          'semantic_tokens': np.arange(25), 'acoustic_tokens': np.arange(150).reshape(50, 3)}


def test_waveform_record_round_trip(tmp_path):
  waveform = np.array([0.5, -1.0, 0.25], np.float32)
  path = tmp_path / records.shard_name('train', 0, 1)
  assert path.name == 'train-00000-of-00001.tfrecord'
  count = records.write_shard(path, [
      records.waveform_record('a', waveform, ['slow', 'naïve'], 'piece'),
      records.waveform_record('b', waveform[:1], texts={'labels': ['Piano', 'Música'], 'long': []})])
  assert count == 2
  first, second = records.read_waveforms(tmp_path, 'train')
  np.testing.assert_array_equal(first.pop('waveform'), waveform)
  assert first == {'id': 'a', 'captions': ['slow', 'naïve'], 'piece': 'piece', 'texts': {}}
  assert second['captions'] == [] and second['piece'] == ''
  assert second['texts'] == {'labels': ['Piano', 'Música']}
  with pytest.raises(errors.UserError, match="unknown text source 'titles'"):
    records.waveform_record('c', waveform, texts={'titles': ['a']})


def test_token_record_round_trip(tmp_path):
  arrays = _token_arrays()
  records.write_shard(tmp_path / records.shard_name('my-split', 0, 1),
                      [records.token_record('a', arrays)])
  records.write_info(tmp_path, {'kind': 'tokens', 'mulan_levels': 2, 'acoustic_levels': 3})
  assert records.splits(tmp_path) == ['my-split']
  (record,) = records.read_tokens(tmp_path, 'my-split')
  assert record.pop('id') == 'a'
  np.testing.assert_array_equal(record.pop('mulan_embeddings'),
                                arrays.pop('mulan_embeddings').astype(np.float16))
  assert record.keys() == arrays.keys()
  for name, array in arrays.items():
    assert record[name].dtype == np.int32
    np.testing.assert_array_equal(record[name], array)


def _write_melodies(path, *serialised):
  records.write_shard(path / records.shard_name('train', 0, 1), serialised)
  records.write_info(path, {'kind': 'melodies'})


def test_melody_record_round_trip(tmp_path):
  versions = [np.array([0.5, -1.0, 0.25], np.float32), np.array([0.125], np.float32)]
  _write_melodies(tmp_path, records.melody_record('a', 'súng', versions, ['instrument', 'hum']),
                  records.melody_record('b', 'song', versions * 2, ['cover'] * 4))
  first, second = records.read_melodies(tmp_path, 'train')
  assert (first['id'], first['piece'], first['kinds']) == ('a', 'súng', ['instrument', 'hum'])
  assert second['kinds'] == ['cover'] * 4
  for wanted, found in zip(versions * 3, first['versions'] + second['versions'], strict=True):
    np.testing.assert_array_equal(found, wanted)
  clips = list(records.read_clips(tmp_path, 'train', 'melodies'))
  assert [len(clip) for clip in clips] == [3, 1, 3, 1, 3, 1]


@pytest.mark.parametrize('count, kinds', [(1, ['hum']), (2, ['hum'])])
def test_a_melody_that_lacks_versions_or_kinds_is_named(tmp_path, count, kinds):
  _write_melodies(tmp_path, records.melody_record('a', 'b', [np.zeros(3)] * count, kinds))
  with pytest.raises(errors.UserError, match=f'holds a melody of {count} versions and 1 kinds'):
    list(records.read_melodies(tmp_path, 'train'))


def test_clips_of_waveform_records_are_their_waveforms(tmp_path):
  records.write_shard(tmp_path / records.shard_name('train', 0, 1), [
      records.waveform_record(str(n), np.full(n, 0.5)) for n in (3, 1)])
  records.write_info(tmp_path, {'kind': 'waveforms'})
  assert [len(clip) for clip in records.read_clips(tmp_path, 'train')] == [3, 1]
  assert records.read_info(tmp_path, 'melodies', 'waveforms')['kind'] == 'waveforms'
  with pytest.raises(errors.UserError, match='holds waveforms records .* wanted melodies or tokens'):
    records.read_info(tmp_path, 'melodies', 'tokens')


def test_a_shard_that_fails_half_way_does_not_appear(tmp_path):
  def broken():
    yield records.waveform_record('a', np.zeros(3))
    raise RuntimeError('half way')

  with pytest.raises(RuntimeError, match='half way'):
    records.write_shard(tmp_path / 'train-00000-of-00001.tfrecord', broken())
  assert not list(tmp_path.iterdir())


def test_incomplete_directories_are_named(tmp_path):
  with pytest.raises(errors.UserError, match='does not exist'):
    records.read_info(tmp_path / 'none', 'tokens')
  with pytest.raises(errors.UserError, match='has no info.json'):
    records.read_info(tmp_path, 'tokens')
  records.write_shard(tmp_path / records.shard_name('train', 0, 2), [])
  with pytest.raises(errors.UserError, match='holds 1 of 2 train shards'):
    records.list_shards(tmp_path, 'train')
  with pytest.raises(errors.UserError, match=r"no test-.* its splits are \['train'\]"):
    records.list_shards(tmp_path, 'test')


def test_records_of_another_kind_and_broken_ones_are_named(tmp_path):
  records.write_info(tmp_path, {'kind': 'tokens'})
  assert records.read_info(tmp_path, 'tokens')['kind'] == 'tokens'
  with pytest.raises(errors.UserError, match='holds tokens records of format 1, wanted waveforms'):
    records.read_info(tmp_path, 'waveforms')
  for text in ('{', '[]', '{"kind": "tokens"}', '\udcff'):
    (tmp_path / 'info.json').write_text(text, errors='surrogateescape')
    with pytest.raises(errors.UserError, match='info.json does not describe records'):
      records.read_info(tmp_path, 'tokens')


def test_a_truncated_shard_is_named(tmp_path):
  path = tmp_path / records.shard_name('train', 0, 1)
  records.write_shard(path, [records.waveform_record('a', np.zeros(1000))])
  path.write_bytes(path.read_bytes()[:-500])
  with pytest.raises(errors.UserError, match='tfrecord is damaged'):
    list(records.read_waveform_shard(path))
