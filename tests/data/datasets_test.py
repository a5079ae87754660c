"""Order, shards and position of an input pipeline; fed by the waveform task."""

import numpy as np
import pytest

from musiclm_jax import errors
from musiclm_jax.data import datasets, feature_converters, records
from tasks import waveforms

NUM_RECORDS = 12


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """4 train shards of 3 records, 1 test shard; every sample of record r is r + 1."""
  path = tmp_path_factory.mktemp('records')
  for shard in range(4):
    records.write_shard(path / records.shard_name('train', shard, 4), [
        records.waveform_record(str(r), np.full(4800, (r + 1) / 32768))
        for r in range(3 * shard, 3 * shard + 3)])
  records.write_shard(path / records.shard_name('test', 0, 1), [
      records.waveform_record(f't{r}', (np.arange(4800) + r) / 32768) for r in range(5)])
  records.write_info(path, {'kind': 'waveforms'})
  return path


def _dataset(directory, crops_per_record=2, **options):
  # 0.05 s crops, and a shuffle buffer of 8 crops
  task = waveforms.waveforms(str(directory), 0.05, crops_per_record, shuffle_buffer_seconds=0.4)
  return datasets.SeqioDataset(
      task, feature_converters.WaveformFeatureConverter(), **options)


def _take(iterator, count):
  return [next(iterator)['waveform'] for _ in range(count)]


def _record_ids(batches):
  return [round(float(row[0]) * 32768) - 1 for batch in batches for row in batch]


def test_batches_are_float_numpy_and_follow_the_seed(directory):
  dataset = _dataset(directory)
  batch = next(dataset.iterator(5, seed=1))
  assert batch.keys() == {'waveform'}
  assert isinstance(batch['waveform'], np.ndarray)
  assert batch['waveform'].shape == (5, 1200) and batch['waveform'].dtype == np.float32
  first, again, other = (_record_ids(_take(dataset.iterator(5, seed=s), 8)) for s in (1, 1, 2))
  assert first == again != other


def test_repeats_without_end_and_orders_every_epoch_anew(directory):
  ids = _record_ids(_take(_dataset(directory).iterator(8, seed=0), 9))  # 3 epochs of 24 crops
  assert set(ids) == set(range(NUM_RECORDS))
  assert ids[:24] != ids[24:48] != ids[48:]


@pytest.mark.parametrize('num_shards', [2, 6])  # 6: more hosts than files
def test_shards_are_disjoint_and_cover_everything(directory, num_shards):
  dataset = _dataset(directory, num_epochs=1)
  parts = []
  for index in range(num_shards):
    iterator = dataset.iterator(1, seed=3, shard_index=index, num_shards=num_shards)
    parts.append(_record_ids([batch['waveform'] for batch in iterator]))
  assert sorted(sum(parts, [])) == sorted(2 * list(range(NUM_RECORDS)))
  assert sum(len(set(part)) for part in parts) == NUM_RECORDS


@pytest.mark.parametrize('before', [0, 3, 11])  # 11: past two epochs
def test_restore_goes_on_exactly_where_save_was(directory, tmp_path, before):
  dataset = _dataset(directory)
  iterator = dataset.iterator(5, seed=7)
  _take(iterator, before)
  iterator.save(tmp_path / 'position')
  wanted = _take(iterator, 6)
  again = dataset.iterator(5, seed=7)
  _take(again, 2)  # wherever it stood
  again.restore(tmp_path / 'position')
  np.testing.assert_array_equal(np.stack(_take(again, 6)), np.stack(wanted))
  # The first iterator was not disturbed by the saving.
  fresh = dataset.iterator(5, seed=7)
  np.testing.assert_array_equal(np.stack(_take(fresh, before + 6)[before:]), np.stack(wanted))


def test_restoring_what_is_no_position_is_an_error(directory, tmp_path):
  with pytest.raises(errors.UserError, match='holds no position'):
    _dataset(directory).iterator(5).restore(tmp_path / 'none')


def test_evaluation_gives_the_same_crops_whatever_the_seed(directory):
  dataset = _dataset(directory, crops_per_record=1, split='test', shuffle=False)
  first, again = (_take(dataset.iterator(5, seed=s), 2) for s in (1, 2))
  np.testing.assert_array_equal(first, again)
  starts = first[0][:, 0] * 32768
  assert len(set(starts)) > 1  # crops, not beginnings


def test_unknown_split_and_directory_are_named(directory, tmp_path):
  with pytest.raises(errors.UserError, match=r"no split 'dev', only \['test', 'train'\]"):
    _dataset(directory, split='dev').iterator(1)
  with pytest.raises(errors.UserError, match='does not exist'):
    waveforms.waveforms(str(tmp_path / 'none'), 1.0)
