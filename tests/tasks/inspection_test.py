"""Examples as a model gets them, decoded: the codes and texts of the records, sound of the codec."""

import dataclasses

import matplotlib.image
import numpy as np
import pytest

from musiclm_jax import audio, checkpoints, errors, text, token_layout
from musiclm_jax.data import records
from tasks import inspection

SECONDS, DIM = 2, 4
LAYOUT = token_layout.TokenLayout(
    mulan=token_layout.TokenStream('mulan', 2, 16, 0),
    semantic=token_layout.TokenStream('semantic', 1, 64, 25),
    acoustic=token_layout.TokenStream('acoustic', 4, 12, 50), coarse_levels=1)
RANDOM = np.random.default_rng(0)
CODES = {'mulan': RANDOM.integers(16, size=(1, 2)), 'semantic': RANDOM.integers(64, size=(50, 1)),
         'acoustic': RANDOM.integers(12, size=(100, 4))}


@pytest.fixture(scope='module')
def folder(small_codec, tmp_path_factory):
  """One record as long as a crop, of the small codec's tokens."""
  path = tmp_path_factory.mktemp('tokens')
  records.write_shard(path / records.shard_name('train', 0, 1), [records.token_record('a', {
      'mulan_embeddings': np.ones((1, DIM)), **{f'{k}_tokens': v for k, v in CODES.items()}})])
  token_layout.write_layout(path, LAYOUT, {
      'soundstream': checkpoints.token_fingerprint(small_codec.model, 4)})
  np.save(path / records.CODEBOOKS_FILE, np.ones((2, 16, DIM), np.float32))
  records.write_info(path, {'kind': 'tokens', 'window_seconds': 10})
  return str(path)


def _inspect(task, folder, **options):
  return list(inspection.inspect(task, [folder], seconds=SECONDS, num_examples=2, **options))


def test_streams_are_the_codes_of_the_record(folder):
  lines, = _inspect('semantic', folder)  # two were asked for, one epoch has one
  first, second = CODES['mulan'][0]
  some, count = ' '.join(map(str, CODES['semantic'][:12, 0])), len(np.unique(CODES['semantic']))
  for wanted in (f'mulan: codes [1, 2], all below 16, 2 different  {first} {second}\n',
                 f'semantic: codes [50, 1], all below 64, {count} different  {some} ..',
                 'decoder_input_tokens: int32[52]  1 ', 'decoder_loss_weights: float32[52]  0 0 1 1'):
    assert wanted in lines


@pytest.mark.parametrize('task, levels', [('coarse', 1), ('fine', 4)])
def test_acoustic_tokens_are_heard_through_their_codec(folder, small_codec, tmp_path, task, levels):
  output = tmp_path / 'look'
  output.mkdir()
  (output / f'{task}_train_0_0.wav').write_text('of an earlier look: replaced')
  _inspect(task, folder, output=str(output), models=str(small_codec.model.directory))
  assert sorted(path.name for path in output.iterdir()) == [
      f'{task}_train_0_0.png', f'{task}_train_0_0.wav']
  rate = small_codec.config.sample_rate
  wanted = np.concatenate(list(small_codec.decode([CODES['acoustic'][:, :levels]])))
  found = audio.read(output / f'{task}_train_0_0.wav', rate)
  np.testing.assert_allclose(found, wanted, atol=1e-4)
  picture = matplotlib.image.imread(output / f'{task}_train_0_0.png')
  assert picture.shape[1] == 1000 and len(np.unique(picture.reshape(-1, 4), axis=0)) > 50


def test_another_codec_and_tasks_without_sound_are_named(folder, export_codec, tmp_path):
  export_codec(tmp_path / 'soundstream', seed=5)
  with pytest.raises(errors.UserError, match='soundstream is not the codec that made the tokens of'):
    _inspect('coarse', folder, models=str(tmp_path))
  with pytest.raises(errors.UserError, match='which semantic examples have none of; coarse and fine'):
    _inspect('semantic', folder, models=str(tmp_path))


def test_texts_and_waveforms_are_those_of_the_record(tmp_path):
  waveform = np.linspace(-0.5, 0.5, SECONDS * audio.SAMPLE_RATE)
  records.write_shard(tmp_path / records.shard_name('test', 0, 1), [
      records.waveform_record('a', waveform, ['A slow waltz.'])])
  records.write_info(tmp_path, {'kind': 'waveforms'})
  text.train_vocabulary(['a slow waltz'] * 3, 60, str(tmp_path / 'vocab.txt'))
  lines, = _inspect('music_text', tmp_path, split='test', output=str(tmp_path / 'look'),
                    vocab_file=str(tmp_path / 'vocab.txt'))
  assert "text: 'a slow waltz" in lines and 'sound: 2 s, peak 0.500' in lines
  found = audio.read(tmp_path / 'look' / 'music_text_test_0_0.wav')
  np.testing.assert_allclose(found, waveform, atol=1e-4)
  lines, = _inspect('waveforms', tmp_path, split='test')[:1]
  assert 'waveform: float32[48000]' in lines


STAGE = LAYOUT.stage('coarse', 0.04)  # 2 of mulan, 1 of semantic, 2 of the one coarse level


def _row(targets=(103, 100)):
  """A row with codes 3 and 5, 7, and targets: ids from 4 on, 36 on, 100 on."""
  ids = np.array([7, 25, 43, *targets], np.int32)
  scored = (np.arange(5) > 2) & (ids != 0)
  return {'decoder_target_tokens': ids, 'decoder_loss_weights': scored.astype(np.float32),
          'decoder_input_tokens': np.array([1, *ids[:-1]], np.int32)}


def test_a_row_is_decoded_by_the_layout():
  example = inspection.stage_example(STAGE, _row())
  assert {stream.name: codes.tolist() for stream, codes in example.streams.items()} == {
      'mulan': [[3, 5]], 'semantic': [[7]], 'coarse': [[3], [0]]}
  assert not example.padding
  short = inspection.stage_example(STAGE, _row((103, 0)))
  assert short.padding == 1 and short.streams[STAGE.target].tolist() == [[3]]


@pytest.mark.parametrize('change, wanted', [
    ({'targets': (103, 99)}, r'id 99 at target position 1 of a coarse sequence is not in \[100, 112'),
    ({'targets': (0, 103)}, 'coarse ids have padding before their end'),
    ({'decoder_loss_weights': np.ones(5, np.float32)}, 'decoder_loss_weights are not 1 for'),
    ({'decoder_input_tokens': np.ones(5, np.int32)}, 'decoder_input_tokens are not'),
])
def test_rows_that_no_model_should_get_are_named(change, wanted):
  row = _row(change.pop('targets', (103, 100))) | change
  with pytest.raises(errors.UserError, match=wanted):
    inspection.stage_example(STAGE, row)


def test_a_stream_that_begins_elsewhere_is_no_mulan():
  row = _row()
  wrong = dataclasses.replace(STAGE, prefix=STAGE.prefix[::-1])
  with pytest.raises(errors.UserError, match='not in'):
    inspection.stage_example(wrong, row)
