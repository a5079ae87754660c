"""The meter against the signals of ITU-R BS.1770 and EBU Tech 3341, whose loudness is known."""

import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from musiclm_jax.corpus_validation import loudness


def _sine(level, seconds, rate=48_000, hertz=997.0):
  return 10 ** (level / 20) * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def _measure(waveform, rate=48_000, size=None):
  waveform = np.asarray(waveform).reshape(len(waveform), -1)
  meter = loudness.Meter(rate, waveform.shape[1])
  for start in range(0, len(waveform), size or len(waveform)):
    meter.add(waveform[start:start + (size or len(waveform))])
  return meter.integrated()


def test_coefficients_are_those_of_the_standard():
  """Tables 1 and 2 of BS.1770."""
  np.testing.assert_allclose(loudness.k_weighting(48_000), [
      [1.53512485958697, -2.69169618940638, 1.19839281085285, 1, -1.69065929318241, 0.73248077421585],
      [1, -2, 1, 1, -1.99004745483398, 0.99007225036621]], atol=1e-7)  # fmt: skip


@pytest.mark.parametrize('rate, error', [
    (48_000, 0.01), (44_100, 0.01), (24_000, 0.05), (11_025, 0.05), (8_000, 0.05), (192_000, 0.05)])
def test_a_full_scale_sine_of_997_hz_is_minus_3_01(rate, error):
  assert _measure(_sine(0, 3, rate), rate) == pytest.approx(-3.01, abs=error)


@pytest.mark.parametrize('parts', [
    [(-23, 5)], [(-36, 3), (-23, 18), (-36, 3)], [(-72, 3), (-36, 3), (-23, 18), (-36, 3), (-72, 3)],
    [(-26, 6), (-20, 6.03), (-26, 6)]])
def test_quiet_parts_are_gated(parts):
  """Cases 1 and 3 to 5 of Tech 3341, in less time."""
  waveform = np.concatenate([_sine(*part, hertz=1000) for part in parts])
  assert _measure(np.stack([waveform, waveform], 1)) == pytest.approx(-23, abs=0.1)


def test_surround_channels_weigh_more_and_the_lfe_nothing():
  """Case 6 of Tech 3341."""
  levels = [-28, -28, -24, 0, -30, -30]
  five = np.stack([_sine(level, 4, hertz=1000) for level in levels], 1)
  assert _measure(five) == pytest.approx(-23, abs=0.1)
  assert _measure(five[:, [0, 1, 2, 4, 5]]) == pytest.approx(_measure(five), abs=1e-6)


@pytest.mark.parametrize('size', [1, 999, 7777])
def test_pieces_make_no_difference(size):
  waveform = 0.1 * np.random.RandomState(0).randn(2 * 1103 if size == 1 else 30_000, 2)
  rate = 1103 * 4 if size == 1 else 11_025
  assert _measure(waveform, rate, size) == pytest.approx(_measure(waveform, rate), abs=1e-9)


def test_the_short_and_the_silent_have_no_loudness():
  assert _measure(_sine(0, 0.39)) is None
  assert _measure(np.zeros(48_000)) is None
  assert _measure(_sine(-80, 1)) is None


@pytest.mark.skipif(not shutil.which('ffmpeg'), reason='needs ffmpeg')
def test_music_is_as_loud_as_ffmpeg_says(tmp_path, piece):
  waveform = np.stack([piece(0), 0.3 * piece(1)], 1)
  soundfile.write(tmp_path / 'a.wav', waveform, 24_000, subtype='FLOAT')
  done = subprocess.run(['ffmpeg', '-nostdin', '-i', tmp_path / 'a.wav', '-af', 'ebur128', '-f', 'null',
                         '-'], capture_output=True, text=True, check=True)
  wanted = float(re.findall(r'I:\s+(-?[\d.]+) LUFS', done.stderr)[-1])
  assert _measure(waveform, 24_000) == pytest.approx(wanted, abs=0.1)
