import numpy as np

from musiclm_jax.corpus import harmony


def test_tokens_mean_the_chords_of_the_key():
  # C major: 1 5 6 4 = C G Am F.
  roots = [harmony.chord(t, 0, 'major', 3, 0, 4).root for t in '1 5 6 4'.split()]
  assert roots == [0, 7, 9, 5]
  assert harmony.chord('6', 0, 'major', 3, 0, 4).intervals == (0, 3, 7)
  assert harmony.chord('5', 0, 'major', 4, 0, 4).intervals == (0, 4, 7, 10)
  assert harmony.chord('b7:maj', 2, 'major', 3, 0, 4).pitch_classes == (0, 4, 7)
  assert harmony.chord('5:7', 9, 'minor', 3, 0, 4).pitch_classes == (4, 8, 11, 2)


def test_two_chords_share_a_bar():
  first, second = harmony.bar_chords('2,5', 0, 'major', 3, 8.0, 4)
  assert (first.start, first.duration, second.start, second.duration) == (8, 2, 10, 2)
  third, fourth = harmony.bar_chords('1,5', 0, 'major', 3, 0.0, 3)
  assert third.duration + fourth.duration == 3


def test_the_scale_bends_to_hold_the_chord():
  dominant = harmony.chord('5:7', 9, 'minor', 3, 0, 4)  # E7 in A minor: G sharp replaces G
  scale = harmony.scale_over(dominant, 9, 'minor')
  assert 8 in scale and 7 not in scale


def test_voicings_hold_exactly_the_chord_and_move_little():
  previous = None
  for token in '1 4 5 6 2 5:7 1'.split():
    chord = harmony.chord(token, 3, 'major', 4, 0, 4)
    pitches = harmony.voicing(chord, 60, previous)
    assert {p % 12 for p in pitches} == set(chord.pitch_classes)
    assert pitches == sorted(pitches)
    if previous:
      assert abs(np.mean(pitches) - np.mean(previous)) < 6
    previous = pitches


def test_the_key_of_a_scale_is_found():
  weights = np.zeros(12)
  weights[[(7 + s) % 12 for s in (0, 2, 4, 5, 7, 9, 11)]] = 1.0
  weights[[7, 11, 2]] += 2.0
  assert harmony.estimate_key(weights)[:2] == (7, 'major')
