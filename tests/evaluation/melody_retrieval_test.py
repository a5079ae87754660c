"""Who else plays the same tune: recall by hand, and of an exported model on records."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax import checkpoints, errors
from musiclm_jax.data import records
from musiclm_jax.evaluation import melody_retrieval
from musiclm_jax.models import melody, mulan, spectrogram

CONFIG = melody.MelodyConfig(
    encoder=mulan.EncoderConfig(num_layers=1, emb_dim=16, num_heads=2, mlp_dim=32, norm_first=True),
    window_seconds=0.5, hop_seconds=0.25, embedding_dim=8,
    mel=spectrogram.MelConfig(sample_rate=24_000, n_fft=1_024, win_length=1_024, hop_length=2_400,
                              num_mels=24, fmin=60.0, fmax=4_000.0))


@pytest.fixture(name='model', scope='module')
def _model(tmp_path_factory):
  """Returns the directory of a melody model with random weights."""
  directory = tmp_path_factory.mktemp('melody')
  variables = jax.jit(melody.Melody(CONFIG).init)(jax.random.key(0), jnp.zeros((1, 12_000)))
  checkpoints.export_model(directory, 'melody', CONFIG, nn.unbox(variables))
  return directory


def _tone(hertz, seconds=0.6):
  return 0.2 * np.sin(2 * np.pi * hertz * np.arange(round(24_000 * seconds)) / 24_000)


def _write(path, melodies, split='test'):
  """`melodies` are (piece, tones of the versions, kinds)."""
  records.write_shard(path / records.shard_name(split, 0, 1), [
      records.melody_record(str(i), piece, [_tone(hertz) for hertz in tones], kinds)
      for i, (piece, tones, kinds) in enumerate(melodies)])
  records.write_info(path, {'kind': 'melodies'})


def test_each_kind_finds_what_it_sounds_like(model, tmp_path):
  """The hum of `a` is that of `b`: it finds `b`. A copy of `a` finds `a`."""
  kinds = ['instrument', 'vocals', 'hum']
  _write(tmp_path, [('a', [100, 100, 900], kinds), ('b', [900, 900, 900], kinds),
                    ('c', [2500, 2500, 100], kinds), ('d', [400, 400, 400], kinds)])
  report = melody_retrieval.evaluate(model, tmp_path)
  assert report == melody_retrieval.Report(4, 6 / 8, 1 / 4, {'hum': 0.5, 'vocals': 1.0})
  fewer = melody_retrieval.evaluate(model, tmp_path, max_melodies=2)
  assert fewer.num_melodies == 2 and fewer.chance == 0.5


def test_melodies_of_one_piece_are_no_rivals(model, tmp_path):
  """Each of `a` is heard exactly where the other is stored."""
  kinds = ['instrument', 'key']
  _write(tmp_path, [('a', [100, 120], kinds), ('a', [120, 100], kinds), ('b', [2500, 2500], kinds)])
  report = melody_retrieval.evaluate(model, tmp_path)
  assert report.by_kind == {'key': 1.0}
  np.testing.assert_allclose(report.chance, (1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_a_version_is_its_first_window(model, tmp_path):
  loud = np.concatenate([_tone(100, 0.5), _tone(2500, 3.0)])
  short = _tone(900, 0.2)
  padded = np.pad(short, (0, 7_200))
  records.write_shard(tmp_path / records.shard_name('held', 0, 1), [
      records.melody_record('0', 'a', [_tone(100), loud], ['x', 'long']),
      records.melody_record('1', 'b', [_tone(2500), _tone(2500)], ['x', 'same']),
      records.melody_record('2', 'c', [padded, short], ['x', 'short'])])
  records.write_info(tmp_path, {'kind': 'melodies'})
  report = melody_retrieval.evaluate(model, tmp_path, 'held')
  assert report.by_kind == {'long': 1.0, 'same': 1.0, 'short': 1.0}


def test_equal_embeddings_find_nothing():
  report = melody_retrieval._report(
      np.ones((4, 10)), np.arange(4), np.arange(10) != np.arange(4)[:, None], ['hum'] * 4)
  assert report.recall_at_1 == 0 and report.chance == pytest.approx(0.1)


def test_too_few_pieces_and_other_records_are_named(model, tmp_path):
  _write(tmp_path, [('a', [100, 900], ['x', 'y'])] * 2)
  with pytest.raises(errors.UserError, match='melodies of 1 pieces in test, wanted two or more'):
    melody_retrieval.evaluate(model, tmp_path)
  with pytest.raises(errors.UserError, match='does not exist'):
    melody_retrieval.evaluate(tmp_path / 'none', tmp_path)
  with pytest.raises(errors.UserError, match=r'holds no train-\*'):
    melody_retrieval.evaluate(model, tmp_path, 'train')
