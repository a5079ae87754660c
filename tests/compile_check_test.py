"""Runs through the TPU compiler; needs the extra tpu_compile: `pytest -m tpu_compile`."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.tpu_compile, pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='needs libtpu')]


def check(*flags):
  return subprocess.run(
      [sys.executable, str(ROOT / 'tools' / 'compile_check.py'), *flags], cwd=ROOT,
      env=dict(os.environ), capture_output=True, text=True, timeout=900)


def test_a_tiny_run_compiles_and_its_costs_are_those_of_theory(tmp_path):
  done = check('--gin_file=gin/runs/semantic_tiny.gin', '--topology=v5e:2x2', f'--json={tmp_path}/a')
  assert not done.returncode, done.stderr
  report = json.loads((tmp_path / 'a').read_text())
  params, tokens = report['num_params'], 16 * 250
  assert report['num_chips'] == 4 and report['mesh'] == {'data': 4, 'fsdp': 1, 'model': 1}
  assert 6 * params * tokens < report['model_flops'] < 9 * params * tokens
  count, sent = report['collectives']['all-reduce']
  assert sent == pytest.approx(2 * 3 / 4 * 4 * params, rel=0.02)  # float32 gradients around a ring
  assert report['hbm']['total'] < report['hbm_limit'] == 16 * 2**30
  assert 'HBM per chip' in done.stdout


def test_a_run_that_does_not_fit_says_by_how_much():
  done = check('--gin_file=gin/runs/semantic_tiny.gin', '--topology=v5e:2x2',
               '--gin.BATCH_SIZE=262144')
  assert done.returncode and 'v5e:2x2: out of memory: needs' in done.stderr
  assert done.stderr.strip().count('\n') == 0


def test_a_shape_that_the_chip_has_not_is_named():
  done = check('--gin_file=gin/runs/semantic_tiny.gin', '--topology=v5e:3x5')
  assert done.returncode and "topology 'v5e:3x5'" in done.stderr
