"""Quantizer fitting: the fits end to end on a few clips."""

import numpy as np
import pytest

from musiclm_jax import checkpoints, errors, fit_quantizers, generate
from musiclm_jax.data import records


def test_report_by_hand():
  points = np.array([[0.0], [1.0], [10.0], [11.0]], np.float32)  # variance 25.25
  report = fit_quantizers._report(
      points, np.array([[[0.5], [10.5], [99.0]], [[-0.5], [0.5], [9.0]]], np.float32), True)
  np.testing.assert_allclose(report.error, [0.25 / 25.25, 0.0], atol=1e-6)
  assert report.codes_used == (2, 2)
  np.testing.assert_allclose(report.perplexity, [2.0, 2.0], rtol=1e-4)


@pytest.fixture(name='waveforms', scope='module')
def _waveforms(tmp_path_factory):
  """Returns a directory of records: six clips of random notes from one scale, two held out."""
  directory = tmp_path_factory.mktemp('records')
  rng, time = np.random.default_rng(0), np.arange(72_000) / 24_000

  def clip():
    notes = rng.choice([110, 220, 440, 880, 1760, 3520], 12).repeat(6_000)
    return (0.2 * np.sin(2 * np.pi * notes * time)).astype(np.float32)

  for split, count in (('train', 4), ('test', 2)):
    serialised = [records.waveform_record(f'{split}{i}', clip()) for i in range(count)]
    records.write_shard(directory / records.shard_name(split, 0, 1), serialised)
  records.write_info(directory, {'kind': 'waveforms'})
  return str(directory)


@pytest.fixture(name='w2v_bert', scope='module')
def _w2v_bert(tmp_path_factory):
  """Returns an exported w2v-BERT of random parameters."""
  import jax
  import jax.numpy as jnp

  from musiclm_jax.models import w2v_bert
  config = w2v_bert.W2vBertConfig(
      num_mels=16, conv_channels=4, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
      contrastive_layers=1, prediction_layers=1, feature_layer=1, num_codes=8, code_dim=12)
  rngs = {name: jax.random.key(0) for name in ('params', 'mask', 'quantizer')}
  variables = jax.jit(w2v_bert.W2vBert(config).init)(rngs, jnp.zeros((1, 24_000)))
  directory = str(tmp_path_factory.mktemp('w2v_bert'))
  checkpoints.export_model(directory, 'w2v_bert', config, variables)
  return directory


def test_semantic_quantizer(w2v_bert, waveforms, tmp_path):
  report = fit_quantizers.fit_semantic_quantizer(
      w2v_bert, waveforms, str(tmp_path), num_clusters=16, batch_size=3)
  assert report.held_out and report.num_points == 2 * 75
  assert report.error[0] < 0.9 and report.perplexity[0] > 4
  exported = checkpoints.load_model(str(tmp_path))
  assert exported.name == 'semantic_quantizer' and exported.config.num_centroids == 16
  model = checkpoints.load_model(w2v_bert)
  assert exported.extra['fitted_to'] == model.fingerprint
  assert exported.extra['frames'] == 4 * 75
  clip = next(records.read_waveforms(waveforms, 'test'))['waveform']
  features = model.module.apply(model.variables, clip[None], method='features')
  codes = exported.module.apply(exported.variables, features, method='encode')
  assert codes.shape == (1, 75) and codes.dtype == np.int32
  again = fit_quantizers.fit_semantic_quantizer(
      w2v_bert, waveforms, str(tmp_path / 'again'), num_clusters=16, batch_size=3)
  assert again == report


def test_a_pass_over_all_frames_mends_a_poor_sample(w2v_bert, waveforms, tmp_path):
  fits = [
      fit_quantizers.fit_semantic_quantizer(
          w2v_bert, waveforms, str(tmp_path / str(passes)), num_clusters=16, max_points=24,
          num_passes=passes)
      for passes in (0, 3, None)]
  assert fits[1].error[0] < 0.95 * fits[0].error[0]
  passes = [checkpoints.load_model(tmp_path / str(n)).extra['passes'] for n in (0, 3, None)]
  assert passes == [0, 3, 1]  # the sample left frames out: one pass


def test_too_little_data_and_the_wrong_model_are_named(w2v_bert, waveforms, tmp_path):
  with pytest.raises(errors.UserError, match='gives 300 frames to fit, wanted .* 1024 codes'):
    fit_quantizers.fit_semantic_quantizer(w2v_bert, waveforms, str(tmp_path))
  with pytest.raises(errors.UserError, match='holds a w2v_bert, wanted a mulan'):
    fit_quantizers.fit_mulan_quantizer(w2v_bert, waveforms, str(tmp_path))
  with pytest.raises(errors.UserError, match='does not exist'):
    fit_quantizers.fit_semantic_quantizer(w2v_bert, str(tmp_path / 'none'), str(tmp_path))


def test_mulan_quantizer(waveforms, tmp_path, monkeypatch):
  """The audio tower is replaced by eight band energies: only the fit is looked at."""
  import jax.numpy as jnp

  class Bands:
    def apply(self, variables, waveform, method):
      assert method == 'embed_audio'
      spectrum = jnp.abs(jnp.fft.rfft(waveform))[:, :24_000].reshape(len(waveform), 8, -1).mean(-1)
      return spectrum / jnp.linalg.norm(spectrum, axis=-1, keepdims=True)

  model = checkpoints.ExportedModel('mulan', None, Bands(), {}, {}, tmp_path, 'fingerprint')
  with monkeypatch.context() as patched:
    patched.setattr(checkpoints, 'load_model', lambda directory, wanted: model)
    report = fit_quantizers.fit_mulan_quantizer(
        'unused', waveforms, str(tmp_path / 'out'), num_quantizers=3, codebook_size=4,
        window_seconds=2.0, hop_seconds=0.25, batch_size=4)
  assert report.held_out and report.num_points == 2 * 5
  assert report.error[0] >= report.error[-1] and report.error[-1] < 0.5
  exported = checkpoints.load_model(str(tmp_path / 'out'))
  assert exported.name == 'mulan_quantizer' and exported.config.num_quantizers == 3
  assert exported.extra['windows'] == 4 * 5
  codes = exported.module.apply(exported.variables, jnp.ones((1, 1, 8)), method='encode')
  assert codes.shape == (1, 1, 3)


def test_the_gap_between_captions_and_clips_is_measured(tmp_path):
  noise = 0.1 * np.random.default_rng(0).standard_normal((3, 240_000)).astype(np.float32)
  for split, clips, captions in (('train', noise[:2], []), ('test', noise[2:], ['noise', 'loud noise'])):
    records.write_shard(
        tmp_path / records.shard_name(split, 0, 1),
        [records.waveform_record(f'{split}{i}', clip, captions) for i, clip in enumerate(clips)])
  records.write_info(tmp_path, {'kind': 'waveforms'})
  output = tmp_path / 'quantizer'
  fit_quantizers.fit_mulan_quantizer(
      str(generate.TINY / 'mulan'), str(tmp_path), str(output), num_quantizers=2, codebook_size=2)
  gap = checkpoints.load_model(output).extra['text_audio_gap']
  assert gap['split'] == 'test' and gap['pairs'] == 2 and len(gap['text_residual']) == 2
  assert -1 <= gap['matched'] <= 1


def test_levels_are_added_and_the_tokens_stay(waveforms, export_codec, tmp_path):
  from musiclm_jax.models import soundstream
  config = soundstream.SoundStreamConfig(
      channels=2, strides=(6, 8, 10), channel_multipliers=(1, 1, 2), dilations=((1,),) * 3, dim=4,
      num_quantizers=2, codebook_size=8)
  old = export_codec(tmp_path / 'old', config).model
  report = fit_quantizers.fit_codec_levels(
      str(tmp_path / 'old'), waveforms, str(tmp_path / 'new'), num_quantizers=4, num_iterations=5)
  new = checkpoints.load_model(tmp_path / 'new', 'soundstream')
  assert new.config.num_quantizers == 4 and new.extra['levels_added'] == 2
  clip = next(records.read_waveforms(waveforms, 'test'))['waveform'][None]
  codes = np.asarray(new.apply('encode', clip))
  np.testing.assert_array_equal(codes[..., :2], old.apply('encode', clip))
  assert len(report.error) == 2 and 1 > report.error[0] > report.error[1]
  # The levels that were there make the same tokens: models trained on them still fit.
  assert checkpoints.token_fingerprint(new, 2) == checkpoints.token_fingerprint(old)
  assert checkpoints.token_fingerprint(new) != checkpoints.token_fingerprint(old)
  assert new.fingerprint != old.fingerprint
  with pytest.raises(errors.UserError, match='has 2 levels, wanted more than that, not 2'):
    fit_quantizers.fit_codec_levels(
        str(tmp_path / 'old'), waveforms, str(tmp_path / 'other'), num_quantizers=2)


@pytest.fixture(name='melody', scope='module')
def _melody(tmp_path_factory):
  """Returns an exported melody model of random parameters, with windows of 1 s."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp

  from musiclm_jax.models import melody, mulan, spectrogram
  config = melody.MelodyConfig(
      encoder=mulan.EncoderConfig(num_layers=1, emb_dim=16, num_heads=2, mlp_dim=32, norm_first=True),
      window_seconds=1.0, hop_seconds=0.5, embedding_dim=8,
      mel=spectrogram.MelConfig(sample_rate=24_000, n_fft=1_024, win_length=1_024,
                                hop_length=2_400, num_mels=24, fmin=60.0, fmax=4_000.0))
  variables = jax.jit(melody.Melody(config).init)(jax.random.key(0), jnp.zeros((1, 24_000)))
  directory = str(tmp_path_factory.mktemp('melody'))
  checkpoints.export_model(directory, 'melody', config, nn.unbox(variables))
  return directory


def test_melody_quantizer_of_waveforms_and_of_melodies(melody, waveforms, tmp_path):
  """3 s have five windows of 1 s, 0.5 s apart; of a melody every version counts."""
  both = tmp_path / 'melodies'
  records.write_shard(both / records.shard_name('train', 0, 1), [
      records.melody_record(str(i), str(i), [record['waveform'], record['waveform'][:36_000]],
                            ['instrument', 'hum'])
      for i, record in enumerate(records.read_waveforms(waveforms, 'train'))])
  records.write_info(both, {'kind': 'melodies'})
  options = {'num_quantizers': 3, 'codebook_size': 4, 'batch_size': 4}
  for source, windows, held_out in ((waveforms, 5, 2 * 5), (both, 5 + 2, None)):
    output = tmp_path / 'out'
    report = fit_quantizers.fit_melody_quantizer(melody, str(source), str(output), **options)
    assert report.held_out == bool(held_out) and report.num_points == (held_out or 4 * windows)
    exported = checkpoints.load_model(output, 'melody_quantizer')
    assert (exported.config.dim, exported.config.num_quantizers) == (8, 3)
    assert exported.extra['windows'] == 4 * windows
    assert exported.extra['fitted_to'] == checkpoints.load_model(melody).fingerprint
    assert (exported.extra['window_seconds'], exported.extra['hop_seconds']) == (1.0, 0.5)
  assert 1 > report.error[0] > report.error[1] > report.error[2]  # on the points it was fitted to
  nearer = fit_quantizers.fit_melody_quantizer(
      melody, waveforms, str(tmp_path / 'nearer'), hop_seconds=0.25, **options)
  assert nearer.num_points == 2 * 9
  with pytest.raises(errors.UserError, match='gives 20 windows to fit, .* of the 512 codes'):
    fit_quantizers.fit_melody_quantizer(melody, waveforms, str(tmp_path / 'none'))
  with pytest.raises(errors.UserError, match='holds melodies records .* wanted waveforms'):
    fit_quantizers.fit_mulan_quantizer(str(generate.TINY / 'mulan'), str(both), str(tmp_path / 'a'))
