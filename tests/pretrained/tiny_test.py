"""The models that ship with the package: complete, made for each other, and better than chance.

The clips in held_out/ are of pieces that none of the models has heard.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import audio, checkpoints, errors, generate, sampling, token_layout
from musiclm_jax.evaluation import generation_modes
from musiclm_jax.generation_jobs import one_prompt
from musiclm_jax.models import transformer
from musiclm_jax.objectives import losses
from musiclm_jax.objectives import mulan as mulan_objective

TINY = generate.TINY
HELD_OUT = pathlib.Path(__file__).parent / 'held_out'
TOKENIZERS = token_layout.TOKENIZERS + token_layout.MELODY_TOKENIZERS
MODELS = (*TOKENIZERS, *token_layout.STAGES)


@pytest.fixture(scope='module')
def musiclm():
  return generate.MusicLM.from_pretrained()


@pytest.fixture(scope='module')
def held_out():
  """Returns (waveforms f32[20, 240000], their captions)."""
  lines = (HELD_OUT / 'captions.jsonl').read_text().splitlines()
  clips = [json.loads(line) for line in lines]
  waveforms = np.stack([audio.read(str(HELD_OUT / f'{clip["id"]}.ogg')) for clip in clips])
  assert waveforms.shape == (20, 240_000)
  return waveforms, [clip['caption'] for clip in clips]


def test_at_most_32_mebibytes():
  size = sum(path.stat().st_size for path in pathlib.Path(TINY).rglob('*') if path.is_file())
  assert 0 < size <= 32 * 2**20


@pytest.mark.parametrize('name', MODELS)
def test_every_model_loads(name):
  model = checkpoints.load_model(TINY / name)
  assert model.name == name


@pytest.mark.parametrize('stage', token_layout.STAGES)
def test_every_stage_was_trained_on_tokens_of_these_tokenizers(stage):
  saved = token_layout.read_layout(TINY / stage)
  fingerprints = {
      name: checkpoints.token_fingerprint(
          checkpoints.load_model(TINY / name), saved.layout.acoustic.num_levels)
      for name in TOKENIZERS}
  assert saved.tokenizers == fingerprints


def test_model_card_states_data_steps_and_limits():
  card = (TINY / 'MODEL_CARD.md').read_text()
  for word in ('hours', 'steps', 'loss', 'cannot', 'Groove', 'OpenScore', 'recall@10'):
    assert word in card, word


def test_codec_keeps_more_of_unheard_clips_with_more_levels(held_out):
  codec = checkpoints.load_model(TINY / 'soundstream')
  assert codec.config.kbps(codec.config.num_quantizers) == 6
  waveforms = jnp.asarray(held_out[0][:8, :72_000])
  codes = codec.apply('encode', waveforms)
  scale = losses.SpectralScale(1024)
  ratios, distances = [], []
  for levels in (3, 6, 12):
    estimate = codec.apply('decode', codes[..., :levels])
    ratios.append(np.asarray(losses.si_sdr(waveforms, estimate)))
    distances.append(float(losses.spectral_distance(waveforms, estimate, scale)[2]))
  assert distances[2] < distances[1] < distances[0] < 8.0  # decibels
  for fewer, more, least in ((0, 1, 0.5), (1, 2, 0.1)):
    better = ratios[more] - ratios[fewer]
    assert better.mean() > least and (better > 0).mean() >= 0.75


def test_mulan_finds_the_unheard_clip_of_a_caption(held_out):
  """Among 20, chance has the right one first in 5% and among the first five in 25%."""
  waveforms, captions = held_out
  model = checkpoints.load_model(TINY / 'mulan')
  tokenizer = generate.MusicLM.from_pretrained().tokenizer
  ids = tokenizer.encode(captions, model.config.text.max_length)
  similarity = model.apply('embed_text', ids) @ model.apply('embed_audio', waveforms).T
  rivals = jnp.ones(similarity.shape, bool)
  above = mulan_objective.rivals_above(similarity, jnp.diagonal(similarity), rivals)
  assert mulan_objective.recall(above, 5) >= 0.8
  assert mulan_objective.recall(above, 1) >= 0.4


def test_different_prompts_get_different_music_tokens(musiclm):
  prompts = ['a calm solo piano piece', 'fast metal with distorted guitar', 'a calm solo piano piece']
  codes = musiclm.mulan_codes(prompts)
  np.testing.assert_array_equal(codes[0], codes[2])
  assert (codes[0] != codes[1]).any()


def test_prompt_and_seed_decide_the_file(tmp_path):
  """Different prompts give different music; the same seed gives the same file, byte for byte."""
  def make(name, prompt, seed):
    one_prompt.generate_files(
        one_prompt.Request(prompt, seconds=1.0, seed=seed), str(tmp_path / name))
    return (tmp_path / name).read_bytes()

  piano = make('a.wav', 'a calm solo piano piece', 0)
  assert make('b.wav', 'a calm solo piano piece', 0) == piano
  assert make('c.wav', 'a calm solo piano piece', 1) != piano
  assert make('d.wav', 'fast metal with distorted guitar', 0) != piano
  assert np.abs(audio.read(str(tmp_path / 'a.wav'))).max() > 1e-3, 'silence'


def test_empty_prompt_is_refused(musiclm):
  with pytest.raises(errors.UserError, match='prompt is empty'):
    musiclm.generate([''])


@pytest.mark.slow
def test_music_follows_a_hummed_tune(musiclm):
  """In chroma it is nearer to its tune than the music of other tunes is, and than music without one."""
  tunes = generation_modes.hummed_tunes(4)
  report = generation_modes.follow(
      musiclm, tunes, 'A calm solo piano piece', 2, generate.PUBLISHED.guided(4.0)).similarity
  own = report.own.mean()
  assert own > report.others.mean() + 0.03 and own > report.unconditioned.mean() + 0.03, (
      report.describe())


def test_int8_weights_predict_as_well(musiclm):
  """Mean cross entropy of the semantic stage on what it samples, with exact and with int8 weights."""
  model, stage = musiclm.models['semantic'], musiclm.stage('semantic')
  tune = np.zeros((2, stage.stream('melody').num_frames(stage.seconds), 6), int)
  prefix = stage.hidden(stage.flatten_prefix({
      'mulan': musiclm.mulan_codes(['slow strings', 'fast rock']), 'melody': tune}), 'melody')
  sampler = sampling.Sampler(model.config, model.variables['params'], stage, weights_dtype='int8')
  ids = np.asarray(sampler.sample(prefix, jax.random.key(0)))
  inputs = np.concatenate([np.full((2, 1), token_layout.BOS_ID), prefix, ids[:, :-1]], axis=1)
  first_ids = tuple(int(i) for i in stage.level_offsets(stage.target))

  def cross_entropy(config, variables):
    decoder = transformer.Decoder(config)
    x, _ = decoder.apply(
        variables, jnp.asarray(inputs), positions=jnp.asarray(stage.times), method='hidden')
    logits = decoder.apply(model.variables, x[:, stage.prefix_length:], first_ids,
                           stage.codebook_size, method='level_logits')
    summed, count = losses.cross_entropy(
        logits, jnp.asarray(ids - stage.first_ids), jnp.ones(ids.shape))
    return float(summed / count)

  exact = cross_entropy(model.config, model.variables)
  served = {name: sampler.variables[name] for name in ('params', 'served')}
  rounded = cross_entropy(sampler.static.config, served)
  assert exact < 0.5 * np.log(stage.codebook_size)
  assert 0 < abs(rounded - exact) < 2e-3
