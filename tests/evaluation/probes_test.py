"""Linear probes find what is there and nothing else; labels by hand."""

import numpy as np
import pytest

from musiclm_jax import errors
from musiclm_jax.evaluation import probes
from musiclm_jax.evaluation.probes import Span

RATE = 5


def _row(**metadata):
  return {'id': 'a', 'captions': [], 'metadata': metadata}


def test_families_of_the_lead():
  row = _row(instruments={'bass': 'cello', 'lead': 'violin'})
  assert probes.lead_families(row, 5.0) == [Span('a', 0.0, 2.0, 'strings'), Span('a', 2.0, 4.0, 'strings')]
  assert probes.lead_families(_row(instruments={'bass': 'cello'}), 5.0) == []
  assert probes.lead_families(_row(), 5.0) == []
  with pytest.raises(errors.UserError, match="a: the lead is 'kazoo', wanted an instrument"):
    probes.lead_families(_row(instruments={'lead': 'kazoo'}), 5.0)
  with pytest.raises(errors.UserError, match='a: metadata.instruments is not a dict'):
    probes.lead_families(_row(instruments=['violin']), 5.0)


def test_roots_of_chords_of_a_second_or_more():
  chords = [[0.0, 1.5, 7, 'maj'], [1.5, 2.4, 0, 'm'], [2.4, 9.0, 11, 'dim7'], [9.0, 12.0, 3, 'maj']]
  assert probes.chord_roots(_row(chords=chords), 9.5) == [
      Span('a', 0.0, 1.5, '7'), Span('a', 2.4, 9.0, '11')]  # the last one is cut to half a second
  for broken in ([1.0, 0.5, 3, 'm'], [0.0, 1.0, 12, 'm'], [0.0, 1.0], 'C', [0.0, 1.0, 1.5, 'm']):
    with pytest.raises(errors.UserError, match='a: a chord is'):
      probes.chord_roots(_row(chords=[broken]), 9.5)


@pytest.fixture(name='music', scope='module')
def _music():
  """Returns (codes int[T], vectors f32[T, 3], spans): label x has mostly codes 0-3, y 4-7."""
  rng = np.random.default_rng(0)
  codes, vectors, spans = {}, {}, []
  for i in range(40):
    kind = i % 2
    codes[f'c{i}'] = np.where(rng.random(20) < 0.7, 4 * kind, 4 - 4 * kind) + rng.integers(0, 4, 20)
    vectors[f'c{i}'] = rng.normal(size=(20, 3)) + np.array([0.0, 5.0 * kind, 100.0])
    spans += [Span(f'c{i}', s, s + 2.0, 'xy'[kind]) for s in (0.0, 2.0)]
  return codes, vectors, spans


def test_a_probe_reads_codes_and_vectors_but_not_shuffled_codes(music):
  codes, vectors, spans = music
  options = {'frame_rate': RATE, 'seed': 1}
  found = probes.probe_features(codes, spans[:60], spans[60:], num_codes=8, **options)
  assert found.accuracy > 0.9 and found.balanced == pytest.approx(found.accuracy)
  assert (found.num_train, found.num_test, found.num_labels, found.majority) == (60, 20, 2, 0.5)
  mixed = probes.shuffled(codes, seed=3)
  assert {name: len(x) for name, x in mixed.items()} == {name: len(x) for name, x in codes.items()}
  np.testing.assert_array_equal(*(np.sort(np.concatenate(list(x.values()))) for x in (mixed, codes)))
  assert probes.probe_features(mixed, spans[:60], spans[60:], num_codes=8, **options).accuracy < 0.75
  assert probes.probe_features(vectors, spans[:60], spans[60:], **options).accuracy > 0.9


def test_the_error_is_that_of_whole_clips(music):
  """Eighty spans of ten clips, each clip all right or all wrong: ten draws, not eighty."""
  right = np.repeat([True] * 5 + [False] * 5, 8)
  error = probes._standard_error(right, np.repeat(np.arange(10), 8), np.random.default_rng(0))
  assert error == pytest.approx(0.5 / np.sqrt(10), rel=0.1)


def test_labels_and_features_that_do_not_do_are_named(music):
  codes, _, spans = music
  one = [span for span in spans if span.label == 'x']
  with pytest.raises(errors.UserError, match='all 40 training spans have the label x'):
    probes.probe_features(codes, one, spans, frame_rate=RATE, num_codes=8)
  with pytest.raises(errors.UserError, match='c0 has features up to 9 s at most, wanted'):
    probes.probe_features(codes, [*spans, Span('c0', 9.0, 10.0, 'x')], spans, frame_rate=RATE,
                          num_codes=8)
