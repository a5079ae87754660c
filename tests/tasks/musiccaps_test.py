"""MusicCaps from its csv and a folder of clips: splits, counts, lists, and what hostile input does."""

import csv
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import seqio
import soundfile
import tensorflow as tf
import tensorflow_datasets as tfds

from musiclm_jax import audio, errors, musiccaps, text
from musiclm_jax.data import datasets, feature_converters, records, vocabularies
from tasks import captions, sources
from tasks import musiccaps as musiccaps_builder

ROOT = pathlib.Path(__file__).resolve().parents[2]
REAL_CSV = ROOT.parent / 'shared' / 'data' / musiccaps.CSV_FILE


def _row(ytid, **changes):
  return {'ytid': ytid, 'start_s': '30', 'end_s': '32', 'audioset_positive_labels': '/m/04rlf,/m/0x',
          'aspect_list': "['sad', 'it\\'s slow']", 'caption': f'Song {ytid}.', 'author_id': '4',
          'is_balanced_subset': 'False', 'is_audioset_eval': 'False'} | changes


EVAL = {'is_audioset_eval': 'True'}
ROWS = [
    _row('-evalA_0001', caption='Ein "schönes" Lied,\nlangsam.', is_balanced_subset='True', **EVAL),
    _row('eval-B-0002', **EVAL),
    _row('eval_gone_3', **EVAL),
    _row('eval_noise4', **EVAL),
    _row('train_mp3_5'),
    _row('train_ogg-6', start_s='0', end_s='2'),
    _row('train_shrt7'),
]


def _write_csv(folder, rows, columns=musiccaps.COLUMNS):
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / musiccaps.CSV_FILE, 'w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, columns, extrasaction='ignore')
    writer.writeheader()
    writer.writerows(rows)


def _write_clip(path, value, seconds=3.0, rate=24_000):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, np.full((int(seconds * rate), 2), value), rate)


def _build(manual_dir, data_dir, num_shards=None):
  builder = musiccaps_builder.MusicCaps(data_dir=data_dir)
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(
      manual_dir=manual_dir, num_shards=num_shards))
  return builder


def _list(path):
  with open(path, encoding='utf-8', newline='') as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  """A folder with a clip of each of ROWS but one; one is no audio, one too short."""
  folder = tmp_path_factory.mktemp('manual')
  _write_csv(folder, ROWS)
  _write_clip(folder / 'clips' / '-evalA_0001_30.wav', 0.25, rate=48_000)
  other = tmp_path_factory.mktemp('elsewhere')
  _write_clip(other / 'eval-B-0002-30-40.flac', -0.5)
  (folder / 'clips' / 'linked').symlink_to(other)
  (other / 'loop').symlink_to(folder)
  (folder / 'clips' / 'self.wav').symlink_to('self.wav')
  (folder / 'clips' / 'eval_noise4_30.wav').write_bytes(b'no audio at all' * 99)
  _write_clip(folder / 'b' / 'train_mp3_5_30.MP3', 0.125)
  _write_clip(folder / 'b' / 'train_ogg-6_0.ogg', 0.25)
  _write_clip(folder / 'b' / 'train_ogg-6_7.wav', 0.75)  # another part of that video
  _write_clip(folder / 'b' / 'train_shrt7_30.wav', 0.5, seconds=0.5)
  _write_clip(folder / 'b' / 'ein Lied – 歌.wav', 0.5)
  os.mkfifo(folder / 'b' / 'eval_gone_3_30.wav')  # whoever opens it waits for ever
  return folder


@pytest.fixture(scope='module')
def dataset(clips, tmp_path_factory):
  return _build(clips, tmp_path_factory.mktemp('data'))


def test_what_is_missing_or_unreadable_is_counted_and_listed(dataset):
  counts = {split: (of['rows'], of['used'], of['missing'], of['unreadable'])
            for split, of in dataset.info.metadata.items()}
  assert counts == {'eval': (4, 2, 1, 1), 'train': (3, 2, 0, 1), 'balanced': (1, 1, 0, 0)}
  assert {split: info.num_examples for split, info in dataset.info.splits.items()} == {
      'eval': 2, 'train': 2, 'balanced': 1}
  directory = pathlib.Path(dataset.data_dir)
  assert _list(directory / 'eval_used.csv') == [
      {'ytid': '-evalA_0001', 'start_s': '30', 'file': 'clips/-evalA_0001_30.wav'},
      {'ytid': 'eval-B-0002', 'start_s': '30', 'file': 'clips/linked/eval-B-0002-30-40.flac'}]
  left_out = {row['ytid']: row['reason'] for row in _list(directory / 'eval_left_out.csv')}
  assert left_out.keys() == {'eval_gone_3', 'eval_noise4'} and left_out['eval_gone_3'] == 'missing'
  assert 'eval_noise4_30.wav is not audio that can be read' in left_out['eval_noise4']
  short, = _list(directory / 'train_left_out.csv')
  assert short['ytid'] == 'train_shrt7' and 'lasts 0.50 s, wanted at least 1 s' in short['reason']


def test_examples_hold_the_row_and_the_seconds_it_names(dataset):
  source = seqio.TfdsDataSource('musiccaps:1.0.0', dataset.data_dir_root)
  found = {example['id'].decode(): example for split in ('eval', 'train')
           for example in source.get_dataset(split, shuffle=False).as_numpy_iterator()}
  assert found.keys() == {'-evalA_0001_30', 'eval-B-0002_30', 'train_mp3_5_30', 'train_ogg-6_0'}
  for name, value in (('-evalA_0001_30', 0.25), ('eval-B-0002_30', -0.5), ('train_mp3_5_30', 0.125)):
    waveform = audio.from_pcm16(np.frombuffer(found[name]['pcm'], '<i2'))
    assert waveform.shape == (2 * audio.SAMPLE_RATE,)  # of 3 s in the file
    np.testing.assert_allclose(waveform[4000:-4000], value, atol=0.01)
  example = found['-evalA_0001_30']
  assert [value.decode() for value in example['captions']] == ['Ein "schönes" Lied, langsam.']
  assert example['aspects'].tolist() == [b'sad', b"it's slow"]
  assert example['audioset_labels'].tolist() == [b'/m/04rlf', b'/m/0x']
  assert example['piece'] == b'-evalA_0001' and example['author_id'] == 4
  assert (example['start_s'], example['end_s']) == (30, 32)
  assert example['is_balanced_subset'] and example['is_audioset_eval']
  assert not found['train_ogg-6_0']['is_audioset_eval']


def test_the_files_are_waveform_records(dataset):
  path, = sources.list_shards(dataset.data_dir, 'waveforms')['balanced']
  record, = records.read_waveform_shard(path)
  assert record['id'] == '-evalA_0001_30' and record['piece'] == '-evalA_0001'
  assert record['captions'] == ['Ein "schönes" Lied, langsam.']
  assert record['waveform'].shape == (2 * audio.SAMPLE_RATE,)


def test_the_description_says_licence_and_citation_and_every_feature(dataset):
  info = dataset.info
  assert 'CC BY-SA 4.0' in info.as_proto.redistribution_info.license
  assert 'agostinelli2023musiclm' in info.citation
  for name, feature in info.features.items():
    assert feature.doc.desc, name


def test_a_folder_whose_name_is_not_utf8_does_not_end_the_build(tmp_path):
  _write_csv(tmp_path / 'in', ROWS[4:6])
  _write_clip(tmp_path / 'in' / 'train_mp3_5_30.wav', 0.5)
  _write_clip(tmp_path / 'in' / 'x' / 'train_ogg-6_0.wav', 0.5)
  (tmp_path / 'in' / 'x').rename(tmp_path / 'in' / os.fsdecode(b'\xff'))
  directory = pathlib.Path(_build(tmp_path / 'in', tmp_path / 'out').data_dir)
  lists = _list(directory / 'train_used.csv') + _list(directory / 'train_left_out.csv')
  assert sorted(row['ytid'] for row in lists) == ['train_mp3_5', 'train_ogg-6']


@pytest.mark.skipif(not shutil.which('ffmpeg'), reason='needs ffmpeg')
def test_of_two_files_the_one_that_can_be_read_is_used(tmp_path):
  _write_csv(tmp_path / 'in', [ROWS[4]])
  _write_clip(tmp_path / 'x.wav', 0.5)
  (tmp_path / 'in' / 'train_mp3_5_30.wav').write_bytes(b'')
  subprocess.run(['ffmpeg', '-v', 'error', '-i', tmp_path / 'x.wav',
                  tmp_path / 'in' / 'train_mp3_5_30.m4a'], check=True, timeout=60)
  builder = _build(tmp_path / 'in', tmp_path / 'out')
  row, = _list(pathlib.Path(builder.data_dir) / 'train_used.csv')
  assert row['file'] == 'train_mp3_5_30.m4a'
  assert set(builder.info.splits) == {'train'}


def test_no_clip_at_all_and_none_that_can_be_read_are_errors(tmp_path):
  _write_csv(tmp_path / 'in', ROWS)
  _write_clip(tmp_path / 'in' / 'other.wav', 0.5)
  with pytest.raises(errors.UserError, match='no clip of the 7 of musiccaps-public.csv'):
    _build(tmp_path / 'in', tmp_path / 'out')
  (tmp_path / 'in' / 'eval-B-0002_30.wav').write_bytes(b'x' * 100)
  with pytest.raises(errors.UserError, match='none of the 1 clips .* could be read'):
    _build(tmp_path / 'in', tmp_path / 'out')
  assert not list((tmp_path / 'out').rglob('dataset_info.json'))


@pytest.mark.parametrize('changes, wanted', [
    ({'ytid': '../../etc/p'}, r"row 2: ytid is '../../etc/p', wanted 11 letters"),
    ({'ytid': '/etc/passwd'}, "row 2: ytid is '/etc/passwd'"),
    ({'ytid': ''}, "row 2: ytid is ''"),
    ({'ytid': '-evalA_0001'}, "row 2: ytid '-evalA_0001' with start_s 30 is that of row 1, too"),
    ({'start_s': '-1'}, "row 2: start_s is '-1', wanted a whole number"),
    ({'start_s': '٣'}, "row 2: start_s is '٣', wanted a whole number"),
    ({'end_s': '1000'}, "row 2: end_s is '1000', wanted 1 to 30 more than start_s, 30"),
    ({'end_s': '30'}, "row 2: end_s is '30'"),
    ({'caption': ' \n'}, 'row 2: caption is .* wanted a text'),
    ({'aspect_list': '__import__("os").getcwd()'}, 'row 2: aspect_list is .*, wanted a list'),
    ({'aspect_list': '[' * 9999}, 'row 2: aspect_list is .*, wanted a list of texts'),
    ({'aspect_list': '[1]'}, 'row 2: aspect_list is .*, wanted a list of texts'),
    ({'is_audioset_eval': 'yes'}, "row 2: is_audioset_eval is 'yes', wanted True or False"),
    ({'is_balanced_subset': ''}, "row 2: is_balanced_subset is '', wanted True or False"),
])
def test_a_cell_that_is_wrong_is_named_with_its_row_and_column(tmp_path, changes, wanted):
  _write_csv(tmp_path, [ROWS[0], ROWS[1] | changes])
  with pytest.raises(errors.UserError, match=wanted) as caught:
    musiccaps.read_rows(str(tmp_path / musiccaps.CSV_FILE))
  assert '\n' not in str(caught.value)


def test_a_table_that_is_not_musiccaps_is_an_error(tmp_path):
  path = str(tmp_path / musiccaps.CSV_FILE)
  with pytest.raises(errors.UserError, match='does not exist, wanted the public csv'):
    musiccaps.read_rows(path)
  _write_csv(tmp_path, ROWS, [name for name in musiccaps.COLUMNS if name != 'aspect_list'])
  with pytest.raises(errors.UserError, match=r"wanted also \['aspect_list'\]"):
    musiccaps.read_rows(path)
  _write_csv(tmp_path, [])
  with pytest.raises(errors.UserError, match='holds no rows'):
    musiccaps.read_rows(path)
  pathlib.Path(path).write_bytes(b'\xff\xfe\0')
  with pytest.raises(errors.UserError, match='is not a UTF-8 csv file'):
    musiccaps.read_rows(path)


@pytest.fixture(scope='module')
def public(tmp_path_factory):
  """(rows by split, rows with a clip, dataset) of the public csv with four clips."""
  if not REAL_CSV.exists():
    pytest.skip('needs the public csv in ../shared/data')
  splits = musiccaps.split_rows(musiccaps.read_rows(str(REAL_CSV)))
  chosen = [splits['balanced'][0], splits['eval'][0], splits['train'][0], splits['train'][-1]]
  manual = tmp_path_factory.mktemp('public')
  (manual / musiccaps.CSV_FILE).symlink_to(REAL_CSV)
  for i, row in enumerate(chosen):
    _write_clip(manual / 'clips' / f'{row.ytid}_{row.start}.wav', (i + 1) / 32, seconds=1.5)
  return splits, chosen, _build(manual, tmp_path_factory.mktemp('built'))


def test_the_public_csv_has_the_published_splits(public):
  splits, chosen, dataset = public
  assert {split: len(rows) for split, rows in splits.items()} == {
      'eval': 2858, 'train': 2663, 'balanced': 1000}
  assert len({*splits['eval'], *splits['train']}) == 5521
  assert set(splits['balanced']) < set(splits['eval'])
  for split, used in (('eval', 2), ('train', 2), ('balanced', 1)):
    assert dict(dataset.info.metadata[split]) == {
        'rows': len(splits[split]), 'used': used, 'missing': len(splits[split]) - used,
        'unreadable': 0}
    assert dataset.info.splits[split].num_examples == used
    left_out = _list(pathlib.Path(dataset.data_dir) / f'{split}_left_out.csv')
    assert len(left_out) == len(splits[split]) - used


def test_the_captions_task_reads_the_public_captions(public, tmp_path):
  splits, chosen, dataset = public
  vocab_file = str(tmp_path / 'vocab.txt')
  text.train_vocabulary([row.caption for row in splits['train'][:200]], 600, vocab_file)
  task = captions.captions(
      dataset.data_dir, vocabularies.WordPieceVocabulary(vocab_file), 1.0, 64)
  tokenizer = text.WordPieceTokenizer(vocab_file)
  assert set(task.splits) == set(splits)
  for split, rows in splits.items():
    batches = datasets.SeqioDataset(
        task, feature_converters.MusicTextFeatureConverter(), split=split, shuffle=False,
        num_epochs=1).iterator(1)
    found = {round(float(batch['waveform'][0, 9000]) * 32): batch['text_tokens'][0].tolist()
             for batch in batches}
    assert found == {i: tokenizer.encode([row.caption], 64)[0].tolist()
                     for i, row in enumerate(chosen, 1) if row in rows}


def _parsed(path):
  return [tf.train.Example.FromString(record)
          for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]


def test_tfds_build_makes_the_same(clips, dataset, tmp_path):
  for module in ('mlcroissant', 'apache_beam'):
    pytest.importorskip(module, reason=f'`tfds build` imports {module}')
  environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path[1:]])}
  subprocess.run(
      [sys.executable, '-m', 'tensorflow_datasets.scripts.cli.main', 'build', 'tasks/musiccaps.py',
       f'--manual_dir={clips}', f'--data_dir={tmp_path}'],
      check=True, timeout=300, cwd=ROOT, env=environment, capture_output=True)
  built, wanted = tmp_path / 'musiccaps' / '1.0.0', pathlib.Path(dataset.data_dir)
  assert sorted(path.name for path in built.iterdir()) == sorted(
      path.name for path in wanted.iterdir())
  for path in wanted.glob('*.csv'):
    assert (built / path.name).read_bytes() == path.read_bytes(), path.name
  for path in wanted.glob('*.tfrecord-*'):  # in another process the order of features is another
    assert _parsed(built / path.name) == _parsed(path), path.name
