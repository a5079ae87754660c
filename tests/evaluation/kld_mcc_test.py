"""KLD and MCC by hand."""

import importlib.util

import numpy as np
import pytest

from musiclm_jax import errors
from musiclm_jax.evaluation import kld, mcc

EXACT = {'epsilon': 1e-12}
P, Q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])


def test_both_directions_by_hand():
  forward = kld.divergence(P, Q, kld.KldConfig(**EXACT))
  assert forward == pytest.approx(np.log(2))  # 2 * 0.5 log(0.5 / 0.25)
  backward = kld.divergence(P, Q, kld.KldConfig('generated_reference', epsilon=1e-6))
  assert backward == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-6), rel=1e-4)
  both = kld.divergence(P, Q, kld.KldConfig('mean'))
  ways = [kld.divergence(P, Q, kld.KldConfig(way)) for way in kld.DIRECTIONS[:2]]
  assert both == pytest.approx(np.mean(ways))


def test_no_divergence_from_itself():
  for activation in kld.ACTIVATIONS:
    assert kld.divergence(P, P, kld.KldConfig(activation=activation)) == pytest.approx(0, abs=1e-12)


def test_sigmoids_are_a_yes_or_no_each_by_hand():
  p, q = np.array([0.5, 0.9]), np.array([0.25, 0.9])
  wanted = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
  config = kld.KldConfig(activation='sigmoid', **EXACT)
  assert kld.divergence(p, q, config) == pytest.approx(wanted)


def test_the_windows_of_a_clip_are_averaged():
  logits = np.log([[1.0, 3.0], [3.0, 1.0]]) + 1000  # large logits do not overflow
  config = kld.KldConfig()
  np.testing.assert_allclose(kld.probabilities(logits[:1], config), [0.25, 0.75])
  np.testing.assert_allclose(kld.probabilities(logits, config), [0.5, 0.5])
  sigmoid = kld.KldConfig(activation='sigmoid')
  np.testing.assert_allclose(
      kld.probabilities(np.log([[1.0, 3.0], [1 / 3, 3.0]]), sigmoid), [(0.5 + 0.25) / 2, 0.75])
  by_logits = kld.KldConfig(aggregation='logits')
  np.testing.assert_allclose(
      kld.probabilities(np.log([[1.0, 16.0], [1.0, 1.0]]), by_logits), [0.2, 0.8])


def test_fields_that_cannot_be_are_named():
  for change in ({'direction': 'both'}, {'activation': 'relu'}, {'aggregation': 'max'},
                 {'epsilon': 0.0}):
    with pytest.raises(errors.UserError, match=next(iter(change))):
      kld.KldConfig(**change)
  with pytest.raises(errors.UserError, match='3 and 2 classes'):
    kld.divergence(P, P[:2], kld.KldConfig())


def test_a_classifier_that_gives_no_logits_is_named():
  classifier = kld.Classifier('mine', 'f', 16_000, lambda waveform: np.full((2, 3), np.nan))
  with pytest.raises(errors.UserError, match='mine gives'):
    classifier.probabilities(np.zeros(10), kld.KldConfig())


@pytest.mark.skipif(importlib.util.find_spec('hear21passt') is not None, reason='it is installed')
def test_passt_that_is_not_installed_is_named():
  with pytest.raises(errors.UserError, match='PaSST needs the packages hear21passt and torch'):
    kld.passt()


def test_agreement_by_hand():
  texts = np.eye(3)
  audio = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
  found = mcc.agreement(texts, audio)
  own = np.array([1.0, 0.8, 1.0])
  assert found.cosine == pytest.approx(own.mean()) and found.num_clips == 3
  assert found.error == pytest.approx(own.std(ddof=1) / 3 ** 0.5)
  assert found.permuted == pytest.approx(0.6 / 6)  # one of six wrong pairs is not 0


def test_the_permuted_baseline_is_the_mean_over_all_permutations():
  random = np.random.default_rng(0)
  unit = lambda: (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True))(random.normal(size=(7, 5)))
  texts, audio = unit(), unit()
  shifted = [np.einsum('ne,ne->n', np.roll(texts, k, axis=0), audio).mean() for k in range(1, 7)]
  assert mcc.agreement(texts, audio).permuted == pytest.approx(np.mean(shifted))


def test_one_clip_has_no_baseline_and_none_is_an_error():
  assert np.isnan(mcc.agreement(np.eye(2)[:1], np.eye(2)[:1]).permuted)
  with pytest.raises(errors.UserError):
    mcc.agreement(np.zeros((0, 2)), np.zeros((0, 2)))
