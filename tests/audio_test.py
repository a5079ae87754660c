"""Sound files: what is read back is what was written, and bad files are named."""

import io
import os
import pathlib

import numpy as np
import pytest
import soundfile

from musiclm_jax import audio, errors


def _sine(seconds=1.0, rate=24_000, hertz=440.0):
  return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize('suffix', ['.wav', '.flac'])
def test_write_then_read_is_exact_to_16_bits(tmp_path, suffix):
  waveform = _sine()
  audio.write(tmp_path / f'a{suffix}', waveform)
  again = audio.read(tmp_path / f'a{suffix}')
  assert again.dtype == np.float32
  np.testing.assert_array_equal(again, audio.from_pcm16(audio.to_pcm16(waveform)))
  assert os.listdir(tmp_path) == [f'a{suffix}']


def test_pcm16_is_clipped_and_inverse():
  np.testing.assert_array_equal(audio.to_pcm16(np.array([0.5, 1.0, -1.0, 2.0])),
                                [16384, 32767, -32768, 32767])
  samples = np.arange(-32768, 32768, dtype=np.int16)
  np.testing.assert_array_equal(audio.to_pcm16(audio.from_pcm16(samples)), samples)


def test_reads_stereo_at_another_rate_as_mono_at_the_wanted_one(tmp_path):
  left = _sine(2.0, 44_100)
  soundfile.write(tmp_path / 'a.ogg', np.stack([left, np.zeros_like(left)], 1), 44_100)
  waveform = audio.read(tmp_path / 'a.ogg')
  assert waveform.shape == (48_000,)
  middle = slice(6_000, 42_000)
  error = waveform[middle] - _sine(2.0)[middle] / 2
  assert np.sqrt(np.mean(error ** 2)) < 0.02


def test_reads_an_open_file(tmp_path):
  audio.write(tmp_path / 'a.wav', _sine())
  assert audio.read(io.BytesIO((tmp_path / 'a.wav').read_bytes()), 12_000).shape == (12_000,)


def test_bad_files_are_named(tmp_path):
  cases = {
      'missing.wav': 'does not exist',
      'text.wav': 'not audio that can be read',
      'empty.wav': 'not audio that can be read',
      'nothing.wav': 'holds no samples',
      'nan.wav': 'holds 3 NaN or infinite samples of 10',
      'folder.wav': 'is a directory',
  }
  (tmp_path / 'text.wav').write_text('no music here')
  (tmp_path / 'empty.wav').touch()
  (tmp_path / 'folder.wav').mkdir()
  soundfile.write(tmp_path / 'nothing.wav', np.zeros(0), 24_000)
  soundfile.write(tmp_path / 'nan.wav', np.array([np.nan] * 3 + [0.0] * 7), 24_000, subtype='FLOAT')
  for name, reason in cases.items():
    with pytest.raises(errors.UserError, match=reason) as error:
      audio.read(tmp_path / name)
    assert name in str(error.value) and '\n' not in str(error.value)
  with pytest.raises(errors.UserError, match='not audio that can be read'):
    audio.read(io.BytesIO(b'no music here'))


def test_write_does_not_overwrite_unless_told(tmp_path):
  path = tmp_path / 'deep' / 'a.wav'
  audio.write(path, _sine(0.1))
  with pytest.raises(errors.UserError, match='already exists'):
    audio.write(path, _sine(0.2))
  audio.write(path, _sine(0.2), overwrite=True)


def test_write_refuses_what_it_cannot_write(tmp_path):
  with pytest.raises(errors.UserError, match="suffix '.mp3'"):
    audio.write(tmp_path / 'a.mp3', _sine(0.1))
  with pytest.raises(errors.UserError, match='NaN'):
    audio.write(tmp_path / 'a.wav', np.array([np.nan]))
  (tmp_path / 'file').touch()
  with pytest.raises(errors.UserError, match='cannot be written'):
    audio.check_writable(tmp_path / 'file' / 'a.wav')
  with pytest.raises(errors.UserError, match='is a directory'):
    (tmp_path / 'b.wav').mkdir()
    audio.check_writable(tmp_path / 'b.wav')


def test_atomic_path_leaves_nothing_after_an_error(tmp_path):
  with pytest.raises(RuntimeError), audio.atomic_path(tmp_path / 'a') as temporary:
    pathlib.Path(temporary).write_text('half')
    raise RuntimeError
  assert not os.listdir(tmp_path)


def test_of_two_writers_one_wins(tmp_path):
  with audio.atomic_path(tmp_path / 'a') as first:
    pathlib.Path(first).write_text('first')
    with pytest.raises(errors.UserError, match='already exists'):
      with audio.atomic_path(tmp_path / 'b') as second:
        pathlib.Path(second).write_text('second')
        (tmp_path / 'b').write_text('third')
  assert (tmp_path / 'a').read_text() == 'first'
  assert (tmp_path / 'b').read_text() == 'third'


def test_a_name_from_outside_stays_inside(tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'link').symlink_to(tmp_path)
  assert audio.path_inside(tmp_path / 'in', 'a/b.wav', 'here').endswith('/in/a/b.wav')
  for name in ('../b.wav', '/etc/passwd', 'a/../../b.wav', 'link/b.wav', 'a\0b'):
    with pytest.raises(errors.UserError, match='here: path'):
      audio.path_inside(tmp_path / 'in', name, 'here')
