"""Clips of all systems look alike."""

import wave

import numpy as np
import pytest
import soundfile

from musiclm_jax import audio, errors
from musiclm_jax.listening_test import clips


@pytest.fixture
def folders(tmp_path):
  """Returns {system: folder}; one in stereo at 44.1 kHz with a title, one longer, one shorter."""
  found = {name: tmp_path / name for name in ('ours', 'mubert', 'truth')}
  for folder in found.values():
    folder.mkdir()
  noise = np.random.RandomState(0).uniform(-0.5, 0.5, (96_000, 2))
  with soundfile.SoundFile(found['mubert'] / 'one.wav', 'w', 44_100, 2) as file:
    file.title, file.artist = 'Mubert API', 'Mubert'
    file.write(noise[:44_100])
  audio.write(found['ours'] / 'one.flac', noise[:48_000, 0])
  audio.write(found['truth'] / 'one.wav', noise[:24_000 * 3 // 4])
  audio.write(found['truth'] / 'two.wav', noise[:24_000])
  return found


def one(folders, caption='Calm'):
  """Returns the item `one`, as the first file of that name in each folder has it."""
  files = {name: {path.stem: str(path) for path in sorted(folder.iterdir(), reverse=True)}
           for name, folder in folders.items()}
  return clips.items({'one': caption}, files)


def test_files_differ_in_their_samples_only(tmp_path, folders):
  items = one(folders, ' A calm\u2028\x00\u202epiano\ud800')
  assert [(item.name, item.caption) for item in items] == [('one', 'A calm piano')]
  prepared, = clips.prepare(items, tmp_path / 'served')
  assert prepared.seconds == 0.75  # of the shortest
  headers, samples = set(), set()
  for path in prepared.files:
    content = path.read_bytes()
    headers.add(content[:44])
    samples.add(content[44:])
    assert b'ubert' not in content and len(content) == 44 + 2 * 18_000
    with wave.open(str(path)) as file:
      assert file.getparams()[:4] == (1, 2, 24_000, 18_000)
  assert len(headers) == 1 and len(samples) == 3


def test_prepared_clips_are_kept_until_a_source_changes(tmp_path, folders):
  items = one(folders)
  first, = clips.prepare(items, tmp_path / 'served', 0.5)
  before = [path.stat().st_mtime_ns for path in first.files]
  again, = clips.prepare(items, tmp_path / 'served', 0.5)
  assert again == first and [path.stat().st_mtime_ns for path in again.files] == before
  audio.write(folders['ours'] / 'one.flac', np.zeros(48_000), overwrite=True)
  changed, = clips.prepare(items, tmp_path / 'served', 0.5)
  assert not set(changed.files) & set(first.files) and not audio.read(changed.files[0]).any()


def test_systems_that_cannot_be(tmp_path, folders):
  with pytest.raises(errors.UserError, match='1 system is no comparison'):
    one({'ours': folders['ours']})
  with pytest.raises(errors.UserError, match='system \'../up\': wanted a name of'):
    one(folders | {'../up': folders['ours']})
  (folders['ours'] / 'one.flac').write_bytes(b'no sound')
  with pytest.raises(errors.UserError, match='one.flac is not audio that can be read'):
    clips.prepare(one(folders), tmp_path / 'served')


def test_clips_that_cannot_be_heard(tmp_path, folders):
  with pytest.raises(errors.UserError, match='seconds is nan'):
    clips.prepare(one(folders), tmp_path / 'served', float('nan'))
  audio.write(folders['truth'] / 'one.wav', np.zeros(2_400), overwrite=True)
  with pytest.raises(errors.UserError, match=r'truth/one.wav lasts 0.100 s, wanted 0.2 s or more'):
    clips.prepare(one(folders), tmp_path / 'served')
