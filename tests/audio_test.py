"""Sound files: what is read back is what was written, and bad files are named."""

import io
import os
import pathlib
import shutil
import subprocess
import time

import numpy as np
import pytest
import soundfile
import soxr

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


def _noise(samples, channels=2):
  return (0.2 * np.random.RandomState(0).randn(samples, channels)).astype(np.float32)


@pytest.mark.parametrize('suffix', ['.wav', '.ogg', '.flac', '.mp3'])
@pytest.mark.parametrize('source_rate', [24_000, 44_100])
def test_pieces_of_any_length_join_to_the_whole(tmp_path, suffix, source_rate):
  path = tmp_path / f'a{suffix}'
  soundfile.write(path, _noise(30_001), source_rate)
  decoded = soundfile.read(path, dtype='float32')[0].mean(axis=1)
  wanted = soxr.resample(decoded, source_rate, 24_000) if source_rate != 24_000 else decoded
  for seconds in (0.01, 0.3, 100):
    pieces = list(audio.blocks(path, 24_000, seconds))
    assert 0 < min(map(len, pieces))
    assert max(map(len, pieces)) <= 24_000 * seconds + 2_000  # a resampler gives in bursts
    joined = np.concatenate(pieces)
    assert joined.dtype == np.float32 and joined.shape == wanted.shape
    np.testing.assert_allclose(joined, wanted, atol=1e-4)
  np.testing.assert_allclose(audio.read(path), wanted, atol=1e-4)


def test_an_open_file_comes_in_pieces_too(tmp_path):
  soundfile.write(tmp_path / 'a.wav', _noise(1000), 24_000)
  with open(tmp_path / 'a.wav', 'rb') as stream:
    pieces = list(audio.blocks(stream, 24_000, 0.01))
  assert [len(piece) for piece in pieces] == [240] * 4 + [40]
  np.testing.assert_array_equal(np.concatenate(pieces), audio.read(tmp_path / 'a.wav'))


@pytest.mark.parametrize('suffix', ['.mp3', '.ogg'])
def test_of_a_file_that_breaks_off_nothing_is_made_up(tmp_path, suffix):
  """Its header tells of more samples than can be decoded."""
  whole, broken = tmp_path / f'a{suffix}', tmp_path / f'b{suffix}'
  soundfile.write(whole, _noise(96_000, 1), 24_000)
  content = bytearray(whole.read_bytes())
  middle = len(content) // 2
  if suffix == '.mp3':
    content = content[:middle]
  else:
    content[middle:middle + 3000] = bytes(3000)
  broken.write_bytes(content)
  wanted = soundfile.read(broken, dtype='float32')[0]
  assert 24_000 < len(wanted) < 90_000 < soundfile.info(broken).frames
  for seconds in (0.1, 60):
    joined = np.concatenate(list(audio.blocks(broken, 24_000, seconds)))
    np.testing.assert_allclose(joined, wanted, atol=1e-4)


def test_what_is_wrong_later_on_is_an_error_after_the_good_pieces(tmp_path):
  samples = _noise(24_000, 1)
  samples[20_000] = np.nan
  soundfile.write(tmp_path / 'nan.wav', samples, 24_000, subtype='FLOAT')
  soundfile.write(tmp_path / 'whole.flac', _noise(96_000, 1), 24_000)
  content = (tmp_path / 'whole.flac').read_bytes()
  (tmp_path / 'cut.flac').write_bytes(content[: len(content) // 2])
  for name, reason in (('nan.wav', 'holds 1 NaN'), ('cut.flac', 'is not audio that can be read')):
    pieces = []
    with pytest.raises(errors.UserError, match=f'{name} {reason}') as error:
      pieces.extend(audio.blocks(tmp_path / name, 24_000, 0.25))
    assert '\n' not in str(error.value) and len(pieces) >= 3
    assert all(np.isfinite(piece).all() for piece in pieces)


def _ffmpeg_children() -> set[str]:
  """Returns the process ids of the ffmpeg programs that this process started."""
  found = set()
  for status in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      name, rest = status.read_text().rsplit(')', 1)
    except OSError:  # it ended meanwhile
      continue
    if 'ffmpeg' in name and rest.split()[1] == str(os.getpid()):
      found.add(status.parent.name)
  return found


@pytest.fixture
def m4a(tmp_path):
  """Returns 60 s of noise in a file that only ffmpeg decodes."""
  if not shutil.which('ffmpeg') or not os.path.exists('/proc/self/stat'):
    pytest.skip('needs ffmpeg and /proc')
  audio.write(tmp_path / 'a.wav', _noise(1_440_000, 1)[:, 0])
  command = ['ffmpeg', '-v', 'error', '-i', tmp_path / 'a.wav', tmp_path / 'a.m4a']
  subprocess.run(command, check=True)
  with pytest.raises(soundfile.SoundFileError):
    soundfile.read(tmp_path / 'a.m4a')
  return tmp_path / 'a.m4a'


def test_ffmpeg_gives_pieces_and_ends_with_its_reader(m4a):
  whole = audio.read(m4a)
  assert abs(len(whole) - 1_440_000) < 5000
  pieces = audio.blocks(m4a, 24_000, 0.1)
  np.testing.assert_array_equal(np.concatenate(list(pieces)), whole)
  pieces = audio.blocks(m4a, 24_000, 0.1)
  np.testing.assert_array_equal(next(pieces), whole[:2400])
  assert len(_ffmpeg_children()) == 1, 'ffmpeg decodes as it is read, not at once'
  start = time.monotonic()
  pieces.close()
  assert not _ffmpeg_children() and time.monotonic() - start < 10


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


@pytest.mark.parametrize('suffix', ['.wav', '.flac'])
@pytest.mark.parametrize('channels', [1, 2])
def test_pieces_are_written_as_the_whole(tmp_path, suffix, channels):
  waveform = _noise(5000, channels)
  waveform = waveform[:, 0] if channels == 1 else waveform
  audio.write(tmp_path / f'whole{suffix}', waveform, 44_100)
  pieces = np.split(waveform, [0, 1, 1, 4000])  # some are empty, the first one, too
  audio.write_blocks(tmp_path / f'pieces{suffix}', iter(pieces), 44_100)
  whole, pieces = (tmp_path / f'{name}{suffix}' for name in ('whole', 'pieces'))
  assert pieces.read_bytes() == whole.read_bytes()


def test_pieces_leave_nothing_behind_after_an_error(tmp_path):
  def pieces(last):
    yield _sine(0.1)
    assert last is not None, 'the decoder failed'
    yield last

  with pytest.raises(errors.UserError, match='NaN'):
    audio.write_blocks(tmp_path / 'a.wav', pieces(np.array([np.inf])))
  with pytest.raises(AssertionError, match='the decoder failed'):
    audio.write_blocks(tmp_path / 'a.wav', pieces(None))
  with pytest.raises(errors.UserError, match='a.wav: there are no samples to write'):
    audio.write_blocks(tmp_path / 'a.wav', [])
  assert not os.listdir(tmp_path)
  audio.write(tmp_path / 'a.wav', _sine(0.1))
  with pytest.raises(errors.UserError, match='already exists'):
    audio.write_blocks(tmp_path / 'a.wav', pieces(None))


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
