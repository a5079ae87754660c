"""L2. The wordpieces of text.py inside a tf.data graph: the same ids, no py_function, no table."""

from collections.abc import Iterable, Sequence

import seqio
import tensorflow as tf
import tensorflow_text as tf_text

from musiclm_jax import text

# BERT's cleaning and splitting in RE2 syntax. A word is split around each character of _ALONE:
# ASCII symbols, Unicode punctuation, Chinese characters.
_REMOVED = r'[\x{0}\x{FFFD}\p{Cf}\p{Co}]|[\x{1}-\x{8}\x{B}\x{C}\x{E}-\x{1F}\x{7F}-\x{9F}]'
_SPACE = r'[\s\p{Z}]'
_ALONE = (r'[!-/:-@\[-`{-~]|\p{P}|[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}'
          r'\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B920}-\x{2CEAF}\x{F900}-\x{FAFF}'
          r'\x{2F800}-\x{2FA1F}]')
_NEVER_A_TOKEN = '\ufffd'  # removed from every text, so in no vocabulary


class WordPieceVocabulary(seqio.Vocabulary):
  """`encode` and `encode_tf` give `[CLS] a b c [SEP]` as int32[n], unpadded; pad is 0.

  Cut it to a length with `fit`, which keeps [SEP] last as WordPieceTokenizer.encode does:
  fit([2 7 8 9 3], 4) = [2 7 8 3].
  """

  def __init__(self, vocab_file: str):
    super().__init__()
    self._tokenizer = text.WordPieceTokenizer(vocab_file)
    self._wordpiece = None

  @property
  def vocab_file(self) -> str:
    return self._tokenizer.vocab_file

  @property
  def bos_id(self) -> int:
    return self._tokenizer.cls_id

  @property
  def eos_id(self) -> int:
    return self._tokenizer.sep_id

  @property
  def unk_id(self) -> int:
    return self._tokenizer.unk_id

  @property
  def _base_vocab_size(self) -> int:
    return self._tokenizer.vocab_size

  def __eq__(self, other) -> bool:
    return (isinstance(other, WordPieceVocabulary)
            and self._tokenizer.tokens == other._tokenizer.tokens)

  def __hash__(self) -> int:
    return hash(tuple(self._tokenizer.tokens))

  def fit(self, ids: tf.Tensor, length: int) -> tf.Tensor:
    """Returns int32[<= length]: ids of `encode_tf`, cut before [SEP] when longer than `length`."""
    return tf.cond(tf.size(ids) > length,
                   lambda: tf.concat([ids[:length - 1], ids[-1:]], axis=0), lambda: ids)

  def _encode(self, s: str) -> Sequence[int]:
    return [self.bos_id, *self._tokenizer.tokenize(s), self.eos_id]

  def _decode(self, ids: Iterable[int]) -> str:
    return self._tokenizer.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    pieces = self._pieces()(_words(s))
    return tf.concat([[self.bos_id], tf.cast(pieces, tf.int32), [self.eos_id]], axis=0)

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    special = [self.pad_id, self.bos_id, self.eos_id]
    keep = tf.reduce_all(ids[:, None] != tf.constant(special, ids.dtype), axis=1)
    pieces = tf.gather(tf.constant(self._tokenizer.tokens), tf.boolean_mask(ids, keep))
    return tf.strings.regex_replace(tf.strings.reduce_join(pieces, separator=' '), ' ##', '')

  def _pieces(self):
    """Returns words string[n] -> ids int64[m]; the wordpiece trie is built once."""
    if self._wordpiece is None:
      with tf.init_scope():
        self._wordpiece = tf_text.FastWordpieceTokenizer(
            self._tokenizer.tokens, unknown_token=text.UNK, no_pretokenization=True,
            max_bytes_per_word=8 * text.MAX_WORD_CHARACTERS)
    return lambda words: self._wordpiece.tokenize(words).flat_values


def _words(s: tf.Tensor) -> tf.Tensor:
  """Returns the words string[n] of a scalar string, normalised as BertNormalizer does."""
  s = tf.strings.unicode_transcode(s, 'UTF-8', 'UTF-8', errors='ignore')
  s = tf.cond(tf.strings.length(s) > text.MAX_CHARACTERS,
              lambda: _first_characters(s, text.MAX_CHARACTERS), lambda: s)
  s = tf.strings.regex_replace(s, _REMOVED, '')
  s = tf.strings.regex_replace(s, _SPACE, ' ')
  s = tf.strings.regex_replace(tf_text.normalize_utf8(s, 'NFD'), r'\p{Mn}', '')
  s = tf.strings.lower(s, encoding='utf-8')
  words = tf_text.regex_split(s[None], r' |' + _ALONE, _ALONE).flat_values
  long = tf.strings.length(words, unit='UTF8_CHAR') > text.MAX_WORD_CHARACTERS
  return tf.where(long, _NEVER_A_TOKEN, words)


def _first_characters(s: tf.Tensor, count: int) -> tf.Tensor:
  count = tf.minimum(count, tf.strings.length(s, unit='UTF8_CHAR'))
  return tf.strings.substr(s, 0, count, unit='UTF8_CHAR')
