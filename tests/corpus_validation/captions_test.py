"""Captions, their language and what repeats; and names that say where a clip is from."""

import csv
import json

import numpy as np
import pytest

from musiclm_jax import errors, text
from musiclm_jax.corpus_validation import captions, findings, languages, leaks

LONG = 'A slow and gentle piano piece in the style of a lullaby with soft strings and a low bass, {}.'


def _read(folder, names, path=None):
  return captions.read(str(folder), path, dict.fromkeys(names, ()))


@pytest.mark.parametrize('suffix', ['csv', 'tsv', 'jsonl'])
def test_rows_are_given_to_files(tmp_path, suffix):
  rows = [('a.wav', 'Loud  rock.'), ('./a.wav', 'More'), ('b.wav', ' '), ('none.wav', 'x'),
          ('e\u0301.wav', 'Caf\xe9')]
  with open(tmp_path / f'captions.{suffix}', 'w', encoding='utf-8', newline='') as file:
    if suffix == 'jsonl':
      file.writelines(json.dumps({'path': path, 'caption': line}) + '\n' for path, line in rows)
    else:
      csv.writer(file, delimiter='\t' if suffix == 'tsv' else ',').writerows(
          [('path', 'caption'), *rows])
  for path in (None, str(tmp_path / f'captions.{suffix}')):
    found = _read(tmp_path, ['a.wav', 'b.wav', 'c.wav', '\xe9.wav'], path)
    assert found.of_file == {
        'a.wav': ['Loud rock.', 'More'], 'b.wav': [], 'c.wav': [], '\xe9.wav': ['Caf\xe9']}
    assert found.without_file == ['none.wav'] and found.empty == ['b.wav'] and not found.problem
    report = captions.describe(found)
    assert report['count'] == 3 and report['files_without'] == ['b.wav', 'c.wav']
    assert report['words'] == {'lengths': {'1': 2, '2': 1}, 'median': 1.0}


def test_a_table_nobody_asked_for_is_a_problem_not_an_error(tmp_path):
  (tmp_path / 'captions.jsonl').write_text('{"id": "a"}\n')
  assert 'line 1: not a row' in _read(tmp_path, ['a.wav']).problem
  with pytest.raises(errors.UserError, match='line 1: not a row'):
    _read(tmp_path, ['a.wav'], str(tmp_path / 'captions.jsonl'))
  with pytest.raises(errors.UserError, match='has captions of its own: leave out x.csv'):
    captions.read('corpus', 'x.csv', {'a': ('Rock.',)})


def test_repetitions():
  of_file = {'a': ['Sad piano.', 'A calm song'], 'b': ['sad piano'], 'c': [LONG.format('quiet')],
             'd': [LONG.format('loud')], 'e': ['Fast drums with a heavy guitar riff, very loud.']}
  report = captions.describe(captions.Captions(of_file))
  assert report['repeated'] == [{'caption': 'sad piano', 'files': ['a', 'b']}]
  assert [len(group) for group in report['near']] == [2] and report['distinct'] == 5
  assert all('lullaby' in caption for caption in report['near'][0])


def test_every_near_duplicate_of_many_is_found():
  random, texts = np.random.RandomState(0), []
  for _ in range(100):
    words = [f'word{i}' for i in random.permutation(1000)[:30]]
    texts += [' '.join(words), ' '.join([*words[:15], 'other', *words[16:]])]
  groups = captions.near_duplicates(texts)
  assert len(groups) == 100 and all(len(group) == 2 for group in groups)
  assert captions.near_duplicates([]) == [] and captions.near_duplicates(['', '!']) == []


def test_english_is_told_from_other_languages():
  detect, by = languages.detector()
  assert by.startswith('by ')
  english = ['The low quality recording features a ballad song with a sad piano and soft strings.',
             'A fast song with drums and a guitar, and it is played by a band.']
  others = ['Ein langsames Lied mit Klavier und leiser Stimme, sehr traurig.',
            'Una canci\xf3n alegre con guitarra y palmas en una fiesta.',
            '静かなピアノの曲で、とても悲しい雰囲気があります。']
  found = languages.counts([*english, *others, 'sad piano'], detect)
  assert found.pop('en') == english
  assert sorted(sum(found.values(), [])) == sorted(others), 'too short a text is left out'
  words = languages.counts([*english, *others], languages._by_words)
  assert words == {'en': english, languages.UNSURE: others}


def test_clips_of_musiccaps_are_known_by_their_names(tmp_path):
  path = tmp_path / 'm.csv'
  path.write_text('ytid,is_balanced_subset,is_audioset_eval\n-0Gj8-vB1q4,False,True\n'
                  '0123456789_,True,True\nabcdefghijk,False,False\nshort,True,True\n')
  parts = leaks.read_musiccaps(str(path))
  names = ['x/-0Gj8-vB1q4_30.wav', 'Title [0123456789_].opus', '_abcdefghijk.mp3', 'song.wav',
           '-0Gj8-vB1q4/other.wav', 'abcdefghij.mp3']
  assert leaks.by_name(names, parts) == {
      'eval': {names[0]: '-0Gj8-vB1q4'}, 'balanced': {names[1]: '0123456789_'},
      'train': {names[2]: 'abcdefghijk'}}
  for content, wanted in (('a,b\n', 'wanted also'), (path.read_text()[:45], 'no YouTube id')):
    path.write_text(content)
    with pytest.raises(errors.UserError, match=wanted):
      leaks.read_musiccaps(str(path))
  with pytest.raises(errors.UserError, match='does not exist'):
    leaks.read_musiccaps(str(tmp_path / 'none.csv'))


def test_one_reader_of_tables(tmp_path):
  (tmp_path / 'a.jsonl').write_text(
      '\ufeff{"path": "a", "n": 3, "tags": ["x"], "more": [1]}\n\n{"path": null, "tags": "y"}\n')
  assert text.read_table(str(tmp_path / 'a.jsonl'), ('path',), lists=('tags',)) == [
      {'path': 'a', 'n': '3', 'tags': ['x'], 'more': '[1]'}, {'path': '', 'tags': 'y'}]
  (tmp_path / 'a.tsv').write_text('path\tcaption\n"a\tx"\n')
  assert text.read_table(str(tmp_path / 'a.tsv'), ('path',)) == [{'path': '"a', 'caption': 'x"'}]
  (tmp_path / 'b.jsonl').write_text('{"path": {}}')
  for name, columns, wanted in (('a.tsv', ('tags',), 'wanted also'), ('b.jsonl', ('path',), 'a text'),
                                ('b.jsonl', ('caption',), "wanted also .'caption'")):
    with pytest.raises(errors.UserError, match=wanted):
      text.read_table(str(tmp_path / name), columns)


@pytest.mark.parametrize('line, wanted', [
    ('The low quality recording features a ballad song with a sad piano and soft strings.', 0),
    ('Ein langsames Lied mit Klavier und leiser Stimme, sehr traurig.', 1)])
def test_other_languages_are_warned_of(line, wanted):
  found = captions.describe(captions.Captions({'a.wav': [line, 'sad piano']}))
  leak = {'musiccaps': None, 'evaluation': None}
  report = {'captions': found, 'files': [], 'leaks': leak,
            'duplicates': {'groups': [], 'across_splits': []}}
  assert [each['kind'] for each in findings.warnings(report)] == ['language'] * wanted
