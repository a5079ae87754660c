"""Every file in gin/runs parses and builds its objective and optimizer; sizes without memory.

Base models are only measured (jax.eval_shape): no array of theirs is ever made.
"""

import math
import pathlib

import jax
import pytest

from musiclm_jax import gin_utils, partitioning, train, train_state

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUNS = sorted((ROOT / 'gin' / 'runs').glob('*.gin'))
TOPOLOGIES = sorted((ROOT / 'gin' / 'topologies').glob('*.gin'))
# Run -> parameters in millions, as README.md states them.  MusicLM: 430M a stage; w2v-BERT XL: 0.6B.
SIZES = {
  'soundstream_tiny': 1.5, 'soundstream_tiny_decoder': 1.5,
  # A generator and its discriminators: of 0.5M and, in the others, 22.5M.
  'soundstream_tiny_adversarial': 2.0, 'soundstream_base': 33.0, 'soundstream_paper': 33.0,
  'w2v_bert_tiny': 1.8, 'w2v_bert_base': 149, 'w2v_bert_xl': 589,
  'mulan_tiny': 1.9, 'mulan_base': 133, 'mulan_ast': 195,
  'melody_tiny': 0.4, 'melody_base': 22.4,
  'semantic_tiny': 2.9, 'semantic_base': 430,
  'coarse_tiny': 4.0, 'coarse_base': 439,
  'fine_tiny': 3.1, 'fine_base': 428,
  'semantic_tiny_gpu': 2.9, 'coarse_tiny_gpu': 4.0, 'fine_tiny_gpu': 3.1,
}  # fmt: skip
# What a user gives on the command line; data is not read here.
DATA = tuple(f'{name}=unused' for name in (
  'WORKDIR', 'DATA_DIR', 'TOKENS_DIR', 'NOISE_DIR', 'INIT_FROM'
))  # fmt: skip


def load(run, *more, vocabulary):
  gin_utils.load([str(run), *map(str, more)], [*DATA, f'VOCAB_FILE={vocabulary}'])
  return gin_utils.arguments(
    train.train, ('objective', 'optimizer', 'batch_size', 'mesh_shape', 'total_steps')
  )


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'abcdefghijklmnopqrstuvwxyz']
  path.write_text('\n'.join(words) + '\n')
  return path


@pytest.mark.parametrize('run', RUNS, ids=lambda path: path.stem)
def test_run_parses_and_builds(run, vocabulary):
  arguments = load(run, vocabulary=vocabulary)
  objective, batch_size = arguments['objective'], arguments['batch_size']
  assert arguments['total_steps'] > 0
  shapes = objective.input_shapes(batch_size)
  assert all(shape.shape[0] == batch_size for shape in shapes.values())
  mesh = partitioning.make_mesh((1, 1, 1), jax.devices()[:1])
  state = train_state.shapes(objective, arguments['optimizer'], batch_size, mesh)
  millions = train_state.num_params(state) / 1e6
  assert round(millions, 1 if millions < 100 else None) == SIZES[run.stem]
  with partitioning.activate(mesh):
    loss, (model_state, metrics) = jax.eval_shape(
      objective.loss_fn, state.params, state.model_state, shapes, jax.random.key(0), state.step
    )
    evaluated = jax.eval_shape(objective.eval_fn, state.params, state.model_state, shapes)
  assert loss.shape == ()
  assert all(value.shape == () for value in (*metrics.values(), *evaluated.values()))
  assert jax.tree.structure(model_state) == jax.tree.structure(state.model_state)


@pytest.mark.parametrize('run', RUNS, ids=lambda path: path.stem)
def test_run_header_has_its_command(run):
  header = [line for line in run.read_text().splitlines() if line.startswith('#')]
  assert any(f'--gin_file=gin/runs/{run.name}' in line for line in header)


@pytest.mark.parametrize('stages', [('balanced',), ('denoising',), ('denoising', 'balanced')])
def test_stages_that_follow_an_adversarial_run(stages, vocabulary):
  files = [ROOT / 'gin' / 'stages' / f'{name}.gin' for name in stages]
  files += [str(ROOT / 'gin' / 'topologies' / 'cpu.gin')]
  run = ROOT / 'gin' / 'runs' / 'soundstream_tiny_adversarial.gin'
  objective = load(run, *files, vocabulary=vocabulary)['objective']
  assert objective.balance_gradients == ('balanced' in stages)
  assert ('noise' in objective.input_shapes(1)) == ('denoising' in stages)


@pytest.mark.parametrize('topology', TOPOLOGIES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
  'run', [run for run in RUNS if 'base' in run.stem], ids=lambda path: path.stem
)
def test_topology_changes_the_mesh_only(run, topology, vocabulary):
  plain = load(run, vocabulary=vocabulary)
  changed = load(run, topology, vocabulary=vocabulary)
  for arguments in (plain, changed):
    arguments.pop('optimizer')  # closures, never equal
  sizes = [size for size in changed.pop('mesh_shape')[:2] if size != -1]
  plain.pop('mesh_shape')
  assert plain == changed
  devices = math.prod(sizes)
  # A batch is split over all devices, or the run is too small for so many.
  assert changed['batch_size'] % devices == 0 or changed['batch_size'] < devices


@pytest.mark.parametrize('size, most', [('tiny', 6), ('base', 12)])
def test_levels_of_mulan_that_the_stages_use_are_a_macro(size, most):
  run = str(ROOT / 'gin' / 'runs' / f'semantic_{size}.gin')
  layouts = []
  for given in ((), ('MULAN_LEVELS=2',)):
    gin_utils.load([run], [*DATA, *given])
    layouts.append(gin_utils.arguments(train.train, ('objective',))['objective'].layout)
  assert [layout.mulan.num_levels for layout in layouts] == [most, 2]
  assert layouts[0].semantic == layouts[1].semantic
