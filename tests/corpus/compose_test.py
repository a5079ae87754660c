import numpy as np
import pytest

from musiclm_jax.corpus import compose, drums, harmony, notes, styles


@pytest.mark.parametrize('genre', sorted(styles.STYLES))
def test_a_composition_fits_its_genre(genre):
  style = styles.STYLES[genre]
  piece = compose.compose(genre, 30.0, np.random.default_rng([3, len(genre)]))
  assert style.bpm[0] * 0.9 <= piece.bpm <= style.bpm[1] * 1.1
  assert piece.mode in style.modes.split()
  assert piece.tracks
  end = max(float(piece.seconds(n.start)) for t in piece.tracks for n in t.notes)
  assert 20.0 < end < 36.0
  for track in piece.tracks:
    assert all(1 <= n.velocity <= 127 and 0 <= n.pitch <= 127 for n in track.notes)
    assert all(n.duration > 0 and n.start >= 0 for n in track.notes)
    if track.role == 'lead':
      low, high = track.instrument.low, track.instrument.high
      assert all(low - 4 <= n.pitch <= high + 4 for n in track.notes)


def test_pitches_belong_to_the_key():
  piece = compose.compose('string quartet', 60.0, np.random.default_rng(1))
  scale = {(piece.tonic + s) % 12 for s in harmony.MODES[piece.mode]}
  pitches = [n.pitch % 12 for t in piece.tracks for n in t.notes]
  assert np.mean([p in scale for p in pitches]) > 0.85


def test_the_same_seed_gives_the_same_piece():
  first, second = (compose.compose('jazz', 30.0, np.random.default_rng(7)) for _ in range(2))
  other = compose.compose('jazz', 30.0, np.random.default_rng(8))
  assert [t.notes for t in first.tracks] == [t.notes for t in second.tracks]
  assert [t.notes for t in first.tracks] != [t.notes for t in other.tracks]


def test_sections_differ_in_density():
  piece = compose.compose('rock', 60.0, np.random.default_rng(2))
  assert len({s.name for s in piece.sections}) >= 2
  assert piece.sections[0].start == 0
  for before, after in zip(piece.sections[:-1], piece.sections[1:], strict=True):
    assert before.end == after.start


def test_a_human_performance_sets_tempo_and_drums():
  take = drums.Performance('t', 'rock', 120.0, (notes.Note(0.01, 0.1, 36, 90),) * 8, 2)
  for seed in range(8):
    piece = compose.compose('rock', 30.0, np.random.default_rng(seed), [take])
    if piece.drum_feel == 'human':
      assert piece.bpm == 120.0 and piece.licence == 'CC-BY-4.0' and piece.credits
      return
  pytest.fail('no piece used the performance')


@pytest.mark.parametrize('genre', sorted(styles.STYLES))
def test_the_drum_feel_is_that_of_the_kit_that_plays(genre):
  for seed in range(8):
    piece = compose.compose(genre, 30.0, np.random.default_rng(seed))
    kits = [t.instrument.name for t in piece.tracks if t.role == 'drums']
    feels = ['machine' if k in ('electronic drums', '808 drums') else 'written' for k in kits]
    assert [piece.drum_feel] == (feels or ['']), (seed, kits)


def test_a_rubato_curve_keeps_the_mean_tempo():
  curve = notes.tempo_curve(90.0, 200, 0.05, np.random.default_rng(0))
  assert np.all(np.diff(curve) > 0)
  assert abs(curve[-1] / 200 - 60 / 90) < 0.03
