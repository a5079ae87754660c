"""What is measured of a recording is what was put into it."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from musiclm_jax import audio, errors
from musiclm_jax.corpus_validation import measurements


def _measure(columns, rate=24_000, size=None, encoding='WAV PCM_16'):
  block = np.asarray(columns, np.float32).T.reshape(np.shape(columns)[-1], -1)
  recording = audio.Recording(rate, block.shape[1], encoding, len(block))
  size = size or len(block)
  return measurements.measure(
      recording, [block[start:start + size] for start in range(0, len(block), size)])[0]


def test_levels_and_shares():
  time = np.arange(48_000) / 24_000
  left = np.where(time < 1, 0.5 * np.sin(2 * np.pi * 1000 * time), 0)
  found = _measure([left, np.full(48_000, 1e-4)], size=7_001)
  assert found.seconds == 2 and (found.rate, found.channels) == (24_000, 2)
  assert found.peak == pytest.approx(-6.02, abs=0.01)
  assert found.silence == pytest.approx(0.5, abs=0.051) and found.clipped == 0
  assert found.dc_offset == pytest.approx(1e-4, abs=1e-6)
  assert _measure([left + 0.1, left]).dc_offset == pytest.approx(0.1, abs=1e-4)
  silent = _measure(np.zeros(24_000))
  assert silent.peak is None and silent.loudness is None and silent.silence == 1


@pytest.mark.parametrize('size', [1, 2, 3, 5, 100])
def test_clipping_is_counted_in_runs_over_pieces(size):
  random = np.random.RandomState(0)
  columns = np.where(random.rand(2, 200) < 0.6, np.sign(random.randn(2, 200)), 0.3)
  wanted = 0
  for column in columns:
    for run in ''.join('x' if abs(value) == 1 else ' ' for value in column).split():
      wanted += len(run) if len(run) >= measurements.CLIPPED_RUN else 0
  assert wanted > 50
  assert _measure(columns, size=size).clipped * 400 == pytest.approx(wanted)


def test_full_scale_of_8_bits_is_lower():
  wave = np.tile([127 / 128] * 4 + [0] * 4, 3_000)
  assert _measure(wave, encoding='WAV PCM_U8').clipped == pytest.approx(0.5)
  assert _measure(wave, encoding='WAV PCM_16').clipped == 0


def test_a_sample_rate_that_cannot_be_is_an_error():
  with pytest.raises(errors.UserError, match='sample rate is 3 Hz, wanted 1000 to 768000'):
    _measure(np.zeros(100), rate=3)
  assert _measure(0.1 * np.random.RandomState(0).randn(3_000), rate=1_000).loudness is None


@pytest.mark.parametrize('name, options', [
    ('a.wav', {'subtype': 'PCM_24'}), ('a.flac', {}), (os.fsdecode(b'\xff \xe9.wav'), {})])
def test_a_file_is_read_at_its_own_rate_with_all_channels(tmp_path, name, options):
  samples = 0.1 * np.random.RandomState(0).randn(5_000, 3)
  with open(tmp_path / name, 'wb') as file:
    soundfile.write(file, samples, 11_025, format=name[-4:].strip('.'), **options)
  with audio.recorded(tmp_path / name, seconds=0.1) as (recording, blocks):
    blocks = list(blocks)
  assert (recording.rate, recording.channels, recording.frames) == (11_025, 3, 5_000)
  assert 1 < len(blocks[0]) <= 1_103
  np.testing.assert_allclose(np.concatenate(blocks), samples, atol=1e-4)
  # The same path for all who read mono, names that are not UTF-8 included.
  np.testing.assert_allclose(audio.read(tmp_path / name, 11_025), samples.mean(axis=1), atol=1e-4)


@pytest.mark.skipif(not shutil.which('ffmpeg'), reason='needs ffmpeg')
def test_what_only_ffmpeg_decodes_keeps_rate_and_channels(tmp_path):
  time = np.arange(44_100 * 2) / 44_100
  samples = 0.3 * np.stack([np.sin(2 * np.pi * 440 * time), np.zeros_like(time)], 1)
  soundfile.write(tmp_path / 'a.wav', samples, 44_100)
  subprocess.run(['ffmpeg', '-v', 'error', '-i', tmp_path / 'a.wav', tmp_path / 'a.m4a'], check=True)
  found, words = measurements.measure_file(tmp_path / 'a.m4a', 'a.m4a')
  assert (found.rate, found.channels) == (44_100, 2) and found.seconds == pytest.approx(2, abs=0.1)
  assert found.encoding in ('aac', 'unknown') and found.loudness == pytest.approx(
      measurements.measure_file(tmp_path / 'a.wav', 'a.wav')[0].loudness, abs=0.2)
  assert len(words) > 50
  content = (tmp_path / 'a.m4a').read_bytes()
  (tmp_path / 'b.m4a').write_bytes(content[:len(content) // 3])
  for name in ('b.m4a', 'c.m4a'):
    (tmp_path / 'c.m4a').write_text('nothing of the kind')
    with pytest.raises(errors.UserError, match='not audio that can be read'):
      measurements.measure_file(tmp_path / name, name)
