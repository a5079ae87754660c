"""SavedModels with the signatures of TF-Hub's vggish/1, trill/3 and yamnet/1, made here: no weights."""

import numpy as np
import pytest
import tensorflow as tf

from musiclm_jax import errors
from musiclm_jax.evaluation import embeddings, kld, saved_models

NOISE = np.random.default_rng(0).normal(scale=0.1, size=32_000).astype(np.float32)  # 2 s at 16 kHz
SAMPLES = tf.TensorSpec([None], tf.float32)


class Vggish(tf.Module):
  """f32[S] -> f32[S // 15360, 128], as vggish/1: a frame for each 0.96 s."""

  def __init__(self, scale=1.0):
    super().__init__()
    random = np.random.default_rng(1)
    self.kernel = tf.Variable(scale * random.normal(size=(15_360, 128)), dtype=tf.float32)

  @tf.function(input_signature=[SAMPLES])
  def __call__(self, waveform):
    return tf.signal.frame(waveform, 15_360, 15_360) @ self.kernel


class Trill(tf.Module):
  """(samples f32[S], sample_rate) -> {'embedding': f32[N, 512], 'layer19': f32[N, 12288]}."""

  @tf.function(input_signature=[SAMPLES, tf.TensorSpec([], tf.int32)])
  def __call__(self, samples, sample_rate):
    frames = tf.signal.frame(samples, 512, sample_rate // 6)
    return {'embedding': frames, 'layer19': tf.tile(frames, [1, 24])}


class Yamnet(tf.Module):
  """f32[S] -> (scores f32[W, 521], embeddings f32[W, 1024], log mel f32[M, 64])."""

  @tf.function(input_signature=[SAMPLES])
  def __call__(self, waveform):
    frames = tf.signal.frame(waveform, 15_600, 7_680)
    return tf.sigmoid(10 * frames[:, :521]), frames[:, :1024], tf.zeros([3, 64])


class Writing(tf.Module):
  """As Vggish, and writes a file."""

  def __init__(self, path):
    super().__init__()
    self.path = path

  @tf.function(input_signature=[SAMPLES])
  def __call__(self, waveform):
    tf.io.write_file(self.path, 'written')
    return tf.zeros([1, 128])


class Calling(tf.Module):
  """As Vggish, by Python."""

  @tf.function(input_signature=[SAMPLES])
  def __call__(self, waveform):
    return tf.py_function(lambda x: tf.zeros([1, 128]), [waveform], tf.float32)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder of SavedModels."""
  folder = tmp_path_factory.mktemp('tfhub')
  modules = {'vggish': Vggish(), 'other': Vggish(2.0), 'trill': Trill(), 'yamnet': Yamnet(),
             'writing': Writing(str(folder / 'written.txt')), 'calling': Calling(),
             'variable': tf.Module()}
  for name, module in modules.items():
    tf.saved_model.save(module, str(folder / name))
  return folder


def test_vggish_gives_what_the_model_gives(folder):
  model = embeddings.load('vggish', folder / 'vggish')
  assert model.sample_rate == 16_000
  wanted = np.stack([NOISE[:15_360], NOISE[15_360:30_720]]) @ Vggish().kernel.numpy()
  np.testing.assert_allclose(model(NOISE), wanted, rtol=1e-4, atol=1e-4)


def test_trill_is_told_the_rate_and_gives_its_embedding(folder):
  model = embeddings.load('trill', folder / 'trill')
  assert model.name == 'trill' and model(NOISE).shape == (12, 512)
  np.testing.assert_allclose(model(NOISE)[1], NOISE[2_666:][:512], rtol=1e-6)
  layer = embeddings.trill(str(folder / 'trill'), 'layer19')
  assert layer(NOISE).shape == (12, 12_288) and layer.name == 'trill layer19'


def test_yamnet_is_taken_back_to_logits(folder):
  classifier = kld.yamnet(str(folder / 'yamnet'))
  np.testing.assert_allclose(classifier.logits(NOISE)[0], 10 * NOISE[:521], rtol=1e-3, atol=1e-4)
  softmax = classifier.probabilities(NOISE, kld.KldConfig())
  assert softmax.shape == (521,) and softmax.sum() == pytest.approx(1)


def test_the_fingerprint_is_that_of_graph_and_weights(folder):
  load = lambda name: saved_models.SavedModel(str(folder / name)).fingerprint
  assert load('vggish') == load('vggish') and load('vggish') != load('other')


@pytest.mark.parametrize('name, operation', [('writing', 'WriteFile'), ('calling', 'EagerPyFunc')])
def test_graphs_that_reach_outside_are_refused(folder, name, operation):
  with pytest.raises(errors.UserError, match=rf'reach outside the graph \({operation}\): refused'):
    saved_models.SavedModel(str(folder / name))
  assert not (folder / 'written.txt').exists()


def test_directories_that_are_none_are_named(folder, tmp_path):
  (tmp_path / 'noise').mkdir()
  (tmp_path / 'noise' / 'saved_model.pb').write_bytes(b'no protocol buffer')
  (tmp_path / 'empty').mkdir()
  for path, message in [(tmp_path / 'none', 'does not exist'), (tmp_path / 'empty', 'has no saved'),
                        (tmp_path / 'noise', 'is not a SavedModel'),
                        (folder / 'variable', 'cannot be called')]:
    with pytest.raises(errors.UserError, match=message):
      saved_models.SavedModel(str(path))


def test_other_signatures_and_clips_too_short_are_named(folder):
  for name, directory, message in [
      ('vggish', 'trill', 'does not take this'), ('vggish', 'yamnet', 'its output'),
      ('trill', 'vggish', 'does not take this')]:
    with pytest.raises(errors.UserError, match=message):
      embeddings.load(name, folder / directory)(NOISE)
  with pytest.raises(errors.UserError, match='too short'):
    embeddings.load('vggish', folder / 'vggish')(NOISE[:1000])
  with pytest.raises(errors.UserError, match='there is no embedding'):
    embeddings.load('openl3', folder / 'vggish')


def test_where_models_are():
  assert embeddings.directory('mulan', 'models', {}) == 'models/mulan'
  assert embeddings.directory('trill', 'models', {'trill': 'gs://b/trill'}) == 'gs://b/trill'
  with pytest.raises(errors.UserError, match='give --vggish=DIR'):
    embeddings.directory('vggish', 'models', {'vggish': None})
