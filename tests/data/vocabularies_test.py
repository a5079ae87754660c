import numpy as np
import pytest
import tensorflow as tf

from musiclm_jax import text
from musiclm_jax.data import vocabularies

LENGTH = 16
CAPTIONS = ['A calm piano piece with soft strings, at 90 bpm.', 'Fast drums & bright synths!',
            'Une mélodie très douce; naïve, à la façon d’un café.'] * 3
TEXTS = [
    *CAPTIONS, '', '   ', 'UPPER lower MiXeD', "don't stop!!! 4/4 #1 (live) [remix] {x} ~ `a`",
    '[CLS] [PAD] piano [SEP]', 'tab\tnew\nline\r\x0b\x0c', 'nul\x00 bell\x07 del\x7f \x85',
    'soft\xadhyphen zero\u200bwidth \ufeff bom',
    '\u00a0no\u2003break\u2028space', '😀 👨‍👩‍👧 🎹piano🎹',
    'ΣΑΣ ΟΔΟΣ',
    'İstanbul straße ﬁne', 'A\u0301e\u0300', '日本語の曲 음악 موسيقى', '— “quoted” … ¿que?',
    'a' * 100, 'a' * 101, 'é' * 100, 'é' * 101, 'ж' * 100 + ' piano', 'piano ' * 9000, 'x' * 30_000]


@pytest.fixture(scope='module')
def vocab_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'vocab.txt'
  text.train_vocabulary(CAPTIONS, 200, path)
  return str(path)


@pytest.fixture(scope='module')
def vocabulary(vocab_file):
  return vocabularies.WordPieceVocabulary(vocab_file)


def test_graph_and_python_give_the_same_ids(vocabulary, vocab_file):
  tokenizer = text.WordPieceTokenizer(vocab_file)

  def padded(s):
    ids = vocabulary.fit(vocabulary.encode_tf(s), LENGTH)
    return tf.pad(ids, [[0, LENGTH - tf.size(ids)]])

  dataset = tf.data.Dataset.from_tensor_slices(TEXTS).map(padded)
  for string, ids in zip(TEXTS, dataset.as_numpy_iterator(), strict=True):
    np.testing.assert_array_equal(ids, tokenizer.encode([string], LENGTH)[0], err_msg=string[:40])
    assert vocabulary.encode_tf(tf.constant(string)).numpy().tolist() == vocabulary.encode(string)


def test_bytes_that_are_not_utf8_are_left_out(vocabulary):
  ids = vocabulary.encode_tf(tf.constant(b'pi\xffano \xc3')).numpy().tolist()
  assert ids == vocabulary.encode('piano')


def test_fit_keeps_sep_last(vocabulary):
  np.testing.assert_array_equal(vocabulary.fit(tf.constant([2, 7, 8, 9, 3]), 4), [2, 7, 8, 3])
  np.testing.assert_array_equal(vocabulary.fit(tf.constant([2, 7, 3]), 4), [2, 7, 3])


def test_decode_is_the_same_in_graph_and_python(vocabulary):
  ids = vocabulary.encode('Calm drums, bright strings')
  assert vocabulary.decode(ids) == 'calm drums , bright strings'
  assert vocabulary.decode_tf(tf.constant([*ids, 0, 0])).numpy().decode() == vocabulary.decode(ids)


def test_position_of_a_pipeline_can_be_saved(vocabulary, tmp_path):
  """Nothing in the graph is stateful: an iterator over it is checkpointed and continued."""
  dataset = tf.data.Dataset.from_tensor_slices(CAPTIONS).map(vocabulary.encode_tf)
  iterator = iter(dataset)
  next(iterator)
  path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / 'position'))
  want = next(iterator).numpy()
  other = iter(dataset)
  tf.train.Checkpoint(iterator=other).read(path)
  np.testing.assert_array_equal(next(other).numpy(), want)


def test_ids_and_equality(vocabulary, vocab_file):
  assert (vocabulary.pad_id, vocabulary.unk_id) == (0, 1)
  assert (vocabulary.bos_id, vocabulary.eos_id) == (2, 3)
  assert vocabulary == vocabularies.WordPieceVocabulary(vocab_file)
  assert vocabulary.vocab_size == len(text.read_vocabulary(vocab_file))
