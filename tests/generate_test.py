"""Generation with small random models: the plumbing, not the music."""

import dataclasses
import json
import pathlib
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_system import CODEC, LAYOUT

from musiclm_jax import checkpoints, errors, generate, token_layout
from musiclm_jax.generation import stages
from musiclm_jax.models import mapper


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
      generate.MusicLM.from_pretrained(directory).mulan_codes(prompts), musiclm.mulan_codes(prompts))
  mapped = generate.MusicLM.from_pretrained(directory, text_mapper=True)
  side = mapped.models['mulan_quantizer'].apply('encode', jnp.eye(8)[:1, None])
  np.testing.assert_array_equal(mapped.mulan_codes(prompts), np.tile(side, (2, 1, 1)))


def test_a_text_mapper_that_is_absent_or_of_another_model_is_named(system, tmp_path):
  with pytest.raises(errors.UserError, match='mulan_mapper does not exist'):
    generate.MusicLM.from_pretrained(system, text_mapper=True)
  other = _with_mapper(system, tmp_path / 'other', fitted_to='another')
  with pytest.raises(errors.UserError, match='mulan_mapper was fitted to a mulan with sha256 another'):
    generate.MusicLM.from_pretrained(other, text_mapper=True)
  wide = _with_mapper(system, tmp_path / 'wide', dim=6)
  with pytest.raises(errors.UserError, match='mulan gives vectors of 8, mulan_mapper wants 6'):
    generate.MusicLM.from_pretrained(wide, text_mapper=True)


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
  monkeypatch.setattr(stages, 'MAX_WINDOWS_AT_ONCE', 2)
  np.testing.assert_allclose(musiclm.generate(['slow piano'], seconds=5), whole, atol=1e-4)


def test_int8_weights_make_other_music_of_the_same_length(system, musiclm):
  rounded = generate.MusicLM.from_pretrained(system, weights_dtype='int8')
  exact = musiclm.generate(['slow calm piano'], seconds=2)
  found = rounded.generate(['slow calm piano'], seconds=2)
  assert found.shape == exact.shape and np.any(found != exact)


class CountingSampler:
  """In a Sampler's place: counts what one would compute, in tokens and in pairs of attention."""

  def __init__(self, stage):
    self.stage, self.steps, self.prefilled, self.pairs = stage, 0, 0, 0

  def sample(self, prefix_ids, rng, *, num_frames, given, **unused):
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
  layout = token_layout.TokenLayout()

  def work(length):
    samplers = {name: CountingSampler(layout.stage(name, seconds[name])) for name in seconds}
    run = stages.Run(samplers, stages.Conditions(np.zeros((1, 1, 12), int)), length,
                     stages.example_keys(0, 1))
    assert run.at_once().shape == (1, 50 * length, 12)
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


def test_models_of_another_layout_are_refused(system, tmp_path):
  broken = tmp_path / 'broken'
  shutil.copytree(system, broken)
  layout = json.loads((broken / 'coarse' / 'layout.json').read_text())
  layout['layout']['semantic']['codebook_size'] = 32
  (broken / 'coarse' / 'layout.json').write_text(json.dumps(layout))
  with pytest.raises(errors.UserError, match='codebook_size is 16 in .*, 32 in .*coarse'):
    generate.MusicLM.from_pretrained(broken)


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
  generate.MusicLM.from_pretrained(broken)
  checkpoints.export_model(broken / 'soundstream', 'soundstream', CODEC, changed('encoder'))
  with pytest.raises(errors.UserError, match='tokenizers.soundstream'):
    generate.MusicLM.from_pretrained(broken)


def test_a_vocabulary_that_the_text_tower_has_no_room_for_is_refused(system, tmp_path):
  broken = tmp_path / 'broken'
  shutil.copytree(system, broken)
  with open(broken / 'mulan' / 'vocab.txt', 'a', encoding='utf-8') as vocabulary:
    vocabulary.write('onemore\n')
  with pytest.raises(errors.UserError, match='wordpieces, the text tower has room for vocab_size'):
    generate.MusicLM.from_pretrained(broken)


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
    generate.MusicLM.from_pretrained(broken)


def test_layouts_larger_than_the_tables_are_refused(system, tmp_path):
  """An id beyond the table would be NaN, and the music wrong without a word."""
  broken = tmp_path / 'broken'
  shutil.copytree(system, broken)
  for name in token_layout.STAGES:
    saved = json.loads((broken / name / 'layout.json').read_text())
    saved['layout']['acoustic']['codebook_size'] = 512
    (broken / name / 'layout.json').write_text(json.dumps(saved))
  with pytest.raises(errors.UserError, match='coarse has 128 ids, its layout.json wants'):
    generate.MusicLM.from_pretrained(broken)


def test_seeds_of_the_examples_make_their_place_play_no_part(musiclm):
  one, two = musiclm.generate(['slow piano', 'slow piano'], seconds=2, seed=[5, 7])
  np.testing.assert_allclose(
      musiclm.generate(['slow piano'] * 2, seconds=2, seed=[7, 5]), [two, one], atol=1e-4)
  with pytest.raises(errors.UserError, match='1 seeds for 2 prompts'):
    musiclm.generate(['slow piano'] * 2, seconds=2, seed=[5])


def test_a_stream_is_the_same_music_in_parts(musiclm):
  prompts, arguments = ['slow piano', 'loud fast rock'], {'seconds': 6.5, 'seed': 2}
  parts = list(musiclm.stream(prompts, **arguments))
  assert len(parts) > 3 and parts[0].shape[1] <= 2 * 24_000
  np.testing.assert_allclose(
      np.concatenate(parts, axis=1), musiclm.generate(prompts, **arguments), atol=1e-4)


def test_a_story_changes_when_it_says_so(musiclm):
  same = generate.Story(((0, 'slow piano'), (4, 'slow piano')))
  other = generate.Story(((0, 'slow piano'), (4, 'slow')))  # which has other music tokens
  same, other = musiclm.generate([same, other], seconds=8, seed=[1, 1])
  np.testing.assert_allclose(same[:4 * 24_000], other[:4 * 24_000], atol=1e-4)
  assert np.abs(same[5 * 24_000:] - other[5 * 24_000:]).max() > 1e-3


def test_without_overlap_a_section_hears_nothing_of_the_one_before(musiclm):
  def semantic(first, overlap):
    codes = musiclm.mulan_codes([first, 'slow'])
    conditions = stages.Conditions(codes.reshape(1, 2, -1), (0, 4), overlap)
    run = stages.Run(musiclm.samplers, conditions, 6, stages.example_keys(0, 1))
    run.at_once()
    return run.streams['semantic'].between(4, 6)

  np.testing.assert_array_equal(semantic('slow piano', 0), semantic('slow', 0))
  assert np.any(semantic('slow piano', None) != semantic('slow', None))
  with pytest.raises(errors.UserError, match='wanted the same'):
    stories = [generate.Story(((0, 'slow'),), overlap) for overlap in (0, 1)]
    musiclm.generate(stories, seconds=1)


def test_style_takes_the_place_of_the_prompt_or_is_blended_in(musiclm):
  music = 0.3 * np.random.default_rng(0).standard_normal(48_000).astype(np.float32)
  vector = generate.music_tokens.embed_music(musiclm.models['mulan'], music)
  alone = musiclm.mulan_codes([''], vector, 0.2)
  np.testing.assert_array_equal(alone, musiclm.mulan_codes(['slow piano'], vector, 1.0))
  np.testing.assert_array_equal(
      musiclm.mulan_codes(['slow piano'], vector, 0.0), musiclm.mulan_codes(['slow piano']))
  assert musiclm.generate([''], seconds=1, style=music).shape == (1, 24_000)
  with pytest.raises(errors.UserError, match='the prompt is empty'):
    musiclm.generate([''], seconds=1)
  with pytest.raises(errors.UserError, match='style_weight is 1.5, wanted 0 to 1'):
    musiclm.generate(['slow'], seconds=1, style=music, style_weight=1.5)


def test_a_continuation_keeps_what_is_given(musiclm):
  music = 0.3 * np.random.default_rng(0).standard_normal(24_000 * 7 // 2).astype(np.float32)
  made = musiclm.generate(['slow piano'], seconds=2.5, continue_from=music)
  assert made.shape == (1, round(5.5 * 24_000))  # 3 whole seconds of 3.5 are kept
  codes = musiclm.models['soundstream'].apply('encode', music[None, 12_000:])
  again = musiclm.decode(np.asarray(codes))
  np.testing.assert_allclose(made[:, :3 * 24_000], again, atol=1e-4)
  streamed = list(musiclm.stream(['slow piano'], seconds=2.5, continue_from=music))
  np.testing.assert_allclose(np.concatenate(streamed, axis=1), made, atol=1e-4)
  with pytest.raises(errors.UserError, match='lasts 0.50 s, wanted at least 1'):
    musiclm.generate(['slow piano'], continue_from=music[:12_000])


TUNE = np.sin(np.cumsum(np.repeat([0.05, 0.08, 0.06, 0.09], 24_000))).astype(np.float32)


def test_music_follows_a_melody_from_its_start_to_its_end(musiclm):
  assert musiclm.melody_codes(TUNE).shape == (3, 2)  # windows of 2 s in 4 s, one a second
  codes = np.array([[0, 1], [2, 3], [4, 5]])
  mulan = musiclm.mulan_codes(['slow piano'])
  stage = musiclm.stage('semantic')
  run = stages.Run(musiclm.samplers, stages.Conditions(mulan, melody=codes), 8,
                   stages.example_keys(0, 1))
  prefixes = [run._prefix('semantic', window)[0, 2:] for window in run._windows['semantic']]
  ids = stage.flatten_stream(stage.stream('melody'), codes)
  hidden = [token_layout.MASK_ID]
  assert [list(each) for each in prefixes] == [  # windows of 4 s from 0, 2 and 4 s on
      [*ids], [*ids[4:], *4 * hidden], 6 * hidden]


def test_a_melody_changes_the_music_and_is_part_of_the_stream(musiclm):
  plain = musiclm.generate(['slow piano'], seconds=4)
  made = musiclm.generate(['slow piano'], seconds=4, melody=TUNE)
  assert made.shape == plain.shape and np.abs(made - plain).max() > 1e-3
  streamed = list(musiclm.stream(['slow piano'], seconds=4, melody=TUNE))
  np.testing.assert_allclose(np.concatenate(streamed, axis=1), made, atol=1e-4)


def test_after_music_to_go_on_from_the_melody_begins_with_what_is_new(musiclm):
  codes = np.array([[0, 1], [2, 3], [4, 5]])
  given = {'semantic': np.zeros((75, 1), int), 'acoustic': np.zeros((150, 3), int)}
  conditions = stages.Conditions(musiclm.mulan_codes(['slow']), given=given, melody=codes)
  run = stages.Run(musiclm.samplers, conditions, 7, stages.example_keys(0, 1))
  stage, window = musiclm.stage('semantic'), run._windows['semantic'][0]
  assert window == (1, 3, 5)
  ids = stage.flatten_stream(stage.stream('melody'), codes)
  assert list(run._prefix('semantic', window)[0, 2:]) == [3, 3, 3, 3, *ids[:2]]


def test_stages_that_hear_no_melody_say_so(musiclm):
  deaf = dataclasses.replace(musiclm, layout=dataclasses.replace(musiclm.layout, melody=None))
  with pytest.raises(errors.UserError, match='a melody is given, but the stages of .* hear none'):
    deaf.melody_codes(TUNE)


def test_a_stage_that_never_missed_its_prompt_is_not_guided(musiclm):
  how = generate.Sampling(coarse=generate.StageSampling(guidance=2.0))
  with pytest.raises(errors.UserError, match='guidance is 2, but the coarse stage was trained without'):
    musiclm.generate(['slow piano'], seconds=1, how=how)
  how = generate.Sampling(fine=generate.StageSampling(guidance=2.0))
  with pytest.raises(errors.UserError, match='the fine stage: it does not hear the prompt'):
    musiclm.generate(['slow piano'], seconds=1, how=how)


def test_guidance_where_it_was_trained_for(musiclm):
  trained = {name: dataclasses.replace(model, extra=model.extra | {'condition_dropout': 0.1})
             for name, model in musiclm.models.items()}
  trained = dataclasses.replace(musiclm, models=trained)
  how = generate.Sampling(generate.StageSampling(guidance=4.0), generate.StageSampling(0.95))
  plain = musiclm.generate(['slow piano'], seconds=2)
  guided = trained.generate(['slow piano'], seconds=2, how=how)
  assert guided.shape == plain.shape and np.abs(guided - plain).max() > 1e-3


def test_similarity_is_the_cosine_of_prompt_and_music(musiclm):
  music = 0.3 * np.random.default_rng(0).standard_normal((2, 48_000)).astype(np.float32)
  scores = musiclm.similarity(['slow piano', 'loud'], music)
  embed = lambda one: generate.music_tokens.embed_music(musiclm.models['mulan'], one)
  wanted = [float(musiclm.embed_text([prompt])[0] @ embed(one))
            for prompt, one in zip(['slow piano', 'loud'], music, strict=True)]
  np.testing.assert_allclose(scores, wanted, atol=1e-6)
  story = generate.Story(((0, 'slow piano'), (1, 'loud')))
  parts = [float(musiclm.embed_text([text])[0] @ embed(part)) for text, part in
           (('slow piano', music[0, :24_000]), ('loud', music[0, 24_000:]))]
  np.testing.assert_allclose(musiclm.similarity([story], music[:1]), np.mean(parts), atol=1e-6)
