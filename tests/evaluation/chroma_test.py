"""Chroma similarity on tunes of tones, whose notes are known, and the melody mode that reports it."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from musiclm_jax import audio, errors
from musiclm_jax.evaluation import chroma, generation_modes

ROOT = pathlib.Path(__file__).resolve().parents[2]
RATE = 24_000
TUNE = (60, 64, 67, 65, 62, 69, 67, 60)
OTHER = (66, 61, 70, 63, 68, 66, 73, 75)


def played(pitches, partials=(1.0,), seconds=0.5):
  """Returns float32[S]: tones of MIDI numbers, with the loudness of each partial."""
  time = np.arange(round(seconds * RATE)) / RATE
  hertz = 440 * 2 ** ((np.asarray(pitches)[:, None] - 69) / 12)
  tones = sum(loud * np.sin(2 * np.pi * k * hertz * time) for k, loud in enumerate(partials, 1))
  return (0.1 * tones * np.hanning(len(time)) ** 0.25).ravel().astype(np.float32)


@pytest.fixture(scope='module')
def tune():
  return played(TUNE)


def test_a_tune_is_itself_in_any_timbre_octave_and_loudness(tune):
  assert chroma.similarity(tune, tune, RATE) == pytest.approx(1, abs=1e-5)
  assert chroma.similarity(tune, played(TUNE, (1, 0.6, 0.4, 0.3)), RATE) > 0.8
  assert chroma.similarity(tune, played(np.add(TUNE, 12)), RATE) > 0.95
  assert chroma.similarity(tune, 0.05 * tune, RATE) > 0.99


def test_it_is_found_below_noise_and_chords_and_a_little_late(tune):
  noise = np.random.default_rng(0).standard_normal(len(tune)).astype(np.float32)
  assert chroma.similarity(tune, tune + 0.05 * noise, RATE) > 0.9
  chords = sum(played([pitch] * len(TUNE)) for pitch in (48, 52, 55))
  assert chroma.similarity(tune, tune + 0.5 * chords, RATE) > 0.6
  assert chroma.similarity(tune, np.roll(tune, RATE // 10), RATE) > 0.8


def test_other_tunes_other_keys_chords_and_noise_are_not_similar(tune):
  noise = 0.1 * np.random.default_rng(0).standard_normal(len(tune)).astype(np.float32)
  chord = sum(played([pitch] * len(TUNE)) for pitch in (48, 52, 55))
  for music in (played(OTHER), played(np.add(TUNE, 1)), played(np.add(TUNE, 6)), noise):
    assert chroma.similarity(tune, music, RATE) < 0.25
  assert chroma.similarity(tune, chord, RATE) < 0.5


def test_silence_and_lengths(tune):
  silence = np.zeros_like(tune)
  assert chroma.similarity(tune, silence, RATE) == 0
  with pytest.raises(errors.UserError, match='the tune is silent'):
    chroma.similarity(silence, tune, RATE)
  for other in (tune[:2 * RATE], np.concatenate([tune, played(OTHER)])):
    assert chroma.similarity(tune, other, RATE) > 0.95
    assert chroma.similarity(other, tune, RATE) > 0.95
  assert chroma.similarity(tune[:1000], tune[:1000], RATE) == pytest.approx(1, abs=1e-5)
  # Where the tune rests the music may do anything; half a piece that stops is half as similar.
  rests = np.concatenate([tune, 0 * tune])
  assert chroma.similarity(rests, np.concatenate([tune, played(OTHER)]), RATE) > 0.9
  half = np.where(np.arange(len(tune)) < len(tune) / 2, tune, 0)
  assert chroma.similarity(tune, half, RATE) == pytest.approx(0.5, abs=0.08)


def test_chromagrams_are_compared_frame_by_frame():
  first, second, rest = np.eye(12)[0], np.eye(12)[5], np.zeros(12)
  tune = np.array([first, first, rest, second, second])
  assert chroma.compare(tune, np.array([first, second, first, second, rest])) == 2 / 4
  assert chroma.compare(tune, np.array([first, second, second])) == 1 / 2


def test_music_is_measured_with_all_tunes(tune):
  other = played(OTHER)
  found = chroma.measure(
      [tune, other], [np.stack([tune, other]), np.stack([other, other])],
      [np.stack([0 * tune, other]), np.stack([tune, other])], RATE)
  cross = [chroma.similarity(tune, other, RATE), chroma.similarity(other, tune, RATE)]
  np.testing.assert_allclose(found.own, [[1, cross[0]], [1, 1]], atol=1e-5)
  np.testing.assert_allclose(found.others, [cross[0], (cross[1] + 1) / 2], atol=1e-5)
  np.testing.assert_allclose(found.unconditioned, [[0, cross[0]], [cross[1], 1]], atol=1e-5)


def test_report():
  # Means of tunes: own 0.7, 0.8, 0.9; own - others 0.3, 0.3, 0.3; own - unconditioned 0.3, 0, 0.6.
  own = np.array([[0.75, 0.65], [0.75, 0.85], [1.0, 0.8]])
  report = chroma.Report(own, np.array([0.4, 0.5, 0.6]), np.array([[0.5, 0.3], [0.75, 0.85], [0.3, 0.3]]))
  described = report.describe().splitlines()
  assert described[0] == 'chroma similarity of 3 tunes, 2 pieces of music each:'
  assert described[1].split() == ['0.800', *'music made for the tune'.split()]
  assert '0.500 music made for the other tunes: own - this = 0.300 (0.300 to 0.300 ' in described[2]
  assert 'above 0 for 3 of 3 tunes (sign test: p = 0.25)' in described[2]
  # The mean of three draws is 0 in 1 of 27 (3.7%) and 0.6 in as many: the interval reaches both.
  assert '0.500 music without a melody: own - this = 0.300 (0.000 to 0.600 ' in described[3]
  assert 'above 0 for 2 of 3 tunes (sign test: p = 0.5)' in described[3]
  one = chroma.Report(own[:1], np.array([np.nan]), own[:1] - 0.1).describe()
  assert 'nan' not in one and 'other tunes' not in one and 'own - this = 0.100' in one


def test_hums_are_tunes_of_their_own():
  pytest.importorskip('mido')
  tunes = generation_modes.hummed_tunes(3)
  assert all(5 < len(tune) / RATE < 10 and tune.dtype == np.float32 for tune in tunes.values())
  similar = [[chroma.similarity(a, b, RATE) for b in tunes.values()] for a in tunes.values()]
  assert (np.array(similar)[~np.eye(3, dtype=bool)] < 0.6).all()
  np.testing.assert_array_equal(
      tunes['tune-1'], generation_modes.hummed_tunes(1)['tune-1'])  # however many are made


def test_melodies_are_read_from_files_and_folders(tmp_path, tune):
  (tmp_path / 'more').mkdir()
  audio.write(tmp_path / 'one.wav', np.tile(tune, 4), RATE)
  audio.write(tmp_path / 'more' / 'two.flac', tune, RATE)
  found = generation_modes.read_tunes([str(tmp_path / 'one.wav'), str(tmp_path / 'more'), ''])
  assert {name: len(each) for name, each in found.items()} == {
      'tune-1-one': 10 * RATE, 'tune-2-two': 4 * RATE}
  audio.write(tmp_path / 'silent.wav', 0 * tune, RATE)
  with pytest.raises(errors.UserError, match='silent.wav is silent in its first 10 s'):
    generation_modes.read_tunes([str(tmp_path / 'silent.wav')])


def _evaluate(*flags):
  return subprocess.run(
      [sys.executable, str(ROOT / 'tools' / 'evaluate_generation.py'), *flags], cwd=ROOT,
      env=dict(os.environ, JAX_PLATFORMS='cpu'), capture_output=True, text=True, timeout=300)


def test_an_unknown_mode_is_named(tmp_path):
  done = _evaluate(f'--output={tmp_path}', '--modes=long,humming')
  assert done.returncode == 2 and "'long,humming'" in done.stderr.splitlines()[-1]


def test_a_missing_melody_is_named_before_models_are_read(tmp_path):
  done = _evaluate(f'--output={tmp_path}', f'--melodies={tmp_path}/none.wav', '--model=/none')
  assert done.returncode == 1 and 'none.wav does not exist, wanted an audio' in done.stderr
