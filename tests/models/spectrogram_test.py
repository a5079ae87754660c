"""Mel spectrograms equal librosa's and Kaldi's definition, resampling equals scipy's."""

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


def _kaldi(x, config):
  """Returns f64[T, M], log-mel of f32[S] as Kaldi defines it, a sum at a time."""
  n, half = config.win_length, config.n_fft // 2
  mel = lambda hz: 1127.0 * np.log(1.0 + hz / 700.0)
  low, high = mel(config.fmin), mel(config.fmax or config.sample_rate / 2)
  step = (high - low) / (config.num_mels + 1)
  rows = []
  for start in range(0, len(x) - n + 1, config.hop_length):
    frame = x[start:start + n].astype(np.float64)
    frame = frame - frame.mean()
    frame = np.array([frame[s] - config.preemphasis * frame[max(s - 1, 0)] for s in range(n)])
    frame *= [0.5 - 0.5 * np.cos(2 * np.pi * s / (n - 1)) for s in range(n)]
    row = np.zeros(config.num_mels)
    for k in range(half + 1):
      turn = np.exp(-2j * np.pi * k * np.arange(n) / config.n_fft)
      energy = abs((frame * turn).sum()) ** 2
      place = (mel(k * config.sample_rate / config.n_fft) - low) / step  # triangle m has its top at m + 1
      for m in range(config.num_mels):
        row[m] += energy * max(0.0, 1.0 - abs(place - (m + 1)))
    rows.append(np.log(np.maximum(row, config.log_floor)))
  return np.array(rows)


@pytest.mark.parametrize('preemphasis,fmax', [(0.97, 3_800.0), (0.0, 0.0)])
def test_log_mel_equals_kaldis_definition(preemphasis, fmax):
  config = spectrogram.MelConfig(
      sample_rate=8_000, n_fft=128, win_length=100, hop_length=40, num_mels=9, fmin=20.0, fmax=fmax,
      center=False, log_floor=1e-7, front_end='kaldi', preemphasis=preemphasis)
  x = _noise(430) + 0.3  # an offset, which is taken out of each window
  x[1, 200:] = 0.0  # silence, where the floor is
  got = spectrogram.log_mel(jnp.asarray(x), config)
  assert got.shape == (2, 1 + (430 - 100) // 40, 9)
  assert float(got.min()) == np.log(np.float32(1e-7))
  for row, wanted in zip(got, x, strict=True):
    np.testing.assert_allclose(row, _kaldi(wanted, config), atol=2e-4)


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
  config = spectrogram.MelConfig(n_fft=512, win_length=400, center=False, front_end='kaldi')
  with pytest.raises(ValueError, match='got 399 samples, wanted at least win_length=400'):
    spectrogram.log_mel(jnp.zeros((1, 399)), config)


@pytest.mark.parametrize('settings, wanted', [
    ({'front_end': 'htk'}, r"front_end 'htk': one of \('librosa', 'kaldi'\) wanted"),
    ({'front_end': 'kaldi'}, 'center is True, wanted False'),
    ({'preemphasis': 0.97}, "preemphasis 0.97 belongs to front_end 'kaldi', not 'librosa'"),
])  # fmt: skip
def test_settings_that_do_not_go_together(settings, wanted):
  with pytest.raises(ValueError, match=wanted):
    spectrogram.MelConfig(**settings)
