"""tools/train.py and tools/export.py as a user runs them: help, one-line errors, train, export."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from musiclm_jax import checkpoints, training_checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A whole run in one gin file: the real quantizer-free decoder on counting, data made on the spot.
MODULE = """
import dataclasses, os, pathlib
import jax
import numpy as np
from musiclm_jax.models import transformer
from musiclm_jax.objectives import language_model
from musiclm_jax import token_layout

def layout():
  return token_layout.TokenLayout(
      mulan=token_layout.TokenStream('mulan', 2, 8, 0),
      semantic=token_layout.TokenStream('semantic', 1, 16, 25),
      acoustic=token_layout.TokenStream('acoustic', 4, 16, 50), coarse_levels=2)

class Counting:
  def __init__(self, objective_shapes, batch_size):
    self.shapes, self.batch_size, self.position = objective_shapes, batch_size, 0
  def __next__(self):
    self.position += 1
    batch = {}
    for name, shape in self.shapes(self.batch_size).items():
      batch[name] = np.ones(shape.shape, shape.dtype) * (8 if shape.dtype == np.int32 else 1)
    return batch
  def save(self, path):
    pathlib.Path(path).write_text(str(self.position))
  def restore(self, path):
    self.position = int(pathlib.Path(path).read_text())

@dataclasses.dataclass(frozen=True)
class Dataset:
  objective: object
  def iterator(self, batch_size, seed, shard_index, num_shards):
    return Counting(self.objective.input_shapes, batch_size)
"""
RUN = """
from __gin__ import dynamic_registration
import tool_test_module as m
from musiclm_jax.models import transformer
from musiclm_jax.objectives import language_model
include 'gin/train.gin'

OBJECTIVE = @language_model.LanguageModelObjective()
DATASET = @m.Dataset()
m.Dataset.objective = %OBJECTIVE
language_model.LanguageModelObjective:
  config = @transformer.DecoderConfig()
  layout = @m.layout()
  stage = 'semantic'
  seconds = 1.0
transformer.DecoderConfig:
  num_layers = 1
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 32
TOTAL_STEPS = 2
BATCH_SIZE = 2
LEARNING_RATE = 1e-3
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tools')
  (folder / 'tool_test_module.py').write_text(MODULE)
  (folder / 'gin' / 'runs').mkdir(parents=True)
  (folder / 'gin' / 'train.gin').write_text((ROOT / 'gin' / 'train.gin').read_text())
  (folder / 'gin' / 'runs' / 'counting.gin').write_text(RUN)
  return folder


def tool(folder, name, *arguments, check=True):
  environment = dict(os.environ, PYTHONPATH=f'{ROOT}:{folder}', JAX_PLATFORMS='cpu')
  command = [sys.executable, str(ROOT / 'tools' / name), *arguments]
  done = subprocess.run(
    command, cwd=folder, env=environment, capture_output=True, text=True, check=False
  )
  assert not check or done.returncode == 0, done.stderr
  return done


def test_train_then_export_then_load_and_start_from_it(folder):
  """Also: the progress goes to stderr, nothing else is said, and config.gin is a run of its own."""
  run = ['--gin_file=gin/runs/counting.gin', '--gin.WORKDIR=run', '--gin.LOG_EVERY=1']
  dry = tool(folder, 'train.py', *run, '--dry_run')
  assert 'decoder_input_tokens: int32[2, ' in dry.stdout
  assert 'BATCH_SIZE = 2' in dry.stdout
  assert not (folder / 'run').exists()

  done = tool(folder, 'train.py', *run)
  lines = done.stderr.splitlines()
  assert lines[0].startswith('semantic: ') and 'step 0 of 2' in lines[0], done.stderr
  assert [line.split('  ')[0] for line in lines[1:3]] == ['step 1/2', 'step 2/2'], done.stderr
  assert len(lines) == 4 and lines[3].startswith('reading 2 batches took '), done.stderr
  assert done.stdout == ''

  workdir = folder / 'run'
  again = tool(folder, 'train.py', f'--gin_file={workdir}/config.gin', '--gin.TOTAL_STEPS=3')
  assert 'restored step 2' in again.stderr and 'step 3/3' in again.stderr

  output = folder / 'exported'
  done = tool(folder, 'export.py', f'--workdir={workdir}', f'--output={output}', '--dtype=float16')
  assert done.stderr.startswith('exported step 3') and done.stderr.count('\n') == 1, done.stderr
  model = checkpoints.load_model(output)
  assert done.stdout.strip() == f'{output}: step 3, sha256 {model.fingerprint}'
  assert (model.name, model.extra) == (
      'semantic', {'step': 3, 'seconds': 1.0, 'condition_dropout': 0.0})
  assert model.config.num_layers == 1
  step, variables = training_checkpoints.read_variables(workdir)
  assert step == 3
  jax.tree.map(
    lambda saved, loaded: np.testing.assert_array_equal(
      saved.astype(np.float16).astype(np.float32), loaded
    ),
    variables,
    model.variables,
  )
  first = tool(folder, 'export.py', f'--workdir={workdir}', f'--output={folder}/first', '--step=2')
  assert json.loads((folder / 'first' / 'config.json').read_text())['extra']['step'] == 2, first

  still = ['--gin.LEARNING_RATE=0.0', '--gin.TOTAL_STEPS=1', f'--gin.EXPORT_DIR={folder}/still']
  started = tool(
    folder, 'train.py', *run[:1], '--gin.WORKDIR=second', f'--gin.INIT_FROM={output}', *still
  )
  assert f'starting from the weights of {output}' in started.stderr
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoints.load_model(folder / 'still').variables, model.variables,
  )


RUN_FILE = '--gin_file=gin/runs/counting.gin'
BAD_INPUT = [
    ('train.py', ['--gin_file=gin/runs/countin.gin'],
     'countin.gin does not exist; there is gin/runs/counting.gin'),
    ('train.py', [RUN_FILE], 'macro WORKDIR not set: add --gin.WORKDIR='),
    ('train.py', [RUN_FILE, '--gin.TOTALSTEPS=2'],
     "unknown macro 'TOTALSTEPS': did you mean TOTAL_STEPS?"),
    ('train.py', [RUN_FILE, '--gin.WORKDIR=w', '--gin.MESH_SHAPE=(3,1,1)'],
     'mesh shape (3, 1, 1) over'),
    ('train.py', [RUN_FILE, '--gin.WORKDIR=w', '--gin.INIT_FROM=nowhere'],
     'nowhere does not exist, wanted a directory of an exported model'),
    ('export.py', ['--workdir=nowhere', '--output=x'],
     'nowhere is not the WORKDIR of a training run'),
]  # fmt: skip


@pytest.mark.parametrize('name, arguments, wanted', BAD_INPUT)
def test_bad_input_is_one_line_and_a_failure(folder, name, arguments, wanted):
  done = tool(folder, name, *arguments, check=False)
  assert done.returncode == 1
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
  assert wanted in done.stderr
