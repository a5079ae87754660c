"""Excerpts are melodies of single notes, and their accompaniments fit them."""

import mido
import numpy as np
import pytest

from musiclm_jax import errors
from musiclm_jax.corpus import melody_excerpts, scores
from musiclm_jax.corpus.notes import Note

TUNE = (72, 74, 76, 79, 77, 76, 74, 71)


def _write_score(path, lead, num_beats=64):
  """A lead (several notes of a beat sound together) over a C major chord, at 100 beats a minute."""
  midi = mido.MidiFile(ticks_per_beat=120)
  midi.tracks.append(mido.MidiTrack([mido.MetaMessage('set_tempo', tempo=600_000)]))
  for part in (lead, [(48, 55, 64)]):
    track = mido.MidiTrack()
    midi.tracks.append(track)
    for beat in range(num_beats):
      chord = part[beat % len(part)]
      for i, note in enumerate((*chord, *chord)):
        kind = 'note_on' if i < len(chord) else 'note_off'
        track.append(mido.Message(kind, note=note, velocity=80, time=120 * (i == len(chord))))
  midi.save(path)


def _check(excerpt):
  starts = np.array([note.start for note in excerpt.melody])
  stops = np.array([note.start + note.duration for note in excerpt.melody])
  assert abs(starts[0]) < 1e-6 and (stops[:-1] <= starts[1:] + 1e-9).all()
  assert stops[-1] <= excerpt.beats + 1e-9
  np.testing.assert_allclose(excerpt.beats * 60 / excerpt.bpm, melody_excerpts.SECONDS)
  assert len(starts) >= 7 and len({note.pitch for note in excerpt.melody}) >= 4
  assert np.diff([*starts, excerpt.beats]).max() * 60 / excerpt.bpm <= 1.6
  for voice in excerpt.backing:
    assert all(-0.05 <= note.start < excerpt.beats for note in voice)


@pytest.mark.parametrize('seed', range(6))
def test_an_excerpt_of_a_composition_is_well_filled(seed):
  excerpt = melody_excerpts.from_composition(np.random.default_rng(seed))
  _check(excerpt)
  assert excerpt.backing and excerpt.licence == 'CC0-1.0'
  again = melody_excerpts.from_composition(np.random.default_rng(seed))
  assert again == excerpt != melody_excerpts.from_composition(np.random.default_rng(seed + 100))


def test_an_excerpt_of_a_score_is_its_first_voice(tmp_path):
  _write_score(tmp_path / 'song.mid', [(pitch,) for pitch in TUNE])
  (source,) = scores.list_scores(str(tmp_path))
  excerpt = melody_excerpts.from_score(source, np.random.default_rng(0))
  _check(excerpt)
  assert (excerpt.bpm, excerpt.beats, excerpt.source) == (100, 10, 'song')
  pitches = [note.pitch for note in excerpt.melody]
  first = TUNE.index(pitches[0])
  assert pitches == [TUNE[(first + i) % 8] for i in range(10)]
  assert {note.pitch for note in excerpt.backing[0]} == {48, 55, 64}


@pytest.mark.parametrize('lead', [
    [(pitch, pitch - 4, pitch - 7) for pitch in TUNE], [(72,), (74,)]])
def test_chords_and_trills_are_no_melody(tmp_path, lead):
  _write_score(tmp_path / 'song.mid', lead)
  (source,) = scores.list_scores(str(tmp_path))
  with pytest.raises(errors.UserError, match="'song.mid' holds no melody of single notes"):
    melody_excerpts.from_score(source, np.random.default_rng(0))


@pytest.fixture(name='two_bars')
def _two_bars():
  """A bar of C major, then half a bar of G major and half of A minor."""
  melody = [Note(float(i), 1.0, pitch, 80) for i, pitch in enumerate((76, 79, 76, 72, 74, 71, 72, 76))]
  bass = [Note(0.0, 2.0, 48, 80), Note(2.0, 2.0, 48, 80), Note(4.0, 2.0, 43, 80),
          Note(6.0, 2.0, 45, 80)]
  return melody_excerpts.Excerpt(tuple(melody), (tuple(bass),), 8.0, 100.0, 4, '', '')


def test_chords_are_those_of_the_notes(two_bars):
  chords = two_bars.chords()
  assert [[(c.root, c.quality, c.start, c.duration) for c in bar] for bar in chords] == [
      [(0, 'maj', 0.0, 2.0), (0, 'maj', 2.0, 2.0)], [(7, 'maj', 4.0, 2.0), (9, 'm', 6.0, 2.0)]]


@pytest.mark.parametrize('name, is_bass', [('block', False), ('arp8', False), ('roots', True)])
def test_another_accompaniment_has_the_chords(two_bars, name, is_bass):
  notes = two_bars.accompany(name, is_bass, np.random.default_rng(0))
  chords = [chord for bar in two_bars.chords() for chord in bar]
  assert notes and max(note.start for note in notes) < 8
  for note in notes:
    chord = next(c for c in reversed(chords) if c.start <= note.start + 0.01)
    wanted = (chord.root,) if is_bass else chord.pitch_classes
    assert note.pitch % 12 in wanted, (note, chord)
