"""tools/bench.py beside transformers: a decoder of our size, and as many tokens of it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.parity
pytest.importorskip('torch')
pytest.importorskip('transformers')

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_both_decode_in_turn(tmp_path):
  done = subprocess.run(
      [sys.executable, str(ROOT / 'tools' / 'bench.py'), 'decode', '--hugging_face',
       '--gin_file=gin/runs/semantic_tiny.gin', '--gin.transformer.DecoderConfig.num_layers=2',
       '--batch_sizes=2', '--tokens=8', '--repeats=2', f'--json={tmp_path}/a'], cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True, timeout=300)
  assert not done.returncode, done.stderr
  [found] = json.loads((tmp_path / 'a').read_text())['results']
  # A gated feed-forward, rotary positions, tied tables, norms that only scale: parameter by parameter.
  assert found['their_model']['num_params'] == found['our_model']['num_params']
  assert len(found['ratios']) == 2 and min(found['ours'] + found['theirs']) > 0
