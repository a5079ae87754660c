"""Memorization: what is known by heart is found, what is not is not."""

import dataclasses
import importlib.util
import itertools
import json
import math
import pathlib
import sys
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_tokenizers

from musiclm_jax import audio_tokenizer, errors, generate, sampling, token_layout
from musiclm_jax.data import records
from musiclm_jax.evaluation import memorization, optimal_transport, semantic_crops
from musiclm_jax.models import transformer

TOOL = pathlib.Path(__file__).resolve().parents[2] / 'tools' / 'evaluate_memorization.py'
STAGE = token_layout.TokenLayout(
    token_layout.TokenStream('mulan', 2, 8, 0), token_layout.TokenStream('semantic', 1, 32, 25),
    token_layout.TokenStream('acoustic', 2, 16, 50), coarse_levels=1).stage('semantic', 1)
CONFIG = transformer.DecoderConfig(
    vocab_size=STAGE.vocab_size, num_layers=1, emb_dim=64, num_heads=4, head_dim=16, mlp_dim=128,
    dropout_rate=0.0, position='rotary', scan_layers=False)
CENTROIDS = np.random.default_rng(3).normal(size=(32, 4)).astype(np.float32)
SETTINGS = memorization.Settings(
    prompt_tokens=(0, 5, 13), new_tokens=12, num_examples=6, permutations=5, batch_size=6)


# --- tau and shares -------------------------------------------------------------------------------


def test_tau_by_hand():
  assert memorization.calibrate(np.array([3, 1, 2, 4]), 0.5) == 2
  assert memorization.calibrate(np.array([3, 1, 2, 4]), 0.01) == 1
  assert memorization.calibrate(np.array([1, 1, 1, 4]), 0.9) == 4  # 3 of 4 are below
  with pytest.raises(errors.UserError, match='two or more pieces'):
    memorization.calibrate(np.zeros(0), 0.1)


def drawn(rng, pairs, tokens):
  """Returns int[pairs, tokens] of 32 codes, each row of a distribution of its own."""
  return np.stack([rng.choice(32, tokens, p=rng.dirichlet(np.ones(32)))
                   for _ in range(pairs)])


def test_tau_holds_its_share_on_other_permuted_pairs():
  rng, distance = np.random.default_rng(1), optimal_transport.distances(CENTROIDS)
  made, targets = (optimal_transport.histograms(drawn(rng, 80, 16)) for _ in range(2))

  def costs(shifts):
    rows = [np.arange(80) for _ in shifts]
    others = [(np.arange(80) + shift) % 80 for shift in shifts]
    sides = zip((made, targets), (rows, others), strict=True)
    return optimal_transport.costs(
        *([part[np.concatenate(chosen)] for part in side] for side, chosen in sides), distance)[0]

  seen, fresh = costs(range(1, 11)), costs(range(11, 21))
  for share in (0.01, 0.05):
    tau = memorization.calibrate(seen, share)
    assert share - 2 / len(seen) <= np.mean(seen < tau) < share
    spread = 4 * memorization.share_error(share, len(fresh))
    assert share / 10 < np.mean(fresh < tau) < share + spread


def test_errors_of_shares_by_hand():
  assert memorization.share_error(0.2, 100) == pytest.approx(0.04)
  assert memorization.share_error(1.0, 7) == 0
  assert memorization.largest_share(100) == 0.03 and memorization.largest_share(2) == 1
  # 0 of 100 has about 5 % chance when the share is 3 %
  assert (1 - memorization.largest_share(100)) ** 100 == pytest.approx(0.05, abs=0.005)


# --- Matches --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def examples():
  """Returns six crops, of six pieces."""
  rng = np.random.default_rng(2)
  codes = np.stack([np.arange(6), rng.permutation(6)], axis=1)[:, None]
  prefix = STAGE.flatten_prefix({'mulan': codes})
  target = STAGE.flatten_stream(STAGE.target, rng.integers(32, size=(6, 25, 1)))
  return [memorization.Example(*rows, f'piece{i}')
          for i, rows in enumerate(zip(prefix, target, strict=True))]


@pytest.fixture(scope='module')
def untrained():
  init = jax.jit(transformer.Decoder(CONFIG).init)
  return nn.unbox(init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))['params']


@pytest.fixture(scope='module')
def by_heart(untrained, examples):
  """Returns a sampler that was trained on the six crops until it knew them."""
  model, optimizer = transformer.Decoder(CONFIG), optax.adam(3e-3)
  ids = np.stack([np.concatenate([example.prefix, example.target]) for example in examples])
  inputs = jnp.asarray(np.pad(ids, ((0, 0), (1, 0)), constant_values=token_layout.BOS_ID)[:, :-1])

  def loss(params):
    logits = model.apply({'params': params}, inputs)[0][:, STAGE.prefix_length:]
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, ids[:, STAGE.prefix_length:]).mean()

  @jax.jit
  def step(params, state):
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value

  params, state = untrained, optimizer.init(untrained)
  for _ in range(250):
    params, state, value = step(params, state)
  assert value < 0.05
  return sampling.Sampler(CONFIG, params, STAGE)


@pytest.fixture(scope='module')
def learnt(by_heart, examples):
  return memorization.measure(by_heart, CENTROIDS, examples, SETTINGS)


def test_what_was_learnt_by_heart_is_found(learnt):
  assert learnt.num_examples == 6 and learnt.num_permuted == 3 * 6 * 5
  assert learnt.tau > 0 and learnt.tau_matches == 0 and learnt.unconverged == 0
  assert [row.prompt_tokens for row in learnt.rows] == [0, 5, 13]
  for row in learnt.rows:
    assert (row.exact, row.exact_error, row.approximate) == (1.0, 0.0, 1.0)
    assert row.cost < 1e-3 < row.permuted_cost
    assert row.entropy == row.target_entropy == row.exact_entropy == row.approximate_entropy > 2
  assert sum(learnt.costs.own) == 18 and sum(learnt.costs.permuted) == 90
  assert learnt.costs.own[0] == 18


def test_entropy_is_of_the_tokens_after_the_prompt(learnt, examples):
  row = learnt.rows[1]
  bits = []
  for example in examples:
    counts = np.unique(example.target[5:17], return_counts=True)[1] / 12
    bits.append(-np.sum(counts * np.log2(counts)))
  assert row.target_entropy == pytest.approx(np.mean(bits), rel=1e-5)


def test_what_was_not_learnt_is_not_found(untrained, by_heart, examples):
  random = sampling.Sampler(CONFIG, jax.tree.map(lambda x: 3 * x, untrained), STAGE)
  found = memorization.measure(random, CENTROIDS, examples, SETTINGS)
  assert [row.exact for row in found.rows] == [0, 0, 0]
  assert all(math.isnan(row.exact_entropy) for row in found.rows)
  assert sum(row.approximate for row in found.rows) < 1
  # The prompt is heard: what is compared is what follows it.
  prefix, target = (np.stack(rows) for rows in list(zip(*examples, strict=True))[:2])
  bits = []
  for given in (target[:, :5], None):
    made = random.sample(prefix, jax.random.key(0), temperature=0.0, num_frames=17, given=given)
    _, mass = optimal_transport.histograms(np.asarray(made)[:, 5:])
    bits.append(optimal_transport.entropy(mass).mean())
  assert found.rows[1].entropy == pytest.approx(bits[0]) and bits[0] != pytest.approx(bits[1])
  # By heart, but of other prompts: the music tokens decide where a crop begins.
  other = [example._replace(prefix=examples[i - 1].prefix) for i, example in enumerate(examples)]
  moved = memorization.measure(by_heart, CENTROIDS, other, SETTINGS)
  assert moved.rows[0].exact == 0


def test_examples_stream_in_batches_and_the_batch_size_changes_nothing(by_heart, examples, learnt):
  alive, most = weakref.WeakSet(), 0

  class Row(np.ndarray):
    __hash__ = object.__hash__

  def stream():
    nonlocal most
    for example in itertools.cycle(examples):
      target = example.target.copy().view(Row)
      alive.add(target)
      most = max(most, len(alive))
      yield example._replace(target=target)
      del target

  settings = dataclasses.replace(SETTINGS, batch_size=4, num_examples=26, prompt_tokens=(5,))
  report = memorization.measure(by_heart, CENTROIDS, stream(), settings)
  assert report.num_examples == 26 and most <= 9  # the batch before goes when the next is there
  assert report.rows[0].exact == 1
  assert report.num_permuted <= 6 * 12 + 2  # never a piece with itself
  smaller = memorization.measure(
      by_heart, CENTROIDS, examples, dataclasses.replace(SETTINGS, batch_size=4))
  assert [(row.exact, row.entropy) for row in smaller.rows] == [
      (row.exact, row.entropy) for row in learnt.rows]


def test_pairs_of_one_piece_are_not_permuted(by_heart, examples):
  one = [example._replace(piece='same') for example in examples]
  with pytest.raises(errors.UserError, match='two or more pieces'):
    memorization.measure(by_heart, CENTROIDS, one, SETTINGS)
  found = memorization.measure(by_heart, CENTROIDS, one, dataclasses.replace(SETTINGS, tau=0.1))
  assert found.num_permuted == 0 and [row.approximate for row in found.rows] == [1.0] * 3
  assert '| - |' in memorization.describe(found) and memorization.draw(found).startswith(b'\x89PNG')


def test_a_given_tau_is_kept(by_heart, examples, learnt):
  far = max(learnt.costs.edges) + 1
  other = [example._replace(prefix=examples[i - 1].prefix) for i, example in enumerate(examples)]
  found = memorization.measure(
      by_heart, CENTROIDS, other, dataclasses.replace(SETTINGS, tau=far))
  assert (found.tau, found.tau_matches) == (far, found.num_permuted)
  assert found.rows[0].exact == 0 and found.rows[0].approximate == 1


def test_settings_that_do_not_fit_are_errors(by_heart, examples):
  assert memorization.Settings().prompts(dataclasses.replace(STAGE, seconds=10)) == (
      0, 25, 50, 75, 125)
  assert memorization.Settings().prompts(dataclasses.replace(STAGE, seconds=30))[-1] == 250
  for wrong in ({'prompt_tokens': (0, 14)}, {'prompt_tokens': (-1,)}, {'prompt_tokens': ()},
                {'new_tokens': 26, 'prompt_tokens': None}):
    with pytest.raises(errors.UserError, match='do not fit the 25'):
      dataclasses.replace(SETTINGS, **wrong).prompts(STAGE)
  for wrong in ({'new_tokens': 0}, {'batch_size': 1}, {'false_positives': 1.0}, {'tau': 0.0}):
    with pytest.raises(errors.UserError, match=f'{next(iter(wrong))} is'):
      memorization.Settings(**wrong)
  with pytest.raises(errors.UserError, match='no example of 1 s'):
    memorization.measure(by_heart, CENTROIDS, [], SETTINGS)
  with pytest.raises(errors.UserError, match='8 centroids for 1 levels of 32 semantic tokens'):
    memorization.measure(by_heart, CENTROIDS[:8], examples, SETTINGS)


def test_a_report_says_what_was_not_found(learnt, tmp_path):
  rows = (dataclasses.replace(learnt.rows[0], exact=0.0, exact_entropy=math.nan), *learnt.rows[1:])
  report = dataclasses.replace(learnt, rows=rows)
  text = memorization.describe(report)
  assert '| 0 | 0 (below 50) | 100.00 ± 0.00 |' in text and '0 of 90 permuted pairs' in text
  memorization.write_json(tmp_path / 'a.json', report)
  stored = json.loads((tmp_path / 'a.json').read_text())
  assert stored['rows'][0]['exact_entropy'] is None and stored['rows'][1]['exact'] == 1
  assert stored['settings']['transport']['regularisation'] == 0.01


# --- From files -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  """Returns tokenizers with random weights, of clips of 4 s."""
  folder = tmp_path_factory.mktemp('models')
  tiny_tokenizers.export(folder)
  return audio_tokenizer.Tokenizer.load(folder, clip_seconds=4, batch_size=1)


@pytest.fixture(scope='module')
def stage(tokenizer, untrained):
  """Returns a stage of 4 s on the tokens of `tokenizer`."""
  saved = tokenizer.layout(coarse_levels=2)
  sampler = sampling.Sampler(CONFIG, untrained, saved.layout.stage('semantic', 4))
  folder = tokenizer.models['semantic_quantizer'].directory.parent
  return semantic_crops.SemanticStage(
      sampler, CENTROIDS, tokenizer.mulan_codebooks(), saved, folder)


def write_tokens(folder, saved, lengths):
  """Writes token records of so many seconds and returns their arrays."""
  rng, arrays, layout = np.random.default_rng(5), [], saved.layout
  draw = lambda stream, *shape: rng.integers(stream.codebook_size, size=shape)
  for seconds in lengths:
    windows = max(seconds - 9, 1)
    arrays.append({
        'mulan_tokens': draw(layout.mulan, windows, layout.mulan.num_levels),
        'mulan_embeddings': rng.normal(size=(windows, 16)),
        'semantic_tokens': draw(layout.semantic, 25 * seconds),
        'acoustic_tokens': draw(layout.acoustic, 50 * seconds, layout.acoustic.num_levels)})
  folder.mkdir()
  records.write_shard(folder / records.shard_name('train', 0, 1), [
      records.token_record(f'clip{i}', record) for i, record in enumerate(arrays)])
  token_layout.write_layout(folder, saved.layout, saved.tokenizers)
  records.write_info(folder, {
      'kind': 'tokens', 'window_seconds': 10, 'mulan_levels': layout.mulan.num_levels,
      'acoustic_levels': layout.acoustic.num_levels})
  return arrays


def test_crops_of_token_records(stage, tmp_path):
  arrays = write_tokens(tmp_path / 'tokens', stage.saved, (6, 3, 9))
  crops = semantic_crops.Crops.of_tokens(tmp_path / 'tokens', 'train', stage)
  found, layout = list(crops), stage.sampler.stage
  assert [crop.piece for crop in found] == ['clip0', 'clip2'] and crops.left_out == 1
  for crop, record in zip(found, arrays[::2], strict=True):
    np.testing.assert_array_equal(
        crop.prefix, layout.flatten_prefix({'mulan': record['mulan_tokens']}))
    starts = [start for start in range(0, len(record['semantic_tokens']) - 99, 25)
              if np.array_equal(layout.unflatten(crop.target)[:, 0],
                                record['semantic_tokens'][start:start + 100])]
    assert len(starts) == 1
  other = semantic_crops.Crops.of_tokens(tmp_path / 'tokens', 'train', stage, seed=3)
  assert any(np.any(a.target != b.target) for a, b in zip(found, other, strict=True))


def test_a_stage_that_hears_melodies_is_asked_without_one(stage, untrained, tmp_path):
  arrays, = write_tokens(tmp_path / 'tokens', stage.saved, (4,))
  layout = dataclasses.replace(stage.saved.layout, melody=token_layout.TokenStream(
      'melody', 2, 8, 1, window_seconds=2))
  hears = dataclasses.replace(
      stage, saved=dataclasses.replace(stage.saved, layout=layout),
      sampler=sampling.Sampler(CONFIG, untrained, layout.stage('semantic', 4)))
  crop, = semantic_crops.Crops.of_tokens(tmp_path / 'tokens', 'train', hears)
  ids = stage.sampler.stage.flatten_prefix({'mulan': arrays['mulan_tokens']})
  assert list(crop.prefix) == [*ids, *6 * [token_layout.MASK_ID]]


def test_tokens_of_other_models_are_refused(stage, tmp_path):
  other = dict(stage.saved.tokenizers, w2v_bert='another')
  write_tokens(tmp_path / 'a', token_layout.SavedLayout(stage.saved.layout, other), [4])
  with pytest.raises(errors.UserError, match='tokenizers.w2v_bert is .* another in'):
    semantic_crops.Crops.of_tokens(tmp_path / 'a', 'train', stage)
  # another codec is no matter, nor is a level of the music tokens that the stage does not read
  more = dataclasses.replace(
      stage.saved.layout, coarse_levels=1,
      mulan=dataclasses.replace(stage.saved.layout.mulan, num_levels=4))
  codec = dict(stage.saved.tokenizers, soundstream='another')
  stage.check_reads(token_layout.SavedLayout(more, codec), 'b')
  fewer = dataclasses.replace(more, mulan=dataclasses.replace(more.mulan, num_levels=1))
  with pytest.raises(errors.UserError, match='mulan.num_levels is 3 .* 1 in b'):
    stage.check_reads(token_layout.SavedLayout(fewer, codec), 'b')
  with pytest.raises(errors.UserError, match='holds tokens records .* wanted waveforms'):
    semantic_crops.Crops.of_waveforms(tmp_path / 'a', 'train', stage)


def test_a_damaged_record_is_one_error(stage, tmp_path):
  write_tokens(tmp_path / 'a', stage.saved, [4, 4])
  shard = tmp_path / 'a' / records.shard_name('train', 0, 1)
  shard.write_bytes(shard.read_bytes()[:-3])
  with pytest.raises(errors.UserError, match='is damaged'):
    list(semantic_crops.Crops.of_tokens(tmp_path / 'a', 'train', stage))


def test_crops_of_waveforms_are_what_the_tokenizers_hear(stage, tokenizer, tmp_path):
  rng = np.random.default_rng(6)
  waveform = (0.2 * rng.normal(size=4 * 24_000)).clip(-1, 1).astype(np.float32)
  records.write_shard(tmp_path / records.shard_name('test', 0, 1), [
      records.waveform_record('a', waveform, piece='song'),
      records.waveform_record('short', waveform[:9])])
  records.write_info(tmp_path, {'kind': 'waveforms', 'longest_seconds': 4.0})
  crop, = semantic_crops.Crops.of_waveforms(tmp_path, 'test', stage, batch_size=1)
  record, _ = records.read_waveforms(tmp_path, 'test')
  tokens, = tokenizer.tokenize([record['waveform']])
  layout = stage.sampler.stage
  assert crop.piece == 'song'
  np.testing.assert_array_equal(crop.target, layout.flatten_stream(
      layout.target, tokens['semantic_tokens'][:, None]))
  np.testing.assert_array_equal(
      crop.prefix, layout.flatten_prefix({'mulan': tokens['mulan_tokens']}))


def test_the_tool_from_flags_to_files(tmp_path, monkeypatch, capsys):
  """With the shipped models, on random tokens."""
  spec = importlib.util.spec_from_file_location('tool', TOOL)
  tool = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(tool)
  saved = token_layout.read_layout(generate.TINY / 'semantic')
  write_tokens(tmp_path / 'tokens', saved, lengths=(10, 11, 2, 12))

  def run(*more):
    monkeypatch.setattr(sys, 'argv', [
        'tool', f'--tokens={tmp_path}/tokens', '--new_tokens=16', '--batch_size=3', *more])
    tool.main()

  run('--prompt_tokens=5,0', f'--json={tmp_path}/a.json', f'--plot={tmp_path}/a.png')
  said = capsys.readouterr()
  assert said.out.startswith('3 examples; 16 tokens') and 'left out: 1 records' in said.err
  stored = json.loads((tmp_path / 'a.json').read_text())
  assert [row['prompt_tokens'] for row in stored['rows']] == [0, 5]
  assert [row['exact'] for row in stored['rows']] == [0, 0]  # nobody knows random tokens
  assert stored['num_permuted'] == 2 * 3 * 2 and stored['mean_distance'] > 0
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
  with pytest.raises(errors.UserError, match='is a directory'):
    run(f'--plot={tmp_path}')
