"""Mel spectrograms equal librosa's, resampling equals scipy's."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal

from musiclm_jax.models import spectrogram


def _noise(samples, batch=2, seed=0):
  return np.random.RandomState(seed).randn(batch, samples).astype(np.float32) * 0.1


@pytest.mark.parametrize(
    'n_fft,win_length,hop,center',
    [(1024, 1024, 256, True), (512, 400, 160, True), (512, 400, 160, False), (64, 64, 16, True)],
)
def test_stft_equals_librosa(n_fft, win_length, hop, center):
  x = _noise(5000)
  got = spectrogram.stft(x, n_fft, win_length, hop, center)
  want = librosa.stft(
      x, n_fft=n_fft, win_length=win_length, hop_length=hop, center=center, pad_mode='constant'
  )
  np.testing.assert_allclose(got, np.swapaxes(want, 1, 2), atol=2e-4)


@pytest.mark.parametrize('power', [1.0, 2.0])
@pytest.mark.parametrize('fmin,fmax', [(0.0, 0.0), (60.0, 7600.0)])
def test_log_mel_equals_librosa(power, fmin, fmax):
  x = _noise(9000)
  config = spectrogram.MelConfig(
      sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, num_mels=64,
      fmin=fmin, fmax=fmax, power=power,
  )
  want = librosa.feature.melspectrogram(
      y=x, sr=16_000, n_fft=512, win_length=400, hop_length=160, n_mels=64,
      fmin=fmin, fmax=fmax or None, power=power, pad_mode='constant',
  )
  got = spectrogram.log_mel(x, config)
  assert got.shape == (2, 1 + 9000 // 160, 64)
  want = np.log(np.maximum(np.swapaxes(want, 1, 2), config.log_floor))
  np.testing.assert_allclose(got, want, atol=1e-3)


def test_frames_by_hand():
  got = spectrogram._frames(jnp.arange(7.0)[None], length=3, hop=2)
  np.testing.assert_array_equal(got, [[[0, 1, 2], [2, 3, 4], [4, 5, 6]]])


def test_no_filter_is_empty_and_none_is_given_away():
  assert spectrogram.most_mels(24_000, 2048, 64) == 64
  for size in (64, 128, 256, 512):
    count = spectrogram.most_mels(24_000, size, 64)
    assert (spectrogram.mel_filters(24_000, size, count).sum(axis=0) > 0).all()
    assert count > 1


def test_gradient_is_finite_in_silence():
  config = spectrogram.MelConfig(n_fft=64, win_length=64, hop_length=16, num_mels=8, power=1.0)
  gradient = jax.grad(lambda x: spectrogram.log_mel(x, config).sum())(jnp.zeros((1, 256)))
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    'from_rate,to_rate,samples',
    [(24_000, 16_000, 4801), (16_000, 24_000, 1000), (24_000, 48_000, 77), (44_100, 24_000, 3000)],
)
def test_resample_equals_scipy(from_rate, to_rate, samples):
  x = _noise(samples)
  want = scipy.signal.resample_poly(x, to_rate, from_rate, axis=1)
  got = spectrogram.resample(jnp.asarray(x), from_rate, to_rate)
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_too_short_without_padding_says_so():
  with pytest.raises(ValueError, match='wanted at least n_fft=512'):
    spectrogram.stft(jnp.zeros((1, 100)), 512, 400, 160, center=False)
