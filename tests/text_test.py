import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from musiclm_jax import errors, text

VOCABULARY = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'calm', 'piano', 'drum', '##s', ',',
              'cafe', '[', ']', 'cls']
CAPTIONS = ['A calm piano piece with soft strings.', 'Fast drums, 128 bpm; bright synths!',
            'A calm guitar, slow and sad.', 'Piano and drums.'] * 3


@pytest.fixture
def tokenizer(tmp_path):
  path = tmp_path / 'vocab.txt'
  path.write_text('\n'.join(VOCABULARY) + '\n')
  return text.WordPieceTokenizer(path)


def test_encode_is_cls_pieces_sep_padding(tokenizer):
  np.testing.assert_array_equal(
      tokenizer.encode(['Calm PIANO,drums', 'Café', ''], 8),
      [[2, 5, 6, 9, 7, 8, 3, 0], [2, 10, 3, 0, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]])
  assert tokenizer.encode(['calm'], 8).dtype == np.int32


def test_long_text_keeps_its_sep(tokenizer):
  np.testing.assert_array_equal(tokenizer.encode(['calm piano drums drums'], 4), [[2, 5, 6, 3]])


def test_special_tokens_in_a_text_are_characters(tokenizer):
  np.testing.assert_array_equal(tokenizer.encode(['[CLS] piano'], 8), [[2, 11, 13, 12, 6, 3, 0, 0]])


def test_decode_joins_the_pieces(tokenizer):
  assert tokenizer.decode(tokenizer.encode(['Calm drums, CAFÉ'], 12)[0]) == 'calm drums , cafe'
  assert tokenizer.decode([999, -1, 8]) == '##s'


@pytest.mark.parametrize('hostile', [
    '', ' \t\n', '\x00\x01\x7f', '\ud800', '\u200b\ufeff',
    '😀' * 50, 'a' * 100_000, 'calm ' * 50_000,
    'Z̸a̸l̸g̸o̸', '日本語', '\u202eright to left', '%s {0} \\N{DASH} $(ls)'])
def test_hostile_text_is_safe(tokenizer, hostile):
  ids = tokenizer.encode([hostile], 16)
  assert ids.shape == (1, 16) and ids[0, 0] == 2 and 3 in ids[0]
  assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size


def test_bad_arguments(tokenizer):
  with pytest.raises(errors.UserError, match='one string'):
    tokenizer.encode('calm', 8)
  with pytest.raises(errors.UserError, match='length 1'):
    tokenizer.encode(['calm'], 1)
  with pytest.raises(errors.UserError, match='NoneType'):
    tokenizer.encode([None], 8)


@pytest.mark.parametrize('content,message', [
    ('calm\npiano\n', r'no \[PAD\], \[UNK\]'),
    ('[UNK]\n[PAD]\n[CLS]\n[SEP]\n', r"starts with '\[UNK\]'"),
    ('[PAD]\n[UNK]\n[CLS]\n[SEP]\na\na\n', "'a' on more than one line"),
    ('', 'no'),
])
def test_bad_vocabulary(tmp_path, content, message):
  path = tmp_path / 'vocab.txt'
  path.write_text(content)
  with pytest.raises(errors.UserError, match=message):
    text.WordPieceTokenizer(path)
  path.write_bytes(b'\xff\xfe\x00')
  with pytest.raises(errors.UserError, match='not UTF-8'):
    text.WordPieceTokenizer(path)


def test_train_vocabulary_is_deterministic_and_covers_the_texts(tmp_path):
  tokens = text.train_vocabulary(CAPTIONS, 120, tmp_path / 'a.txt')
  text.train_vocabulary(reversed(CAPTIONS), 120, tmp_path / 'b.txt')
  assert (tmp_path / 'a.txt').read_bytes() == (tmp_path / 'b.txt').read_bytes()
  assert len(tokens) <= 120 and tuple(tokens[:5]) == text.SPECIAL_TOKENS
  assert 'piano' in tokens
  tokenizer = text.WordPieceTokenizer(tmp_path / 'a.txt')
  assert tokenizer.unk_id not in tokenizer.encode(CAPTIONS, 64)
  assert tokenizer.decode(tokenizer.encode(['bpm and sad nights'], 64)[0]) == 'bpm and sad nights'


def test_train_vocabulary_says_what_is_wrong(tmp_path):
  with pytest.raises(errors.UserError, match='no words'):
    text.train_vocabulary(['', ' '], 100, tmp_path / 'v.txt')
  with pytest.raises(errors.UserError, match='size 10 is smaller than the'):
    text.train_vocabulary(CAPTIONS, 10, tmp_path / 'v.txt')
  assert not list(tmp_path.iterdir())


def test_read_captions(tmp_path):
  (tmp_path / 'c.jsonl').write_text(json.dumps(
      {'captions': ['a b', 'c'], 'aspects': ['sad'], 'texts': {'labels': ['Piano']}}) + '\n\n')
  (tmp_path / 'c.csv').write_text('id,caption\n1,"x, y"\n')
  (tmp_path / 'c.txt').write_text('one\ntwo\n')
  def read(name):
    return list(text.read_captions(str(tmp_path / name)))

  assert read('c.jsonl') == ['a b', 'c', 'sad', 'Piano']
  assert read('c.csv') == ['x, y']
  assert read('c.txt') == ['one', 'two']
  (tmp_path / 'bad.jsonl').write_text('{"captions": []}\n{"x": 1}\n')
  with pytest.raises(errors.UserError, match='line 2'):
    read('bad.jsonl')
  (tmp_path / 'bad.csv').write_text('id,text\n1,x\n')
  with pytest.raises(errors.UserError, match="wanted also .'caption'."):
    read('bad.csv')
  with pytest.raises(errors.UserError, match="ending '.pdf'"):
    read('c.pdf')


def test_tool_writes_a_vocabulary_and_reports_errors_in_one_line(tmp_path):
  root = Path(__file__).parents[1]
  (tmp_path / 'c.txt').write_text('\n'.join(CAPTIONS))

  def run(*flags):
    return subprocess.run(
        [sys.executable, 'tools/train_vocabulary.py', *flags], cwd=root,
        env={'PYTHONPATH': str(root)}, capture_output=True, text=True, check=False)

  done = run(f'--captions={tmp_path}/c.txt', '--size=100', f'--output={tmp_path}/vocab.txt')
  assert done.returncode == 0, done.stderr
  assert text.read_vocabulary(str(tmp_path / 'vocab.txt'))[0] == '[PAD]'
  failed = run(f'--captions={tmp_path}/none.txt', f'--output={tmp_path}/v.txt')
  assert failed.returncode == 1
  assert failed.stderr.startswith('error: ') and failed.stderr.count('\n') == 1
