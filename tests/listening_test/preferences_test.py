"""Wins and the signed-rank test: by hand, and as scipy has it."""

import itertools
import random

import numpy as np
import pytest
from scipy import stats

from musiclm_jax import errors
from musiclm_jax.listening_test import preferences, report, store

SYSTEMS = ('ours', 'mubert', 'riffusion', 'truth')


def answer(a, b, value, rater='r', item='i'):
  return store.Answer(rater, '', item, a, b, value, 30.0)


def drawn(count=1200, seed=0):
  """Returns answers of raters who like systems the more the later they come in the list."""
  rng = random.Random(seed)
  answers = []
  for number in range(count):
    a, b = rng.sample(SYSTEMS, 2)
    liking = SYSTEMS.index(b) - SYSTEMS.index(a)
    value = min(5, max(1, round(3 + rng.gauss(0.4 * liking, 1.2))))
    answers.append(answer(a, b, value, f'r{number % 30}', f'i{rng.randrange(100)}'))
  return answers


def test_signed_rank_by_hand():
  # |1 1 2 2| have ranks 1.5 1.5 3.5 3.5; zeros are dropped; the negative one is -1: W = 1.5.
  # Of the 16 choices of signs, 2 give W- = 1.5 and one 0: two-sided p = 2 * 3 / 16.
  statistic, p_value = preferences.signed_rank([2, 2, 1, -1, 0, 0])
  assert statistic == 1.5 and p_value == pytest.approx(6 / 16)


def test_signed_rank_of_many_is_the_normal_distribution_corrected_for_ties():
  scores = [1] * 30 + [2] * 20 + [-1] * 10 + [-2] * 15 + [0] * 25
  ones, twos = (1 + 40) / 2, (41 + 75) / 2
  minus = 10 * ones + 15 * twos
  variance = 75 * 76 * 151 / 24 - (40**3 - 40 + 35**3 - 35) / 48
  z = (minus - 75 * 76 / 4) / variance**0.5
  statistic, p_value = preferences.signed_rank(scores)
  assert statistic == minus and p_value == pytest.approx(2 * stats.norm.cdf(z), rel=1e-12)


def test_no_preference_at_all_is_no_difference():
  assert preferences.signed_rank([0, 0, 0]) == (0, 1)
  assert preferences.signed_rank([]) == (0, 1)


def test_pairs_equal_scipy_with_bonferroni():
  answers = drawn()
  results = preferences.results(SYSTEMS, answers)
  assert len(results.pairs) == results.comparisons == 6
  for pair in results.pairs:
    scores = [3 - each.answer if each.a == pair.first else each.answer - 3 for each in answers
              if {each.a, each.b} == {pair.first, pair.second}]
    wanted = stats.wilcoxon(scores)
    assert (pair.statistic, pair.p_value) == (wanted.statistic, wanted.pvalue)
    assert pair.p_corrected == min(1, 6 * wanted.pvalue)
    assert pair.significant == (pair.p_corrected < 0.01)
    assert pair.counts == tuple(np.histogram(scores, np.arange(-2.5, 3))[0][::-1])
  assert {pair.significant for pair in results.pairs} == {True, False}


def test_papers_own_correction_divides_by_15():
  answers = drawn()
  six, fifteen = (preferences.results(SYSTEMS, answers, comparisons=n) for n in (None, 15))
  for mine, papers in zip(six.pairs, fifteen.pairs, strict=True):
    assert papers.p_corrected == min(1, 15 * mine.p_value)


def test_wins_add_up_and_sides_do_not_matter():
  answers = drawn()
  results = preferences.results(SYSTEMS, answers)
  assert [each.name for each in results.systems] == ['truth', 'riffusion', 'mubert', 'ours']
  wins = sum(each.wins for each in results.systems)
  ties = sum(each.answer == 3 for each in answers)
  assert wins == sum(each.losses for each in results.systems) == len(answers) - ties
  assert sum(each.ties for each in results.systems) == 2 * ties
  assert sum(each.answers for each in results.systems) == 2 * len(answers)
  other_way = [answer(each.b, each.a, 6 - each.answer, each.rater, each.item) for each in answers]
  swapped = preferences.results(SYSTEMS, other_way)
  assert swapped.systems == results.systems and swapped.pairs == results.pairs


def test_strong_and_weak_count_alike():
  strong = [answer('ours', 'mubert', 1), answer('mubert', 'ours', 5), answer('ours', 'mubert', 5)]
  weak = [answer('ours', 'mubert', 2), answer('mubert', 'ours', 4), answer('ours', 'mubert', 4)]
  for answers in (strong, weak):
    found = {each.name: each for each in preferences.results(SYSTEMS, answers).systems}
    assert (found['ours'].wins, found['mubert'].wins) == (2, 1)


def test_unit_takes_the_mean_of_each_rater():
  answers = [answer('ours', 'mubert', value, f'r{i % 7}')
             for i, value in enumerate(itertools.islice(itertools.cycle([1, 2, 2, 4, 3]), 70))]
  results = preferences.results(('ours', 'mubert'), answers, unit='rater')
  means = [np.mean([3 - each.answer for each in answers if each.rater == f'r{i}']) for i in range(7)]
  assert results.pairs[0].p_value == stats.wilcoxon(means).pvalue
  with pytest.raises(errors.UserError, match="unit is 'day', wanted one of answer, rater, item"):
    preferences.results(SYSTEMS, answers, unit='day')


def test_raters_who_always_press_the_same_show():
  answers = [answer('ours', 'mubert', 1, 'lazy') for _ in range(4)]
  answers += [answer('ours', 'mubert', value, 'keen') for value in (1, 5, 3, 2, 4)]
  keen, lazy = preferences.results(SYSTEMS, answers).raters
  assert (keen.id, keen.answers, keen.share_a, keen.share_ties) == ('keen', 5, 0.5, pytest.approx(0.2))
  assert (lazy.id, lazy.answers, lazy.share_a) == ('lazy', 4, 1)


def test_matrix_holds_shares_of_all_answers():
  answers = [answer('ours', 'mubert', value) for value in (1, 2, 3, 5)]
  names, rows = report.matrix(preferences.results(('ours', 'mubert'), answers))
  assert names == ['ours', 'mubert'] and rows == [[None, 0.5], [0.25, None]]


def test_report_in_all_its_forms(tmp_path):
  pytest.importorskip('jinja2')
  answers = [answer('ours', '<img>', value, '<i>') for value in (1, 2, 3, 5)]
  results = preferences.results(('ours', '<img>', 'silent'), answers)
  text = report.as_text(results)
  assert text.startswith('answers: 4, raters: 1, captions: 1\n') and 'p x 3' in text
  report.write(results, None, str(tmp_path / 'a.html'), str(tmp_path / 'a.png'))
  page = (tmp_path / 'a.html').read_text(encoding='utf-8')
  assert '&lt;img&gt;' in page and '<img>' not in page and 'data:image/png;base64,' in page
  assert not any(each in page for each in ('http:', 'https:', '<script', 'url('))
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
  with pytest.raises(errors.UserError, match='is a directory'):
    report.write(results, str(tmp_path), None, None)
