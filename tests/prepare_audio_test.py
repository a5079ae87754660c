"""From files of sound to waveform records."""

import json

import numpy as np
import pytest
import soundfile

from musiclm_jax import audio, errors, prepare_audio
from musiclm_jax.data import records


def _noise(seconds, seed=0, rate=24_000):
  return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate)).astype(np.float32)


def _read(directory):
  return {split: {record['id']: record for record in records.read_waveforms(directory, split)}
          for split in records.splits(directory)}


@pytest.mark.parametrize('seconds, wanted', [
    (70.5, [0, 24, 47, 70.5]), (30, [0, 30]), (60, [0, 30, 60]), (30.5, [0, 16, 30.5]),
    (209.3, None), (89.99, None), (3600.7, None),
])
def test_clip_bounds_are_equal_whole_seconds(seconds, wanted):
  bounds = prepare_audio.clip_bounds(round(seconds * 100), 30, 100)
  cuts = [bounds[0][0], *(end for _, end in bounds)]
  if wanted:
    assert cuts == [round(value * 100) for value in wanted]
  assert cuts[0] == 0 and cuts[-1] == round(seconds * 100)
  assert all(cut % 100 == 0 for cut in cuts[:-1])
  assert all(0 < end - start <= 3000 for start, end in bounds)


def test_corpus_directory(tmp_path):
  corpus = tmp_path / 'corpus'
  clips = []
  for i, split in enumerate(['train', 'train', 'test']):
    audio.write(corpus / 'audio' / f'c{i}.flac', _noise(2.5, i))
    clips.append({'id': f'c{i}', 'path': f'audio/c{i}.flac', 'split': split, 'piece': f'p{i}',
                  'captions': [f'caption {i}', 'ünïcode'], 'aspects': [], 'seconds': 2.5})
  clips[1]['texts'] = {'short': ['sad, slow'], 'labels': ['Piano', 'Sad music'], 'long': []}
  (corpus / 'corpus.jsonl').write_text('\n'.join(map(json.dumps, clips)) + '\n')
  summary = prepare_audio.prepare_audio(
      input_dir=corpus, output_dir=tmp_path / 'out', progress=False)
  assert summary.clips == {'train': 2, 'test': 1} and not summary.failed
  read = _read(tmp_path / 'out')
  assert {split: sorted(clips) for split, clips in read.items()} == {
      'train': ['c0', 'c1'], 'test': ['c2']}
  record = read['train']['c1']
  assert record['captions'] == ['caption 1', 'ünïcode'] and record['piece'] == 'p1'
  assert record['texts'] == {'short': ['sad, slow'], 'labels': ['Piano', 'Sad music']}
  assert read['train']['c0']['texts'] == {}
  np.testing.assert_array_equal(
      record['waveform'], audio.from_pcm16(audio.to_pcm16(_noise(2.5, 1))))
  info = records.read_info(tmp_path / 'out', 'waveforms')
  assert info['clips'] == {'train': 2, 'test': 1} and info['longest_seconds'] == 2.5
  assert info['texts'] == {'train': {'short': 1, 'labels': 1}, 'test': {}}
  with pytest.raises(errors.UserError, match='already holds records'):
    prepare_audio.prepare_audio(input_dir=corpus, output_dir=tmp_path / 'out', progress=False)


def _folder(tmp_path, count=6):
  folder = tmp_path / 'music'
  for i in range(count):
    (folder / f'sub{i % 2}').mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f'sub{i % 2}' / f'{i}.wav', _noise(3.2, i, 8000), 8000)
  return folder


def test_folder_is_cut_split_by_file_and_the_same_every_time(tmp_path):
  folder = _folder(tmp_path)
  (folder / 'captions.csv').write_text(
      'path,caption,source\nsub0/0.wav,slow piano,\nsub0/0.wav,sad\nsub0/0.wav,Piano,labels\n'
      'gone.wav,nothing,\n')
  reads = []
  for name, workers in (('a', 1), ('b', 3)):
    prepare_audio.prepare_audio(
        input_dir=folder, output_dir=tmp_path / name, captions=folder / 'captions.csv',
        clip_seconds=2, test_fraction=0.3, num_shards=2, num_workers=workers, progress=False)
    reads.append(_read(tmp_path / name))
    for path in (tmp_path / name).glob('*.tfrecord'):
      assert path.read_bytes() == (tmp_path / 'a' / path.name).read_bytes()
  train, test = reads[0]['train'], reads[0]['test']
  assert train and test and len(train) + len(test) == 12
  assert not {record['piece'] for record in train.values()} & {r['piece'] for r in test.values()}
  both = {**train, **test}
  assert both['sub0/0.wav-000']['captions'] == ['slow piano', 'sad']
  assert both['sub0/0.wav-001']['texts'] == {'labels': ['Piano']}
  assert len(both['sub0/0.wav-000']['waveform']) == 48_000
  assert len(both['sub0/0.wav-001']['waveform']) == round(1.2 * 24_000)


def test_bad_files_are_left_out_and_counted(tmp_path):
  folder = _folder(tmp_path)
  (folder / 'bad.mp3').write_text('no music')
  soundfile.write(folder / 'short.wav', _noise(0.3), 24_000)
  summary = prepare_audio.prepare_audio(
      input_dir=folder, output_dir=tmp_path / 'out', progress=False)
  assert sum(summary.clips.values()) == 6
  assert sorted(path.rsplit('/')[-1] for path in summary.failed) == ['bad.mp3', 'short.wav']
  assert records.read_info(tmp_path / 'out', 'waveforms')['failed'] == 2


def test_nothing_readable_is_an_error(tmp_path):
  (tmp_path / 'music').mkdir()
  with pytest.raises(errors.UserError, match='holds no audio files'):
    prepare_audio.prepare_audio(input_dir=tmp_path / 'music', output_dir=tmp_path / 'out')
  (tmp_path / 'music' / 'bad.mp3').write_text('no music')
  with pytest.raises(errors.UserError, match=r'none of 1 files could be read; .*bad.mp3'):
    prepare_audio.prepare_audio(
        input_dir=tmp_path / 'music', output_dir=tmp_path / 'out', progress=False)
  with pytest.raises(errors.UserError, match='not a directory'):
    prepare_audio.prepare_audio(input_dir=tmp_path / 'none', output_dir=tmp_path / 'out2')


CLIP = {'id': 'a', 'path': 'a.wav', 'split': 'train', 'captions': ['one\u2028two'], 'piece': 'p'}


@pytest.mark.parametrize('change, wanted', [
    ({'captions': None}, 'not a clip'), ({'captions': 'abc'}, 'not a list of strings'),
    ({'id': 5}, 'not a string'), ({'id': '\ud800'}, 'surrogates'), ({'captions': ['\ud800']}, 'surrogates'),
    ({'path': '../../etc/passwd'}, 'leads outside'), ({'path': '/etc/passwd'}, 'leads outside'),
    ({'split': '../../evil'}, 'is not a word'), ({'split': 'a/b'}, 'is not a word'),
    ({'split': ''}, 'is not a word'), ({'texts': {'titles': []}}, "unknown text source 'titles'"),
    ({'texts': {'long': 'abc'}}, 'not a list of strings'), ({'texts': ['ab']}, 'not a list of strings'),
    ({'texts': {'long': [1]}}, 'not a list of strings'), ({'texts': 3}, 'not a clip'),
    ({'texts': {'long': ['\ud800']}}, 'surrogates'),
])
def test_a_corpus_line_from_anywhere_is_taken_whole_or_named(tmp_path, change, wanted):
  lines = [json.dumps(CLIP, ensure_ascii=False), json.dumps(CLIP | change)]
  (tmp_path / 'corpus.jsonl').write_text('\n'.join(lines[:1]))
  (source,) = prepare_audio.find_sources(tmp_path)
  assert source.captions == ('one\u2028two',) and source.path == str((tmp_path / 'a.wav').resolve())
  (tmp_path / 'corpus.jsonl').write_text('\n'.join(lines))
  with pytest.raises(errors.UserError, match=f'corpus.jsonl, line 2.*{wanted}'):
    prepare_audio.find_sources(tmp_path)


@pytest.mark.parametrize('line', [b'{"id": "a"}', b'\xff', b'[' * 100_000, b'3'])
def test_a_line_that_is_no_clip_is_named(tmp_path, line):
  (tmp_path / 'corpus.jsonl').write_bytes(line + b'\n')
  with pytest.raises(errors.UserError, match='corpus.jsonl, line 1: not a clip'):
    prepare_audio.find_sources(tmp_path)


def test_a_source_that_a_table_makes_up_is_named(tmp_path):
  folder = _folder(tmp_path, 1)
  (folder / 'captions.csv').write_text('path,caption,source\nsub0/0.wav,sad,short\nsub0/0.wav,a,titles\n')
  with pytest.raises(errors.UserError, match="captions.csv, line 3: unknown text source 'titles'"):
    prepare_audio.find_sources(folder, folder / 'captions.csv')


def test_a_split_without_a_readable_file_is_empty_not_missing(tmp_path):
  """The next step adds up the seconds of every split it finds."""
  audio.write(tmp_path / 'in' / 'a.wav', _noise(2))
  (tmp_path / 'in' / 'b.wav').write_bytes(b'no music')
  clips = [CLIP, CLIP | {'id': 'b', 'path': 'b.wav', 'split': 'test'}]
  (tmp_path / 'in' / 'corpus.jsonl').write_text('\n'.join(map(json.dumps, clips)))
  prepare_audio.prepare_audio(
      input_dir=tmp_path / 'in', output_dir=tmp_path / 'out', progress=False)
  assert records.read_info(tmp_path / 'out', 'waveforms')['seconds'] == {'train': 2.0, 'test': 0.0}


@pytest.mark.parametrize('clip_seconds', [0.5, 1.5, float('nan'), -3])
def test_clips_are_whole_seconds(tmp_path, clip_seconds):
  with pytest.raises(errors.UserError, match='wanted a whole number'):
    prepare_audio.prepare_audio(
        input_dir=_folder(tmp_path), output_dir=tmp_path / 'out', clip_seconds=clip_seconds)


def test_adding_files_moves_no_other_file_between_splits():
  few = [f'{i}.wav' for i in range(200)]
  many = [f'{i}.wav' for i in range(400)]
  assert prepare_audio.held_out(few, 0.1) == prepare_audio.held_out(many, 0.1) & set(few)
