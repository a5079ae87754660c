import zipfile

import mido
import numpy as np
import pytest

from musiclm_jax import errors
from musiclm_jax.corpus import harmony, scores


def _write_score(path, num_beats=240):
  """A voice over C major triads, one chord a beat."""
  midi = mido.MidiFile(ticks_per_beat=120)
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
