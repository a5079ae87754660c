"""Quality of a codec: distances are the objective's, the bytes are real, Opus is heard alike."""

import csv
import dataclasses
import io
import math
import os
import pathlib
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import audio, checkpoints, codec, errors
from musiclm_jax.evaluation import codec_quality
from musiclm_jax.models import soundstream
from musiclm_jax.objectives import losses
from musiclm_jax.objectives import soundstream as objectives

RATE = 24_000
CONFIG = soundstream.SoundStreamConfig(
    channels=2, strides=(8, 10, 6), channel_multipliers=(2, 2, 2), dilations=((), (), (1,)),
    dim=4, num_quantizers=3, codebook_size=16)  # 50 frames of 4 bits: 0.2 kbps a level
needs_opus = pytest.mark.skipif(
    not (shutil.which('opusenc') and shutil.which('opusdec')), reason='opus-tools is missing')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """Returns the codec of a tiny exported soundstream with random weights."""
  module = soundstream.SoundStream(CONFIG)
  variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, CONFIG.hop_length))))
  books = variables['codebooks']['quantizer']
  books['embeddings'] = 0.1 * jax.random.normal(jax.random.key(1), books['embeddings'].shape)
  folder = tmp_path_factory.mktemp('soundstream')
  checkpoints.export_model(str(folder), 'soundstream', CONFIG, variables)
  return codec.Codec.load(str(folder))


def _music(seconds: float) -> np.ndarray:
  """Returns f32[S]: chords of decaying harmonics, a new one every half a second, and soft noise."""
  time = np.arange(round(seconds * RATE)) / RATE
  wave = 0.003 * np.random.RandomState(0).randn(len(time))
  for root in (220.0, 277.2, 329.6):
    pitch = root * 2 ** (np.floor(time * 2) % 5 / 12)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    for harmonic in range(1, 16):
      wave += 0.1 / harmonic * np.sin(harmonic * phase) * np.exp(-3 * (time * 2 % 1))
  return wave.astype(np.float32)


# --- Measures ---------------------------------------------------------------------------------


def test_identical_signals_have_no_distance():
  distance, ratio = codec_quality.measure(_music(0.7), _music(0.7), RATE)
  assert distance == 0 and ratio > 60


@pytest.mark.parametrize('samples, floor', [(RATE + 1, 5e-3), (9_871, 1e-3), (1, 5e-3)])
def test_distances_are_those_of_the_objective(samples, floor):
  """Also where the length is no whole second, which the measure pads to."""
  target = _music(1.1)[:samples]
  estimate = 0.8 * target + 0.02 * np.random.RandomState(1).randn(samples).astype(np.float32) + 0.05
  distance, ratio = codec_quality.measure(target, estimate, RATE, floor)
  objective = objectives.SoundStreamObjective(CONFIG, spectral_floor=floor)
  want = jax.jit(objective.terms)(target[None], estimate[None])['mel_distance']
  np.testing.assert_allclose(distance, want, rtol=1e-4)
  if samples > 1:
    np.testing.assert_allclose(ratio, losses.si_sdr(target[None], estimate[None])[0], atol=1e-2)


def test_si_sdr_of_known_noise_and_of_silence():
  target = np.tile([1.0, 1.0, -1.0, -1.0], 1000).astype(np.float32)
  noise = np.tile([0.1, -0.1, -0.1, 0.1], 1000).astype(np.float32)  # orthogonal to it
  assert codec_quality.measure(target, 3 * (target + noise), RATE)[1] == pytest.approx(20, abs=1e-3)
  for silent in (np.zeros(500, np.float32), np.full(500, 0.1, np.float32)):
    distance, ratio = codec_quality.measure(silent, target[:500], RATE)
    assert distance > 1 and math.isnan(ratio)


def test_codes_used_and_perplexity_by_hand():
  codes = np.array([[0, 5, 0], [1, 5, 0], [2, 5, 1], [3, 5, 2]])
  levels = codec_quality.level_usage(codec_quality.code_counts(codes, 16))
  assert [level.codes_used for level in levels] == [4, 1, 3]
  entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
  np.testing.assert_allclose(
      [level.perplexity for level in levels], [4, 1, math.exp(entropy)], rtol=1e-5)


# --- A codec over files -----------------------------------------------------------------------


def test_report_is_of_what_the_bitstreams_give_back(model, tmp_path):
  lengths = {'a.wav': 1.25, 'b.flac': 0.4}
  for name, seconds in lengths.items():
    audio.write(tmp_path / name, _music(seconds))
  files = codec_quality.audio_files([str(tmp_path)])
  report = codec_quality.evaluate(model, files, [0.6, 0.2, 0.25], (), progress=False)
  assert (report.num_files, report.seconds) == (2, pytest.approx(1.65))
  assert [row.kbps for row in report.qualities] == pytest.approx([0.2, 0.6])  # 0.25 is one level
  everything = []
  for row, levels in zip(report.qualities, (1, 3), strict=True):
    sizes, measures = 0, []
    for path in files:
      stream, waveform = io.BytesIO(), audio.read(path)
      codec.write(stream, model, [waveform], levels)
      sizes += len(stream.getvalue())
      codes = np.concatenate(list(model.encode([waveform])))
      decoded = np.concatenate(list(model.decode([codes[:, :levels]])))[: len(waveform)]
      measures.append(codec_quality.measure(waveform, decoded, RATE))
      everything.append(codes)
    assert row.file_kbps == pytest.approx(8 * sizes / 1.65 / 1000) and row.codec == 'soundstream'
    np.testing.assert_allclose(
        (row.mel_distance, row.si_sdr), np.mean(measures, axis=0), rtol=1e-4, atol=1e-3)
  together = np.concatenate(everything[:2])
  assert [level.codes_used for level in report.levels] == [len(set(q)) for q in together.T.tolist()]


def test_no_more_than_the_first_seconds_count(model, tmp_path):
  audio.write(tmp_path / 'short.wav', _music(0.5))
  whole = _music(2.0)
  whole[RATE // 2 :] = 0.0
  audio.write(tmp_path / 'long.wav', whole)
  assert len(audio.read_beginning(tmp_path / 'short.wav', 30.0, RATE)) == RATE // 2
  short, long = (
      codec_quality.evaluate(model, [tmp_path / f'{name}.wav'], [0.6], (), 0.5, progress=False)
      for name in ('short', 'long'))
  assert short == long


def test_a_silent_file_has_no_share_in_the_mean_si_sdr(model, tmp_path):
  audio.write(tmp_path / 'a.wav', _music(0.5))
  audio.write(tmp_path / 'silent.wav', np.zeros(RATE // 2))
  run = lambda *names: codec_quality.evaluate(
      model, [tmp_path / name for name in names], [0.6], (), progress=False)
  assert run('a.wav', 'silent.wav').qualities[0].si_sdr == run('a.wav').qualities[0].si_sdr
  silent = run('silent.wav')
  assert math.isnan(silent.qualities[0].si_sdr)
  assert codec_quality.tables(silent).splitlines()[4].endswith('| - |')


def test_default_bitrates_are_those_the_model_has(model):
  assert codec_quality.chosen_levels(model, None) == [2]  # 0.5 of 0.2 to 0.6 kbps
  with pytest.raises(errors.UserError, match='3 kbps asked for'):
    codec_quality.chosen_levels(model, [0.2, 3])


@pytest.mark.parametrize('seconds', [0, -1, float('nan'), 301])
def test_seconds_out_of_range_are_refused(model, seconds):
  with pytest.raises(errors.UserError, match='wanted more than 0, at most 300'):
    codec_quality.evaluate(model, ['none.wav'], opus_kbps=(), seconds=seconds)


def test_audio_files_of_folders_and_names(tmp_path):
  names = ['b.wav', 'a/z.OGG', 'a/-n; echo $HOME.flac', 'a/b/c.mp3']
  for name in [*names, 'a/notes.txt']:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'')
  found = codec_quality.audio_files([str(tmp_path / 'b.wav'), str(tmp_path)])
  assert [str(path.relative_to(tmp_path)) for path in found] == [
      'b.wav', 'a/-n; echo $HOME.flac', 'a/b/c.mp3', 'a/z.OGG']
  assert codec_quality.audio_files([str(tmp_path)], 2) == [
      tmp_path / 'a/-n; echo $HOME.flac', tmp_path / 'a/z.OGG']
  assert codec_quality.audio_files([str(tmp_path / 'a/notes.txt')])  # named: not by its suffix
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.UserError, match=r'empty holds no audio file \(\.wav'):
    codec_quality.audio_files([str(tmp_path / 'empty')])
  with pytest.raises(errors.UserError, match='none does not exist, wanted an audio file'):
    codec_quality.audio_files([str(tmp_path / 'none')])


def test_csv_holds_what_the_tables_show(tmp_path):
  row = codec_quality.Quality('soundstream', 0.5, 0.73, 4.25, float('nan'))
  report = codec_quality.Report(
      [row, dataclasses.replace(row, codec='opus', kbps=6.0, si_sdr=1.5)],
      [codec_quality.Level(7, 3.5)], 2, 20.0)
  text = codec_quality.tables(report)
  assert text.splitlines()[0] == '2 files, 20.0 s'
  assert '| soundstream | 0.5 | 0.73 | 4.25 | - |' in text and '| 1 | 7 | 3.5 |' in text
  codec_quality.write_csv(tmp_path / 'a.csv', report)
  with open(tmp_path / 'a.csv', newline='') as stream:
    first, second, level = csv.DictReader(stream)
  assert (first['kbps_of_file'], second['codec'], second['si_sdr_db']) == ('0.73', 'opus', '1.5')
  assert (level['level'], level['codes_used'], level['kbps_nominal']) == ('1', '7', '')


# --- Opus -------------------------------------------------------------------------------------


@needs_opus
def test_opus_is_better_with_more_bits_and_has_about_the_bits_asked_for(model, tmp_path):
  path = tmp_path / '-n; echo $HOME.wav'
  audio.write(path, _music(6.0))
  report = codec_quality.evaluate(model, [path], [0.6], (12, 6, 12), progress=False)
  ours, low, high = report.qualities
  assert [(row.codec, row.kbps) for row in report.qualities[1:]] == [('opus', 6), ('opus', 12)]
  assert high.mel_distance < low.mel_distance and high.si_sdr > low.si_sdr > ours.si_sdr
  for row in (low, high):
    assert 0.7 * row.kbps < row.file_kbps < 1.4 * row.kbps


@needs_opus
@pytest.mark.parametrize('samples', [1, 481, 30_001])
def test_opus_gives_back_the_length_and_the_place(samples):
  waveform = _music(1.3)[:samples]
  decoded, size = codec_quality.through_opus(waveform, RATE, 128)
  assert decoded.shape == waveform.shape and decoded.dtype == np.float32 and size > 0
  if samples > RATE:
    assert codec_quality.measure(waveform, decoded, RATE)[1] > 15


@needs_opus
def test_opus_bitrates_out_of_range_are_refused(model):
  for kbps in (5, 300, float('nan')):
    with pytest.raises(errors.UserError, match='kbps asked for, Opus has 6 to 256'):
      codec_quality.evaluate(model, ['none.wav'], opus_kbps=[kbps])


@needs_opus
def test_what_opusenc_complains_about_is_passed_on(tmp_path):
  (tmp_path / 'a.wav').write_bytes(b'no audio')
  with pytest.raises(errors.UserError, match='opusenc failed with code 1: '):
    codec_quality._run('opusenc', '--quiet', str(tmp_path / 'a.wav'), os.devnull)


@pytest.mark.parametrize('programs', [[], ['opusenc']])
def test_missing_opus_says_what_to_install(model, tmp_path, monkeypatch, programs):
  for name in programs:
    pathlib.Path(tmp_path / name).touch(mode=0o755)
  monkeypatch.setenv('PATH', str(tmp_path) if programs else '')
  missing = 'opusdec' if programs else 'opusenc'
  with pytest.raises(errors.UserError, match=f'{missing} is not installed.*apt install opus-tools'):
    codec_quality.evaluate(model, ['none.wav'])
