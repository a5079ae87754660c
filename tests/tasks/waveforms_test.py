"""Crops of several record directories."""

import numpy as np
import pytest
import seqio

from musiclm_jax import errors
from musiclm_jax.data import datasets, feature_converters, records
from tasks import waveforms


def _write(path, value, split='train'):
  path.mkdir(exist_ok=True)
  records.write_shard(path / records.shard_name(split, 0, 1), [
      records.waveform_record(f'{value}', np.full(1200, value / 32768))])
  records.write_info(path, {'kind': 'waveforms'})


def test_two_directories_are_read_as_one(tmp_path):
  _write(tmp_path / 'a', 1)
  _write(tmp_path / 'b', 2)
  task = waveforms.waveforms([tmp_path / 'a', tmp_path / 'b'], 0.01)
  assert task.name not in seqio.TaskRegistry.names()
  dataset = datasets.SeqioDataset(task, feature_converters.WaveformFeatureConverter(), num_epochs=1)
  rows = np.concatenate([batch['waveform'] for batch in dataset.iterator(4)])
  assert rows.shape == (8, 240)
  assert sorted((rows[:, 0] * 32768).astype(int)) == [1] * 4 + [2] * 4


def test_noise_lies_beside_every_crop_and_goes_round(tmp_path):
  _write(tmp_path / 'music', 1)
  _write(tmp_path / 'noise', 2)
  task = waveforms.waveforms(tmp_path / 'music', 0.01, 8, noise_directory=tmp_path / 'noise')
  dataset = datasets.SeqioDataset(
      task, feature_converters.NoisyWaveformFeatureConverter(), num_epochs=2)
  rows = list(dataset.iterator(4))
  assert len(rows) == 4
  for batch in rows:
    assert batch['noise'].shape == batch['waveform'].shape == (4, 240)
    np.testing.assert_array_equal(batch['noise'] * 32768, 2)
    np.testing.assert_array_equal(batch['waveform'] * 32768, 1)


def test_a_directory_without_records_is_an_error(tmp_path):
  records.write_info(tmp_path, {'kind': 'waveforms'})
  with pytest.raises(errors.UserError, match='hold no records'):
    waveforms.waveforms(tmp_path, 1.0)


def test_a_directory_of_other_records_is_an_error(tmp_path):
  records.write_shard(tmp_path / records.shard_name('train', 0, 1), [])
  records.write_info(tmp_path, {'kind': 'tokens'})
  with pytest.raises(errors.UserError, match='holds tokens records .* wanted waveforms'):
    waveforms.waveforms(tmp_path, 1.0)


@pytest.mark.parametrize('seconds', [1e-9, 0, -1, 1e9, float('nan')])
def test_crops_of_no_length_or_without_end_are_named(tmp_path, seconds):
  _write(tmp_path, 1)
  with pytest.raises(errors.UserError, match='wanted a sample or more and at most 600 s'):
    waveforms.waveforms(tmp_path, seconds)
