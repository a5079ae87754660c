"""Pairs of versions of a melody, as the melody objective eats them."""

import pathlib

import jax
import numpy as np
import pytest

from musiclm_jax import errors, gin_utils, train
from musiclm_jax.data import datasets, feature_converters, records
from tasks import melody

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_MELODIES = 6


@pytest.fixture(name='directory', scope='module')
def _directory(tmp_path_factory):
  """Six melodies of two pieces in three versions of another length, each of one value."""
  path = tmp_path_factory.mktemp('melodies')
  serialised = [
      records.melody_record(
          f'melody{m}', f'piece{m % 2}',
          [np.full(2_400 + 600 * v, (10 * m + v + 1) / 32768) for v in range(3)],
          ['instrument', 'hum', 'key'])
      for m in range(NUM_MELODIES)]
  for split in ('train', 'test'):
    records.write_shard(path / records.shard_name(split, 0, 1), serialised)
  records.write_info(path, {'kind': 'melodies', 'kinds': ['hum', 'instrument', 'key']})
  return path


def _dataset(directory, kinds=None, **options):
  return datasets.SeqioDataset(
      melody.melody(directory, 0.05, kinds=kinds), feature_converters.MelodyFeatureConverter(),
      **options)


def test_batches_hold_two_versions_of_each_melody(directory):
  iterator, seen = _dataset(directory).iterator(NUM_MELODIES, seed=0), set()
  for _ in range(5):
    batch = next(iterator)
    assert batch['waveform'].shape == (NUM_MELODIES, 2, 1_200)
    assert batch['waveform'].dtype == np.float32
    assert batch['piece'].shape == (NUM_MELODIES, 1) and batch['piece'].dtype == np.int32
    values = np.round(batch['waveform'] * 32768).astype(int)
    assert (values == values[..., :1]).all()
    melodies, versions = np.divmod(values[..., 0] - 1, 10)
    assert (melodies[:, 0] == melodies[:, 1]).all() and (versions[:, 0] != versions[:, 1]).all()
    same = melodies[:, :1] % 2 == melodies[:, 0] % 2
    np.testing.assert_array_equal(batch['piece'] == batch['piece'].T, same)
    seen |= {tuple(pair) for pair in versions.tolist()}
  assert len(seen) == 6


def test_evaluation_reads_the_held_out_split_in_order(directory):
  iterator = _dataset(directory, split='test', shuffle=False).iterator(NUM_MELODIES, seed=0)
  values = np.round(next(iterator)['waveform'][:, 0, 0] * 32768).astype(int)
  assert (values // 10).tolist() == list(range(NUM_MELODIES))


def test_versions_are_of_the_kinds_asked_for(directory):
  iterator = _dataset(directory, ('key', 'instrument')).iterator(NUM_MELODIES, seed=0)
  for _ in range(3):
    values = np.round(next(iterator)['waveform'][..., 0] * 32768).astype(int)
    assert (np.sort((values - 1) % 10, axis=1) == [0, 2]).all()


@pytest.mark.parametrize('kinds', [('hum', 'whistle'), ()])
def test_kinds_that_are_not_there_are_named(directory, kinds):
  with pytest.raises(errors.UserError, match=r"wanted some of \['hum', 'instrument', 'key'\]"):
    melody.melody(directory, 0.05, kinds=kinds)


def test_kinds_that_leave_one_version_of_each_are_an_error_and_no_endless_search(directory):
  dataset = _dataset(directory, ('key',))
  with pytest.raises(errors.UserError, match=(
      rf"{directory}: no record of split 'train' can be used, wanted .* two versions of the kinds")):
    dataset.iterator(2)


def test_records_of_another_kind_are_named(tmp_path):
  records.write_shard(tmp_path / records.shard_name('train', 0, 1),
                      [records.waveform_record('a', np.zeros(10))])
  records.write_info(tmp_path, {'kind': 'waveforms'})
  with pytest.raises(errors.UserError, match='holds waveforms records .* wanted melodies'):
    melody.melody(tmp_path, 0.05)


def test_the_run_file_gives_what_its_objective_eats(directory):
  gin_utils.load([str(ROOT / 'gin' / 'runs' / 'melody_tiny.gin')], [
      'WORKDIR=unused', f'DATA_DIR={directory}', 'melody.melody.kinds=("hum", "key")'])
  names = ('objective', 'dataset', 'eval_dataset')
  objective, dataset, held_out = gin_utils.arguments(train.train, names).values()
  assert (dataset.split, dataset.shuffle) == ('train', True)
  assert (held_out.split, held_out.shuffle) == ('test', False)
  batch = next(held_out.iterator(3, seed=0))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), dict(batch)) == jax.tree.map(
      lambda x: (x.shape, x.dtype), objective.input_shapes(3))
  values = np.round(batch['waveform'][..., 0] * 32768).astype(int)
  assert (np.sort((values - 1) % 10, axis=1) == [1, 2]).all()
