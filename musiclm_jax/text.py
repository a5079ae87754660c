"""L0. Text to wordpiece ids, as BERT does it; the `tokenizers` library, no TensorFlow.

The same ids inside a tf.data graph: data/vocabularies.py.
"""

import collections
import csv
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from musiclm_jax import audio, errors

PAD, UNK, CLS, SEP, MASK = '[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'
SPECIAL_TOKENS = (PAD, UNK, CLS, SEP, MASK)
# MuLan (2208.12415): titles and tags, descriptions, playlist titles, AudioSet label names.
SOURCES = ('short', 'long', 'playlist', 'labels')
TABLES = ('captions.csv', 'captions.tsv', 'captions.jsonl')  # beside audio files: read_table's rows
MAX_CHARACTERS = 20_000  # of one text; the rest is not read (a text has at most 512 wordpieces)
MAX_WORD_CHARACTERS = 100  # a longer word is one [UNK]
MAX_ALPHABET = 500


class WordPieceTokenizer:
  """Texts -> int32[B, N], rows `[CLS] a b c [SEP] 0 0`; 0 is padding.

  Normalisation is BERT's uncased one: lower case, accents stripped, split at white space and
  around punctuation. Special tokens written out in a text, as '[SEP]', are just characters.
  """

  def __init__(self, vocab_file: str):
    self.vocab_file = os.fspath(vocab_file)
    self.tokens = read_vocabulary(vocab_file)
    self._ids = {token: i for i, token in enumerate(self.tokens)}
    self.cls_id, self.sep_id, self.unk_id = (self._ids[t] for t in (CLS, SEP, UNK))
    self._tokenizer = _library_tokenizer(self._ids)

  @property
  def vocab_size(self) -> int:
    return len(self.tokens)

  def tokenize(self, text: str) -> list[int]:
    """Returns the wordpiece ids of one text, without [CLS] and [SEP]."""
    return self._tokenizer.encode(readable(text), add_special_tokens=False).ids

  def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
    """Returns int32[B, length]: `[CLS] pieces [SEP]`, cut to `length`, padded with 0."""
    if isinstance(texts, str):
      raise errors.UserError(f'encode: texts is one string ({texts[:40]!r}), not a list of them')
    if length < 2:
      raise errors.UserError(f'encode: length {length} leaves no room for [CLS] and [SEP]')
    ids = np.zeros((len(texts), length), np.int32)
    texts = [readable(text) for text in texts]
    for row, encoding in zip(ids, self._tokenizer.encode_batch(
        texts, add_special_tokens=False), strict=True):
      pieces = [self.cls_id, *encoding.ids[:length - 2], self.sep_id]
      row[:len(pieces)] = pieces
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the wordpieces joined into words, without [PAD], [CLS], [SEP] and unknown ids."""
    skip = {self._ids[PAD], self.cls_id, self.sep_id}
    words = []
    for i in ids:
      if int(i) in skip or not 0 <= int(i) < len(self.tokens):
        continue
      piece = self.tokens[int(i)]
      if piece.startswith('##') and words:
        words[-1] += piece[2:]
      else:
        words.append(piece)
    return ' '.join(words)


def read_vocabulary(path: str) -> list[str]:
  """Returns the tokens of a vocab.txt, one a line, [PAD] first; checks that it is one."""
  try:
    with open(path, encoding='utf-8', newline='') as f:
      tokens = [line.rstrip('\r') for line in f.read().split('\n')]
  except UnicodeDecodeError:
    raise errors.UserError(f'vocabulary {path} is not UTF-8 text') from None
  if tokens and not tokens[-1]:
    tokens.pop()
  missing = [token for token in (PAD, UNK, CLS, SEP) if token not in tokens]
  if missing:
    raise errors.UserError(
        f'vocabulary {path} has no {", ".join(missing)}; wanted one wordpiece a line')
  if tokens[0] != PAD:
    raise errors.UserError(f'vocabulary {path} starts with {tokens[0]!r}; wanted {PAD}, the id 0')
  repeated = [token for token, n in collections.Counter(tokens).items() if n > 1]
  if repeated:
    raise errors.UserError(f'vocabulary {path} has {repeated[0]!r} on more than one line')
  return tokens


def train_vocabulary(texts: Iterable[str], size: int, path: str) -> list[str]:
  """Writes a vocab.txt of at most `size` wordpieces and returns them; same texts, same file."""
  import tokenizers
  from tokenizers import trainers

  texts = [readable(text) for text in texts]
  normalizer, splitter = _library_normalizer(), _library_splitter()
  words = collections.Counter(
      word for text in texts
      for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
  if not words:
    raise errors.UserError('train_vocabulary: no words in the texts; wanted at least one')
  letters = collections.Counter()
  for word, count in words.items():
    letters.update({letter: count * word.count(letter) for letter in set(word)})
  alphabet = sorted(sorted(letters, key=lambda c: (-letters[c], c))[:MAX_ALPHABET])
  # The trainer numbers the `##x` of the alphabet in the order of a hash table, and breaks ties by
  # number; naming them as special tokens fixes their order.
  first = [*SPECIAL_TOKENS, *alphabet, *('##' + c for c in alphabet)]
  if size < len(first):
    raise errors.UserError(
        f'train_vocabulary: size {size} is smaller than the {len(first)} special tokens and '
        'letters of the texts')
  trainer = trainers.WordPieceTrainer(
      vocab_size=size, special_tokens=first, min_frequency=2, show_progress=False,
      limit_alphabet=len(alphabet))
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=UNK))
  tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
  tokenizer.train_from_iterator(texts, trainer)
  ids = tokenizer.get_vocab()
  tokens = sorted(ids, key=ids.get)
  with audio.atomic_path(path, overwrite=True) as temporary:
    with open(temporary, 'w', encoding='utf-8', newline='') as f:
      f.write('\n'.join(tokens) + '\n')
  return tokens


def read_captions(path: str) -> Iterator[str]:
  """Yields the texts of a corpus.jsonl (captions, aspects and those of SOURCES), a csv or a txt.

  The csv has a column caption.
  """
  suffix = os.path.splitext(path)[1].lower()
  if suffix not in ('.jsonl', '.csv', '.txt'):
    raise errors.UserError(f'captions {path}: ending {suffix!r}; wanted .jsonl, .csv or .txt')
  if suffix == '.csv':
    yield from (row['caption'] for row in read_table(path, ('caption',)))
    return
  with open(path, encoding='utf-8', errors='replace', newline='') as f:
    for number, line in enumerate(f, 1):
      if not line.strip():
        continue
      if suffix == '.txt':
        yield line.strip()
        continue
      try:
        clip = json.loads(line)
        lists = [clip['captions'], clip.get('aspects', ()), *dict(clip.get('texts', {})).values()]
        texts = list(itertools.chain(*lists))
        if any(isinstance(texts, str) for texts in lists) or not all(
            isinstance(text, str) for text in texts):
          raise TypeError
        yield from texts
      except (ValueError, KeyError, TypeError, RecursionError):
        raise errors.UserError(
            f'captions {path}, line {number}: not a JSON object with a list `captions`') from None


def read_table(path: str, columns: Sequence[str], lists: Sequence[str] = ()) -> list[dict]:
  """Returns the rows of a UTF-8 csv, tsv or jsonl that has at least `columns`; no value is ''.

  What ends in neither .tsv nor .jsonl is a csv. In a tsv a quote is a letter like any other. Values
  are texts, of a jsonl too (3 is '3'); those of the columns `lists` stay what they are in a jsonl.
  """
  suffix = os.path.splitext(path)[1].lower()
  if suffix == '.jsonl':
    return _read_lines(path, columns, lists)
  options = {'delimiter': '\t', 'quoting': csv.QUOTE_NONE} if suffix == '.tsv' else {}
  try:
    with open(path, encoding='utf-8-sig', newline='') as f:
      reader = csv.DictReader(f, restval='', **options)
      rows = list(reader)
  except (UnicodeDecodeError, csv.Error) as error:
    kind = suffix[1:] if options else 'csv'
    raise errors.UserError(f'{path} is not a UTF-8 {kind} file: {error}') from error
  found = reader.fieldnames or []
  if missing := [column for column in columns if column not in found]:
    raise errors.UserError(f'{path} has columns {found}, wanted also {missing}')
  return rows


def _read_lines(path: str, columns: Sequence[str], lists: Sequence[str]) -> list[dict]:
  rows = []
  with open(path, 'rb') as f:
    for number, line in enumerate(f, 1):
      if line.strip():
        try:
          row = json.loads(line.decode('utf-8-sig'))
          if not isinstance(row, dict):
            raise ValueError('no object')
          if missing := [column for column in columns if column not in row]:
            raise ValueError(f'it has {list(row)}, wanted also {missing}')
        except (ValueError, RecursionError) as error:
          raise errors.UserError(f'{path}, line {number}: not a row: {error!r}') from error
        rows.append({name: _cell(value, name in lists) for name, value in row.items()})
        for column in columns:
          if not isinstance(row[column], str | None):
            raise errors.UserError(f'{path}, row {len(rows)}: {column} is '
                                   f'{str(row[column])[:100]!r}, wanted a text')
  return rows


def _cell(value, is_list: bool):
  if value is None or isinstance(value, str):
    return value or ''
  return value if is_list else json.dumps(value)


def readable(text: str) -> str:
  """Returns the text cut to MAX_CHARACTERS, lone surrogates (not encodable) dropped."""
  if not isinstance(text, str):
    raise errors.UserError(f'a text is {type(text).__name__}; wanted a string')
  return re.sub('[\ud800-\udfff]', '', text[:MAX_CHARACTERS])


def one_line(text: str) -> str:
  """Returns `readable` text without line breaks and runs of spaces."""
  return ' '.join(readable(text).split())


def _library_normalizer():
  from tokenizers import normalizers
  return normalizers.BertNormalizer(
      clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)


def _library_splitter():
  from tokenizers import pre_tokenizers
  return pre_tokenizers.BertPreTokenizer()


def _library_tokenizer(ids: dict[str, int]):
  import tokenizers
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(
      vocab=ids, unk_token=UNK, max_input_chars_per_word=MAX_WORD_CHARACTERS))
  tokenizer.normalizer, tokenizer.pre_tokenizer = _library_normalizer(), _library_splitter()
  return tokenizer
