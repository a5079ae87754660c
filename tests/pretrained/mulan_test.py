"""A MuLan with towers of public models: what is imported, what is new, and a run that starts from it."""

import dataclasses
import json
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import checkpoints, errors, gin_utils, optimizers, text, train
from musiclm_jax.models import mulan as models
from musiclm_jax.models import registry
from musiclm_jax.pretrained import audio_spectrogram_transformer as ast
from musiclm_jax.pretrained import bert, mulan

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = str(ROOT / 'gin' / 'runs' / 'mulan_ast.gin')
# 50 x 2 patches of ten seconds; the model itself goes on to 52.
LONG = {'patch_size': 20, 'time_stride': 20, 'frequency_stride': 4, 'num_mel_bins': 24, 'max_length': 1040}
FRESH = {'params/audio_projection/kernel', 'params/audio_projection/bias',
         'params/text_projection/kernel', 'params/text_projection/bias', 'params/temperature_logit'}


@pytest.fixture(scope='module')
def sources(make_bert, make_ast):
  return make_bert(), make_ast(**LONG)


@pytest.fixture(scope='module')
def imported(sources, tmp_path_factory):
  """Returns {seed: (directory, lines)}."""
  folder = tmp_path_factory.mktemp('imported')
  made = {}
  for seed in (0, 1):
    lines = mulan.import_towers(str(folder / str(seed)), *map(str, sources), seed=seed)
    made[seed] = (str(folder / str(seed)), lines)
  return made


def _arrays(directory):
  return flax.traverse_util.flatten_dict(checkpoints.load_model(directory, 'mulan').variables, sep='/')


def test_what_is_imported_is_there_bit_for_bit(imported, sources):
  text_source, audio_source = sources
  towers = {'text': bert.read(str(text_source)), 'audio': ast.read(str(audio_source))}
  arrays = _arrays(imported[0][0])
  for name, tower in towers.items():
    for key, array in tower.params.items():
      np.testing.assert_array_equal(arrays.pop(f'params/{name}/{key}'), array)
  assert set(arrays) == FRESH
  # Not only what the readers say, but what the files hold.
  theirs, ours = text_source.arrays, towers['text'].params
  np.testing.assert_array_equal(ours['words'], theirs['embeddings.word_embeddings.weight'])
  np.testing.assert_array_equal(
      ours['encoder/layer_0/wi/kernel'], theirs['encoder.layer.0.intermediate.dense.weight'].T)
  theirs, ours = audio_source.arrays, towers['audio'].params
  np.testing.assert_array_equal(ours['encoder/norm/bias'], theirs['layernorm.bias'])
  np.testing.assert_array_equal(
      ours['classes'][1], theirs['embeddings.distillation_token'][0, 0])


def test_what_is_new_differs_by_seed_and_nothing_else_does(imported, sources, tmp_path):
  zero, one = (_arrays(imported[seed][0]) for seed in (0, 1))
  changed = {name for name in zero if not np.array_equal(zero[name], one[name])}
  assert changed == {'params/audio_projection/kernel', 'params/text_projection/kernel'}
  for name in changed:
    assert 0.2 < np.std(zero[name]) * np.sqrt(len(zero[name])) < 2.0
  mulan.import_towers(str(tmp_path), *map(str, sources), seed=0)
  for file in ('model.safetensors', 'config.json', 'vocab.txt', 'model.gin'):
    assert (tmp_path / file).read_bytes() == (pathlib.Path(imported[0][0]) / file).read_bytes()


def test_the_lines_say_what_came_from_where(imported, sources):
  assert [line for line in imported[1][1] if not line.startswith(' ')] == [
      f'text tower: 20 arrays, 622 parameters from {sources[0]}',
      f'audio tower: 22 arrays, 4,486 parameters from {sources[1]}',
      'freshly initialised (seed 1): both projections, temperature']
  assert '  positions of 52 x 2 patches became 50 x 2, as they are' in imported[1][1]


def test_a_tower_that_is_not_imported_is_new(imported):
  config = dataclasses.replace(checkpoints.load_model(imported[0][0]).config, audio_tower='resnet')
  fresh = jax.eval_shape(lambda: mulan._fresh(config, 0, without=['text']))
  whole = registry.variable_shapes('mulan', config)
  assert whole['params'].pop('text') and 'audio' in whole['batch_stats']
  assert fresh == whole


def test_the_model_embeds(imported):
  model = checkpoints.load_model(imported[0][0], 'mulan')
  assert model.extra == {'seconds': 10.0, 'text_length': 10}
  tokenizer = text.WordPieceTokenizer(str(model.directory / 'vocab.txt'))
  ids = tokenizer.encode(['calm piano', 'drums'], 10)
  np.testing.assert_array_equal(ids[1, :4], [2, 7, 8, 3])  # [CLS] drum ##s [SEP]
  captions = model.apply('embed_text', jnp.asarray(ids))
  clips = model.apply('embed_audio', 0.1 * jax.random.normal(jax.random.key(0), (2, 240_000)))
  for vectors in (captions, clips):
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1.0, rtol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def _objective(directory, *files):
  bindings = [f'{name}=unused' for name in ('WORKDIR', 'DATA_DIR')]
  bindings += [f'VOCAB_FILE={directory}/vocab.txt', 'TEXT_LENGTH=8', 'BATCH_SIZE=2']
  gin_utils.load([RUN, *files], bindings)
  return gin_utils.arguments(train.train, ['objective'])['objective']


def _meaning(config):
  """Returns a config's JSON without what is the run's own and the tower that is not there."""
  def keep(values):
    return {name: keep(value) if isinstance(value, dict) else value
            for name, value in values.items() if name not in (*mulan._OF_THE_RUN, 'resnet')}
  return keep(registry.config_to_json(config))


def test_its_gin_file_gives_a_run_the_sizes_and_leaves_the_rest_to_the_run(imported):
  directory = imported[0][0]
  saved = checkpoints.load_model(directory).config
  config = _objective(directory, f'{directory}/model.gin').config
  assert _meaning(config) == _meaning(saved)
  assert _meaning(config) != _meaning(_objective(directory).config)
  assert config.text.encoder.layer_norm_epsilon == config.ast.encoder.layer_norm_epsilon == 1e-3
  for encoder in (config.text.encoder, config.ast.encoder):
    assert encoder.remat and encoder.dtype == 'bfloat16'


def test_the_run_file_has_the_sizes_of_the_public_models(imported, tmp_path):
  sizes = {'hidden_size': 768, 'num_hidden_layers': 12, 'num_attention_heads': 12,
           'intermediate_size': 3072, 'layer_norm_eps': 1e-12}
  path = tmp_path / 'config.json'
  path.write_text(json.dumps({  # bert-base-uncased
      'model_type': 'bert', 'vocab_size': 30522, 'max_position_embeddings': 512, **sizes}))
  fields = bert.read_fields(str(tmp_path))
  path.write_text(json.dumps({  # ast-finetuned-audioset-10-10-0.4593
      'model_type': 'audio-spectrogram-transformer', 'patch_size': 16, 'time_stride': 10,
      'frequency_stride': 10, 'max_length': 1024, 'num_mel_bins': 128, **sizes}))
  config = models.MulanConfig(**fields, **ast.read_fields(str(tmp_path)))
  assert _meaning(_objective(imported[0][0]).config) == _meaning(config)


def test_the_gin_file_of_a_resnet_gives_the_same_config(imported):
  saved = checkpoints.load_model(imported[0][0]).config
  saved = dataclasses.replace(saved, audio_tower='resnet')
  path = pathlib.Path(imported[0][0]) / 'resnet.gin'
  path.write_text(mulan.gin_file(saved))
  run = RUN.replace('mulan_ast', 'mulan_base')
  assert 'gin/runs/mulan_base.gin' in path.read_text()
  gin_utils.load([run, str(path)], [
      'WORKDIR=unused', 'DATA_DIR=unused', 'TEXT_LENGTH=8', f'VOCAB_FILE={imported[0][0]}/vocab.txt'])
  config = gin_utils.arguments(train.train, ['objective'])['objective'].config
  saved, config = (dataclasses.replace(each, ast=saved.ast) for each in (saved, config))
  assert _meaning(config) == _meaning(saved)
  assert config.resnet.dtype == 'bfloat16'


class _Batches:
  def __init__(self, shapes):
    random = np.random.default_rng(0)
    self.batch = {'waveform': random.standard_normal(shapes['waveform'].shape, np.float32) * 0.1,
                  'text_tokens': random.integers(5, 10, shapes['text_tokens'].shape, np.int32)}

  def __next__(self):
    return self.batch

  def save(self, path):
    pathlib.Path(path).write_text('the same for ever')


@dataclasses.dataclass(frozen=True)
class _Noise:
  objective: object

  def iterator(self, batch_size, seed, shard_index, num_shards):
    return _Batches(self.objective.input_shapes(batch_size))


def test_a_run_starts_from_it(imported, tmp_path):
  directory = imported[0][0]
  objective = _objective(directory, f'{directory}/model.gin')
  state = train.train(
      workdir=str(tmp_path), objective=objective, dataset=_Noise(objective),
      optimizer=optimizers.frozen(), total_steps=1, batch_size=2, init_from=directory,
      export_dir=str(tmp_path / 'exported'))
  saved = checkpoints.load_model(directory)
  assert int(state.step) == 1
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), saved.variables['params'])
  exported = checkpoints.load_model(str(tmp_path / 'exported'), 'mulan')
  assert exported.fingerprint == saved.fingerprint
  assert _meaning(exported.config) == _meaning(saved.config)
  rows = [row.split(',') for row in (tmp_path / 'metrics.csv').read_text().splitlines()]
  values = {name: float(value) for _, name, value in rows[1:]}
  assert np.isfinite(values['train/loss']) and values['train/gradient_norm'] > 0


def test_what_cannot_be_imported_is_refused_and_nothing_written(sources, tmp_path):
  text_directory, audio_directory = map(str, sources)
  words = tmp_path / 'words.txt'
  words.write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *map(str, range(30_519))]) + '\n')
  for options, wanted in (
      ({}, 'without a BERT the text tower is new: give the vocabulary it is to read'),
      ({'audio_directory': audio_directory}, 'without a BERT the text tower is new'),
      ({'text_directory': text_directory, 'vocab_file': str(words)},
       f'{text_directory} has its own vocabulary: {words} does not apply'),
      ({'audio_directory': audio_directory, 'vocab_file': str(words)},
       f'{words} has 30523 wordpieces, the text tower has room for vocab_size 30522'),
      ({'text_directory': audio_directory}, "model_type is 'audio-spectrogram-transformer', wanted 'bert'"),
      ({'text_directory': text_directory, 'audio_directory': text_directory},
       "model_type is 'bert', wanted 'audio-spectrogram-transformer'"),
      ({'text_directory': text_directory, 'audio_directory': audio_directory, 'patch_stride': 21},
       'patch_stride 21: wanted at most patch_size 20')):
    with pytest.raises(errors.UserError, match=wanted) as caught:
      mulan.import_towers(str(tmp_path / 'out'), **options)
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'out').exists()


def test_a_source_is_never_overwritten(sources, tmp_path):
  (tmp_path / 'link').symlink_to(str(sources[0]))
  before = json.loads((sources[0].path / 'config.json').read_text())
  for output in (str(sources[0]), f'{sources[0]}/', str(tmp_path / 'link'), str(sources[1])):
    with pytest.raises(errors.UserError, match='is what is read, and would be overwritten'):
      mulan.import_towers(output, *map(str, sources))
  assert json.loads((sources[0].path / 'config.json').read_text()) == before
