import zipfile

import mido
import numpy as np
import pytest

from musiclm_jax import errors
from musiclm_jax.corpus import harmony, scores


def _write_score(path, num_beats=240, tempi=()):
  """A voice over C major triads, one chord a beat."""
  midi = mido.MidiFile(ticks_per_beat=120)
  midi.tracks.append(mido.MidiTrack(mido.MetaMessage('set_tempo', tempo=t) for t in tempi))
  for part in ((72, 74, 76, 79), (60, 64, 67, 64), (48, 43, 48, 43)):
    track = mido.MidiTrack()
    midi.tracks.append(track)
    track.append(mido.MetaMessage('time_signature', numerator=4, denominator=4, time=0))
    for beat in range(num_beats):
      track.append(mido.Message('note_on', note=part[beat % 4], velocity=80, time=0))
      track.append(mido.Message('note_off', note=part[beat % 4], velocity=0, time=120))
  midi.save(path)


@pytest.mark.parametrize('genre', sorted(scores._ARRANGEMENTS))
def test_an_arrangement_keeps_the_music_and_changes_the_players(tmp_path, genre):
  _write_score(tmp_path / 'song.mid')
  (source,) = scores.list_scores(str(tmp_path))
  piece = scores.arrange(source, genre, 30.0, np.random.default_rng(0))
  assert piece.source == 'song' and piece.genre == genre
  scale = {(piece.tonic + s) % 12 for s in harmony.MODES[piece.mode]}
  for track in piece.tracks:
    if track.role != 'drums':
      assert {n.pitch % 12 for n in track.notes} <= scale
      assert all(track.instrument.low <= n.pitch <= track.instrument.high for n in track.notes)
  kits = [t.instrument.name for t in piece.tracks if t.role == 'drums']
  assert [piece.drum_feel] == (
    ['machine' if k == 'electronic drums' else 'written' for k in kits] or [''])


def test_scores_are_found_in_folders_and_zips_but_drum_collections_are_left_out(tmp_path):
  (tmp_path / 'drums').mkdir()
  (tmp_path / 'drums' / 'info.csv').write_text('midi_filename\n')
  _write_score(tmp_path / 'drums' / 'd.mid', 8)
  _write_score(tmp_path / 'a.mid', 8)
  assert [s.name for s in scores.list_scores(str(tmp_path))] == ['a.mid']
  with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
    archive.write(tmp_path / 'a.mid', 'x/a.mid')
  (source,) = scores.list_scores(str(tmp_path / 'all.zip'))
  assert source.read() == (tmp_path / 'a.mid').read_bytes()


def test_drum_performances(tmp_path):
  _write_score(tmp_path / 'd.mid', 64)
  (tmp_path / 'info.csv').write_text(
    'style,bpm,beat_type,time_signature,midi_filename,duration\n'
    'rock,100,beat,4-4,d.mid,30\nrock,100,fill,4-4,d.mid,30\nrock,x,beat,4-4,d.mid,30\n'
    'rock,100,beat,4-4,../d.mid,30\n'
  )
  ((source, style, bpm),) = scores.list_performances(str(tmp_path))
  take = scores.read_performance(source, style, bpm)
  assert (take.bpm, take.style) == (100.0, 'rock') and take.bars in (15, 16)


def test_bad_input_is_named(tmp_path):
  (tmp_path / 'bad.mid').write_bytes(b'not midi')
  with pytest.raises(errors.UserError, match='bad.mid'):
    scores.read_midi(scores.Source(str(tmp_path), 'bad.mid'))
  with pytest.raises(errors.UserError, match='--scores'):
    scores.list_scores(str(tmp_path / 'nothing'))
  with pytest.raises(errors.UserError, match='info.csv'):
    scores.list_performances(str(tmp_path))
  _write_score(tmp_path / 'short.mid', 16)
  with pytest.raises(errors.UserError, match='shorter'):
    source = scores.Source(str(tmp_path), 'short.mid')
    scores.arrange(source, 'folk', 30.0, np.random.default_rng(0))


def test_a_tempo_of_zero_is_no_tempo(tmp_path):
  for name, tempi in (('none', ()), ('zero', (0,)), ('one', (400_000,)), ('both', (0, 400_000, 0))):
    _write_score(tmp_path / f'{name}.mid', tempi=tempi)
  bpm = {
    s.stem: scores.arrange(s, 'solo piano', 30.0, np.random.default_rng(0)).bpm
    for s in scores.list_scores(str(tmp_path))
  }
  assert bpm['zero'] == bpm['none'] and bpm['both'] == bpm['one'] != bpm['none']


def test_a_score_of_absurd_length_is_refused(tmp_path):
  midi = mido.MidiFile(ticks_per_beat=1)
  for _ in range(3):
    track = mido.MidiTrack()
    midi.tracks.append(track)
    for _ in range(20):
      track.append(mido.Message('note_on', note=60, velocity=80, time=2**28 - 1))
      track.append(mido.Message('note_off', note=60, velocity=0, time=1))
  midi.save(tmp_path / 'long.mid')
  source = scores.Source(str(tmp_path), 'long.mid')
  with pytest.raises(errors.UserError, match='long.mid'):
    scores.arrange(source, 'folk', 30.0, np.random.default_rng(0))


_COLUMNS = 'beat_type,time_signature,midi_filename,duration,bpm,style\n'


@pytest.mark.parametrize('row', [
  'beat', 'beat,4-4', 'beat,4-4,d.mid', 'beat,4-4,d.mid,30', 'beat,4-4,d.mid,30,100',
  'beat,4-4,,30,100,rock', 'beat,4-4,d.mid,long,100,rock', 'beat,4-4,d.mid,30,fast,rock',
])  # fmt: skip
def test_a_short_or_odd_row_of_the_drum_list_is_skipped(tmp_path, row):
  _write_score(tmp_path / 'd.mid', 8)
  (tmp_path / 'info.csv').write_text(f'{_COLUMNS}{row}\nbeat,4-4,d.mid,30,100,rock\n')
  ((source, style, bpm),) = scores.list_performances(str(tmp_path))
  assert (source.name, style, bpm) == ('d.mid', 'rock', 100.0)
  (tmp_path / 'info.csv').write_text(f'{_COLUMNS}{row}\n')
  with pytest.raises(errors.UserError, match='info.csv.* lists no 4-4 beats'):
    scores.list_performances(str(tmp_path))


def test_a_huge_field_of_the_drum_list_is_an_error(tmp_path):
  (tmp_path / 'info.csv').write_text(f'{_COLUMNS}beat,4-4,{"x" * 200_000},30,100,rock\n')
  with pytest.raises(errors.UserError, match='info.csv'):
    scores.list_performances(str(tmp_path))


def _zip(path, name, content):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr(name, content)
  return path.read_bytes()


def _encrypted(data: bytes) -> bytes:
  """The same zip, whose only member says that it is encrypted."""
  data, central = bytearray(data), data.index(b'PK\x01\x02')
  data[6] |= 1
  data[central + 8] |= 1
  return bytes(data)


@pytest.mark.parametrize('spoil', [
  lambda data: data.replace(b'beat_type', b'beat_tipe', 1),  # a wrong CRC
  lambda data: data.replace(b'PK\x01\x02', b'PK\x09\x09'),  # a broken central directory
  lambda data: data.replace(b'PK\x03\x04', b'PK\x09\x09'),  # a broken member
  _encrypted,
], ids=['crc', 'directory', 'member', 'encrypted'])  # fmt: skip
def test_a_broken_zip_is_named(tmp_path, spoil):
  path = tmp_path / 'groove.zip'
  path.write_bytes(spoil(_zip(path, 'info.csv', _COLUMNS)))
  with pytest.raises(errors.UserError, match='groove.zip'):
    scores.list_performances(str(path))
  path.write_bytes(spoil(_zip(path, 'a.mid', _COLUMNS)))
  with pytest.raises(errors.UserError, match='groove.zip'):
    for source in scores.list_scores(str(path)):
      scores.read_midi(source)
