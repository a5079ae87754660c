"""Generation with small random models: the plumbing, not the music."""

import dataclasses
import json
import pathlib
import shutil
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from musiclm_jax import checkpoints, errors, generate, text, token_layout
from musiclm_jax.models import mapper, mulan, quantizers, resnet, soundstream, transformer

LAYOUT = token_layout.TokenLayout(
    mulan=token_layout.TokenStream('mulan', 2, 8, 0),
    semantic=token_layout.TokenStream('semantic', 1, 16, 25),
    acoustic=token_layout.TokenStream('acoustic', 3, 16, 50),
    coarse_levels=2,
)
SECONDS = {'semantic': 4, 'coarse': 2, 'fine': 1}
CODEC = soundstream.SoundStreamConfig(
    channels=2, dim=8, channel_multipliers=(1, 1, 2, 2), dilations=((1,),) * 4, num_quantizers=3,
    codebook_size=16)
DECODER = transformer.DecoderConfig(
    num_layers=1, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, scan_layers=False)


def _export(directory, name, config, module, *inputs, **options):
  rngs = {key: jax.random.key(1) for key in ('params', 'dropout')}
  method = options.pop('method', None)
  variables = dict(nn.unbox(module.init(rngs, *inputs, method=method)))
  if 'codebooks' in variables:  # they start empty: training fills them
    variables['codebooks'] = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(2), x.shape) if x.ndim > 1 else x,
        variables['codebooks'])
  return checkpoints.export_model(directory / name, name, config, variables, **options)


@pytest.fixture(scope='module')
def system(tmp_path_factory) -> pathlib.Path:
  directory = tmp_path_factory.mktemp('system')
  vocab = directory / 'vocab.txt'
  text.train_vocabulary(['slow calm piano music', 'loud fast rock with drums'], 200, str(vocab))
  size = len(vocab.read_text().split('\n')) - 1
  encoder = mulan.EncoderConfig(num_layers=1, emb_dim=16, num_heads=2, mlp_dim=16)
  mulan_config = mulan.MulanConfig(
      resnet=resnet.ResNetConfig(stage_sizes=(1, 1), stem_width=4, widths=(4, 8), norm_groups=2, norm='group'),
      text=mulan.TextConfig(encoder=encoder, vocab_size=size, max_length=16), embedding_dim=8)
  rvq = quantizers.ResidualVectorQuantizerConfig(dim=8, num_quantizers=2, codebook_size=8)
  _export(directory, 'soundstream', CODEC, soundstream.SoundStream(CODEC), jnp.zeros((1, 960)))
  fingerprints = {
      'w2v_bert': 'of a tokenizer that generation does not need',
      'semantic_quantizer': 'nor this',
      'mulan_quantizer': checkpoints.export_model(
          directory / 'mulan_quantizer', 'mulan_quantizer', rvq,
          {'codebooks': quantizers.codebook_variables(
              jax.random.normal(jax.random.key(0), (2, 8, 8)))}),
  }
  fingerprints['mulan'] = _export(
      directory, 'mulan', mulan_config, mulan.Mulan(mulan_config), jnp.zeros((1, 240_000)),
      jnp.ones((1, 8), jnp.int32), text_files={'vocab.txt': vocab.read_text()})
  codec = checkpoints.load_model(directory / 'soundstream')
  fingerprints['soundstream'] = checkpoints.token_fingerprint(codec, LAYOUT.acoustic.num_levels)
  for name, seconds in SECONDS.items():
    config = dataclasses.replace(DECODER, vocab_size=LAYOUT.stage(name, seconds).vocab_size)
    _export(directory, name, config, transformer.Decoder(config), jnp.ones((1, 4), jnp.int32),
            extra={'stage': name, 'seconds': seconds})
    token_layout.write_layout(directory / name, LAYOUT, fingerprints)
  return directory


@pytest.fixture(scope='module')
def musiclm(system):
  return generate.load(system)


def test_window_starts_cover_everything():
  assert generate.window_starts(10, 4, 2) == [0, 2, 4, 6]
  assert generate.window_starts(10, 3, 3) == [0, 3, 6, 7]
  assert generate.window_starts(3, 10, 5) == [0]
  for total, window, step in ((30, 10, 5), (7, 3, 1), (10, 10, 5), (11, 10, 5)):
    starts = generate.window_starts(total, window, step)
    covered = {second for start in starts for second in range(start, start + window)}
    assert covered == set(range(total)), (total, window, step)


@pytest.mark.parametrize('seconds', [1.0, 4.5])
def test_length_is_what_was_asked(musiclm, seconds):
  waveforms = musiclm.generate(['slow piano'], seconds=seconds)
  assert waveforms.shape == (1, round(24_000 * seconds)) and waveforms.dtype == np.float32
  assert np.isfinite(waveforms).all() and np.abs(waveforms).max() <= 1


def test_same_seed_same_music_whatever_the_batch(musiclm):
  one = musiclm.generate(['slow piano'], seconds=3, seed=3)
  two = musiclm.generate(['slow piano', 'slow piano'], seconds=3, seed=3)
  np.testing.assert_allclose(two[:1], one, atol=1e-4)
  assert np.abs(two[0] - two[1]).max() > 1e-3, 'samples of one prompt should differ'
  other = musiclm.generate(['slow piano'], seconds=3, seed=4)
  assert np.abs(other - one).max() > 1e-3


def test_a_prompt_has_its_tokens_whatever_the_others(musiclm):
  codes = musiclm.mulan_codes(['slow piano', 'loud fast rock with drums', 'slow piano'])
  assert codes.shape == (3, 1, 2)
  np.testing.assert_array_equal(codes[0], codes[2])
  np.testing.assert_array_equal(codes[:1], musiclm.mulan_codes(['slow piano']))


def _with_mapper(system, directory, **changes) -> pathlib.Path:
  """Returns a copy of the system with a mapper that turns every text to one side."""
  shutil.copytree(system, directory)
  config = mapper.MapperConfig(dim=changes.pop('dim', 8), hidden_dim=4)
  module = mapper.Mapper(config)
  params = nn.unbox(module.init(jax.random.key(0), jnp.ones((1, config.dim))))['params']
  params['wo']['bias'] = 50.0 * jnp.eye(config.dim)[0]
  mulan_model = checkpoints.load_model(directory / 'mulan')
  checkpoints.export_model(directory / 'mulan_mapper', 'mulan_mapper', config, {'params': params},
                           extra={'fitted_to': mulan_model.fingerprint} | changes)
  return directory


def test_the_text_mapper_is_an_option(system, musiclm, tmp_path):
  directory = _with_mapper(system, tmp_path / 'mapped')
  prompts = ['slow piano', 'loud fast rock with drums']
  np.testing.assert_array_equal(
      generate.load(directory).mulan_codes(prompts), musiclm.mulan_codes(prompts))
  mapped = generate.load(directory, text_mapper=True)
  side = mapped.models['mulan_quantizer'].apply('encode', jnp.eye(8)[:1, None])
  np.testing.assert_array_equal(mapped.mulan_codes(prompts), np.tile(side, (2, 1, 1)))


def test_a_text_mapper_that_is_absent_or_of_another_model_is_named(system, tmp_path):
  with pytest.raises(errors.UserError, match='mulan_mapper does not exist'):
    generate.load(system, text_mapper=True)
  other = _with_mapper(system, tmp_path / 'other', fitted_to='another')
  with pytest.raises(errors.UserError, match='mulan_mapper was fitted to a mulan with sha256 another'):
    generate.load(other, text_mapper=True)
  wide = _with_mapper(system, tmp_path / 'wide', dim=6)
  with pytest.raises(errors.UserError, match='mulan gives vectors of 8, mulan_mapper wants 6'):
    generate.load(wide, text_mapper=True)


@pytest.mark.parametrize('levels', [1, 3])
def test_levels_used_are_those_of_the_stages(musiclm, levels):
  layout = dataclasses.replace(
      LAYOUT, mulan=dataclasses.replace(LAYOUT.mulan, num_levels=levels))
  changed = dataclasses.replace(musiclm, layout=layout)
  if levels > 2:
    with pytest.raises(errors.UserError, match='3 levels are asked of .*mulan_quantizer, wanted 1 to 2'):
      changed.mulan_codes(['slow piano'])
  else:
    np.testing.assert_array_equal(
        changed.mulan_codes(['slow piano']), musiclm.mulan_codes(['slow piano'])[..., :1])


def test_fine_windows_in_groups_are_the_same_music(musiclm, monkeypatch):
  whole = musiclm.generate(['slow piano'], seconds=5)
  monkeypatch.setattr(generate, 'MAX_WINDOWS_AT_ONCE', 2)
  np.testing.assert_allclose(musiclm.generate(['slow piano'], seconds=5), whole, atol=1e-4)


def test_int8_weights_make_other_music_of_the_same_length(system, musiclm):
  rounded = generate.load(system, weights_dtype='int8')
  exact = musiclm.generate(['slow calm piano'], seconds=2)
  found = rounded.generate(['slow calm piano'], seconds=2)
  assert found.shape == exact.shape and np.any(found != exact)


class CountingSampler:
  """In a Sampler's place: counts what one would compute, in tokens and in pairs of attention."""

  def __init__(self, stage):
    self.stage, self.steps, self.prefilled, self.pairs = stage, 0, 0, 0

  def sample(self, prefix_ids, rng, temperature, num_frames, given, on_progress):
    start = self.stage.prefix_length + (0 if given is None else given.shape[1])
    stop = self.stage.prefix_length + num_frames * self.stage.target.num_levels
    self.steps += len(rng) * (stop - start)
    self.prefilled += len(rng) * start
    self.pairs += len(rng) * stop * (stop + 1) // 2
    return np.broadcast_to(self.stage.first_ids[:stop - self.stage.prefix_length],
                           (len(rng), stop - self.stage.prefix_length))


def test_four_minutes_are_at_most_four_point_four_times_the_work_of_one():
  """With the paper's layout and windows: 30 s, 10 s and 3 s."""
  seconds = {'semantic': 30.0, 'coarse': 10.0, 'fine': 3.0}
  model = lambda name: types.SimpleNamespace(extra={'seconds': seconds[name]})
  musiclm = generate.MusicLM({name: model(name) for name in seconds}, token_layout.TokenLayout(), None)

  def work(length):
    samplers = {name: CountingSampler(musiclm.stage(name)) for name in seconds}
    vars(musiclm)['samplers'] = samplers
    codes = musiclm.generate_codes(np.zeros((1, 1, 12), int), length,
                                   jax.random.split(jax.random.key(0), 1), generate.Temperatures())
    assert codes['fine'].shape == (1, 50 * length, 8)
    total = lambda name: sum(getattr(each, name) for each in samplers.values())
    return total('steps'), total('steps') + total('prefilled'), total('pairs')

  steps, tokens, pairs = np.array(work(240)) / np.array(work(60))
  assert steps == 4.0
  assert tokens < 4.2 and pairs < 4.4  # continued windows look at what was made before


def test_what_a_prompt_says_in_vain_is_told(musiclm):
  assert musiclm.unheard('slow') == []
  long, = musiclm.unheard('slow piano ' * 10)
  assert long.endswith('wordpieces, the model reads the first 14 only')
  unknown, = musiclm.unheard('slow 静か')
  assert unknown.startswith('2 of ') and unknown.endswith('are unknown to the model')


def test_files(system, tmp_path):
  names = generate.generate_files(
      prompt='slow $piano\\frac{ \udc80', output=str(tmp_path / 'a.wav'), seconds=3, num_samples=2,
      model=str(system), plot=True)
  assert [pathlib.Path(name).name for name in names] == ['a-1.wav', 'a-2.wav']
  waveform, rate = soundfile.read(names[1])
  assert rate == 24_000 and waveform.shape == (72_000,)
  assert (tmp_path / 'a-1.png').stat().st_size > 1000


@pytest.mark.parametrize('change, message', [
    ({'prompt': '  '}, 'prompt is empty'),
    ({'prompt': 'x' * 5000}, '5000 characters'),
    ({'seconds': 0}, 'seconds is 0'),
    ({'seconds': float('nan')}, 'seconds is nan'),
    ({'num_samples': 0}, 'num_samples is 0'),
    ({'output': 'a.mp3'}, 'wanted a name that ends with .wav'),
    ({'output': '/proc/nowhere/a.wav'}, 'cannot be written'),
    ({'model': '/does/not/exist'}, 'does not exist'),
])
def test_bad_requests_are_one_clear_error(system, tmp_path, change, message):
  arguments = {'prompt': 'piano', 'output': str(tmp_path / 'a.wav'), 'model': str(system), 'seconds': 1}
  with pytest.raises((errors.UserError, OSError), match=message):
    generate.generate_files(**(arguments | change))


def test_models_of_another_layout_are_refused(system, tmp_path):
  broken = tmp_path / 'broken'
  shutil.copytree(system, broken)
  layout = json.loads((broken / 'coarse' / 'layout.json').read_text())
  layout['layout']['semantic']['codebook_size'] = 32
  (broken / 'coarse' / 'layout.json').write_text(json.dumps(layout))
  with pytest.raises(errors.UserError, match='codebook_size is 16 in .*, 32 in .*coarse'):
    generate.load(broken)


def test_another_codec_is_refused(system, tmp_path):
  broken = tmp_path / 'broken'
  shutil.copytree(system, broken)
  variables = checkpoints.load_model(broken / 'soundstream').variables

  def changed(part):
    params = variables['params']
    params = params | {part: jax.tree.map(lambda leaf: leaf + 0.5, params[part])}
    return variables | {'params': params}

  # Another decoder for the same codes may be heard; of another encoder the stages know nothing.
  checkpoints.export_model(broken / 'soundstream', 'soundstream', CODEC, changed('decoder'))
  generate.load(broken)
  checkpoints.export_model(broken / 'soundstream', 'soundstream', CODEC, changed('encoder'))
  with pytest.raises(errors.UserError, match='tokenizers.soundstream'):
    generate.load(broken)


def test_a_vocabulary_that_the_text_tower_has_no_room_for_is_refused(system, tmp_path):
  broken = tmp_path / 'broken'
  shutil.copytree(system, broken)
  with open(broken / 'mulan' / 'vocab.txt', 'a', encoding='utf-8') as vocabulary:
    vocabulary.write('onemore\n')
  with pytest.raises(errors.UserError, match='wordpieces, the text tower has room for vocab_size'):
    generate.load(broken)


@pytest.mark.parametrize('change, wanted', [
    (lambda config: config['extra'].pop('seconds'), 'seconds is None, wanted a whole number'),
    (lambda config: config['extra'].update(seconds=[2]), r'seconds is \[2\]'),
    (lambda config: config['extra'].update(seconds=0.5), 'seconds is 0.5'),
])
def test_a_stage_of_a_strange_length_is_refused(system, tmp_path, change, wanted):
  broken = tmp_path / 'broken'
  shutil.copytree(system, broken)
  config = json.loads((broken / 'coarse' / 'config.json').read_text())
  change(config)
  (broken / 'coarse' / 'config.json').write_text(json.dumps(config))
  with pytest.raises(errors.UserError, match=wanted):
    generate.load(broken)


def test_layouts_larger_than_the_tables_are_refused(system, tmp_path):
  """An id beyond the table would be NaN, and the music wrong without a word."""
  broken = tmp_path / 'broken'
  shutil.copytree(system, broken)
  for name in token_layout.STAGES:
    saved = json.loads((broken / name / 'layout.json').read_text())
    saved['layout']['acoustic']['codebook_size'] = 512
    (broken / name / 'layout.json').write_text(json.dumps(saved))
  with pytest.raises(errors.UserError, match='coarse has 128 ids, its layout.json wants'):
    generate.load(broken)
