"""Quantizer fitting: the sample, the windows, and both fits end to end on a few clips."""

import numpy as np
import pytest

from musiclm_jax import checkpoints, errors, fit_quantizers
from musiclm_jax.data import records


def test_sample_is_everything_while_it_fits_and_uniform_after():
  sample = fit_quantizers.PointSample(100, seed=0)
  sample.add(np.arange(60.0)[:, None])
  np.testing.assert_array_equal(sample.points()[:, 0], np.arange(60))
  for start in range(60, 1000, 20):
    sample.add(np.arange(start, start + 20.0)[:, None])
  points = sample.points()[:, 0]
  assert points.shape == (100,) and sample.count == 1000
  assert len(np.unique(points)) == 100
  assert 380 < points.mean() < 620
  mean, std = sample.moments()  # of all thousand, not of the sample
  np.testing.assert_allclose(mean, [499.5])
  np.testing.assert_allclose(std, [np.arange(1000).std()], rtol=1e-6)


def test_windows_fit_or_are_followed_by_silence():
  clip = np.arange(1, 8, dtype=np.float32)
  np.testing.assert_array_equal(
      fit_quantizers._windows(clip, 4, 2), [[1, 2, 3, 4], [3, 4, 5, 6]])
  np.testing.assert_array_equal(fit_quantizers._windows(clip[:3], 4, 2), [[1, 2, 3, 0]])


def test_batches_hold_one_length():
  clips = [np.full(n, n, np.float32) for n in (2, 3, 2, 2, 3)]
  batches = list(fit_quantizers._batches(iter(clips), lambda clip: clip[None], 2))
  assert [batch.shape for batch in batches] == [(2, 2), (2, 3), (1, 2)]


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
