"""Tasks by name: registering those of a run, and seqio's own cache of them (on Beam)."""

import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from musiclm_jax import audio, errors, text, token_layout
from musiclm_jax.data import datasets, feature_converters, records, vocabularies
from tasks import audio_folder, captions, tokens

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS, DIM = 2, 4
LAYOUT = token_layout.TokenLayout(
    mulan=token_layout.TokenStream('mulan', 1, 16, 0),
    semantic=token_layout.TokenStream('semantic', 1, 64, 5),
    acoustic=token_layout.TokenStream('acoustic', 2, 16, 10), coarse_levels=1)
CAPTIONS = ('slow piano', 'fast drums', None, 'a calm song')


@pytest.fixture(scope='module')
def token_folder(tmp_path_factory):
  """Nine records of random codes, as long as a crop, and one that is twice as long."""
  path, random = tmp_path_factory.mktemp('tokens'), np.random.default_rng(0)
  serialised = [records.token_record(str(i), {
      'mulan_tokens': random.integers(16, size=(1, 1)),
      'mulan_embeddings': random.standard_normal((1, DIM)),
      'semantic_tokens': random.integers(64, size=seconds * 5),
      'acoustic_tokens': random.integers(16, size=(seconds * 10, 2))})
      for i, seconds in enumerate([SECONDS] * 9 + [2 * SECONDS])]
  for split in ('train', 'test'):
    for shard in range(2):
      records.write_shard(path / records.shard_name(split, shard, 2), serialised[shard::2])
  token_layout.write_layout(path, LAYOUT, {'mulan': 'x'})
  np.save(path / records.CODEBOOKS_FILE, np.ones((1, 16, DIM), np.float32))
  records.write_info(path, {'kind': 'tokens', 'window_seconds': 10})
  return path


def _flags(token_folder) -> str:
  """Returns the flags of a run with the layout of the records."""
  sizes = {'mulan': (1, 16, 0), 'semantic': (1, 64, 5), 'acoustic': (2, 16, 10)}
  names = ('num_levels', 'codebook_size', 'frame_rate')
  layout = [f'--gin.{stream}/token_layout.TokenStream.{name}={value}'
            for stream, values in sizes.items() for name, value in zip(names, values, strict=True)]
  return ' '.join([f'--gin_file={ROOT}/gin/runs/semantic_tiny.gin', f'--gin.CROP_SECONDS={SECONDS}.0',
                   f'--gin.TOKENS_DIR={token_folder}', *layout,
                   '--gin.token_layout.TokenLayout.coarse_levels=1',
                   '--gin.token_layout.TokenLayout.melody=None'])


def _tokens(token_folder, stage='semantic', **options):
  return datasets.SeqioDataset(tokens.tokens(token_folder, LAYOUT, stage, SECONDS),
                               feature_converters.TokenFeatureConverter(), **options)


def _rows(dataset, name, **options):
  """Returns all examples of one epoch as a sorted list, whatever their order."""
  batches = [batch[name] for batch in dataset.iterator(1, **options)]
  return sorted(np.concatenate(batches).tolist())


def test_importing_registers_the_tasks_of_the_run(token_folder, monkeypatch):
  monkeypatch.setenv('MUSICLM_JAX_RUN', _flags(token_folder))
  registered = importlib.import_module('tasks.registered')
  (name,) = registered.NAMES  # of training and evaluation
  assert seqio.TaskRegistry.get(name).splits == ('test', 'train')
  run, *bindings = (flag.removeprefix('--gin.') for flag in _flags(token_folder).split())
  run = run.removeprefix('--gin_file=')
  mixture, again = registered.register([run], [*bindings, f'TOKENS_DIR=[("{token_folder}", 2.0)]'])
  assert again == name
  assert seqio.MixtureRegistry.get(mixture).get_rate(seqio.TaskRegistry.get(name)) == 2.0
  monkeypatch.delenv('MUSICLM_JAX_RUN')
  with pytest.raises(errors.UserError, match='MUSICLM_JAX_RUN is not set, wanted the flags'):
    importlib.reload(registered)


def test_a_cache_of_other_records_is_not_taken(token_folder, tmp_path):
  dataset = _tokens(token_folder, cache_dir=str(tmp_path))
  other = tmp_path / 'tokens_00000000'
  other.mkdir()
  (other / 'COMPLETED').write_text('')
  with pytest.raises(errors.UserError, match=f'{tmp_path} has no complete tokens_'):
    dataset.iterator(1)


# --- With Beam --------------------------------------------------------------------------------


def _cache(output, module, folder, **environment):
  pytest.importorskip('apache_beam')
  tool = pathlib.Path(sys.executable).parent / 'seqio_cache_tasks'
  done = subprocess.run(
      [str(tool), f'--module_import={module}', f'--output_cache_dir={output}', '--min_shards=3',
       '--pipeline_options=--runner=FnApiRunner'], cwd=folder, capture_output=True, text=True,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment, timeout=300)
  assert not done.returncode, done.stderr[-3000:]


@pytest.fixture(scope='module')
def cached(token_folder, tmp_path_factory):
  """The directory where seqio_cache_tasks wrote the tasks of a run."""
  path = str(tmp_path_factory.mktemp('cache'))
  _cache(path, 'tasks.registered', ROOT, MUSICLM_JAX_RUN=_flags(token_folder))
  return path


@pytest.mark.beam
@pytest.mark.parametrize('stage, split', [('semantic', 'train'), ('coarse', 'test')])
def test_one_cache_serves_every_stage(token_folder, cached, stage, split):
  found, wanted = (
      _rows(_tokens(token_folder, stage, split=split, num_epochs=1, cache_dir=cache_dir),
            'decoder_target_tokens') for cache_dir in (cached, None))
  assert len(found) == len(wanted) == 10
  assert sum(row in wanted for row in found) >= 9  # the long record's crop is drawn when reading


@pytest.mark.beam
def test_crops_of_what_is_cached_differ_and_hosts_share_nothing(token_folder, cached):
  dataset = _tokens(token_folder, cache_dir=cached, num_epochs=8)
  seen = _rows(dataset, 'decoder_target_tokens')
  assert len(seen) == 80 and len(set(map(tuple, seen))) > 10  # three crops of the long record
  once = dataclasses.replace(dataset, num_epochs=1)
  parts = [_rows(once, 'decoder_target_tokens', shard_index=host, num_shards=2) for host in (0, 1)]
  assert len(parts[0]) + len(parts[1]) == 10 and all(parts)
  assert not set(map(tuple, parts[0])) & set(map(tuple, parts[1]))


@pytest.mark.beam
def test_a_cached_position_is_restored(token_folder, cached, tmp_path):
  dataset = _tokens(token_folder, cache_dir=cached)
  take = lambda iterator, count: np.stack(
      [next(iterator)['decoder_target_tokens'] for _ in range(count)])
  iterator = dataset.iterator(3, seed=1)
  take(iterator, 5)
  iterator.save(tmp_path / 'position')
  wanted = take(iterator, 6)
  again = dataset.iterator(3, seed=1)
  again.restore(tmp_path / 'position')
  np.testing.assert_array_equal(take(again, 6), wanted)


@pytest.mark.beam
def test_captioned_clips_are_cached(tmp_path):
  pytest.importorskip('apache_beam')
  for i in range(len(CAPTIONS)):
    audio.write(tmp_path / f'{i}.wav', np.full(audio.SAMPLE_RATE, i / 32768))
  (tmp_path / 'captions.jsonl').write_text('\n'.join(
      json.dumps({'path': f'{i}.wav', 'caption': caption})
      for i, caption in enumerate(CAPTIONS) if caption))
  builder = audio_folder.AudioFolder(
      data_dir=tmp_path / 'data',
      config=audio_folder.AudioFolderConfig(name='all', test_fraction=0.0))
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))
  vocab_file = str(tmp_path / 'vocab.txt')
  text.train_vocabulary([each for each in CAPTIONS if each] * 3, 60, vocab_file)
  source = (f'import seqio; from musiclm_jax.data import vocabularies; from tasks import captions\n'
            f'task = captions.captions({builder.data_dir!r}, '
            f'vocabularies.WordPieceVocabulary({vocab_file!r}), 0.05, 10)\n'
            'if task.name not in seqio.TaskRegistry.names():\n'
            '  seqio.TaskRegistry.add_provider(task.name, task)\n')
  (tmp_path / 'own_tasks.py').write_text(source)
  _cache(tmp_path / 'cache', 'own_tasks', tmp_path, PYTHONPATH=f'{tmp_path}:{ROOT}')
  task = captions.captions(builder.data_dir, vocabularies.WordPieceVocabulary(vocab_file), 0.05, 10)
  rows = {}
  for cache_dir in (None, str(tmp_path / 'cache')):
    dataset = datasets.SeqioDataset(task, feature_converters.MusicTextFeatureConverter(),
                                    num_epochs=1, cache_dir=cache_dir)
    rows[cache_dir] = sorted((float(batch['waveform'][0, 0]), batch['text_tokens'][0].tolist())
                             for batch in dataset.iterator(1))
  assert len(rows[None]) == 3 and rows[None] == rows[str(tmp_path / 'cache')]
