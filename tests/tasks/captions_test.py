"""The captions task over what the TFDS builders make: pairs, splits, hosts, position, bad input."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from musiclm_jax import audio, errors, text
from musiclm_jax.data import datasets, feature_converters, vocabularies
from tasks import audio_folder, captions, sources, waveforms

NUM_FILES = 12
CROP_SECONDS = 0.05


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  """A dataset of twelve files in three shards, and a vocabulary; the caption says the waveform."""
  folder = tmp_path_factory.mktemp('music')
  names = [f'{i}.wav' for i in range(NUM_FILES)]
  for i, name in enumerate(names):
    audio.write(folder / name, np.full(audio.SAMPLE_RATE, i / 32768))
  rows = [{'path': name, 'caption': f'piece number {i}'} for i, name in enumerate(names) if i]
  (folder / 'captions.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  builder = audio_folder.AudioFolder(
      data_dir=tmp_path_factory.mktemp('data'),
      config=audio_folder.AudioFolderConfig(name='all', test_fraction=0.0))
  builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=folder, num_shards=3))
  vocab_file = folder / 'vocab.txt'
  text.train_vocabulary(['piece number', *map(str, range(NUM_FILES))] * 3, 60, str(vocab_file))
  return pathlib.Path(builder.data_dir), str(vocab_file)


def _dataset(setting, **options):
  directory, vocab_file = setting
  task = captions.captions(directory, vocabularies.WordPieceVocabulary(vocab_file), CROP_SECONDS, 10,
                           shuffle_buffer_seconds=0.2)
  return datasets.SeqioDataset(task, feature_converters.MusicTextFeatureConverter(), **options)


def _read(setting, iterator, batches):
  """Returns [(number of the waveform, number that the caption says), ..]."""
  tokenizer, found = text.WordPieceTokenizer(setting[1]), []
  for batch in (next(iterator) for _ in range(batches)):
    for waveform, ids in zip(batch['waveform'], batch['text_tokens'], strict=True):
      assert waveform.shape == (round(CROP_SECONDS * audio.SAMPLE_RATE),)
      said = tokenizer.decode(ids).split()
      assert said[:2] == ['piece', 'number']
      found.append((round(float(waveform[0]) * 32768), int(''.join(said[2:]))))
  return found


def test_a_crop_comes_with_the_caption_of_its_clip(setting):
  found = _read(setting, _dataset(setting).iterator(4, seed=1), 8)
  assert all(heard == said for heard, said in found)
  assert {said for _, said in found} == set(range(1, NUM_FILES))  # clip 0 has no caption


def test_hosts_share_no_clip_and_have_all_together(setting):
  dataset = _dataset(setting, num_epochs=1)
  parts = [[said for batch in (list(dataset.iterator(1, 3, shard_index=host, num_shards=2)),)
            for _, said in _read(setting, iter(batch), len(batch))] for host in (0, 1)]
  assert sorted(parts[0] + parts[1]) == list(range(1, NUM_FILES)) and all(parts)


def test_the_position_is_restored(setting, tmp_path):
  dataset = _dataset(setting)
  iterator = dataset.iterator(4, seed=7)
  _read(setting, iterator, 5)
  iterator.save(tmp_path / 'position')
  wanted = _read(setting, iterator, 6)
  again = dataset.iterator(4, seed=7)
  again.restore(tmp_path / 'position')
  assert _read(setting, again, 6) == wanted


def test_the_waveform_task_reads_it_as_any_records(setting):
  task = waveforms.waveforms(setting[0], CROP_SECONDS, crops_per_record=2)
  dataset = datasets.SeqioDataset(
      task, feature_converters.WaveformFeatureConverter(), num_epochs=1)
  rows = np.concatenate([batch['waveform'] for batch in dataset.iterator(4)])
  assert sorted((rows[:, 0] * 32768).astype(int)) == sorted(2 * list(range(NUM_FILES)))


def test_clips_without_captions_are_an_error_and_no_endless_search(tmp_path):
  audio.write(tmp_path / 'a.wav', np.zeros(audio.SAMPLE_RATE))
  builder = audio_folder.AudioFolder(data_dir=tmp_path / 'data')
  builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))
  text.train_vocabulary(['a'] * 3, 60, str(tmp_path / 'vocab.txt'))
  dataset = _dataset((builder.data_dir, str(tmp_path / 'vocab.txt')))
  with pytest.raises(errors.UserError, match=(
      f"{builder.data_dir}: no record of split 'train' can be used, .* with a caption")):
    dataset.iterator(4)


def test_several_directories_are_read_as_one(setting):
  once = sources.list_shards(setting[0], 'waveforms')
  twice = sources.list_shards([setting[0], setting[0]], 'waveforms')
  assert len(once['train']) == 3 and twice == {'train': once['train'] * 2}


def _copy(directory, to):
  to.mkdir()
  for path in directory.iterdir():
    (to / path.name).write_bytes(path.read_bytes())
  return to


@pytest.mark.parametrize('change, wanted', [
    ({'fileFormat': 'array_record'}, 'has array_record files, wanted tfrecord'),
    ({'name': '../../etc'}, 'does not describe a dataset: .* not a word'),
    ({'splits': [{'name': 'a/b', 'shardLengths': ['1']}]}, 'not a word'),
    ({'splits': [{'name': 'train', 'shardLengths': ['1'] * 4}]},
     'lacks audio_folder-train.tfrecord-00000-of-00004'),
    ({'splits': 7}, 'does not describe a dataset'),
    ({'splits': []}, 'it has no splits'),
])
def test_a_description_that_is_wrong_is_an_error(setting, tmp_path, change, wanted):
  directory = _copy(setting[0], tmp_path / 'copy')
  path = directory / sources.TFDS_FILE
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(errors.UserError, match=wanted):
    sources.list_shards(directory, 'waveforms')


def test_what_is_no_dataset_is_an_error(setting, tmp_path):
  with pytest.raises(errors.UserError, match='has no dataset_info.json, wanted a directory that'):
    captions.captions(tmp_path, None, 1.0, 10)
  directory = _copy(setting[0], tmp_path / 'copy')
  (directory / sources.TFDS_FILE).write_bytes(b'[' * 100_000)
  with pytest.raises(errors.UserError, match='does not describe a dataset'):
    sources.list_shards(directory, 'waveforms')
