"""The layers of CONTRIBUTING.md: a module imports lower layers, and siblings in its own folder."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYERS = {
    'musiclm_jax.errors': 0, 'musiclm_jax.cli': 0, 'musiclm_jax.token_layout': 0,
    'musiclm_jax.audio': 0, 'musiclm_jax.bitstream': 0, 'musiclm_jax.text': 0,
    'musiclm_jax.musiccaps': 0,
    'musiclm_jax.tpu_chips': 0, 'musiclm_jax.queued_resources': 0, 'musiclm_jax.tpu_workers': 0,
    'musiclm_jax.models': 1,
    'musiclm_jax.objectives': 2, 'musiclm_jax.sampling': 2, 'musiclm_jax.data': 2,
    'musiclm_jax.partitioning': 2, 'musiclm_jax.optimizers': 2, 'musiclm_jax.train_state': 2,
    'musiclm_jax.program_costs': 2, 'musiclm_jax.multi_host': 2,
    'musiclm_jax.music_tokens': 3, 'musiclm_jax.feature_stream': 3,
    'musiclm_jax.checkpoints': 3, 'musiclm_jax.training_checkpoints': 3,
    'musiclm_jax.metric_writers': 3,
    'musiclm_jax.compile_reports': 3, 'musiclm_jax.run_files': 3, 'musiclm_jax.codec': 3, 'musiclm_jax.train_step': 3,
    'musiclm_jax.audio_tokenizer': 3, 'musiclm_jax.global_batches': 3, 'musiclm_jax.generation': 3,
    'musiclm_jax.train': 4, 'musiclm_jax.fit_quantizers': 4,
    'musiclm_jax.fit_mapper': 4,
    'musiclm_jax.prepare_audio': 4, 'musiclm_jax.generate': 4, 'musiclm_jax.corpus': 4,
    'musiclm_jax.gin_utils': 4, 'musiclm_jax.pretrained': 4, 'musiclm_jax.launch_tpu': 4,
    'tasks': 5, 'musiclm_jax.evaluation': 5, 'musiclm_jax.benchmarks': 5,
    'musiclm_jax.compile_check': 5, 'musiclm_jax.extraction': 5, 'musiclm_jax.generation_jobs': 5,
    'musiclm_jax.listening_test': 5, 'musiclm_jax.corpus_validation': 6,
}
FRIENDLY = (0, 2, 3)  # layers whose modules may import each other; elsewhere only one's own folder
FORBIDDEN = {  # layer -> third-party modules that must not be imported at its top level
    0: {'jax', 'flax', 'tensorflow', 'seqio', 'gin', 'librosa'},
    1: {'tensorflow', 'seqio', 'gin', 'librosa', 'optax', 'orbax'},
    2: {'gin', 'librosa', 'orbax'},
    3: {'tensorflow', 'seqio', 'gin', 'librosa'},
    4: {'tensorflow', 'seqio', 'librosa'},
}


def _modules():
  for folder in ('musiclm_jax', 'tasks'):
    for path in sorted((ROOT / folder).rglob('*.py')):
      name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
      yield name.removesuffix('.__init__'), path


def _owner(module: str) -> str | None:
  parts = module.split('.')
  for length in range(len(parts), 0, -1):
    if '.'.join(parts[:length]) in LAYERS:
      return '.'.join(parts[:length])
  return None


def _imports(path: pathlib.Path, top_level_only: bool) -> list[str]:
  tree = ast.parse(path.read_text(encoding='utf-8'))
  nodes = tree.body if top_level_only else ast.walk(tree)
  found = []
  for node in nodes:
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      found += [f'{node.module}.{alias.name}' for alias in node.names]
  return found


@pytest.mark.parametrize('module, path', list(_modules()), ids=lambda value: str(value)[-40:])
def test_imports_point_downwards(module, path):
  owner = _owner(module)
  if module == 'musiclm_jax':
    assert not _imports(path, top_level_only=False)
    return
  assert owner is not None, f'{module} has no layer: add it to LAYERS'
  for name in _imports(path, top_level_only=False):
    other = _owner(name)
    if other is None or other == owner:
      continue
    same_layer = LAYERS[other] == LAYERS[owner]
    assert LAYERS[other] < LAYERS[owner] or (same_layer and LAYERS[owner] in FRIENDLY), (
        f'{module} (layer {LAYERS[owner]}) imports {name} (layer {LAYERS[other]})')


@pytest.mark.parametrize('module, path', list(_modules()), ids=lambda value: str(value)[-40:])
def test_heavy_libraries_stay_in_their_layers(module, path):
  owner = _owner(module)
  if owner in (None, 'musiclm_jax.data', 'tasks'):
    return
  forbidden = FORBIDDEN.get(LAYERS[owner], set()) - ({'gin'} if owner.endswith('gin_utils') else set())
  roots = {name.split('.')[0] for name in _imports(path, top_level_only=True)}
  assert not roots & forbidden, f'{module} imports {sorted(roots & forbidden)} at its top level'


def test_only_gin_utils_imports_gin():
  users = [module for module, path in _modules()
           if 'gin' in {name.split('.')[0] for name in _imports(path, top_level_only=False)}]
  assert users == ['musiclm_jax.gin_utils']


def test_gin_folder_holds_no_python():
  assert not list((ROOT / 'gin').rglob('*.py')), 'a module here would shadow the gin-config package'
