"""One prompt to files, with small random models."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import wave

import numpy as np
import pytest
import soundfile

from musiclm_jax import audio, errors, generate
from musiclm_jax.generation_jobs import one_prompt

TOOL = pathlib.Path(__file__).parents[2] / 'tools' / 'generate.py'
REQUEST = one_prompt.Request('slow piano', seconds=3)


@pytest.fixture(scope='module')
def music(tmp_path_factory):
  path = tmp_path_factory.mktemp('music') / 'a.wav'
  audio.write(path, 0.3 * np.random.default_rng(0).standard_normal(48_000))
  return str(path)


def test_files(system, tmp_path):
  request = dataclasses.replace(REQUEST, prompt='slow $piano\\frac{ \udc80')
  names = one_prompt.generate_files(
      request, str(tmp_path / 'a.wav'), num_samples=2, model=str(system), plot=True)
  assert [pathlib.Path(name).name for name in names] == ['a-1.wav', 'a-2.wav']
  waveform, rate = soundfile.read(names[1])
  assert rate == 24_000 and waveform.shape == (72_000,)
  assert (tmp_path / 'a-1.png').stat().st_size > 1000
  assert not list(tmp_path.glob('*.json'))


def test_the_best_of_several_are_kept_best_first(system, tmp_path):
  everything = one_prompt.generate_files(
      REQUEST, str(tmp_path / 'all.wav'), num_samples=4, metadata=True, model=str(system))
  best = one_prompt.generate_files(
      REQUEST, str(tmp_path / 'best.wav'), num_samples=4, keep_best=2, model=str(system))
  about = [json.loads(pathlib.Path(name).with_suffix('.json').read_text()) for name in everything]
  order = sorted(range(4), key=lambda i: -about[i]['similarity'])[:2]
  for name, i in zip(best, order, strict=True):
    assert pathlib.Path(name).read_bytes() == pathlib.Path(everything[i]).read_bytes()
    assert json.loads(pathlib.Path(name).with_suffix('.json').read_text()) == about[i]
  musiclm = generate.MusicLM.from_pretrained(system)
  assert about[1]['prompt'] == 'slow piano' and about[1]['model'] == musiclm.fingerprint
  scored = musiclm.similarity(['slow piano'], audio.read(everything[1])[None])[0]
  assert about[1]['similarity'] == pytest.approx(float(scored), abs=2e-3)  # 16 bits, 4 digits


def test_music_to_go_on_from_lends_its_style(system, tmp_path, music):
  request = dataclasses.replace(REQUEST, prompt='', continue_from=music, seconds=1.0)
  name, = one_prompt.generate_files(request, str(tmp_path / 'a.wav'), model=str(system))
  styled = dataclasses.replace(request, style_audio=music)
  other, = one_prompt.generate_files(styled, str(tmp_path / 'b.wav'), model=str(system))
  assert soundfile.info(name).frames == 3 * 24_000
  assert pathlib.Path(name).read_bytes() == pathlib.Path(other).read_bytes()


def test_a_stream_to_a_file_or_a_pipe_is_the_same_music(system, tmp_path, music):
  request = dataclasses.replace(REQUEST, continue_from=music, seconds=2.5)
  whole, = one_prompt.generate_files(request, str(tmp_path / 'whole.wav'), model=str(system))
  first = one_prompt.stream_file(request, str(tmp_path / 'part.wav'), model=str(system))
  assert first > 0
  piped = subprocess.run(
      [sys.executable, str(TOOL), '--prompt=slow piano', f'--continue_from={music}', '--seconds=2.5',
       '--stream', '--output=-', f'--model={system}'], capture_output=True, timeout=300, check=True)
  assert piped.stdout == (tmp_path / 'part.wav').read_bytes()
  assert b'first audio after' in piped.stderr
  with wave.open(str(tmp_path / 'part.wav')) as file:
    assert file.getnframes() == round(4.5 * 24_000) and file.getframerate() == 24_000
  np.testing.assert_allclose(
      audio.read(tmp_path / 'part.wav'), audio.read(whole), atol=2 / 32768)


def test_a_story_is_one_piece(system, tmp_path):
  story = generate.Story(((0, 'slow piano'), (2, 'slow')))
  request = one_prompt.Request(story, seconds=4)
  name, = one_prompt.generate_files(
      request, str(tmp_path / 'a.wav'), metadata=True, plot=True, model=str(system))
  assert soundfile.info(name).frames == 4 * 24_000
  assert json.loads((tmp_path / 'a.json').read_text())['prompt'] == [[0, 'slow piano'], [2, 'slow']]


@pytest.mark.parametrize('change, message', [
    ({'prompt': '  '}, 'prompt is empty'),
    ({'prompt': ''}, 'prompt is empty'),
    ({'prompt': 'x' * 5000}, '5000 characters'),
    ({'seconds': 0}, 'seconds is 0'),
    ({'seconds': float('nan')}, 'seconds is nan'),
    ({'num_samples': 0}, 'num_samples is 0'),
    ({'num_samples': 2, 'keep_best': 3}, 'keep_best is 3, num_samples is 2'),
    ({'prompt': '', 'style_audio': 'a.wav', 'keep_best': 1}, 'compares with the prompt'),
    ({'style_weight': -1}, 'style_weight is -1'),
    ({'style_audio': '/none.wav'}, '/none.wav does not exist'),
    ({'output': 'a.mp3'}, 'wanted a name that ends with .wav'),
    ({'output': '/proc/nowhere/a.wav'}, 'cannot be written'),
    ({'model': '/does/not/exist'}, 'does not exist'),
])
def test_bad_requests_are_one_clear_error(system, tmp_path, change, message):
  options = {'output': str(tmp_path / 'a.wav'), 'model': str(system)} | change
  request = dataclasses.replace(REQUEST, **{
      field.name: options.pop(field.name) for field in dataclasses.fields(one_prompt.Request)
      if field.name in options})
  with pytest.raises(errors.UserError, match=message):
    one_prompt.generate_files(request, **options)
