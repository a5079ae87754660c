"""Any folder of audio as a dataset: clips, splits, tables of captions and tags, hostile input."""

import csv
import json
import os
import pathlib
import unicodedata

import numpy as np
import pytest
import seqio
import soundfile
import tensorflow_datasets as tfds

from musiclm_jax import audio, errors
from tasks import audio_folder

ACCENTED = unicodedata.normalize('NFD', 'Städte/Zürich 歌 – live.flac')  # as a Mac writes it


def _write(path, value, seconds, rate=24_000):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, np.full(round(seconds * rate), value), rate)


def _build(manual_dir, data_dir, **config):
  builder = audio_folder.AudioFolder(
      data_dir=data_dir, config=audio_folder.AudioFolderConfig(name='test', **config))
  builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
  return builder


def _examples(builder):
  """Returns {split: {id: example}}, read through seqio."""
  source = seqio.TfdsDataSource('audio_folder/test:1.0.0', builder.data_dir_root)
  return {split: {example['id'].decode(): example for example in
                  source.get_dataset(split, shuffle=False).as_numpy_iterator()}
          for split in builder.info.splits}


def _decoded(values):
  return [value.decode() for value in values]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Audio in a tree with links in circles, a table, and files that are no audio."""
  folder = tmp_path_factory.mktemp('music')
  _write(folder / 'rock' / 'long.wav', 0.25, 5.5, rate=48_000)
  _write(folder / ACCENTED, 0.5, 1)
  _write(folder / 'rock' / 'plain.wav', 0.5, 1)
  _write(folder / 'short.wav', 0.5, 0.5)
  (folder / 'zero.mp3').write_bytes(b'')
  (folder / 'noise.ogg').write_bytes(os.urandom(5000))
  (folder / 'loop').symlink_to(folder)
  (folder / 'self.wav').symlink_to('self.wav')
  (folder / 'gone.wav').symlink_to('nowhere.wav')
  (folder / 'notes.txt').write_text('not audio')
  rows = [
      {'path': 'rock/long.wav', 'caption': 'A loud "song",\nwith guitars.', 'tags': 'rock; loud;;rock'},
      {'path': './rock/long.wav', 'caption': 'Again.', 'tags': 'guitar'},
      {'path': 'rock/long.wav', 'caption': 'loud rock', 'source': 'short'},
      {'path': unicodedata.normalize('NFC', ACCENTED), 'tags': 'Jodeln'},
      {'path': '../../etc/passwd', 'caption': 'leads out'},
      {'path': '/etc/passwd', 'caption': 'leads out'},
      {'path': 'rock/plain.wav'},
  ]
  with open(folder / 'captions.csv', 'w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, ('path', 'caption', 'tags', 'source'))
    writer.writeheader()
    writer.writerows(rows)
  return folder


@pytest.fixture(scope='module')
def dataset(folder, tmp_path_factory):
  return _build(folder, tmp_path_factory.mktemp('data'), clip_seconds=2, test_fraction=0.0)


def test_files_are_cut_into_clips_with_captions_and_tags(dataset):
  examples = _examples(dataset)['train']
  assert sorted(examples) == sorted([
      ACCENTED, 'rock/plain.wav', *(f'rock/long.wav-{i:03d}' for i in range(3))])
  for i, start in enumerate((0, 2, 4)):
    example = examples[f'rock/long.wav-{i:03d}']
    waveform = audio.from_pcm16(np.frombuffer(example['pcm'], '<i2'))
    assert len(waveform) == (36_000 if start == 4 else 48_000) and example['start_s'] == start
    np.testing.assert_allclose(waveform[2000:-2000], 0.25, atol=1e-3)
    assert _decoded(example['captions']) == ['A loud "song", with guitars.', 'Again.']
    assert _decoded(example['tags']) == ['rock', 'loud', 'guitar']
    assert _decoded(example['texts_short']) == ['loud rock'] and not len(example['texts_long'])
    assert example['piece'] == b'rock/long.wav'
  accented = examples[ACCENTED]
  assert _decoded(accented['tags']) == ['Jodeln'] and not len(accented['captions'])
  assert not len(examples['rock/plain.wav']['tags'])


def test_what_cannot_be_decoded_is_counted_and_listed(dataset):
  assert dict(dataset.info.metadata['train']) == {
      'files': 6, 'used': 3, 'unreadable': 3, 'clips': 5}
  with open(pathlib.Path(dataset.data_dir) / 'train_left_out.csv', encoding='utf-8') as file:
    reasons = {row['file']: row['reason'] for row in csv.DictReader(file)}
  assert reasons.keys() == {'short.wav', 'zero.mp3', 'noise.ogg'}
  assert 'lasts 0.50 s' in reasons['short.wav']
  with open(pathlib.Path(dataset.data_dir) / 'train_used.csv', encoding='utf-8') as file:
    assert {row['file']: row['clips'] for row in csv.DictReader(file)} == {
        'rock/long.wav': '3', 'rock/plain.wav': '1', ACCENTED: '1'}


def test_every_feature_is_described(dataset):
  for name, feature in dataset.info.features.items():
    assert feature.doc.desc, name
  assert dataset.info.features.keys() >= {'id', 'pcm', 'captions', 'tags', 'texts_playlist'}


def test_without_a_table_a_share_of_the_files_is_held_out(tmp_path):
  for i in range(8):
    _write(tmp_path / 'in' / f'{i}.wav', 0.1, 1)
  examples = _examples(_build(tmp_path / 'in', tmp_path / 'out', test_fraction=0.5))
  assert set(examples) == {'train', 'test'} and not set(examples['train']) & set(examples['test'])
  assert len(examples['train']) + len(examples['test']) == 8
  assert not any(len(example['captions']) for example in examples['train'].values())


def test_tsv_and_jsonl_say_the_same_as_csv(tmp_path):
  wanted = [{'path': 'a.wav', 'caption': 'Rock, "loud".', 'source': '', 'tags': ['rock', 'x']},
            {'path': 'b.wav', 'caption': '', 'source': '', 'tags': ['y']}]
  (tmp_path / 'a.tsv').write_text('path\tcaption\ttags\na.wav\tRock, "loud".\trock;x\nb.wav\t\ty\n')
  (tmp_path / 'a.csv').write_text('path,caption,tags\na.wav,"Rock, ""loud"".",rock;x\nb.wav,,y\n')
  (tmp_path / 'a.jsonl').write_text('\n\n'.join(map(json.dumps, [
      {'path': 'a.wav', 'caption': 'Rock, "loud".', 'tags': ['rock', 'x']},
      {'path': 'b.wav', 'caption': None, 'tags': 'y'}])))
  for suffix in ('tsv', 'csv', 'jsonl'):
    assert audio_folder.read_table(str(tmp_path / f'a.{suffix}')) == wanted, suffix


@pytest.mark.parametrize('name, content, wanted', [
    ('a.csv', b'file,caption\na,b\n', r"has columns \['file', 'caption'\], wanted also \['path'\]"),
    ('a.tsv', b'path,caption\na,b\n', r"wanted also \['path'\]"),
    ('a.csv', b'path,title\na,b\n', 'wanted also caption or tags'),
    ('a.csv', b'path,caption\n\xff\xfe,b\n', 'not a UTF-8 csv file'),
    ('a.tsv', b'path\tcaption\n\xff\xfe\tb\n', 'not a UTF-8 tsv file'),
    ('a.jsonl', b'{"path": "a"}\n{"path": ', 'line 2: not a row'),
    ('a.jsonl', b'[' * 100_000, 'line 1: not a row'),
    ('a.jsonl', b'{"path": 3, "tags": []}', "row 1: path is '3', wanted a text"),
    ('a.jsonl', b'{"path": "a", "tags": [1]}', 'row 1: tags are .* wanted a list of texts'),
    ('a.csv', b'path,caption,source\na,b,titles\n', "row 1: source is 'titles', wanted one of"),
    ('a.xlsx', b'', "ends in '.xlsx', wanted .csv, .tsv or .jsonl"),
])
def test_a_table_that_is_wrong_is_an_error(tmp_path, name, content, wanted):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(errors.UserError, match=wanted) as caught:
    audio_folder.read_table(str(tmp_path / name))
  assert '\n' not in str(caught.value)


def test_texts_that_cannot_be_encoded_are_cleaned(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"path": "a", "caption": "x\\ud800y", "tags": ["\\udfff"]}')
  row, = audio_folder.read_table(str(tmp_path / 'a.jsonl'))
  assert row['caption'] == 'xy' and row['tags'] == []


def test_folders_that_cannot_be_used_are_errors(tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'a.wav').write_bytes(b'x' * 999)
  with pytest.raises(errors.UserError, match='none of the 1 audio files .* could be read'):
    _build(tmp_path / 'in', tmp_path / 'out')
  (tmp_path / 'in' / 'captions.csv').write_text('path,caption\nb.wav,c\n')
  with pytest.raises(errors.UserError, match='none of its 1 rows names an audio file'):
    _build(tmp_path / 'in', tmp_path / 'out')
  (tmp_path / 'in' / 'captions.tsv').write_text('path\tcaption\n')
  with pytest.raises(errors.UserError, match='has 2 tables of captions, wanted one'):
    _build(tmp_path / 'in', tmp_path / 'out')
  for options, wanted in (({'clip_seconds': 31}, 'clip_seconds is 31, wanted a whole number of 1 to'),
                          ({'clip_seconds': '9'}, "clip_seconds is '9', wanted a whole"),
                          ({'test_fraction': 1.0}, 'test_fraction is 1.0, wanted 0 or more')):
    with pytest.raises(errors.UserError, match=wanted):
      _build(tmp_path / 'in', tmp_path / 'out', **options)


def test_a_file_name_that_is_not_utf8_is_an_error(tmp_path):
  _write(tmp_path / 'in' / 'x.wav', 0.1, 1)
  (tmp_path / 'in' / 'x.wav').rename(tmp_path / 'in' / os.fsdecode(b'\xff.wav'))
  with pytest.raises(errors.UserError, match='is not UTF-8, rename it'):
    _build(tmp_path / 'in', tmp_path / 'out')


def test_a_corpus_says_its_own_splits_and_captions(tmp_path):
  _write(tmp_path / 'in' / 'x' / 'a.wav', 0.1, 1)
  clip = {'id': 'clip_0', 'path': 'x/a.wav', 'split': 'valid', 'captions': ['A song.'], 'piece': 'p',
          'texts': {'labels': ['Music']}}
  (tmp_path / 'in' / 'corpus.jsonl').write_text(json.dumps(clip))
  example = _examples(_build(tmp_path / 'in', tmp_path / 'out'))['valid']['clip_0']
  assert _decoded(example['captions']) == ['A song.'] and example['piece'] == b'p'
  assert _decoded(example['texts_labels']) == ['Music']
  (tmp_path / 'in' / 'corpus.jsonl').write_text('\n'.join([json.dumps(clip)] * 2))
  with pytest.raises(errors.UserError, match="1 ids are there more than once, first 'clip_0'"):
    _build(tmp_path / 'in', tmp_path / 'again')
