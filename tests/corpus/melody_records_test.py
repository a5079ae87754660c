"""A table of recordings becomes melody records; what is wrong with it is named."""

import numpy as np
import pytest
import soundfile

from musiclm_jax import errors
from musiclm_jax.corpus import melody_records
from musiclm_jax.data import records


def _write(folder, name, seconds, value=0.5):
  soundfile.write(folder / name, np.full(round(seconds * 24_000), value), 24_000)


@pytest.fixture(name='covers')
def _covers(tmp_path):
  """Six tunes in two versions each; the second starts at 2 s. One more has a single version."""
  folder = tmp_path / 'covers'
  folder.mkdir()
  rows = ['path,melody,start,kind']
  for m in range(6):
    _write(folder, f'{m}a.wav', 1.5, m / 64)
    soundfile.write(folder / f'{m}b.wav', np.repeat([0.9, -m / 64], [48_000, 60_000]), 24_000)
    rows += [f'{m}a.wav,tune{m},,', f'{m}b.wav,tune{m},2.0,hum']
  table = folder / 'covers.csv'
  table.write_text('\n'.join([*rows, '0a.wav,alone,0,']) + '\n')
  return folder, table


def test_records_hold_the_versions_from_where_the_melody_starts(covers, tmp_path):
  folder, table = covers
  counts = melody_records.write_records(
      input_dir=str(folder), table=str(table), output_dir=str(tmp_path / 'out'),
      test_fraction=0.5, num_shards=3)
  assert sum(counts.values()) == 6 and counts.keys() == {'train', 'test'}
  info = records.read_info(tmp_path / 'out', 'melodies')
  assert info['melodies'] == counts and info['kinds'] == ['cover', 'hum']
  found = {}
  for split, count in counts.items():
    read = list(records.read_melodies(tmp_path / 'out', split))
    assert len(read) == count
    found |= {record['id']: record for record in read}
  assert found.keys() == {f'tune{m}' for m in range(6)}
  for m in range(6):
    record = found[f'tune{m}']
    assert record['piece'] == f'tune{m}' and record['kinds'] == ['cover', 'hum']
    assert [len(version) for version in record['versions']] == [36_000, 60_000]
    for version, value in zip(record['versions'], (m / 64, -m / 64), strict=True):
      np.testing.assert_allclose(version, value, atol=1e-4)
  with pytest.raises(errors.UserError, match='is not an empty directory'):
    melody_records.write_records(
        input_dir=str(folder), table=str(table), output_dir=str(tmp_path / 'out'))


def test_seconds_cut_and_splits_are_as_given(covers, tmp_path):
  folder, table = covers
  table.write_text('path,melody,seconds,split,piece\n0b.wav,x,2,held,a\n1b.wav,x,,held,a\n')
  counts = melody_records.write_records(
      input_dir=str(folder), table=str(table), output_dir=str(tmp_path / 'out'))
  assert counts == {'held': 1}
  (record,) = records.read_melodies(tmp_path / 'out', 'held')
  assert [len(version) for version in record['versions']] == [48_000, 108_000]
  assert record['piece'] == 'a'


def test_what_cannot_be_read_is_left_out_and_counted(covers, tmp_path, caplog):
  folder, table = covers
  (folder / '0b.wav').write_bytes(b'no audio')  # leaves one version: the melody goes
  (folder / '1b.wav').unlink()
  _write(folder, '2b.wav', 2.5)  # half a second from its start
  _write(folder, '3c.wav', 1.5)
  table.write_text(table.read_text() + '3c.wav,tune3,0,\n')
  (folder / '3b.wav').unlink()  # two are left
  counts = melody_records.write_records(
      input_dir=str(folder), table=str(table), output_dir=str(tmp_path / 'out'), test_fraction=0)
  assert counts == {'train': 3}
  assert records.read_info(tmp_path / 'out', 'melodies')['failed'] == 4
  read = list(records.read_melodies(tmp_path / 'out', 'train'))
  assert {record['id'] for record in read} == {'tune3', 'tune4', 'tune5'}
  assert '2b.wav holds 0.50 s from its start at 2.0 s, wanted at least 1.0 s' in caplog.text
  for name in ('0b.wav', '1b.wav', '3b.wav'):
    assert f'left out: {folder}/{name}' in caplog.text.replace('\n', ' ')


def test_pieces_keep_their_split_when_others_come():
  splits = [melody_records._split(f'piece{i}', 0.2) for i in range(1000)]
  assert 0.15 < splits.count('test') / 1000 < 0.25
  assert all(melody_records._split(f'piece{i}', 0.3) == 'test'
             for i in range(1000) if splits[i] == 'test')


@pytest.mark.parametrize('rows, wanted', [
    ('path,tune\na.wav,x\n', r"wanted also \['melody'\]"),
    ('path,melody\n0a.wav,x\n1a.wav,y\n', 'no melody of two versions or more'),
    ('path,melody\n,x\n', 'line 2: path and melody must not be empty'),
    ('path,melody\n../0a.wav,x\n', r"line 2: path '../0a.wav' leads outside"),
    ('path,melody\n/etc/passwd,x\n', 'leads outside'),
    ('path,melody,start\n0a.wav,x,soon\n', "line 2: start is 'soon', wanted a number from 0"),
    ('path,melody,start\n0a.wav,x,nan\n', "start is 'nan'"),
    ('path,melody,start\n0a.wav,x,-1\n', "start is '-1'"),
    ('path,melody,seconds\n0a.wav,x,0.5\n', "seconds is '0.5', wanted a number from 1 to 30"),
    ('path,melody,seconds\n0a.wav,x,1e9\n', "seconds is '1e9'"),
    ('path,melody,split\n0a.wav,x,../train\n', "split '../train' is not a word"),
    ('path,melody,split\n0a.wav,x,a\n1a.wav,x,b\n', "line 3: melody 'x' is of .* split 'b', before"),
    ('path,melody,piece\n0a.wav,x,a\n1a.wav,x,b\n', "line 3: melody 'x' is of piece 'b'"),
])
def test_bad_tables_are_named_and_write_nothing(covers, tmp_path, rows, wanted):
  folder, table = covers
  table.write_text(rows)
  with pytest.raises(errors.UserError, match=wanted):
    melody_records.write_records(
        input_dir=str(folder), table=str(table), output_dir=str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_a_table_of_files_that_are_not_there_is_named(covers, tmp_path):
  folder, table = covers
  table.write_text('path,melody\nx.wav,x\ny.wav,x\n')
  with pytest.raises(errors.UserError, match='no melody has two versions that can be read'):
    melody_records.write_records(
        input_dir=str(folder), table=str(table), output_dir=str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()
  with pytest.raises(errors.UserError, match='is not a folder'):
    melody_records.read_table(str(folder / 'none'), str(table), 0.1)
