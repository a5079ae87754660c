"""Gin files and bindings: what they build, and one line for everything that can be wrong."""

import pathlib
import sys

import pytest

from musiclm_jax import errors, gin_utils

MODULE = """
from musiclm_jax import errors

class Net:
  def __init__(self, depth=1, rate=None):
    self.depth, self.rate = depth, rate

def schedule(peak, warmup=10):
  return (peak, warmup)

def picky(depth):
  raise errors.UserError(f'depth {depth} is too much')

def broken(depth):
  raise ValueError('a bug')

def fit(workdir, objective, total_steps=3):
  raise AssertionError('only its arguments are wanted')
"""
TRAIN = """
from __gin__ import dynamic_registration
import gin_utils_test_module as m
WORKDIR = %gin.REQUIRED
OBJECTIVE = %gin.REQUIRED
DATA_DIR = %gin.REQUIRED
m.fit:
  workdir = %WORKDIR
  objective = %OBJECTIVE
m.Net.rate = @m.schedule()
m.schedule.peak = 3
"""
RUN = """from __gin__ import dynamic_registration
import gin_utils_test_module as m
include 'gin/train.gin'
"""


@pytest.fixture(scope='module')
def module(tmp_path_factory):
  folder = tmp_path_factory.mktemp('module')
  (folder / 'gin_utils_test_module.py').write_text(MODULE)
  sys.path.insert(0, str(folder))
  import gin_utils_test_module

  yield gin_utils_test_module
  sys.path.remove(str(folder))


@pytest.fixture
def write(tmp_path, monkeypatch, module):
  monkeypatch.chdir(tmp_path)
  runs = tmp_path / 'gin' / 'runs'
  runs.mkdir(parents=True)
  (tmp_path / 'gin' / 'train.gin').write_text(TRAIN)

  def write(text, name='net_tiny'):
    (runs / f'{name}.gin').write_text(RUN + text)
    return f'gin/runs/{name}.gin'

  return write


GOOD = 'OBJECTIVE = @m.Net()\nm.Net.depth = 5\n'


def test_files_and_bindings_become_arguments(write, module):
  gin_utils.load([write(GOOD)], ["WORKDIR='/tmp/x'", 'fit.total_steps=7'])
  found = gin_utils.arguments(module.fit)
  assert (found['workdir'], found['total_steps']) == ('/tmp/x', 7)
  assert (found['objective'].depth, found['objective'].rate) == (5, (3, 10))


def test_includes_are_found_from_any_directory(write, module, monkeypatch, tmp_path_factory):
  run = pathlib.Path(write(GOOD)).resolve()
  monkeypatch.chdir(tmp_path_factory.mktemp('elsewhere'))
  gin_utils.load([str(run)], ['WORKDIR="x"'])
  assert gin_utils.arguments(module.fit)['objective'].depth == 5


@pytest.mark.parametrize('value, wanted', [
    ('gs://bucket/x', 'gs://bucket/x'), ('/a/b', '/a/b'), ('"/a b"', '/a b'), ('near', 'near'),
    ('3', 3), ('1_000', 1000), ('None', None), ('(1, 2)', (1, 2)), ('%DATA_DIR', 'data'),
])  # fmt: skip
def test_values_need_no_quotes(write, module, value, wanted):
  gin_utils.load([write(GOOD)], [f'WORKDIR={value}', 'DATA_DIR=data'])
  assert gin_utils.arguments(module.fit)['workdir'] == wanted


def test_a_second_load_starts_afresh(write, module):
  gin_utils.load([write(GOOD)], ['WORKDIR=x', 'fit.total_steps=7'])
  gin_utils.load([write(GOOD)], ['WORKDIR=x'])
  assert 'total_steps' not in gin_utils.arguments(module.fit)


def test_config_text_is_a_gin_file_of_its_own(write, module, tmp_path):
  gin_utils.load([write(GOOD)], ['WORKDIR=x'])
  (tmp_path / 'config.gin').write_text(gin_utils.config_text())
  text = gin_utils.config_text()
  gin_utils.load([str(tmp_path / 'config.gin')])
  assert gin_utils.config_text() == text
  assert gin_utils.arguments(module.fit)['objective'].depth == 5


def test_a_percent_sign_in_a_string_is_no_macro(write, module):
  gin_utils.load([write(GOOD)], ['WORKDIR=runs/50%off'])
  assert gin_utils.arguments(module.fit)['workdir'] == 'runs/50%off'


def test_a_file_that_includes_itself_and_one_that_is_no_text_are_named(write, tmp_path):
  path = write(GOOD + "include 'gin/loop.gin'\n")
  (tmp_path / 'gin' / 'loop.gin').write_text("include 'gin/loop.gin'\n")
  with pytest.raises(errors.UserError, match='loop.gin, line 1: .*loop.gin includes itself'):
    gin_utils.load([path])
  (tmp_path / 'gin' / 'loop.gin').write_bytes(b'\xff')
  with pytest.raises(errors.UserError, match='loop.gin is not UTF-8 text'):
    gin_utils.load([path])


WRONG_FILES = [
    ('OBJECTIVE = @m.Net(\n', r'net_tiny.gin, line \d+: EOF'),
    ('OBJECTIVE = 3 4\n', 'net_tiny.gin, line 4: '),
    ('OBJECTIVE = @m.Nat()\n', 'net_tiny.gin, line 4: .*Nat'),
    ('import no_such\n', "net_tiny.gin, line 4: No module named 'no_such'"),
    ('m.Net.dept = 3\n', "net_tiny.gin, line 4: .* parameter named 'dept'"),
    ("include 'gin/trian.gin'\n",
     'net_tiny.gin, line 4: include gin/trian.gin does not exist; there is gin/train.gin'),
    ('', 'macro OBJECTIVE not set: add --gin.OBJECTIVE='),
    ('OBJECTIVE = %OBJECTIF\n', 'macro %OBJECTIF is used but never set: did you mean OBJECTIVE'),
    ('OBJECTIVE = 3\nWORK_DIR = 4\n', 'WORK_DIR is set but nothing uses it: did you mean WORKDIR'),
]  # fmt: skip


@pytest.mark.parametrize('text, wanted', WRONG_FILES, ids=[text for text, _ in WRONG_FILES])
def test_wrong_file_is_one_line(write, text, wanted):
  with pytest.raises(errors.UserError, match=wanted) as error:
    gin_utils.load([write(text)], ['WORKDIR=x'])
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('binding, wanted', [
    ('WORKDIRR=x', "unknown macro 'WORKDIRR': did you mean WORKDIR.* known macros are DATA_DIR, "),
    ('WORKDIR', 'wanted --gin.NAME=VALUE'),
    ('m.Nat.depth=3', 'm.Nat'),
    ('Net.dept=3', "parameter named 'dept'"),
    ('Net.depth=(3,', 'EOF'),
    ('Net.depth="3', 'depth'),
])  # fmt: skip
def test_wrong_binding_is_one_line(write, binding, wanted):
  with pytest.raises(errors.UserError, match=wanted) as error:
    gin_utils.load([write(GOOD)], ['WORKDIR=x', binding])
  assert '\n' not in str(error.value)


def test_unknown_run_file_lists_close_names(write):
  write(GOOD, 'semantic_tiny'), write(GOOD, 'coarse_base')
  with pytest.raises(
    errors.UserError,
    match='gin/runs/semantic_tinny.gin does not exist; there is .*semantic_tiny.gin$',
  ):
    gin_utils.load(['gin/runs/semantic_tinny.gin'])
  with pytest.raises(
    errors.UserError, match='semantic_tiny does not exist; there is gin/runs/semantic_tiny.gin$'
  ):
    gin_utils.load(['semantic_tiny'])
  with pytest.raises(errors.UserError, match='no gin file'):
    gin_utils.load([])


def test_missing_argument_is_named(write, module):
  gin_utils.load([write('OBJECTIVE = @m.picky()\n')], ['WORKDIR=x'])
  with pytest.raises(errors.UserError, match=r"set in gin: picky\(\) missing .*'depth'"):
    gin_utils.arguments(module.fit)


def test_bad_input_keeps_its_sentence_and_bugs_keep_their_traceback(write, module):
  gin_utils.load([write('OBJECTIVE = @m.picky()\nm.picky.depth = 9\n')], ['WORKDIR=x'])
  with pytest.raises(errors.UserError) as error:
    gin_utils.arguments(module.fit)
  assert str(error.value) == 'depth 9 is too much'
  gin_utils.load([write('OBJECTIVE = @m.broken()\nm.broken.depth = 9\n')], ['WORKDIR=x'])
  with pytest.raises(ValueError, match='a bug') as error:
    gin_utils.arguments(module.fit)
  assert not isinstance(error.value, errors.UserError)
