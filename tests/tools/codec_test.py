"""tools/codec.py: audio to codes and back, through files and through pipes."""

import io
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from musiclm_jax import audio, bitstream, codec

TOOL = pathlib.Path(__file__).resolve().parents[2] / 'tools' / 'codec.py'
RATE, SAMPLES = 24_000, 60_001


def _run(*flags, stdin=b''):
  return subprocess.run(
      [sys.executable, str(TOOL), *map(str, flags)], input=stdin, capture_output=True, timeout=300,
      env=dict(os.environ, JAX_PLATFORMS='cpu'))


def _assert_one_line(done, reason):
  assert done.returncode == 1 and not done.stdout
  line = done.stderr.decode()
  assert line.startswith('error: ') and line.count('\n') == 1 and re.search(reason, line), line


@pytest.fixture(scope='module')
def song(tmp_path_factory):
  """Returns a folder with a.wav, and a.codes of it at all levels."""
  folder = tmp_path_factory.mktemp('song')
  time = np.arange(SAMPLES) / RATE
  waveform = 0.3 * np.sin(2 * np.pi * (200 + 100 * time) * time) * (time > 1)
  audio.write(folder / 'a.wav', waveform)
  done = _run('encode', folder / 'a.wav', folder / 'a.codes')
  assert done.returncode == 0 and not done.stdout, done.stderr
  assert re.fullmatch(r'\S+/a.codes: 2.50 s at [\d.]+ kbps\n', done.stderr.decode())
  return folder


def test_codes_come_back_as_audio_of_the_same_length(song):
  done = _run('decode', song / 'a.codes', song / 'b.flac')
  assert done.returncode == 0 and not done.stdout and not done.stderr, done.stderr
  decoded, rate = soundfile.read(song / 'b.flac')
  assert rate == RATE and decoded.shape == (SAMPLES,)
  with open(song / 'a.codes', 'rb') as stream:
    wanted = np.concatenate(list(codec.read(bitstream.Reader(stream, 'a'), codec.Codec.load())))
  np.testing.assert_allclose(decoded, wanted, atol=1e-4)


def test_pipes_do_what_files_do(song):
  """`encode | decode` at once: the decoder reads what the encoder still writes."""
  command = [sys.executable, str(TOOL)]
  environment = dict(os.environ, JAX_PLATFORMS='cpu')
  with open(song / 'a.wav', 'rb') as source, subprocess.Popen(
      [*command, 'encode', '-', '-', '--kbps=1'], stdin=source, stdout=subprocess.PIPE,
      env=environment) as encoder, subprocess.Popen(
      [*command, 'decode', '-', '-'], stdin=encoder.stdout, stdout=subprocess.PIPE,
      env=environment) as decoder:  # fmt: skip
    encoder.stdout.close()  # the decoder's, now
    content = decoder.stdout.read()
  assert encoder.returncode == 0 and decoder.returncode == 0
  piped, rate = soundfile.read(io.BytesIO(content))
  assert rate == RATE and piped.shape == (SAMPLES,)
  model = codec.Codec.load()
  codes = list(model.encode([audio.read(song / 'a.wav')], model.levels(1)))
  wanted = np.concatenate(list(model.decode(codes)))[:SAMPLES]
  np.testing.assert_allclose(piped, wanted, atol=1e-4)


@pytest.mark.parametrize('source', ['a.wav', 'a.codes'])
def test_adaptive_has_the_size_that_was_asked_for(song, source):
  target = os.path.getsize(song / 'a.codes') * 2 // 3
  done = _run('adaptive', song / source, song / 'sized.codes', f'--target_bytes={target}')
  assert done.returncode == 0 and b' kbps\n' in done.stderr, done.stderr
  assert 0.8 * target < os.path.getsize(song / 'sized.codes') <= target
  with open(song / 'sized.codes', 'rb') as stream, open(song / 'a.codes', 'rb') as full:
    for packet, whole in zip(
        bitstream.Reader(stream, 'a'), bitstream.Reader(full, 'a'), strict=True):
      np.testing.assert_array_equal(packet, whole[:, : packet.shape[1]])


def test_adaptive_to_a_pipe_follows_rates_and_info_shows_them(song):
  model = codec.Codec.load()
  rates = [model.config.kbps(levels) for levels in (1, 3)]
  (song / 'rates.txt').write_text('\n'.join(map(str, rates)))
  done = _run('adaptive', '-', '-', f'--kbps_file={song / "rates.txt"}',
              stdin=(song / 'a.wav').read_bytes())
  assert done.returncode == 0, done.stderr
  levels = [codes.shape[1] for codes in bitstream.Reader(io.BytesIO(done.stdout), 'a')]
  assert levels == [1, 3, 3]
  told = _run('info', '-', stdin=done.stdout)
  assert told.returncode == 0 and not told.stderr
  assert told.stdout.decode().startswith('2.50 s at 24000 Hz')
  assert f'{rates[0]:g} to {rates[1]:g}; the model has up to' in told.stdout.decode()


@pytest.mark.parametrize('mode', ['decode', 'adaptive', 'info'])
def test_a_file_that_is_cut_off_is_one_line_and_leaves_nothing(song, tmp_path, mode):
  cut = tmp_path / 'cut.codes'
  cut.write_bytes((song / 'a.codes').read_bytes()[:-20])
  flags = {'decode': [tmp_path / 'b.wav'], 'adaptive': [tmp_path / 'b', '--target_bytes=9999'],
           'info': []}
  done = _run(mode, cut, *flags[mode])
  _assert_one_line(done, 'is cut off: it ends inside a packet')
  assert os.listdir(tmp_path) == ['cut.codes']


def test_a_pipe_that_is_cut_off_gives_no_audio(song):
  done = _run('decode', '-', '-', stdin=(song / 'a.codes').read_bytes()[:-20])
  _assert_one_line(done, 'stdin is cut off')


def test_an_existing_file_stays_when_the_new_one_fails(song, tmp_path):
  (tmp_path / 'old.codes').write_text('old')
  (tmp_path / 'noise.wav').write_text('no audio')
  done = _run('encode', tmp_path / 'noise.wav', tmp_path / 'old.codes')
  _assert_one_line(done, 'noise.wav is not audio')
  assert (tmp_path / 'old.codes').read_text() == 'old'
  assert sorted(os.listdir(tmp_path)) == ['noise.wav', 'old.codes']
  assert _run('encode', song / 'a.wav', tmp_path / 'old.codes').returncode == 0
  assert (tmp_path / 'old.codes').read_bytes() == (song / 'a.codes').read_bytes()


def test_an_output_that_cannot_be_is_refused_at_once(song, tmp_path):
  _assert_one_line(_run('encode', song / 'a.wav', tmp_path), 'is a directory, wanted the name of')
  _assert_one_line(_run('encode', song / 'no.wav', tmp_path / 'new' / 'a.codes'), 'does not exist')
  assert not os.listdir(tmp_path)
