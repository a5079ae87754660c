"""The bytes of audio files: read by others as written, the same each time."""

import io
import time

import numpy as np
import pytest
import soundfile

from musiclm_jax import errors
from musiclm_jax.generation_jobs import audio_files


@pytest.mark.parametrize('file_format, subtype, step', [
    ('wav', 'PCM_16', 2**-15), ('flac', 'PCM_16', 2**-15), ('wav_float', 'FLOAT', 0)])
def test_others_read_what_was_written(file_format, subtype, step):
  waveform = np.random.default_rng(0).uniform(-1, 1, 5001).astype(np.float32)
  content = audio_files.encode(waveform, 24_000, file_format)
  assert audio_files.size(5001, file_format) in (None, len(content))
  with soundfile.SoundFile(io.BytesIO(content)) as file:
    assert (file.samplerate, file.channels, file.subtype) == (24_000, 1, subtype)
    assert file.format == ('FLAC' if file_format == 'flac' else 'WAV')
    np.testing.assert_allclose(file.read(dtype='float32'), waveform, atol=step)
  time.sleep(1.1)  # a file may hold the second it was made in
  assert audio_files.encode(waveform, 24_000, file_format) == content


@pytest.mark.parametrize('file_format', audio_files.SUFFIXES)
def test_what_is_no_sound_is_refused(file_format):
  with pytest.raises(errors.UserError, match='NaN or infinite'):
    audio_files.encode(np.array([0, np.nan], np.float32), 24_000, file_format)


def test_a_wav_has_no_room_for_days_of_music():
  day = 24 * 3600 * 24_000
  assert audio_files.size(day, 'wav') < 2**32 and audio_files.size(day, 'flac') is None
  with pytest.raises(errors.UserError, match='2073600000 samples are more than a wav_float file can hold'):
    audio_files.size(day, 'wav_float')
