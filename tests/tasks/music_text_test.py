"""A crop of music with one of its texts as wordpieces, of one source or of several by ratio."""

import collections
import pathlib

import numpy as np
import pytest

from musiclm_jax import errors, gin_utils, text, train
from musiclm_jax.data import datasets, feature_converters, records, vocabularies
from tasks import music_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
CAPTIONS = {1: ['slow piano'], 2: ['fast rock drums', 'loud rock'], 3: [],
            4: ['slow ' * 50]}
NUM_MIXED = 12


def _write(path, split, serialised):
  for shard in range(2):
    records.write_shard(path / records.shard_name(split, shard, 2), serialised[shard::2])


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  path = tmp_path_factory.mktemp('records')
  records.write_shard(path / records.shard_name('train', 0, 1), [
      records.waveform_record(str(r), np.full(2400, r / 32768), captions)
      for r, captions in CAPTIONS.items()])
  records.write_info(path, {'kind': 'waveforms'})
  text.train_vocabulary([c for captions in CAPTIONS.values() for c in captions], 100,
                        str(path / 'vocab.txt'))
  return path, str(path / 'vocab.txt')


def test_tokens_are_those_of_a_caption_of_the_same_record(setting):
  path, vocab_file = setting
  task = music_text.music_text(path, vocabularies.WordPieceVocabulary(vocab_file), 0.05, 8)
  dataset = datasets.SeqioDataset(task, feature_converters.MusicTextFeatureConverter())
  iterator = dataset.iterator(6, seed=0)
  tokenizer = text.WordPieceTokenizer(vocab_file)
  wanted = {r: tokenizer.encode(captions, 8).tolist()
            for r, captions in CAPTIONS.items() if captions}
  seen = set()
  for _ in range(5):
    batch = next(iterator)
    assert batch['waveform'].shape == (6, 1200) and batch['waveform'].dtype == np.float32
    assert batch['text_tokens'].shape == (6, 8) and batch['text_tokens'].dtype == np.int32
    for waveform, ids in zip(batch['waveform'], batch['text_tokens'].tolist(), strict=True):
      record = round(float(waveform[0]) * 32768)
      assert ids in wanted[record]
      seen.add((record, tuple(ids)))
  assert len(seen) == 4  # every caption of every record; record 3 has none and is left out


def _texts(record):
  """Texts that say their record and source; records 0 and 1 have no labels."""
  texts = {source: [f'{source} {record} a', f'{source} {record} b'] for source in text.SOURCES}
  return texts if record > 1 else texts | {'labels': []}


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
  """Records of four sources; the test split has no playlist titles."""
  path = tmp_path_factory.mktemp('mixed')
  for split, sources in (('train', text.SOURCES), ('test', ('short', 'long', 'labels'))):
    _write(path, split, [
        records.waveform_record(
            str(r), np.full(2400, r / 32768), [f'caption {r}'],
            texts={source: _texts(r)[source] for source in sources})
        for r in range(NUM_MIXED)])
  counts = {'short': 12, 'long': 12, 'labels': 10}
  records.write_info(path, {
      'kind': 'waveforms', 'texts': {'train': counts | {'playlist': 12}, 'test': counts}})
  words = [*text.SOURCES, 'caption', 'a', 'b', *map(str, range(NUM_MIXED))]
  text.train_vocabulary(words * 3, 200, str(path / 'vocab.txt'))
  return path, str(path / 'vocab.txt')


@pytest.fixture(scope='module')
def train_only(mixed, tmp_path_factory):
  """The train split of `mixed`, with all four sources."""
  path = tmp_path_factory.mktemp('train_only')
  for shard in mixed[0].glob('train-*'):
    (path / shard.name).write_bytes(shard.read_bytes())
  info = records.read_info(mixed[0], 'waveforms')
  records.write_info(path, {'kind': 'waveforms', 'texts': {'train': info['texts']['train']}})
  return path, mixed[1]


def _mixture(setting, **options):
  path, vocab_file = setting
  task = music_text.music_text_sources(
      path, vocabularies.WordPieceVocabulary(vocab_file), 0.05, 12, shuffle_buffer_seconds=0.6,
      **options)
  return datasets.SeqioDataset(task, feature_converters.MusicTextFeatureConverter(),
                               sequence_length={'waveform': 1200, 'text_tokens': 12})


def _read(setting, iterator, batches):
  """Returns [(record of the waveform, source and record that the text says), ..]."""
  tokenizer = text.WordPieceTokenizer(setting[1])
  found = []
  for batch in (next(iterator) for _ in range(batches)):
    for waveform, ids in zip(batch['waveform'], batch['text_tokens'], strict=True):
      source, record, _ = tokenizer.decode(ids).split()
      found.append((round(float(waveform[0]) * 32768), source, int(record)))
  return found


def test_sources_come_by_their_ratio_each_with_a_text_of_the_record(train_only):
  found = _read(train_only, _mixture(train_only).iterator(30, seed=1), 20)
  assert all(heard == said for heard, _, said in found)
  counts = collections.Counter(source for _, source, _ in found)
  for source, share in (('short', 1 / 3), ('long', 1 / 3), ('playlist', 1 / 6), ('labels', 1 / 6)):
    assert abs(counts[source] / len(found) - share) < 0.07, counts
  assert {said for _, source, said in found if source == 'labels'} == set(range(2, NUM_MIXED))
  alone = _read(train_only, _mixture(train_only, rates={'playlist': 3}).iterator(6), 2)
  assert {source for _, source, _ in alone} == {'playlist'}


def test_sources_have_orders_of_their_own(train_only):
  """With one order for all, a batch would hold the same recording under each of its texts."""
  rates = dict.fromkeys(('short', 'long'), 1)
  orders = collections.defaultdict(list)
  found = _read(train_only, _mixture(train_only, rates=rates).iterator(10, seed=0), 6)
  for heard, source, _ in found:
    orders[source].append(heard)
  count = min(map(len, orders.values()))
  assert orders['short'][:count] != orders['long'][:count]


def test_the_position_of_a_mixture_is_restored(train_only, tmp_path):
  dataset = _mixture(train_only, rates={'short': 2, 'labels': 1})
  iterator = dataset.iterator(8, seed=7)
  _read(train_only, iterator, 7)  # past an epoch of both
  iterator.save(tmp_path / 'position')
  wanted = _read(train_only, iterator, 5)
  again = dataset.iterator(8, seed=7)
  again.restore(tmp_path / 'position')
  assert _read(train_only, again, 5) == wanted


def test_shards_of_a_mixture_share_no_record(train_only):
  dataset = _mixture(train_only, rates={'short': 2, 'long': 1})
  parts = [{heard for heard, _, _ in _read(
      train_only, dataset.iterator(8, seed=3, shard_index=index, num_shards=2), 8)}
      for index in (0, 1)]
  assert parts[0] | parts[1] == set(range(NUM_MIXED)) and not parts[0] & parts[1]


@pytest.mark.parametrize('rates, wanted', [
    ({'playlist': 1, 'short': 1},
     r"have no 'playlist' texts in their test split, only \['labels', 'long', 'short'\]"),
    ({'titles': 1}, "unknown text source 'titles', wanted some of .*'short', 'long'"),
    ({'short': 0}, "rate of text source 'short' is 0"), ({}, 'no text source'),
])
def test_sources_that_are_not_there_are_named(mixed, rates, wanted):
  with pytest.raises(errors.UserError, match=wanted):
    _mixture(mixed, rates=rates)


def test_records_of_captions_only_have_no_sources(setting):
  with pytest.raises(errors.UserError, match=r"no 'labels' texts in their train split, only \[\]"):
    _mixture(setting)


def test_the_stage_file_trains_on_the_mixture_and_evaluates_captions(train_only):
  path, vocab_file = train_only
  runs = [str(ROOT / 'gin' / name)
          for name in ('runs/mulan_tiny.gin', 'stages/music_text_sources.gin')]
  gin_utils.load(runs, ['WORKDIR=unused', f'DATA_DIR={path}', f'VOCAB_FILE={vocab_file}'])
  arguments = gin_utils.arguments(train.train, ('dataset', 'eval_dataset'))
  mixture = arguments['dataset'].task
  assert {task.name.rpartition('_')[0]: mixture.get_rate(task) for task in mixture.tasks} == {
      f'music_text_{source}': rate for source, rate in music_text.MULAN_RATES.items()}
  assert arguments['dataset'].shuffle and arguments['dataset'].split == 'train'
  assert arguments['eval_dataset'].task.name.startswith('music_text_')
  assert not arguments['eval_dataset'].shuffle and arguments['eval_dataset'].split == 'test'
