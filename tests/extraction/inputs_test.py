"""Every kind of file there is lands where it should, and the counters add up."""

import io
import json
import os
import pathlib
import unicodedata

import fsspec
import numpy as np
import pytest
import soundfile

from musiclm_jax import errors, prepare_audio
from musiclm_jax.data import records
from musiclm_jax.extraction import inputs, published, shards

FORMATS = {  # name -> (rate, channels, subtype)
    'mono-8k-u8.wav': (8_000, 1, 'PCM_U8'), 'stereo-16bit.wav': (44_100, 2, 'PCM_16'),
    'surround.wav': (48_000, 6, 'PCM_24'), '96k-32bit.wav': (96_000, 1, 'PCM_32'),
    '192k.flac': (192_000, 2, 'PCM_24'), 'float.wav': (22_050, 1, 'FLOAT'),
    'double.wav': (11_025, 1, 'DOUBLE'), 'vorbis.ogg': (44_100, 2, 'VORBIS'),
    'layer3.mp3': (44_100, 2, 'MPEG_LAYER_III'), 'apple.aiff': (32_000, 1, 'PCM_16'),
}
NAMES = ['with space.wav', 'quote\'"$(id)`.wav', 'line\nbreak.wav', '-dash.wav', '音楽.wav', 'شعر.wav',
         unicodedata.normalize('NFD', 'é.wav'), unicodedata.normalize('NFC', 'é.wav'), '🎵.WAV',
         'a::b.wav', '%41.wav', '[x]*?.wav', 'gs:\\x.wav']
REJECTED = {
    'short.wav': 'lasts 0.20 s, wanted at least 1 s', 'nan.wav': 'NaN or infinite',
    'infinite.wav': 'NaN or infinite', 'empty.wav': 'not audio', 'header.wav': 'holds no samples',
    'text.flac': 'not audio', 'zeros.mp3': 'not audio',
    'loop.wav': 'symbolic links|does not exist', 'dangling.wav': 'No such file|does not exist',
    'pipe.wav': 'not a regular file', 'gone.wav': 'No such file|does not exist',
    'bad\udcff.wav': 'not UTF-8',
}


def _wav(waveform, rate=24_000, **options) -> bytes:
  content = io.BytesIO()
  soundfile.write(content, waveform, rate, format=options.pop('format', 'WAV'), **options)
  return content.getvalue()


def _write_readable(folder: pathlib.Path, noise) -> list[str]:
  """Writes what can be read, each of at least a whole second, and returns the names."""
  for name, (rate, channels, subtype) in FORMATS.items():
    columns = [noise(1.3, seed, rate) for seed in range(channels)]
    soundfile.write(folder / name, np.stack(columns, -1), rate, subtype=subtype)
  for i, name in enumerate(NAMES):
    (folder / name).write_bytes(_wav(noise(1.1, i)))
  flac = _wav(noise(3), format='FLAC')
  others = {  # of a file that breaks off, what there is
      'silent.wav': _wav(np.zeros(30_000)), 'offset.wav': _wav(0.5 + 0.1 * noise(1.2)),
      'clipped.wav': _wav(9 * noise(1.2), subtype='FLOAT'), 'flac.wav': _wav(noise(1.2), format='FLAC'),
      'wav.mp3': _wav(noise(1.2)), 'cut.wav': _wav(noise(3))[:2 * 40_000],
      'cut.flac': flac[:len(flac) // 2]}
  for name, content in others.items():
    (folder / name).write_bytes(content)
  (folder / 'linked.wav').symlink_to('silent.wav')
  return [*FORMATS, *NAMES, *others, 'linked.wav']


def _write_unreadable(folder: pathlib.Path, noise) -> None:
  bad = noise(1.5)
  bad[7] = np.nan
  (folder / 'nan.wav').write_bytes(_wav(bad, subtype='FLOAT'))
  bad[7] = np.inf
  (folder / 'infinite.wav').write_bytes(_wav(bad, subtype='FLOAT'))
  (folder / 'short.wav').write_bytes(_wav(noise(0.2)))
  (folder / 'empty.wav').write_bytes(b'')
  (folder / 'header.wav').write_bytes(_wav(np.zeros(0)))
  (folder / 'text.flac').write_text('no music, but a text of some length\n' * 50)
  (folder / 'zeros.mp3').write_bytes(bytes(5000))
  (folder / 'loop.wav').symlink_to('loop.wav')
  (folder / 'dangling.wav').symlink_to('nowhere.wav')
  os.mkfifo(folder / 'pipe.wav')
  (folder / 'gone.wav').write_bytes(_wav(noise(1.5)))
  (folder / os.fsdecode(b'bad\xff.wav')).write_bytes(_wav(noise(1.5)))


@pytest.fixture(scope='module')
def zoo(tmp_path_factory, noise):
  """Returns (folder, names that can be read): with links to itself, and a folder named like a file."""
  folder = tmp_path_factory.mktemp('zoo')
  readable = _write_readable(folder, noise)
  _write_unreadable(folder, noise)
  (folder / 'sub.wav').mkdir()
  (folder / 'sub.wav' / 'inner.wav').write_bytes(_wav(noise(1.4)))
  (folder / 'sub.wav' / 'up').symlink_to('..')
  (folder / 'self').symlink_to('.')
  (folder / 'again').symlink_to('sub.wav')
  (folder / 'wave.txt').write_bytes(_wav(noise(1.5)))
  return folder, [*readable, 'sub.wav/inner.wav']


def test_every_file_of_the_zoo_lands_where_it_should(zoo, make_job, tmp_path):
  folder, readable = zoo
  job = make_job(folder, tmp_path / 'tokens')
  names = shards.plan(job)
  (folder / 'gone.wav').unlink()
  for name in names:
    shards.tokenize_shard(job, name)
  manifest = shards.finish(job, names)

  lines = (tmp_path / 'tokens' / 'rejected.jsonl').read_text().splitlines()
  rejected = {os.path.relpath(one['path'], folder): one['reason'] for one in map(json.loads, lines)}
  assert sorted(rejected) == sorted(REJECTED) and len(lines) == len(rejected)
  for name, wanted in REJECTED.items():
    with pytest.raises(errors.UserError, match=wanted):
      raise errors.UserError(rejected[name])
  read = [record for split in ('train', 'test')
          for record in records.read_tokens(tmp_path / 'tokens', split)]
  assert sorted(record['id'] for record in read) == sorted(readable)
  assert manifest['files'] == len(readable) + len(REJECTED) and manifest['other_files'] == 1
  assert manifest['rejected'] == len(REJECTED) and manifest['clips'] == len(readable)
  arrays = [array for record in read for key, array in record.items() if key.endswith('_tokens')]
  assert manifest['tokens'] == sum(array.size for array in arrays)
  assert all(len(record['semantic_tokens']) == 25 for record in read)
  waveforms = [inputs.read_clips(str(folder / name), name, 2)[0][1] for name in readable]
  assert manifest['hours'] == round(sum(map(len, waveforms)) / 24_000 / 3600, 6)
  info = records.read_info(tmp_path / 'tokens', 'tokens')
  assert sum(info['records'].values()) == len(readable)


def test_clips_are_those_of_prepare_audio(folder, tmp_path):
  prepare_audio.prepare_audio(input_dir=folder, output_dir=tmp_path, clip_seconds=2,
                              test_fraction=0.2, progress=False)
  prepared = {(split, record['id']): record['waveform'] for split in ('train', 'test')
              for record in records.read_waveforms(tmp_path, split)}
  sources, others = inputs.find(folder, 0.2)
  assert others == 1 and len(sources) == 10
  found = {(source.split, clip_id): samples for source in sources if source.id != 'broken.mp3'
           for clip_id, samples in inputs.read_clips(source.path, source.id, 2)}
  assert sorted(found) == sorted(prepared)
  for key, samples in found.items():
    np.testing.assert_array_equal(samples / np.float32(32768), prepared[key])


def test_files_are_dealt_to_shards_without_a_rest():
  sources = [prepare_audio.Source(f'/{i}', str(i), 'test' if i % 9 == 0 else 'train')
             for i in range(100)]
  dealt = list(inputs.deal(sources, 16))
  assert [(split, index, count) for split, index, count, _ in dealt] == (
      [('test', i, 12) for i in range(12)] + [('train', i, 16) for i in range(16)])
  assert sorted(source.path for *_, members in dealt for source in members) == sorted(
      source.path for source in sources)
  sizes = [len(members) for split, *_, members in dealt if split == 'train']
  assert max(sizes) - min(sizes) <= 1


def test_objects_of_a_store_are_found_and_read_as_files_are(noise):
  store = fsspec.filesystem('memory')
  content = _wav(noise(3.5))
  for name, value in (('a/b.wav', content), ('c d.mp3', b'no music'), ('e.txt', b''), ('f.wav', content)):
    store.pipe_file(f'/music/{name}', value)
  sources, others = inputs.find('memory://music/', 0)
  assert others == 1 and [source.id for source in sources] == ['a/b.wav', 'c d.mp3', 'f.wav']
  assert sources[0].path == 'memory://music/a/b.wav'
  clips = inputs.read_clips(sources[0].path, sources[0].id, 2)
  assert [(name, len(samples)) for name, samples in clips] == [
      ('a/b.wav-000', 48_000), ('a/b.wav-001', 36_000)]
  with pytest.raises(errors.UserError, match='^memory://music/c d.mp3 is not audio'):
    inputs.read_clips(sources[1].path, sources[1].id, 2)
  store.rm('/music/f.wav')
  with pytest.raises(errors.UserError, match='memory://music/f.wav does not exist'):
    inputs.read_clips(sources[2].path, sources[2].id, 2)
  with pytest.raises(errors.UserError, match='memory://nothing holds no audio files'):
    inputs.find('memory://nothing')


@pytest.mark.parametrize('place', ['memory://published', '{tmp_path}/published'])
def test_a_file_is_created_once_and_replaced_only_by_another_content(place, tmp_path, monkeypatch):
  path, replaced = place.format(tmp_path=tmp_path) + '/a', []
  replace = published._replace
  monkeypatch.setattr(published, '_replace', lambda *both: replaced.append(both) or replace(*both))
  assert published.read(path) is None
  for content in (b'1', b'1', b'2'):
    published.publish(path, content)
    assert published.read(path) == content
  assert replaced == [(path, b'2')]


def test_a_file_too_long_for_memory_is_refused(folder, monkeypatch):
  monkeypatch.setattr(inputs, 'MAX_HOURS', 2 / 3600)
  assert inputs.read_clips(f'{folder}/album 1/1 ü.wav', '1 ü.wav', 2)
  with pytest.raises(errors.UserError, match='7 ü.wav lasts more than'):
    inputs.read_clips(f'{folder}/album 1/7 ü.wav', '7 ü.wav', 2)


def test_nothing_to_read_is_named(make_job, tmp_path):
  with pytest.raises(errors.UserError, match='none is not a directory'):
    inputs.find(str(tmp_path / 'none'))
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'a.txt').write_text('no music')
  with pytest.raises(errors.UserError, match='in holds no audio files'):
    inputs.find(str(tmp_path / 'in'))
  (tmp_path / 'in' / 'a.mp3').write_text('no music')
  job = make_job(tmp_path / 'in', tmp_path / 'out')
  names = shards.plan(job)
  for name in names:
    shards.tokenize_shard(job, name)
  with pytest.raises(errors.UserError, match='none of 1 files of .*rejected.jsonl; the first: .*a.mp3'):
    shards.finish(job, names)
  assert 'a.mp3' in (tmp_path / 'out' / 'rejected.jsonl').read_text()
