"""Benchmarks of tiny models: figures that agree with each other and with counts made by hand."""

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

from musiclm_jax import errors, optimizers, partitioning, token_layout, tpu_chips, train_state
from musiclm_jax.benchmarks import (
    decode_speed,
    devices,
    hugging_face_decode,
    input_speed,
    kernel_times,
    random_values,
    side_by_side,
    train_speed,
)
from musiclm_jax.models import transformer
from musiclm_jax.objectives import language_model

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYOUT = token_layout.TokenLayout(
    mulan=token_layout.TokenStream('mulan', 2, 16, 0),
    semantic=token_layout.TokenStream('semantic', 1, 16, 4),
    acoustic=token_layout.TokenStream('acoustic', 3, 16, 4), coarse_levels=2)
CONFIG = transformer.DecoderConfig(
    num_layers=2, emb_dim=16, num_heads=2, head_dim=4, mlp_dim=32, dropout_rate=0.0)
OBJECTIVE = language_model.LanguageModelObjective(CONFIG, LAYOUT, 'coarse', 2.0)
STAGE = OBJECTIVE.stage_layout  # P = 2 + 8, N = 16
BATCH, TOKENS = 3, 8
MATRICES = 2 * (4 * 16 * 8 + 3 * 16 * 32)  # elements: query, key, value, out; gated feed-forward


@pytest.fixture(scope='module')
def decoding():
  return decode_speed.Decoding(OBJECTIVE.config, STAGE, mesh_shape=(1, 1, 1))


def test_a_random_batch_has_the_shapes_and_ids_that_training_eats():
  batch = random_values.batch(OBJECTIVE, 5)
  shapes = OBJECTIVE.input_shapes(5)
  assert {name: (each.shape, each.dtype) for name, each in batch.items()} == {
      name: (each.shape, each.dtype) for name, each in shapes.items()}
  targets = batch['decoder_target_tokens']
  for position in range(STAGE.sequence_length):
    first, end = STAGE.legal_range(position)
    assert ((first <= targets[:, position]) & (targets[:, position] < end)).all()
  np.testing.assert_array_equal(batch['decoder_input_tokens'][:, 1:], targets[:, :-1])
  assert batch['decoder_loss_weights'].sum() == 5 * STAGE.target_length


def test_training_figures_agree_and_flops_are_those_of_the_matrices():
  speed = train_speed.measure(
      objective=OBJECTIVE, optimizer=optimizers.adamw(1e-2), batch_size=BATCH,
      mesh_shape=(1, 1, 1), steps=2, repeats=3, kernels=True)
  found = json.loads(json.dumps(speed.as_json()))
  assert found['kernels']['count'] == 3 and found['kernels']['kinds']['matrix product']['seconds'] > 0
  assert len(speed.seconds) == 3 and min(speed.seconds) > 0 and speed.compile_seconds > 0
  assert found['examples_per_second'] * speed.step_seconds == pytest.approx(BATCH)
  assert found['tokens_per_second'] * speed.step_seconds == pytest.approx(
      BATCH * STAGE.sequence_length)
  # By hand, forward: matrices, attention of all L x L pairs, one level's rows of the output table.
  length = STAGE.sequence_length
  forward = 2 * (length * MATRICES + 2 * 2 * length * length * 8 + STAGE.target_length * 16 * 16)
  assert speed.model_flops == 3 * BATCH * forward
  assert speed.program_flops <= speed.model_flops  # of ids no gradient is taken
  assert 0 < speed.loss < np.log(16)  # six steps on one batch of random codes: below chance
  mesh = partitioning.make_mesh((1, 1, 1))
  wanted = train_state.shapes(OBJECTIVE, optimizers.adamw(1e-2), BATCH, mesh)
  assert speed.num_params == train_state.num_params(wanted)
  assert speed.mfu is None and "device's peak is not known" in speed.describe()
  known = dataclasses.replace(speed, device=devices.Device('x', 4, 1e12, 1e12))
  assert known.mfu == pytest.approx(speed.model_flops / speed.step_seconds / 4e12)
  assert 'of the bf16 peak' in known.describe()


class Countdown:
  """Batches of zeros, each after some milliseconds; a position of ten bytes."""

  def iterator(self, batch_size, seed, shard_index, num_shards):
    assert (shard_index, num_shards) == (0, 1)
    self.read, self.rows = 0, batch_size
    return self

  def __next__(self):
    self.read += 1
    time.sleep(0.004)
    return {'x': np.zeros((self.rows, 5), np.float32)}

  def save(self, path):
    pathlib.Path(path).write_bytes(bytes(10))


def test_input_figures_agree():
  dataset = Countdown()
  speed = input_speed.measure(dataset, 3, batches=4, repeats=5)
  assert dataset.read == 1 + 3 + 4 * 5
  assert len(speed.seconds) == 5 and min(speed.seconds + [speed.first_seconds]) >= 0.004
  assert (speed.batch_bytes, speed.position_bytes, speed.ratio) == (3 * 5 * 4, 10, None)
  found = json.loads(json.dumps(speed.as_json()))
  assert found['examples_per_second'] == pytest.approx(3 * found['batches_per_second'])
  assert found['batches_per_second'] * speed.batch_seconds == pytest.approx(1)
  assert 'position in the data 0.0 MB' in speed.describe()
  step = train_speed.TrainSpeed(
      'x', devices.known('cpu', 1), {'data': 1}, 3, None, 1, 1, [0.5, 9.0, 0.25], 1.0, 1, 1, 0.0)
  known = dataclasses.replace(speed, seconds=[0.1], step=step)
  assert known.ratio == pytest.approx(5)
  assert 'gives 5.0 times what the train step takes' in known.describe()
  assert json.loads(json.dumps(known.as_json()))['step']['step_seconds'] == 0.5


def test_decoding_figures_agree(decoding):
  speed = decode_speed.measure(decoding, BATCH, TOKENS, repeats=3)
  found = json.loads(json.dumps(speed.as_json()))
  assert len(speed.seconds) == len(speed.prefill_seconds) == 3
  assert min(speed.seconds + speed.prefill_seconds) > 0
  assert speed.first_seconds > max(speed.seconds)  # it compiled
  assert speed.tokens_per_second * statistics.median(speed.seconds) == pytest.approx(BATCH * TOKENS)
  assert found['tokens_per_second_per_example'] * BATCH == pytest.approx(speed.tokens_per_second)
  assert speed.prefix == 1 + STAGE.prefix_length
  assert speed.bandwidth_share is None and 'bandwidth is not known' in speed.describe()
  known = dataclasses.replace(
      speed, device=devices.Device('x', 1, None, 1e9), seconds=[1.3], prefill_seconds=[0.1])
  assert known.token_seconds == pytest.approx(1.2 / (TOKENS - 2))
  assert known.bandwidth_share == pytest.approx(
      (speed.weight_bytes + speed.cache_bytes) / 1e9 / known.token_seconds)
  assert 'of the bandwidth' in known.describe()
  within_noise = dataclasses.replace(known, prefill_seconds=[2.0])
  assert within_noise.bandwidth_share is None and 'noise' in within_noise.describe()


def test_bytes_of_a_token_are_counted_by_hand(decoding):
  weights, cache = decoding.token_bytes(BATCH, TOKENS)
  assert weights == 4 * (MATRICES + 16 * 16)  # and one level's rows of the output table
  # With 2 (the first frame) to 7 ids drawn, the next looks at BOS, 10 of the prefix, and those.
  positions = [1 + 10 + drawn for drawn in range(2, TOKENS)]
  one = 4 * 2 * 2 * 2 * 4  # float32, keys and values, layers, heads, head_dim
  assert cache == pytest.approx(BATCH * one * np.mean(positions))


def test_int8_weights_are_a_quarter_and_a_scale_a_row():
  rows = 2 * (3 * 8 + 16 + 2 * 32 + 16)  # outputs of the matrices of both layers
  weights, _ = decode_speed.Decoding(
      OBJECTIVE.config, STAGE, 'int8', (1, 1, 1)).token_bytes(BATCH, TOKENS)
  assert weights == MATRICES + 4 * rows + 4 * 16 * 16


@pytest.mark.parametrize('tokens', [7, 2, 18])
def test_tokens_that_cannot_be_drawn_are_named(tokens):
  with pytest.raises(errors.UserError, match=f'tokens is {tokens}, wanted a multiple of the 2 lev'):
    decode_speed.check(OBJECTIVE, tokens)
  decode_speed.check(OBJECTIVE, TOKENS)


def test_known_devices_have_a_peak_and_others_none():
  assert devices.known('TPU v5 lite', 4) == devices.Device(
      'TPU v5 lite', 4, tpu_chips.CHIPS['v5e'].flops, tpu_chips.CHIPS['v5e'].hbm_bandwidth)
  assert devices.known('NVIDIA H200', 1).bandwidth > devices.known(
      'NVIDIA H100 80GB HBM3', 1).bandwidth
  assert devices.known('cpu', 1).flops is devices.known('NVIDIA H100 PCIe', 1).flops is None


# --- Side by side -----------------------------------------------------------------------------


def child(source):
  code = f'import sys; sys.path.insert(0, {str(ROOT)!r})\n{source}'
  return side_by_side.Child('a child', [sys.executable, '-c', code], {})


def test_our_process_decodes_when_asked_and_names_what_is_wrong():
  ours = side_by_side.Child('ours', [sys.executable, '-c', side_by_side._OURS], {}, ROOT)
  model = ours.ask(side_by_side.our_spec(OBJECTIVE, ''))
  assert model['num_params'] > MATRICES and model['dtype'] == 'weights float32, cache float32'
  request = {'batch_size': 1, 'tokens': TOKENS, 'temperature': 1.0, 'seed': 0}
  first, second = (ours.ask(request)['seconds'] for _ in range(2))
  assert first > second > 0
  with pytest.raises(errors.UserError, match="ours: KeyError: 'tokens'"):
    ours.ask({'batch_size': 1})
  assert ours.ask(request)['seconds'] > 0  # it lives on
  ours.close()


def test_what_a_library_prints_is_no_answer():
  serving = child('from musiclm_jax.benchmarks import hugging_face_decode as child\n'
                  'print_ = lambda request: (print("noise"), request)[1]\n'
                  'child.serve(lambda spec: (print_(spec), print_))')
  assert [serving.ask({'n': n}) for n in (1, 2)] == [{'n': 1}, {'n': 2}]
  serving.close()


@pytest.mark.parametrize('source, wanted', [
    ('sys.exit("no such model")', 'a child ended with code 1: no such model'),
    ('print("hello")', "a child answered 'hello', wanted JSON"),
    ('print([1])', r"a child: answered '\[1\]'"),
    ('input(); print(\'{"error": "too large"}\')', 'a child: too large'),
])
def test_a_process_that_does_not_answer_is_one_line(source, wanted):
  broken = child(source)
  with pytest.raises(errors.UserError, match=wanted) as caught:
    broken.ask({})
  assert '\n' not in str(caught.value)
  broken.close()


def test_a_python_that_is_not_there_is_named():
  with pytest.raises(errors.UserError, match='/none cannot be run: No such file'):
    side_by_side.Child('theirs', ['/none'], {})


def test_a_python_without_torch_names_the_extra():
  # -S -E: without site-packages there is no torch in any environment.
  theirs = side_by_side.Child(
      'theirs', [sys.executable, '-S', '-E', hugging_face_decode.__file__], {})
  with pytest.raises(errors.UserError, match=r'has no torch: pip install .*\[parity\]'):
    theirs.ask({})
  theirs.close()


def test_ratios_are_pair_by_pair():
  pairs = side_by_side.Pairs(2, 3, 10, 1.0, *[{
      'num_params': 1, 'dtype': 'a', 'device': 'cpu', 'versions': 'b'}] * 2,
      ours=[1.0, 2.0, 4.0], theirs=[3.0, 4.0, 20.0])
  found = pairs.as_json()
  assert pairs.ratios == [3, 2, 5] and found['ratio'] == 3 and found['ratio_of_fastest'] == 3
  assert found['our_tokens_per_second'] == 10 and found['their_tokens_per_second'] == 5
  assert 'theirs takes 3.00 (2.00 to 5.00) times as long' in pairs.describe()


# --- Kernels ----------------------------------------------------------------------------------


def test_kernels_of_a_decoded_token_add_up(decoding):
  speed = decode_speed.measure(decoding, BATCH, TOKENS, repeats=1, kernels=True)
  found = json.loads(json.dumps(speed.as_json()))['kernels']
  assert (found['unit'], found['count']) == ('token', TOKENS)
  assert 0 < found['busy_seconds'] and 0 < found['span_seconds'] < 60
  for name in ('kinds', 'kernels'):
    spent = [each['seconds'] for each in found[name].values()]
    assert sum(spent) == pytest.approx(found['busy_seconds'])
    assert spent == sorted(spent, reverse=True) and min(spent) >= 0
    assert min(each['launches'] for each in found[name].values()) > 0
  # Of each layer: query, key, value, scores, weighted values, out, gate, up, down.
  assert found['kinds']['matrix product']['launches'] > CONFIG.num_layers
  assert speed.kernels.describe() in speed.describe()
  assert 'matrix product' in speed.kernels.describe()


def test_an_outer_kernel_counts_without_those_that_run_in_it():
  """Two units: a loop from 0 to 100 with a product 10..40, in that a copy 20..25; then a product."""
  event = kernel_times.Event
  line = [event('while.3', 0, 100), event('dot.1', 10, 30), event('copy.2', 20, 5),
          event('dot.2_1', 100, 50)]
  apart = kernel_times.without_inner(line)
  assert sorted((each.name, each.spent) for each in apart) == [
      ('copy.2', 5), ('dot.1', 25), ('dot.2_1', 50), ('while.3', 70)]
  found = kernel_times.added_up(apart, 2, 'step')
  assert found.busy_seconds == pytest.approx(75e-9) and found.span_seconds == pytest.approx(75e-9)
  assert found.kernels['dot'] == (pytest.approx(75e-9 / 2), 1)
  assert list(found.kinds) == ['matrix product', 'other', 'copy']


@pytest.mark.parametrize('kernel, kind', [
    ('cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x64', 'attention'),
    ('void cudnn::fusion::compute_dot_do_o_specialized<true, 64>(v', 'attention'),
    ('nvjet_sm90_tst_256x96_64x4_1x2_h_bz_coopA_splitK_NTT', 'matrix product'),
    ('gemm_fusion_dot_49', 'matrix product'), ('loop_add_multiply_select_fusion', 'elementwise'),
    ('input_concatenate_fusion_3', 'elementwise'), ('input_reduce_fusion', 'reduction'),
    ('loop_dynamic_update_slice_fusion_48', 'cache or slice'), ('memcpy128', 'copy'),
    ('MemcpyD2H', 'copy'), ('Memset', 'memset'), ('reduce-scatter.2', 'collective'),
    ('ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgs)', 'collective'), ('while.5', 'other')])
def test_kinds_of_kernels(kernel, kind):
  assert kernel_times.kind_of(kernel) == kind


# --- The tool ---------------------------------------------------------------------------------


def test_the_tool_writes_what_it_prints(tmp_path):
  done = subprocess.run(
      [sys.executable, str(ROOT / 'tools' / 'bench.py'), 'decode', '--batch_sizes=1,2',
       '--gin_file=gin/runs/semantic_tiny.gin', '--tokens=4', '--repeats=1', '--kernels',
       '--gin.transformer.DecoderConfig.num_layers=1', f'--json={tmp_path}/a'], cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True, timeout=300)
  assert not done.returncode, done.stderr
  found = json.loads((tmp_path / 'a').read_text())
  assert (found['command'], found['run']) == ('decode', 'semantic_tiny')
  assert [each['batch_size'] for each in found['results']] == [1, 2]
  for each in found['results']:
    assert f'{each["tokens_per_second"]:,.1f} tokens/s' in done.stdout
    assert f'busy {1000 * each["kernels"]["busy_seconds"]:.3f} ms' in done.stdout
