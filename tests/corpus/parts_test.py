import numpy as np
import pytest

from musiclm_jax.corpus import drums, harmony, parts, styles, vocabulary
from musiclm_jax.corpus.instruments import INSTRUMENTS

_OTHER_PATTERNS = {'melody', 'riff', 'bebop', 'blues_lead', 'sparse', 'harmony', 'walking'}


def test_a_bar_reads_as_starts_and_lengths():
  assert parts.read_bar('X---x---........', 4) == [(0.0, 1.0, 'X'), (1.0, 1.0, 'x')]
  assert parts.read_bar('X---------------', 3) == [(0.0, 3.0, 'X')]


def test_a_held_chord_changes_with_the_harmony():
  chords = harmony.bar_chords('1,5', 0, 'major', 3, 0.0, 4)
  notes, _ = parts.play(parts.PATTERNS['block'], 'X---------------', chords, 0, 60, None, 4, False)
  assert {n.pitch % 12 for n in notes if n.start < 2} == {0, 4, 7}
  assert {n.pitch % 12 for n in notes if n.start >= 2} == {7, 11, 2}
  assert all(n.start + n.duration <= 4.0 for n in notes)


@pytest.mark.parametrize('name', sorted(parts.PATTERNS))
def test_every_pattern_stays_in_the_chord(name):
  pattern = parts.PATTERNS[name]
  chords = harmony.bar_chords('1', 0, 'major', 4, 4.0, 4)
  for bar in pattern.bars:
    assert len(bar) == 16
    bar = bar.replace('a', 'r')  # a passing note by intention
    notes, _ = parts.play(pattern, bar, chords, 5, pattern.centre, None, 4, 'R' in bar)
    assert {n.pitch % 12 for n in notes} <= {0, 4, 7, 11}
    assert all(4.0 <= n.start < 8.0 and 0 < n.velocity < 128 for n in notes)


def test_a_walking_bass_starts_on_the_root_and_keeps_its_range():
  rng = np.random.default_rng(0)
  position = 40
  for token in ('2', '5:7', '1', '6:7'):
    chords = harmony.bar_chords(token, 0, 'major', 4, 0.0, 4)
    notes, position = parts.walking(chords, 7, position, 4, 28, 55, rng)
    assert notes[0].pitch % 12 == chords[0].root
    assert all(28 <= n.pitch <= 55 for n in notes)


def test_beats_are_bars_of_sixteenths():
  assert drums.read_beat('K X...x...', 4) == [(0.0, 36, 108), (1.0, 36, 84)]
  for beats in drums.BEATS.values():
    for beat in beats:
      assert all(len(line.split(' ')[1]) == 16 for line in beat.split('|')), beat


@pytest.mark.parametrize('style', styles.STYLES.values(), ids=lambda s: s.name)
def test_every_name_in_a_style_exists(style):
  for probability, choices in style.parts.values():
    assert 0 < probability <= 1
    for choice in choices.split(','):
      instrument, pattern = choice.split('/')
      assert instrument in INSTRUMENTS
      assert pattern in parts.PATTERNS or pattern in _OTHER_PATTERNS
  assert set(style.beats.split()) <= drums.BEATS.keys()
  assert all(kit in INSTRUMENTS for kit in style.kits.split(','))
  assert all(mood in styles.MOODS for mood in style.moods.split())
  assert all(mode in harmony.MODES for mode in style.modes.split())
  for table in (vocabulary.GENRES, vocabulary.USES):
    assert style.name in table
