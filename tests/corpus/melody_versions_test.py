"""Versions of a melody: the same notes by other players, of the promised kinds."""

import csv

import mido
import numpy as np
import pytest
import soundfile

from musiclm_jax import errors
from musiclm_jax.corpus import melody_excerpts, melody_versions, render, scores
from musiclm_jax.corpus.instruments import INSTRUMENTS
from musiclm_jax.corpus.notes import Note

TUNE = (60, 64, 67, 72, 71, 67, 65, 62)


class Recorder:
  """A renderer that plays noise and keeps what it was given."""

  soundfonts = ('none.sf2',)

  def __init__(self):
    self.pieces = []

  def render(self, piece, seconds, font, rng):
    self.pieces.append(piece)
    return 0.1 * rng.standard_normal(round(seconds * 24_000)).astype(np.float32)


@pytest.fixture(name='excerpt', scope='module')
def _excerpt():
  melody = tuple(Note(float(i), 0.9, pitch, 80) for i, pitch in enumerate(TUNE))
  bass = tuple(Note(4.0 * i, 4.0, 36, 80) for i in range(2))
  return melody_excerpts.Excerpt(melody, (bass,), 8.0, 80.0, 4, 'mine', 'CC0-1.0')


def _made(excerpt, kind, seed, lead='flute'):
  """Returns (waveform, the piece played or None)."""
  recorder = Recorder()
  audio = melody_versions.make_version(
      excerpt, kind, INSTRUMENTS[lead], recorder, np.random.default_rng(seed))
  return audio, recorder.pieces[0] if recorder.pieces else None


@pytest.mark.parametrize('kind', melody_versions.KINDS)
def test_a_version_keeps_the_melody_and_changes_the_rest(excerpt, kind):
  lengths, moves, accompanied = set(), set(), set()
  for seed in range(12):
    audio, piece = _made(excerpt, kind, seed)
    assert audio.dtype == np.float32 and np.abs(audio).max() <= 0.98
    assert -34 < 20 * np.log10(audio.std()) < -14
    lengths.add(len(audio))
    if kind == 'hum':
      assert piece is None  # nobody plays
      continue
    lead = piece.tracks[0]
    assert (lead.instrument.name == 'flute') == (kind != 'vocals') == (not lead.bends)
    (move,) = {note.pitch - pitch for note, pitch in zip(lead.notes, TUNE, strict=True)}
    moves.add(move % 12)
    starts = [note.start for note in lead.notes]
    np.testing.assert_allclose(starts, np.arange(8), atol=0.08)
    accompanied.add(len(piece.tracks) > 1)
    for track in piece.tracks[1:]:
      assert track.role == 'drums' or min(note.start for note in track.notes) >= 0
  assert len(lengths) > 6 and min(lengths) > 4 * 24_000 and max(lengths) < 9 * 24_000
  if kind == 'key':
    assert len(moves) > 4 and 0 not in moves
  elif kind != 'hum':
    assert moves == {0} and accompanied == {False, True}


def test_the_key_of_all_players_but_drums_moves_together(excerpt):
  for seed in range(20):
    (_, plain), (_, moved) = (_made(excerpt, kind, seed) for kind in ('instrument', 'key'))
    assert [t.role for t in plain.tracks] == [t.role for t in moved.tracks]
    shifts = {(b.pitch - a.pitch, track.role == 'drums') for track, other in zip(
        plain.tracks, moved.tracks, strict=True) for a, b in zip(track.notes, other.notes, strict=True)}
    (shift,) = {shift for shift, is_drums in shifts if not is_drums}
    assert 1 <= abs(shift) <= 6 and {s for s, is_drums in shifts if is_drums} <= {0}


def test_noise_dulls_and_covers_the_music(excerpt):
  for seed in range(3):
    dull, plain = (_made(excerpt, kind, seed)[0] for kind in ('noise', 'instrument'))
    tops = [np.square(np.abs(np.fft.rfft(x))[round(11_000 * len(x) / 24_000):]).sum()
            / np.square(np.abs(np.fft.rfft(x))).sum() for x in (dull, plain)]
    assert tops[0] < tops[1]
  time = np.arange(24_000) / 24_000
  tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
  heard = melody_versions._telephone(tone, np.random.default_rng(0))
  gain = 2 * np.mean(heard * np.sin(2 * np.pi * 440 * time))
  left = heard - gain * np.sin(2 * np.pi * 440 * time)
  assert 1.5 < 20 * np.log10(gain / 2 ** 0.5 / left.std()) < 15.5


@pytest.mark.parametrize('name', ['cello', 'piccolo', 'flute', 'electric bass'])
def test_notes_move_by_octaves_into_the_range(name):
  instrument = INSTRUMENTS.get(name, INSTRUMENTS['flute'])
  notes = [Note(0.0, 1.0, pitch, 80) for pitch in TUNE]
  for away in (-36, 0, 36):
    moved = melody_versions._moved(
        [n._replace(pitch=n.pitch + away) for n in notes],
        (instrument.low + instrument.high) / 2, instrument)
    assert len({n.pitch - pitch for n, pitch in zip(moved, TUNE, strict=True)}) == 1
    assert (moved[0].pitch - TUNE[0]) % 12 == 0
    assert all(instrument.low <= n.pitch <= instrument.high for n in moved)


def test_splits_share_no_score_and_half_have_one():
  files = [scores.Source('/x', f'{i}.mid') for i in range(20)]
  specs = melody_versions.plan(200, 4, 0, 0.1, files)
  by_split = {split: [s for s in specs if s.split == split] for split in ('train', 'test')}
  assert len(by_split['test']) == 20 and [s.index for s in specs] == list(range(200))
  used = {split: {s.score for s in found if s.score} for split, found in by_split.items()}
  assert len(used['train']) == 18 and len(used['test']) == 2 and not used['train'] & used['test']
  assert sum(s.score is not None for s in specs) == 100
  assert not any(s.score for s in melody_versions.plan(10, 4, 0, 0.1))


def _write_song(folder):
  track = mido.MidiTrack()
  for beat in range(64):
    track.append(mido.Message('note_on', note=TUNE[beat % 8], velocity=80, time=0))
    track.append(mido.Message('note_off', note=TUNE[beat % 8], velocity=0, time=120))
  mido.MidiFile(ticks_per_beat=120, tracks=[track]).save(folder / 'song.mid')
  (folder / 'broken.mid').write_bytes((folder / 'song.mid').read_bytes()[:40])


def test_a_melody_has_its_rows_and_a_broken_score_is_replaced(tmp_path):
  (tmp_path / 'audio').mkdir()
  _write_song(tmp_path)
  made = {}
  for index, name in enumerate(('song', 'broken')):
    spec = melody_versions.MelodySpec(
        index, 'test', 6, 0, scores.Source(str(tmp_path), f'{name}.mid'))
    rows = made[name] = melody_versions.make_melody(spec, Recorder(), str(tmp_path))
    assert [row['kind'] for row in rows][0] == 'instrument'
    assert sorted({row['kind'] for row in rows}) == sorted(melody_versions.KINDS)
    for row in rows:
      audio, rate = soundfile.read(tmp_path / row['path'])
      assert rate == 24_000 and abs(len(audio) / rate - row['seconds']) < 0.001
      assert (row['melody'], row['split']) == (f'melody_{index:05d}', 'test')
  assert {row['piece'] for row in made['song']} == {'song'}
  assert {row['piece'] for row in made['broken']} == {'composition_00001'}
  assert {row['licence'] for row in made['broken']} == {'CC0-1.0'}
  spec = melody_versions.MelodySpec(0, 'test', 6, 0, scores.Source(str(tmp_path), 'song.mid'))
  before = (tmp_path / made['song'][3]['path']).read_bytes()
  assert melody_versions.make_melody(spec, Recorder(), str(tmp_path)) == made['song']
  assert (tmp_path / made['song'][3]['path']).read_bytes() == before


@pytest.mark.parametrize('options, match', [
  ({'num_versions': 1}, '--versions=1: wanted at least 2'),
  ({'test_share': 1.0}, '--test_share'),
  ({'soundfonts': ['/nowhere.sf2']}, 'nowhere.sf2'),
])
def test_bad_options_are_named_and_write_nothing(tmp_path, options, match):
  if 'soundfonts' in options:
    pytest.importorskip('fluidsynth', exc_type=ImportError)  # also without the C library
  with pytest.raises(errors.UserError, match=match):
    melody_versions.build(output=str(tmp_path / 'out'), num_melodies=1, **options)
  assert not (tmp_path / 'out').exists()
  (tmp_path / 'x').write_text('')
  with pytest.raises(errors.UserError, match='not an empty folder'):
    melody_versions.build(output=str(tmp_path), num_melodies=1)


def test_the_seed_decides_every_byte_whatever_the_workers(tmp_path):
  try:
    render.load_fluidsynth()
    fonts = render.find_soundfonts([])
  except errors.UserError as error:
    pytest.skip(str(error))
  font = next((f for f in fonts if f.endswith('.sf2')), fonts[0])  # sf3 takes seconds to unpack
  made = []
  for workers in (1, 2):
    output = tmp_path / str(workers)
    rows = melody_versions.build(
        output=str(output), num_melodies=2, num_versions=3, seed=4, soundfonts=[font],
        test_share=0.5, workers=workers)
    made.append({p.relative_to(output).as_posix(): p.read_bytes()
                 for p in output.rglob('*') if p.is_file()})
  assert made[0] == made[1] and len(made[0]) == 6 + 2
  with open(output / melody_versions.TABLE_FILE, encoding='utf-8', newline='') as stream:
    table = list(csv.DictReader(stream))
  assert table == [{name: str(value) for name, value in row.items()} for row in rows]
  assert [row['split'] for row in rows] == ['train'] * 3 + ['test'] * 3
  for row in rows:
    audio, _ = soundfile.read(output / row['path'])
    frames = audio[:len(audio) // 24_000 * 24_000].reshape(-1, 12_000).std(axis=1)
    assert np.mean(frames > 1e-3) > 0.7  # music, hardly ever silence
