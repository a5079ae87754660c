"""Every command line: help within a second, bad input as one line on stderr and a failure."""

import dataclasses
import json
import logging
import os
import pathlib
import re
import resource
import runpy
import shutil
import subprocess
import sys

import pytest

from musiclm_jax import generate

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = sorted(path.name for path in (ROOT / 'tools').glob('*.py'))
HEAVY = ('jax', 'flax', 'tensorflow', 'seqio', 'librosa', 'orbax', 'numpy')


def run(tool, *flags, options=()):
  return subprocess.run(
      [sys.executable, *options, str(ROOT / 'tools' / tool), *flags], cwd=ROOT,
      env=dict(os.environ, JAX_PLATFORMS='cpu'), capture_output=True, text=True, timeout=300)


@dataclasses.dataclass(frozen=True)
class Done:
  """What is left of a command line."""

  returncode: int
  stdout: str
  stderr: str


def run_here(tool, *flags, monkeypatch, capfd) -> Done:
  """Runs a tool in this process, which has imported what it needs: seconds less."""
  monkeypatch.setattr(sys, 'argv', [tool, *flags])
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')  # as it is, of all tests of this process
  monkeypatch.chdir(ROOT)
  root, ours = logging.getLogger(), logging.getLogger('musiclm_jax')
  handlers, levels = root.handlers[:], (root.level, ours.level)
  capfd.readouterr()
  try:
    runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    code = 0
  except SystemExit as error:
    code = error.code
  finally:
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
  return Done(code, *capfd.readouterr())


def _children_seconds() -> float:
  """Returns processor time, which other processes of the machine do not lengthen."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize('tool', TOOLS)
def test_help_answers_within_a_second_and_shows_examples(tool):
  before = _children_seconds()
  done = run(tool, '--help')
  assert _children_seconds() - before < 1
  assert done.returncode == 0
  assert re.search(rf'examples:\n  (python )?tools/{re.escape(tool)}\s', done.stdout)


@pytest.mark.parametrize('tool', TOOLS)
def test_help_imports_nothing_heavy(tool):
  lines = run(tool, '--help', options=('-X', 'importtime')).stderr.splitlines()
  modules = {line.rsplit('|', 1)[1].strip().split('.')[0] for line in lines if '|' in line}
  assert 'argparse' in modules and not modules & set(HEAVY)


OUT = '--output={folder}/out'
CODES = '{folder}/out'
WAV = '--output={folder}/a.wav'
BAD_INPUT = [
    ('generate.py', ['--prompt=', WAV], 'the prompt is empty'),
    ('generate.py', ['--prompt= \t', WAV], 'the prompt is empty'),
    ('generate.py', ['--prompt=piano', '--output=/proc/a.wav'], '/proc/a.wav cannot be written'),
    ('generate.py', ['--prompt=piano', '--output={folder}/a.mp3'], 'ends with .wav'),
    ('generate.py', ['--prompt=piano', WAV, '--model={folder}/none'], 'none does not exist'),
    ('generate.py', ['--prompt=piano', WAV, '--model={folder}'], 'soundstream does not exist'),
    ('generate.py', ['--prompt=piano', WAV, '--model={folder}/other_layout'],
     'codebook_size is 512 in {folder}/other_layout/semantic, 32 in {folder}/other_layout/coarse'),
    ('generate.py', ['--prompt=piano', WAV, '--text_mapper', '--model={folder}/no_mapper'],
     'mulan_mapper does not exist'),
    ('generate.py', [WAV], 'the prompt is empty'),
    ('generate.py', ['--prompts={folder}/none.tsv', OUT], 'none.tsv does not exist'),
    ('generate.py', ['--prompts=a.tsv', '--prompt=a', OUT],
     '--prompt does not apply with --prompts'),
    ('inspect_task.py', ['--task=captions', '--data_dir={folder}'], 'has no dataset_info.json'),
    ('inspect_task.py', ['--task=semantic', '--data_dir={folder}', '--models=a', OUT],
     'which semantic examples have none of'),
    ('generate.py', ['--prompt=a', '--story=0:00 b', WAV], 'both --prompt and --story'),
    ('generate.py', ['--prompt=a', '--shard=0/2', WAV], '--shard applies with --prompts only'),
    ('generate.py', ['--story=0:05 b', WAV], 'the story starts at 5 s, wanted 0:00'),
    ('generate.py', ['--prompt=piano', '--continue_from={folder}/none.wav', WAV],
     'none.wav does not exist'),
    ('generate.py', ['--prompt=piano', '--guidance=-1', WAV], 'guidance is -1.0, wanted 0 or more'),
    ('generate.py', ['--prompt=piano', '--melody={folder}/none.wav', WAV], 'none.wav does not exist'),
    ('generate.py', ['--prompts={folder}/a.tsv', '--melody=a.wav', OUT],
     '--melody does not apply with --prompts'),
    ('generate.py', ['--prompt=piano', '--coarse_top_p=0', WAV], 'top_p is 0.0, wanted more than 0'),
    ('evaluate_generation.py', ['--model={folder}/none', OUT], 'none does not exist'),
    ('evaluate_generation.py', ['--modes=melody', '--melodies={folder}/none.wav', OUT],
     'none.wav does not exist'),
    ('validate_corpus.py', ['--input={folder}/none'], 'none is not a directory'),
    ('evaluate.py', ['--generated={folder}', '--captions={folder}/none.csv'],
     'none.csv does not exist'),
    ('run_system.py', ['folder', '--files={folder}', '--captions={folder}/none.csv', OUT],
     'none.csv does not exist'),
    ('make_baselines.py', ['--audio={folder}', '--captions={folder}/none.csv', OUT],
     'none.csv does not exist'),
    ('listening_test.py', ['report', '--database={folder}/none'], 'none does not exist'),
    ('listening_test.py', ['serve', '--captions={folder}/none.csv', '--systems=a={folder}',
                           '--systems=b={folder}/noise', '--database={folder}/t'],
     'none.csv does not exist'),
    ('fit_mapper.py', ['--model={folder}/none', '--waveforms=x', OUT], 'none does not exist'),
    ('prepare_audio.py', ['--input={folder}/none', OUT], 'none is not a directory'),
    ('extract_tokens.py', ['--waveforms={folder}/none', '--models={folder}', OUT],
     'none does not exist'),
    ('fit_quantizers.py', ['--quantizer=mulan', '--model={folder}/none', '--waveforms=x', OUT],
     'none does not exist'),
    ('train_vocabulary.py', ['--captions={folder}/none.jsonl', OUT], 'none.jsonl'),
    ('make_corpus.py', ['--hours=1', '--output={folder}'], 'is not an empty folder'),
    ('make_corpus.py', ['--melodies=2', '--output={folder}'], 'is not an empty folder'),
    ('make_corpus.py', ['--melodies=2', '--versions=1', OUT], '--versions=1: wanted at least 2'),
    ('prepare_melodies.py', ['--input={folder}/none', OUT], 'none\' is not a folder'),
    ('prepare_melodies.py', ['--input={folder}/noise', OUT], 'noise/melodies.csv'),
    ('prepare_melodies.py', ['--input={folder}/noise', '--test_fraction=1', OUT],
     'test_fraction is 1.0, wanted 0 or more and below 1'),
    ('fit_quantizers.py', ['--quantizer=melody', '--model={folder}/none', '--waveforms=x', OUT],
     'none does not exist'),
    ('train.py', ['--gin_file=gin/runs/semantc_tiny.gin'], 'does not exist; there is gin/runs/'),
    ('train.py', ['--gin_file=gin/runs/semantic_tiny.gin', '--gin.BATCHSIZE=2'],
     "unknown macro 'BATCHSIZE': did you mean BATCH_SIZE?"),
    ('export.py', ['--workdir={folder}/none', OUT], 'none is not the WORKDIR of a training run'),
    ('import_weights.py', ['--text={folder}/none', OUT], 'none is not a directory'),
    ('import_weights.py', ['--text={folder}/noise', OUT], 'noise has no config.json'),
    ('import_weights.py', ['--text={folder}/other_layout/coarse', OUT], "wanted 'bert'"),
    ('import_weights.py', ['--audio={folder}/noise', '--vocab_file={folder}/none.txt', OUT],
     'noise has no config.json'),
    ('import_weights.py', ['--text={folder}/noise', '--output={folder}/noise/'],
     'noise/ is what is read, and would be overwritten'),
    ('codec.py', ['encode', '{folder}/missing.wav', CODES], 'missing.wav does not exist'),
    ('codec.py', ['encode', '{folder}/noise/a.wav', CODES], 'a.wav is not audio that can be read'),
    ('codec.py', ['encode', '{folder}/noise/a.wav', CODES, '--kbps=9'], '9 kbps asked for'),
    ('codec.py', ['encode', '{folder}/noise/a.wav', CODES, '--denoise'], 'cannot denoise'),
    ('codec.py', ['encode', '{folder}/noise/a.wav', CODES, '--model={folder}/none'],
     'none does not exist'),
    ('codec.py', ['decode', '{folder}/noise/a.wav', '{folder}/a.wav'], 'is not a file of codes'),
    ('codec.py', ['decode', '{folder}/none.codes', '{folder}/a.wav'], 'none.codes is not a file'),
    ('codec.py', ['adaptive', '{folder}/missing.wav', CODES, '--target_bytes=99'], 'missing.wav'),
    ('codec.py', ['adaptive', 'a.wav', CODES, '--kbps_file={folder}/none.txt'], 'none.txt'),
    ('codec.py', ['info', '{folder}/noise'], 'noise is not a file'),
]  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder with a file that is no audio, and the shipped set with one stage's layout changed."""
  folder = tmp_path_factory.mktemp('bad_input')
  (folder / 'noise').mkdir()
  (folder / 'noise' / 'a.wav').write_bytes(b'no audio at all')
  (folder / 'no_mapper').mkdir()
  for path in pathlib.Path(generate.TINY).iterdir():
    if path.name != generate.TEXT_MAPPER:
      (folder / 'no_mapper' / path.name).symlink_to(path)
  models = folder / 'other_layout'
  models.mkdir()
  for path in pathlib.Path(generate.TINY).iterdir():
    if path.is_dir() and path.name != 'coarse':
      (models / path.name).symlink_to(path)
  shutil.copytree(generate.TINY / 'coarse', models / 'coarse')
  saved = json.loads((models / 'coarse' / 'layout.json').read_text())
  saved['layout']['semantic']['codebook_size'] = 32
  (models / 'coarse' / 'layout.json').write_text(json.dumps(saved))
  return folder


@pytest.mark.parametrize('tool, flags, wanted', BAD_INPUT)
def test_bad_input_is_one_line_and_a_failure(folder, tool, flags, wanted, monkeypatch, capfd):
  case = (tool, flags, wanted)
  flags = [flag.format(folder=folder) for flag in flags]
  first = next(each for each in BAD_INPUT if each[0] == tool)  # of each tool one as people run it
  done = (run(tool, *flags) if case == first
          else run_here(tool, *flags, monkeypatch=monkeypatch, capfd=capfd))
  assert done.returncode == 1 and not done.stdout
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1, done.stderr
  assert wanted.format(folder=folder) in done.stderr
  assert not (folder / 'out').exists() and not (folder / 'a.wav').exists()


def test_unreadable_audio_is_named_and_leaves_nothing_behind(folder):
  done = run('prepare_audio.py', f'--input={folder}/noise', f'--output={folder}/records')
  assert done.returncode == 1 and not done.stdout
  assert f'left out: {folder}/noise/a.wav is not audio that can be read' in done.stderr
  assert done.stderr.splitlines()[-1].startswith('error: none of 1 files could be read; the first: ')
  assert 'Traceback' not in done.stderr and not (folder / 'records').exists()


FIT = ['--model=none', '--waveforms=none', '--output=none']
BAD_FLAGS = [
    ('make_corpus.py', ['--hours=1', '--output=none', '--seed=-1'], "--seed: invalid seed value: '-1'"),
    ('fit_quantizers.py', ['--quantizer=semantic', '--num_levels=3', *FIT],
     '--num_levels does not apply'),
    ('make_corpus.py', ['--melodies=1', '--hours=1', '--output=none'], 'not allowed with argument'),
    ('make_corpus.py', ['--output=none'], 'one of the arguments --hours --melodies is required'),
    ('make_corpus.py', ['--melodies=0', '--output=none'], '--melodies'),
    ('make_corpus.py', ['--hours=1', '--versions=3', '--output=none'],
     '--versions does not apply to --hours'),
    ('make_corpus.py', ['--melodies=1', '--drums=a', '--output=none'],
     '--drums does not apply to --melodies'),
    ('make_corpus.py', ['--melodies=1', '--add_folder=a', '--output=none'],
     '--add_folder does not apply to --melodies'),
    ('make_corpus.py', ['--melodies=1', '--captions=a', '--output=none'],
     '--captions does not apply to --melodies'),
    ('prepare_melodies.py', ['--input=none', '--output=none', '--num_shards=0'], '--num_shards'),
    ('fit_quantizers.py', ['--quantizer=mulan', '--layer=3', *FIT], '--layer does not apply'),
    ('fit_quantizers.py', ['--quantizer=melody', '--passes=3', *FIT], '--passes does not apply'),
    ('fit_quantizers.py', ['--quantizer=mulan', '--num_codes=0', *FIT], '--num_codes'),
    ('fit_quantizers.py', ['--quantizer=other', *FIT], "invalid choice: 'other'"),
    ('fit_quantizers.py', ['--quantizer=mulan', '--hop_seconds=nan', *FIT], '--hop_seconds'),
    ('extract_tokens.py', ['--waveforms=none', '--models=none', '--output=none', '--batch_size=0'],
     '--batch_size'),
    ('prepare_audio.py', ['--input=none', '--output=none', '--clip_seconds=nan'], '--clip_seconds'),
    ('generate.py', ['--prompt=a', '--output=a.wav', f'--seed={2**63}'], '--seed'),
    ('generate.py', ['--prompt=a', '--output=a.wav', '--num_samples=0'], '--num_samples'),
    ('benchmark_generation.py', ['--repeats=0'], '--repeats'),
    ('import_weights.py', ['--output=none'], 'nothing to import'),
    ('import_weights.py', ['--output=none', '--audio=none'], 'the text tower needs a vocabulary'),
    ('import_weights.py', ['--output=none', '--text=none', '--vocab_file=none'],
     '--vocab_file does not apply with --text'),
    ('import_weights.py', ['--output=none', '--audio=none', '--patch_stride=0'], '--patch_stride'),
    ('import_weights.py', ['--output=none', '--text=none', '--patch_stride=9'],
     '--patch_stride does not apply'),
    ('codec.py', ['encode', 'a.wav', 'a.codes', '--kbps=fast'], '--kbps'),
    ('codec.py', ['adaptive', 'a.wav', 'a.codes'], '--target_bytes --kbps_file is required'),
    ('codec.py', ['adaptive', 'a.wav', 'a.codes', '--target_bytes=9', '--kbps_file=a'],
     'not allowed with argument'),
    ('codec.py', ['adaptive', 'a.wav', 'a.codes', '--target_bytes=0'], '--target_bytes'),
    ('codec.py', ['transcode', 'a.wav', 'a.codes'], "invalid choice: 'transcode'"),
]  # fmt: skip


@pytest.mark.parametrize('tool, flags, wanted', BAD_FLAGS)
def test_flags_that_cannot_be_are_a_usage_error(tool, flags, wanted):
  done = run(tool, *flags)
  assert done.returncode == 2 and wanted in done.stderr and 'Traceback' not in done.stderr
