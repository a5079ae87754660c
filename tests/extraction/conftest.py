"""What the tests of extraction share: tiny models, a folder of sound, and its undisturbed run."""

import pathlib
import sys

import numpy as np
import pytest
import soundfile
import tiny_tokenizers

from musiclm_jax.extraction import extract, shards

TOOL = pathlib.Path(__file__).parents[2] / 'tools' / 'extract_tokens.py'
SETTINGS = {'clip_seconds': 2, 'semantic_window_seconds': 2, 'batch_size': 1, 'num_shards': 3,
            'test_fraction': 0.2}


@pytest.fixture(scope='session')
def models(tmp_path_factory):
  path = tmp_path_factory.mktemp('models')
  tiny_tokenizers.export(path)
  return str(path)


@pytest.fixture(scope='session')
def noise():
  """Returns a function: float32[S] of some seconds at a rate."""
  def draw(seconds, seed=0, rate=24_000):
    shape = round(seconds * rate)
    return 0.2 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

  return draw


@pytest.fixture(scope='session')
def folder(tmp_path_factory, noise):
  """Returns a folder of nine readable files of 1 to 5 s, one that is not, and one of text."""
  path = tmp_path_factory.mktemp('music')
  for i in range(9):
    (path / f'album {i % 2}').mkdir(exist_ok=True)
    soundfile.write(path / f'album {i % 2}' / f'{i} ü.wav', noise(1.1 + i / 2, i), 24_000)
  (path / 'broken.mp3').write_bytes(b'no music')
  (path / 'cover.txt').write_bytes(b'no music either')
  return str(path)


@pytest.fixture(scope='session')
def make_job(models):
  """Returns a function of input, output and changed settings: a Job."""
  return lambda source, output, **changes: shards.Job(
      input=str(source), models=models, output=str(output), **(SETTINGS | changes))


@pytest.fixture(scope='session')
def command():
  """Returns a function of a job and further flags: the tool's command line."""
  names = ('input', 'models', 'output', *SETTINGS)
  return lambda job, *flags: [sys.executable, str(TOOL),
                              *(f'--{name}={getattr(job, name)}' for name in names), *flags]


@pytest.fixture(scope='session')
def contents():
  """Returns a function: {name: bytes} of all files below a folder."""
  return lambda path: {file.relative_to(path).as_posix(): file.read_bytes()
                       for file in sorted(pathlib.Path(path).rglob('*')) if file.is_file()}


@pytest.fixture(scope='session')
def whole(folder, make_job, contents, tmp_path_factory):
  """Returns {name: bytes} of an undisturbed run over `folder`."""
  output = tmp_path_factory.mktemp('whole') / 'tokens'
  extract.extract(make_job(folder, output), progress=False)
  return contents(output)
