"""Token crops: the streams start together, ids are the layout's, M is the crop's own."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import gcs_server
import numpy as np
import pytest

from musiclm_jax import errors, token_layout
from musiclm_jax.data import datasets, feature_converters, preprocessors, records
from tasks import tokens

SECONDS, DIM = 15, 8
LAYOUT = token_layout.TokenLayout(
    mulan=token_layout.TokenStream('mulan', 2, 16, 0),
    semantic=token_layout.TokenStream('semantic', 1, 1024, 25),
    acoustic=token_layout.TokenStream('acoustic', 3, 1024, 50),
    coarse_levels=2)
CODEBOOKS = np.random.default_rng(0).standard_normal((2, 16, DIM)).astype(np.float32)
EMBEDDINGS = np.random.default_rng(1).standard_normal((SECONDS - 9, DIM)).astype(np.float16)
MULAN = np.stack([preprocessors.quantize(e.astype(np.float32), CODEBOOKS) for e in EMBEDDINGS])
# Frame t of every stream says t, so a crop tells where it was taken.
SEMANTIC = np.arange(SECONDS * 25)
ACOUSTIC = np.arange(SECONDS * 50)[:, None] + np.array([0, 1, 2])


MELODY = np.arange(SECONDS - 3)[:, None] + np.array([0, 100, 200])
WITH_MELODY = dataclasses.replace(LAYOUT, melody=token_layout.TokenStream(
    'melody', 3, 512, 1, window_seconds=4, hop_seconds=3))


def _write(path, seconds=SECONDS, layout=LAYOUT, tokenizer='a'):
  record = {'mulan_tokens': MULAN, 'mulan_embeddings': EMBEDDINGS,
            'semantic_tokens': SEMANTIC[:seconds * 25], 'acoustic_tokens': ACOUSTIC[:seconds * 50]}
  if layout.melody:
    record['melody_tokens'] = MELODY[:max(seconds - 3, 1)]
  if seconds < SECONDS:
    record |= {'mulan_tokens': MULAN[:1], 'mulan_embeddings': EMBEDDINGS[:1]}
  records.write_shard(path / records.shard_name('train', 0, 1), [
      records.token_record(str(i), record) for i in range(8)])
  token_layout.write_layout(path, layout, {'mulan': tokenizer, 'semantic': 'b', 'acoustic': 'c'})
  np.save(path / records.CODEBOOKS_FILE, CODEBOOKS)
  records.write_info(path, {'kind': 'tokens', 'window_seconds': 10})
  return path


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  return _write(tmp_path_factory.mktemp('tokens'))


def _batch(directory, stage, seconds, layout=LAYOUT, size=24):
  task = tokens.tokens(directory, layout, stage, seconds, crops_per_record=3, shuffle_buffer_size=4)
  dataset = datasets.SeqioDataset(task, feature_converters.TokenFeatureConverter())
  return layout.stage(stage, seconds), next(dataset.iterator(size, seed=0))


def _codes(start, seconds):
  """The codes a crop must have, by the names of a stage's streams."""
  acoustic = ACOUSTIC[start * 50:round((start + seconds) * 50)]
  return {'semantic': SEMANTIC[start * 25:round((start + seconds) * 25), None],
          'coarse': acoustic[:, :2], 'fine': acoustic[:, 2:]}


@pytest.mark.parametrize('stage, seconds', [('semantic', 10), ('coarse', 10), ('fine', 3)])
def test_crops_are_aligned_and_flattened_by_the_layout(directory, stage, seconds):
  layout, batch = _batch(directory, stage, seconds)
  sequence = batch['decoder_target_tokens']
  assert sequence.shape == (24, layout.sequence_length) and sequence.dtype == np.int32
  starts = []
  for row in sequence:
    first = layout.unflatten(row[layout.prefix_length:])[0, 0]
    rate, level = layout.target.frame_rate, layout.target.first_level
    start, rest = divmod(int(first) - level, rate)
    assert rest == 0
    starts.append(start)
    codes = _codes(start, seconds) | {'mulan': MULAN[start:start + 1]}
    np.testing.assert_array_equal(row, layout.flatten(codes))
  assert min(starts) == 0 and max(starts) == SECONDS - seconds and len(set(starts)) > 3


def test_a_crop_has_the_melody_of_its_own_seconds(tmp_path):
  directory = _write(tmp_path, layout=WITH_MELODY)
  fewer = dataclasses.replace(
      WITH_MELODY, melody=dataclasses.replace(WITH_MELODY.melody, num_levels=2))
  layout, batch = _batch(directory, 'semantic', 10, fewer)
  for row in batch['decoder_target_tokens']:
    start = int(layout.unflatten(row[layout.prefix_length:])[0, 0]) // 25
    codes = {'mulan': MULAN[start:start + 1], 'melody': MELODY[[start, start + 3, start + 6], :2]}
    np.testing.assert_array_equal(row[:layout.prefix_length], layout.flatten_prefix(codes))
  # Whoever does not hear melodies reads the same records.
  layout, batch = _batch(directory, 'semantic', 10, LAYOUT)
  assert batch['decoder_target_tokens'].shape == (24, layout.sequence_length) == (24, 252)


def test_a_melody_that_the_records_lack_or_have_less_of_is_named(directory, tmp_path):
  with pytest.raises(errors.UserError, match='layout.melody is .* in the configured layout, None in'):
    tokens.tokens(directory, WITH_MELODY, 'semantic', 10)
  more = dataclasses.replace(
      WITH_MELODY, melody=dataclasses.replace(WITH_MELODY.melody, num_levels=4))
  with pytest.raises(errors.UserError, match='uses 4 levels of melody, .* has 3'):
    tokens.tokens(_write(tmp_path, layout=WITH_MELODY), more, 'semantic', 10)


def test_a_short_record_has_the_melody_it_has(tmp_path):
  layout, batch = _batch(_write(tmp_path, 6, WITH_MELODY), 'semantic', 10, WITH_MELODY)
  row = batch['decoder_target_tokens'][0]
  np.testing.assert_array_equal(
      row[2:5], layout.flatten_stream(layout.stream('melody'), MELODY[:1]))
  assert not row[5:11].any()  # its windows at 3 and 6 s are PAD


def test_input_is_shifted_and_only_targets_are_scored(directory):
  layout, batch = _batch(directory, 'coarse', 2)
  np.testing.assert_array_equal(batch['decoder_input_tokens'][:, 1:],
                                batch['decoder_target_tokens'][:, :-1])
  assert set(batch['decoder_input_tokens'][:, 0]) == {token_layout.BOS_ID}
  assert not batch['decoder_loss_weights'][:, :layout.prefix_length].any()
  assert batch['decoder_loss_weights'][:, layout.prefix_length:].all()


def test_a_long_crop_has_the_codes_of_its_average_embedding(directory):
  layout, batch = _batch(directory, 'semantic', 13)
  for row in batch['decoder_target_tokens']:
    start = int(layout.unflatten(row[layout.prefix_length:])[0, 0]) // 25
    mean = EMBEDDINGS[start:start + 4].astype(np.float32).mean(0)  # 10 s windows inside 13 s
    codes = preprocessors.quantize(mean / np.linalg.norm(mean), CODEBOOKS).numpy()
    np.testing.assert_array_equal(row[:layout.prefix_length], layout.flatten_prefix(
        {'mulan': codes[None]}))


def test_a_short_crop_has_the_codes_of_the_window_around_it(directory):
  layout, batch = _batch(directory, 'coarse', 2)
  for row in batch['decoder_target_tokens']:
    start = int(layout.unflatten(row[layout.prefix_length:])[0, 0]) // 50
    window = np.clip(start - 4, 0, len(MULAN) - 1)
    np.testing.assert_array_equal(
        row[:2], layout.flatten_stream(layout.stream('mulan'), MULAN[window:window + 1]))


def test_a_short_record_ends_in_padding_without_weight(tmp_path):
  layout, batch = _batch(_write(tmp_path, seconds=6), 'semantic', 10)
  row, weights = batch['decoder_target_tokens'][0], batch['decoder_loss_weights'][0]
  end = layout.prefix_length + 6 * 25
  np.testing.assert_array_equal(layout.unflatten(row[layout.prefix_length:end])[:, 0],
                                SEMANTIC[:6 * 25])
  assert (row[end:] == token_layout.PAD_ID).all()
  np.testing.assert_array_equal(weights, (np.arange(len(row)) >= 2) & (np.arange(len(row)) < end))


def test_another_depth_reads_the_same_records(directory):
  layout, batch = _batch(directory, 'coarse', 2, dataclasses.replace(LAYOUT, coarse_levels=1))
  assert layout.target.num_levels == 1
  assert batch['decoder_target_tokens'].shape == (24, layout.sequence_length)


@pytest.mark.parametrize('stage, seconds', [('semantic', 13), ('coarse', 2)])
def test_fewer_mulan_levels_are_the_first_ones(directory, stage, seconds):
  """The same crops with less of M: 13 s quantizes an average anew, 2 s takes recorded codes."""
  fewer = dataclasses.replace(LAYOUT, mulan=dataclasses.replace(LAYOUT.mulan, num_levels=1))
  whole, batch = _batch(directory, stage, seconds)
  layout, less = _batch(directory, stage, seconds, fewer)
  assert layout.prefix_length == whole.prefix_length - 1
  mulan = batch['decoder_target_tokens'][:, :1] - whole.first_id(LAYOUT.mulan)
  np.testing.assert_array_equal(
      less['decoder_target_tokens'][:, :1] - layout.first_id(fewer.mulan), mulan)
  targets = [layout.unflatten(rows[:, layout.prefix_length:]) for layout, rows in (
      (whole, batch['decoder_target_tokens']), (layout, less['decoder_target_tokens']))]
  np.testing.assert_array_equal(*targets)


@pytest.mark.parametrize('levels', [0, 3])
def test_mulan_levels_that_were_not_recorded_are_named(directory, levels):
  layout = dataclasses.replace(LAYOUT, mulan=dataclasses.replace(LAYOUT.mulan, num_levels=levels))
  with pytest.raises(errors.UserError, match=f'uses {levels} levels of mulan, .* has 2'):
    tokens.tokens(directory, layout, 'coarse', 2)


def test_another_layout_or_tokenizer_is_named(directory, tmp_path):
  other = dataclasses.replace(LAYOUT, semantic=token_layout.TokenStream('semantic', 1, 512, 25))
  with pytest.raises(errors.UserError, match='semantic.codebook_size is 512 in the configured'):
    tokens.tokens(directory, other, 'coarse', 2)
  second = _write(tmp_path, tokenizer='z')
  with pytest.raises(errors.UserError, match='tokenizers.mulan is a in .* z in'):
    tokens.tokens([directory, second], LAYOUT, 'coarse', 2)


@pytest.mark.parametrize('seconds', [0.5, 2.5, 0, 1e9])
def test_crops_are_whole_seconds(directory, seconds):
  with pytest.raises(errors.UserError, match='wanted whole seconds'):
    tokens.tokens(directory, LAYOUT, 'coarse', seconds)


_OF_A_BUCKET = """
from tasks import tokens
from tests_layout import LAYOUT
task = tokens.tokens('gs://music/tokens', LAYOUT, 'coarse', 2.0)
print(task.source.list_shards('train')[0])
"""


def test_records_of_a_bucket_are_described_and_listed(directory, tmp_path):
  """Their reading itself is TensorFlow's, which knows Google's servers only."""
  pytest.importorskip('gcsfs')
  (tmp_path / 'tests_layout.py').write_text(
      'from musiclm_jax.token_layout import TokenLayout, TokenStream\n'
      f'LAYOUT = {LAYOUT!r}\n')
  with gcs_server.Server(['music']) as server:
    for path in directory.iterdir():
      server.put('music', f'tokens/{path.name}', path.read_bytes())
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | server.environment() | {
        'PYTHONPATH': os.pathsep.join([str(root), str(tmp_path)]), 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, '-c', _OF_A_BUCKET], env=environment, timeout=120,
                          capture_output=True, text=True)
  assert done.stdout.strip() == 'gs://music/tokens/train-00000-of-00001.tfrecord', done.stderr
