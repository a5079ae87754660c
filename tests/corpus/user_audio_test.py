import shutil
import subprocess

import numpy as np
import pytest
import soundfile

from musiclm_jax import errors
from musiclm_jax.corpus import build


@pytest.fixture
def music(tmp_path):
  folder = tmp_path / 'music'
  folder.mkdir()
  seconds = np.arange(int(44_100 * 67.0)) / 44_100
  tone = 0.3 * np.sin(2 * np.pi * 440 * seconds)
  soundfile.write(folder / 'a song.wav', np.stack([tone, tone], 1), 44_100)
  soundfile.write(folder / 'short.flac', tone[:66_150], 44_100)
  return folder


def _build(music, tmp_path, text, **options):
  table = tmp_path / 'captions.csv'
  table.write_text(text, encoding='utf-8')
  return build.build(output=str(tmp_path / 'out'), hours=0, add_folder=str(music),
                     captions_csv=str(table), **options)


def test_recordings_become_clips(music, tmp_path):
  text = (
    'path,caption,aspects\na song.wav,A tone,calm; sine\n'
    'a song.wav,"One, steady tone",\nshort.flac,Short,\n'
  )
  rows = _build(music, tmp_path, text, test_share=0.5)
  assert [r['seconds'] for r in rows] == [30.0, 30.0, 7.0, 1.5]
  assert rows[0]['captions'] == ['A tone', 'One, steady tone']
  assert rows[0]['aspects'] == ['calm', 'sine']
  assert len({r['split'] for r in rows[:3]}) == 1 and rows[3]['split'] != rows[0]['split']
  audio, rate = soundfile.read(tmp_path / 'out' / rows[0]['path'])
  assert rate == 24_000 and audio.shape == (720_000,)
  spectrum = np.abs(np.fft.rfft(audio[:24_000]))
  assert np.argmax(spectrum) == 440


@pytest.mark.parametrize('name', ['../secret.wav', '/etc/passwd', 'missing.wav', 'link.wav'])
def test_paths_stay_in_the_folder(music, tmp_path, name):
  (tmp_path / 'secret.wav').write_bytes(b'')
  (music / 'link.wav').symlink_to(tmp_path / 'secret.wav')
  with pytest.raises(errors.UserError, match='line 2'):
    _build(music, tmp_path, f'path,caption\n{name},x\n')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('text, match', [
  ('file,caption\na,b\n', "wanted also .'path'."),
  ('path,caption\nshort.flac,\n', 'line 2'),
  ('path,caption\n', 'no rows'),
])
def test_bad_tables(music, tmp_path, text, match):
  with pytest.raises(errors.UserError, match=match):
    _build(music, tmp_path, text)


@pytest.mark.parametrize('name', ['noise.mp3', 'noise.m4a', 'noise.raw'])
def test_unreadable_audio_is_named(music, tmp_path, name):
  (music / name).write_bytes(b'this is no audio')
  with pytest.raises(errors.UserError, match=name):
    _build(music, tmp_path, f'path,caption\n{name},x\n')


@pytest.mark.skipif(not shutil.which('ffmpeg'), reason='ffmpeg decodes what libsndfile cannot')
def test_what_only_ffmpeg_decodes_becomes_clips_too(music, tmp_path):
  subprocess.run(
    ['ffmpeg', '-v', 'error', '-i', 'a song.wav', '-c:a', 'aac', 'song.m4a'], cwd=music, check=True
  )
  text = 'path,caption\na song.wav,A tone\nsong.m4a,A tone\n'
  rows = _build(music, tmp_path, text, test_share=0)
  assert [r['seconds'] for r in rows[:3]] == [30.0, 30.0, 7.0]
  assert [r['seconds'] for r in rows[3:]] == pytest.approx([30.0, 30.0, 7.0], abs=0.1)
  audio, _ = soundfile.read(tmp_path / 'out' / rows[4]['path'])
  assert np.argmax(np.abs(np.fft.rfft(audio[:24_000]))) == 440


def test_captions_are_one_line_of_text(music, tmp_path):
  rows = _build(music, tmp_path, 'path,caption\nshort.flac,"two\nlines \x1b[31m red"\n')
  assert rows[0]['captions'] == ['two lines [31m red']
