"""What runs cost on TPUs. Through the compiler only with `pytest -m tpu_compile` and that extra."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types

import pytest

from musiclm_jax import compile_check, compile_reports, errors, program_costs

ROOT = pathlib.Path(__file__).resolve().parents[1]
GIB = 2**30


def tpu_compile(test):
  skip = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
  return pytest.mark.tpu_compile(skip(test))


def check(*flags):
  return subprocess.run(
      [sys.executable, str(ROOT / 'tools' / 'compile_check.py'), *flags], cwd=ROOT,
      env=dict(os.environ), capture_output=True, text=True, timeout=900)


@tpu_compile
def test_a_tiny_run_compiles_and_its_costs_are_those_of_theory(tmp_path):
  done = check(
      '--gin_file=gin/runs/semantic_tiny.gin', '--topology=v5e:2x2', f'--json={tmp_path}/a')
  assert not done.returncode, done.stderr
  report = json.loads((tmp_path / 'a').read_text())
  params, tokens = report['num_params'], 16 * 250
  assert report['num_chips'] == 4 and report['mesh'] == {'data': 4, 'fsdp': 1, 'model': 1}
  assert 6 * params * tokens < report['model_flops'] < 9 * params * tokens
  count, sent = report['collectives']['all-reduce']
  assert sent == pytest.approx(2 * 3 / 4 * 4 * params, rel=0.02)  # float32 gradients around a ring
  assert sent == pytest.approx(report['needed']['all-reduce'], rel=0.02)
  assert report['hbm']['total'] < report['hbm_limit'] == 15.75 * GIB
  assert 'HBM per chip' in done.stdout


@tpu_compile
@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5p:2x2x1', 'v6e:2x2'])
def test_split_parameters_are_gathered_and_scattered_as_theory_says(topology, tmp_path):
  done = check('--gin_file=gin/runs/semantic_tiny.gin', '--gin.MESH_SHAPE=(2,2,1)',
               f'--topology={topology}', f'--json={tmp_path}/a')
  assert not done.returncode, done.stderr
  report = json.loads((tmp_path / 'a').read_text())
  assert report['num_chips'] == 4 and report['needed']['all-gather'] > 0
  assert 0.5 < report['gather_ratio'] < 2


@tpu_compile
def test_a_run_that_does_not_fit_says_by_how_much():
  done = check('--gin_file=gin/runs/semantic_tiny.gin', '--topology=v5e:2x2',
               '--gin.BATCH_SIZE=262144')
  assert done.returncode == 1 and 'v5e:2x2, batch 262144: out of memory: needs' in done.stderr
  assert done.stderr.strip().count('\n') == 0


@tpu_compile
def test_decoding_holds_a_cache_and_reads_it_for_every_token(tmp_path):
  done = check('--gin_file=gin/runs/semantic_tiny.gin', '--topology=v5e:2x2', '--decode',
               f'--json={tmp_path}/a')
  assert not done.returncode, done.stderr
  report = json.loads((tmp_path / 'a').read_text())
  assert report['token_bytes']['cache'] == report['hbm']['cache'] > 0
  matrices = report['token_bytes']['parameters'] // 2  # bfloat16, whole on each chip
  assert 0.8 * report['num_params'] < matrices < report['num_params']
  assert report['token_flops'] > 2 * 16 * 0.99 * matrices
  assert 0 < report['tokens_per_second'] <= 16 * 819e9 / (2 * matrices)


@tpu_compile
def test_a_shape_that_the_chip_has_not_is_named():
  done = check('--gin_file=gin/runs/semantic_tiny.gin', '--topology=v5e:3x5')
  assert done.returncode and "topology 'v5e:3x5'" in done.stderr


@pytest.mark.parametrize('message, needed, limit', [
    ('RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory '
     'required for HLO temporaries (2.63T) exceeds available HBM (15.75G). HLO module: jit_f.\nSee',
     2.63 * 1024 + 3, 15.75),
    ('RESOURCE_EXHAUSTED: Used 32.00G of 30.75G hbm. Exceeded hbm capacity by 1.25G.', 32, 30.75),
    ('RESOURCE_EXHAUSTED: Used 512.00M of 256.0M hbm.', 0.5, 0.25)])
def test_the_compilers_words_become_bytes_and_parts(message, needed, limit):
  error = compile_check.out_of_memory(message, 'v5e:4x4', {'parameters': GIB, 'optimizer': 2 * GIB})
  assert error.needed == pytest.approx(needed * GIB) and error.limit == limit * GIB
  assert error.state == 3 * GIB
  assert f'{needed - limit:.2f} GiB too much (parameters 1.00, optimizer 2.00' in str(error)
  assert '\n' not in str(error)


def test_a_message_without_sizes_is_shown():
  error = compile_check.out_of_memory('RESOURCE_EXHAUSTED: no room\nstack', 'v5e:4x4', {})
  assert error.needed is None
  assert str(error) == 'v5e:4x4: out of memory: RESOURCE_EXHAUSTED: no room'


@pytest.mark.parametrize('start, largest, multiple', [
    (16, 8274, 4), (262144, 8274, 4), (16, 16, 16), (256, 40, 16), (1, 1, 1), (5, 100, 16)])
@pytest.mark.parametrize('saves', [1.0, 0.7])  # of the memory, when the compiler tries hard
def test_the_largest_batch_is_found_in_few_compilations(start, largest, multiple, saves):
  limit, state = 16.0 * GIB, GIB
  of_one = (limit / saves - state) / largest

  def compiles(batch_size):
    used = state + of_one * batch_size
    if used * saves > limit * 1.0001:
      raise compile_check.OutOfMemory('too large', used, limit, state)
    used = min(used, max(0.95 * limit, used * saves))
    return types.SimpleNamespace(
        batch_size=batch_size, hbm={'total': used, 'activations': used - state}, hbm_limit=limit)

  report, tried = compile_check.largest_batch(compiles, start, multiple)
  assert report.batch_size % multiple == 0 and largest - report.batch_size < max(
      multiple, largest / 7)
  assert report.batch_size <= largest and set(tried) >= {report.batch_size}
  assert len(tried) <= 7


def test_a_run_whose_smallest_batch_does_not_fit_fails():
  def compiles(batch_size):
    raise compile_check.OutOfMemory(f'batch {batch_size}', 40.0 * GIB * batch_size, 16.0 * GIB, GIB)

  with pytest.raises(compile_check.OutOfMemory, match='batch 16$'):
    compile_check.largest_batch(compiles, 64, 16)


REPORT = compile_reports.TrainReport(
    topology='v5e:4x4', num_chips=16, mesh={'data': 1, 'fsdp': 16, 'model': 1}, batch_size=64,
    microbatches=1, num_params=10, hbm={'parameters': 1, 'total': 3 * GIB}, hbm_limit=15.75 * GIB,
    model_flops=4 * 10**12, program_flops=5 * 10**12,
    collectives={'all-gather': program_costs.Collectives(3, 90.0),
                 'collective-permute': program_costs.Collectives(4, 30.0),
                 'all-reduce': program_costs.Collectives(1, 500.0)},
    dearest_collectives={'all-gather': program_costs.Collectives(7, 3.0 * GIB)},
    needed={'all-gather': 80.0, 'reduce-scatter': 20.0, 'all-reduce': 400.0},
    seconds={'compute': 0.01, 'memory': 0.002, 'network': 0.02}, compile_seconds=1.0)


def test_permutes_stand_in_for_gathers_and_all_reduces_do_not():
  assert REPORT.gather_ratio == pytest.approx(1.2)
  nothing = {'all-gather': 0.0, 'reduce-scatter': 0.0, 'all-reduce': 400.0}
  whole = dataclasses.replace(REPORT, needed=nothing)
  assert whole.gather_ratio is None and 'times that' not in whole.describe()


def test_what_only_some_steps_send_is_told_apart():
  assert 'all-gather 0 MiB in 3, all-reduce 0 MiB in 1, collective-permute 0 MiB in 4; by the ' \
      'dearest branches: all-gather 3,072 MiB in 7' in REPORT.describe()
  same = dataclasses.replace(REPORT, dearest_collectives=REPORT.collectives)
  assert 'dearest' not in same.describe()


def test_the_table_marks_batches_that_are_not_the_runs_own(tmp_path):
  for name, wanted, parts in (('fine', 64, 2), ('coarse', 256, 1)):
    found = REPORT.as_json() | {
        'run': name, 'wanted_batch_size': wanted, 'microbatches': parts}
    (tmp_path / f'{name}.json').write_text(json.dumps(found))
  (tmp_path / 'decode.json').write_text('{"tokens_per_second": 1}')
  done = check(f'--table={tmp_path}')
  assert not done.returncode, done.stderr
  assert done.stdout.splitlines()[2:] == [
      '| `coarse` | v5e:4x4 | 1×16×1 | 64 (of 256) | 3.0 of 15.8 | 1.25 | 10.0 | 20.0 |',
      '| `fine` | v5e:4x4 | 1×16×1 | 64 in 2 parts | 3.0 of 15.8 | 1.25 | 10.0 | 20.0 |']


def test_a_table_of_something_else_is_one_line(tmp_path):
  done = check(f'--table={tmp_path}')
  assert done.returncode == 1 and 'holds no .json file' in done.stderr
  (tmp_path / 'a.json').write_text('{"model_flops": 1, "run": [], "topology": 1}')
  done = check(f'--table={tmp_path}')
  assert done.returncode == 1 and done.stderr.count('\n') == 1, done.stderr
  with pytest.raises(errors.UserError, match='not a report'):
    compile_reports.table([{'run': 'a', 'topology': 'b', 'batch_size': 1}])
