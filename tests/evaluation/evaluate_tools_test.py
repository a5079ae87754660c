"""tools/evaluate.py, make_baselines.py and run_system.py from flags to files."""

import csv
import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from musiclm_jax import audio, errors

TOOLS = pathlib.Path(__file__).resolve().parents[2] / 'tools'
CLIPS = [('abcdefghijk', 30), ('-_BCDEFGHIJ', 0), ('lmnopqrstuv', 7), ('missing____', 5)]


class Vggish(tf.Module):
  """f32[S] -> f32[N, 128] of 0.1 s each."""

  @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
  def __call__(self, waveform):
    return tf.signal.frame(waveform, 1_600, 1_600)[:, :128]


@pytest.fixture
def run(monkeypatch):
  """Returns a function of a tool and flags that runs it here."""
  def run(tool, *flags):
    spec = importlib.util.spec_from_file_location(tool, TOOLS / f'{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [tool, *flags])
    module.main()
  return run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder with the csv of MusicCaps, clips of it, generated ones, and a SavedModel."""
  folder = tmp_path_factory.mktemp('tools')
  columns = ['ytid', 'start_s', 'end_s', 'audioset_positive_labels', 'aspect_list', 'caption',
             'author_id', 'is_balanced_subset', 'is_audioset_eval']
  with open(folder / 'musiccaps.csv', 'w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows([[ytid, start, start + 10, '/m/04rlf', "['sad']", f'A song, {ytid}.', 1,
                       'False', 'True'] for ytid, start in CLIPS])
  random = np.random.default_rng(0)
  for ytid, start in CLIPS[:3]:
    noise = random.normal(scale=0.1, size=16_000)
    audio.write(folder / 'clips' / f'{ytid}-{start}_{start + 10}.flac', noise, 16_000)
    audio.write(folder / 'made' / f'{ytid}_{start}.wav', 0.5 * noise, 16_000)
  tf.saved_model.save(Vggish(), str(folder / 'vggish'))
  return folder


def test_musiccaps_by_vggish_from_flags_to_files(folder, run, tmp_path, capsys):
  run('evaluate', f'--generated=half={folder}/made', f'--reference={folder}/clips',
      f'--captions={folder}/musiccaps.csv', '--metrics=fad', '--embeddings=vggish',
      f'--vggish={folder}/vggish', f'--json={tmp_path}/a.json', f'--csv={tmp_path}/a.csv',
      f'--html={tmp_path}/a.html', f'--reference_statistics={tmp_path}/statistics')
  printed = capsys.readouterr().out
  assert printed.startswith('3 clips, at most 10 s of each (half 3 s, reference 3 s)')
  assert 'missing: half has no file for 1 captions (missing_____5)' in printed
  stored = json.loads((tmp_path / 'a.json').read_text())
  assert stored['ids'] == sorted(f'{ytid}_{start}' for ytid, start in CLIPS[:3])
  made, reference = (np.concatenate([
      audio.read(str(path), 16_000).reshape(-1, 1_600)[:, :128]
      for path in sorted((folder / name).iterdir())]) for name in ('made', 'clips'))
  step = made.mean(0) - reference.mean(0)
  traces = [np.trace(np.cov(x, rowvar=False)) for x in (made, reference)]
  # half as loud: a covariance a quarter as large, whose root is half of it
  wanted = step @ step + traces[0] + traces[1] - 2 * 0.5 * traces[1]
  assert stored['systems'][0]['fad']['vggish']['distance'] == pytest.approx(wanted, rel=1e-2)
  assert (tmp_path / 'statistics' / 'vggish.npz').exists()
  assert '<audio' in (tmp_path / 'a.html').read_text() and (tmp_path / 'a.csv').exists()


def test_a_folder_by_run_system_for_the_captions_of_musiccaps(folder, run, tmp_path, capsys):
  run('run_system', 'folder', f'--files={folder}/made', f'--captions={folder}/musiccaps.csv',
      f'--output={tmp_path}/named')
  assert 'named: 3 clips; 1 failed' in capsys.readouterr().err
  assert {path.name for path in (tmp_path / 'named').iterdir()} == {
      path.name for path in (folder / 'made').iterdir()}
  with pytest.raises(errors.UserError, match="no split 'test'"):
    run('run_system', 'folder', f'--files={folder}/made', f'--captions={folder}/musiccaps.csv',
        f'--output={tmp_path}/named', '--split=test')


def test_bad_flags_are_errors_before_the_work(folder, run, tmp_path):
  flags = [f'--generated={folder}/made', f'--captions={folder}/musiccaps.csv']
  for more, message in [
      ([f'--json={tmp_path}'], 'is a directory'), (['--metrics=fat'], 'no metric'),
      (['--embeddings=vggish'], 'give --vggish=DIR'), ([f'--reference={folder}/none'], 'none'),
      (['--split=test'], "no split 'test'"), ([f'--reference={folder}/vggish'], 'no clips of MusicC')]:
    with pytest.raises(errors.UserError, match=message):
      run('evaluate', *flags, *more)
  for tool, more in [('make_baselines', [f'--audio={tmp_path}', f'--output={tmp_path}']),
                     ('run_system', ['folder', f'--files={tmp_path}', f'--output={tmp_path}',
                                     f'--captions={folder}/musiccaps.csv'])]:
    with pytest.raises(errors.UserError, match='holds no audio'):
      run(tool, *more)
  with pytest.raises(SystemExit):
    run('run_system', 'riffusion', '--captions=a', '--output=b')
