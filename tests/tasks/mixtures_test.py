"""Token records of several directories by rate: what comes, how often, in which order, from where."""

import collections
import dataclasses
import pathlib

import numpy as np
import pytest

from musiclm_jax import errors, gin_utils, token_layout, train
from musiclm_jax.data import datasets, feature_converters, records
from tasks import mixtures, tokens

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS, DIM = 2, 4
LAYOUT = token_layout.TokenLayout(
    mulan=token_layout.TokenStream('mulan', 1, 16, 0),
    semantic=token_layout.TokenStream('semantic', 1, 64, 5),
    acoustic=token_layout.TokenStream('acoustic', 2, 16, 10), coarse_levels=1)
STAGE = LAYOUT.stage('semantic', SECONDS)
NUM_RECORDS = {'a': 8, 'b': 4}


def _write(path, codes, layout=LAYOUT, splits=('train', 'test')):
  """Writes a record for each code, which is all of its semantic tokens, in two shards a split."""
  path.mkdir()
  serialised = [records.token_record(str(code), {
      'mulan_tokens': np.zeros((1, 1), int), 'mulan_embeddings': np.ones((1, DIM)),
      'semantic_tokens': np.full(SECONDS * 5, code),
      'acoustic_tokens': np.zeros((SECONDS * 10, 2), int)}) for code in codes]
  for split in splits:
    for shard in range(2):
      records.write_shard(path / records.shard_name(split, shard, 2), serialised[shard::2])
  token_layout.write_layout(path, layout, {'mulan': 'x'})
  np.save(path / records.CODEBOOKS_FILE, np.ones((1, 16, DIM), np.float32))
  records.write_info(path, {'kind': 'tokens', 'window_seconds': 10})
  return str(path)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Two directories: a has the codes 0 to 7, b 32 to 35."""
  path = tmp_path_factory.mktemp('tokens')
  return (_write(path / 'a', range(NUM_RECORDS['a'])),
          _write(path / 'b', range(32, 32 + NUM_RECORDS['b'])))


def _dataset(directories, layout=LAYOUT, **options):
  task = tokens.tokens(directories, layout, 'semantic', SECONDS, shuffle_buffer_size=8)
  return datasets.SeqioDataset(task, feature_converters.TokenFeatureConverter(), **options)


def _codes(iterator, batches):
  """Returns the codes of the records that `batches` batches were cut from, in order."""
  found = []
  for batch in (next(iterator) for _ in range(batches)):
    targets = batch['decoder_target_tokens'][:, STAGE.prefix_length:]
    found += STAGE.unflatten(targets)[:, 0, 0].tolist()
  return found


def test_examples_come_by_the_rates(folders):
  found = _codes(_dataset([(folders[0], 3.0), (folders[1], 1.0)]).iterator(40, seed=0), 20)
  assert abs(np.mean([code < 32 for code in found]) - 0.75) < 0.04  # 2.6 standard deviations
  counts = collections.Counter(found)
  assert len(counts) == sum(NUM_RECORDS.values())
  of_a = [counts[code] for code in range(NUM_RECORDS['a'])]
  assert max(of_a) - min(of_a) <= 2  # each part goes through its records once an epoch


def test_one_part_of_several_directories(folders, tmp_path):
  third = _write(tmp_path / 'c', [50])
  found = _codes(_dataset([(list(folders), 1.0), (third, 1.0)]).iterator(40, seed=0), 10)
  assert abs(np.mean([code == 50 for code in found]) - 0.5) < 0.07
  assert len(set(found)) == 1 + sum(NUM_RECORDS.values())


def test_a_resumed_mixture_goes_on_as_the_undisturbed_one(folders, tmp_path):
  dataset = _dataset([(folders[0], 2), (folders[1], 1)])
  iterator = dataset.iterator(4, seed=3)
  _codes(iterator, 9)  # past two epochs of both
  iterator.save(tmp_path / 'position')
  wanted = _codes(iterator, 12)
  again = dataset.iterator(4, seed=3)
  again.restore(tmp_path / 'position')
  assert _codes(again, 12) == wanted
  assert _codes(dataset.iterator(4, seed=3), 21)[36:] == wanted  # saving disturbed nothing


def test_hosts_share_no_record_and_have_all_together(folders):
  dataset = _dataset([(folders[0], 2), (folders[1], 1)])
  parts = [set(_codes(dataset.iterator(4, seed=5, shard_index=host, num_shards=2), 12))
           for host in (0, 1)]
  assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == sum(NUM_RECORDS.values())


def test_evaluation_is_the_same_whatever_the_seed(folders):
  dataset = _dataset([(folders[0], 2), (folders[1], 1)], split='test', shuffle=False)
  first, second = (_codes(dataset.iterator(6, seed=seed), 2) for seed in (1, 2))
  assert first == second


def test_layouts_that_differ_are_an_error_that_names_both(folders, tmp_path):
  other = dataclasses.replace(LAYOUT, semantic=token_layout.TokenStream('semantic', 1, 128, 5))
  path = _write(tmp_path / 'c', [0], other)
  with pytest.raises(errors.UserError, match=(
      f'{folders[0]} and {path} do not fit: layout.semantic.codebook_size is 64 in .* 128 in')):
    _dataset([(folders[0], 1.0), (path, 1.0)])


def test_a_part_without_the_split_is_named(folders, tmp_path):
  path = _write(tmp_path / 'c', [0], splits=('train',))
  dataset = _dataset([(folders[0], 1.0), (path, 1.0)], split='test')
  with pytest.raises(errors.UserError, match=f"{path}: task tokens_.* has no split 'test'"):
    dataset.iterator(1)


@pytest.mark.parametrize('rates, wanted', [
    ([('{a}', 0.0), ('{b}', 1.0)], 'the rate of .*a is 0.0, wanted above 0'),
    ([('{a}', float('nan')), ('{b}', 1.0)], 'the rate of .*a is nan'),
    ([('{a}', 1.0), '{b}'], r'wanted \(directory, rate\) for each'),
    ([('{a}', 1.0), ('{a}', 2.0)], 'a holds the records of another part'),
])
def test_rates_that_are_wrong_are_named(folders, rates, wanted):
  fill = lambda each: each.format(a=folders[0], b=folders[1])
  rates = [fill(each) if isinstance(each, str) else (fill(each[0]), each[1]) for each in rates]
  with pytest.raises(errors.UserError, match=wanted):
    _dataset(rates)


def test_a_run_file_takes_directories_with_rates(folders):
  sizes = {'mulan': (1, 16, 0), 'semantic': (1, 64, 5), 'acoustic': (2, 16, 10)}
  names = ('num_levels', 'codebook_size', 'frame_rate')
  layout = [f'{stream}/token_layout.TokenStream.{name}={value}' for stream, values in sizes.items()
            for name, value in zip(names, values, strict=True)]
  gin_utils.load([str(ROOT / 'gin' / 'runs' / 'semantic_tiny.gin')], [
      'WORKDIR=unused', f'TOKENS_DIR=[("{folders[0]}", 3.0), ("{folders[1]}", 1.0)]',
      'CROP_SECONDS=2.0', 'token_layout.TokenLayout.coarse_levels=1',
      'token_layout.TokenLayout.melody=None', *layout])
  arguments = gin_utils.arguments(train.train, ('dataset', 'eval_dataset'))
  mixture = arguments['dataset'].task
  assert sorted(mixture.get_rate(task) for task in mixture.tasks) == [1.0, 3.0]
  assert arguments['eval_dataset'].split == 'test'
  assert set(_codes(arguments['eval_dataset'].iterator(16), 1)) > {0, 32}


def test_directories_of_a_mixture_are_known_without_rates():
  assert mixtures.flat([(['a', 'b'], 2), ('c', 1)]) == ['a', 'b', 'c']
  assert mixtures.flat(pathlib.Path('a')) == ['a'] and mixtures.flat(['a', 'b']) == ['a', 'b']
