"""The table of prompts: what is read, what is left out and why."""

import json
import string

import pytest

from musiclm_jax import errors
from musiclm_jax.generation_jobs import jobs, prompts


def parse(text, path='a.tsv', seconds=10.0):
  return prompts.parse(text.encode() if isinstance(text, str) else text, path, seconds)


def reasons(text, path='a.tsv'):
  return {row.line: row.reason for row in parse(text, path)[1]}


TABLES = {
    'a.tsv': 'id\tprompt\tseed\tseconds\ncalm\tA "calm" piano, 7" long\t7\t20.5\n\nb\tRock\t\t\n',
    'a.csv': 'id,prompt,seed,seconds\r\ncalm,"A ""calm"" piano, 7"" long",7,20.5\r\nb,Rock\r\n',
    'a.jsonl': ('{"id": "calm", "prompt": "A \\"calm\\" piano, 7\\" long", "seed": 7, "seconds": 20.5}\n'
                '{"id": "b", "prompt": "Rock"}\n'),
}


@pytest.mark.parametrize('path', TABLES)
def test_the_three_kinds_of_table_say_the_same(path):
  found, rejected = parse('\ufeff' + TABLES[path], f'gs://b/{path.upper()}')
  assert [(p.id, p.text, p.seed, p.seconds) for p in found] == [
      ('calm', 'A "calm" piano, 7" long', 7, 20.5), ('b', 'Rock', None, 10.0)]
  assert not rejected


def test_musiccaps_as_it_is():
  text = ('ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,'
          'is_balanced_subset,is_audioset_eval\n'
          '-0Gj8-vB1q4,30,40,"/m/0140xf,/m/02cjck","[\'low quality\', \'ballad\']","Slow, sad.",4,False,True\n')
  (prompt,), _ = parse(text, 'musiccaps-public.csv')
  assert (prompt.id, prompt.name, prompt.text) == ('-0Gj8-vB1q4_30', '-0Gj8-vB1q4_30', 'Slow, sad.')


@pytest.mark.parametrize('content, path, wanted', [
    ('', 'a.tsv', 'a.tsv holds no prompts'),
    ('id\tprompt\n\n', 'a.tsv', 'a.tsv holds no prompts'),
    ('\n \n', 'a.jsonl', 'a.jsonl holds no prompts'),
    ('id\twords\na\tpiano\n', 'a.tsv', r"has columns \['id', 'words'\], wanted one called prompt, caption or text"),
    ('{"id": "a"}\n', 'a.jsonl', 'wanted one called prompt'),
    ('prompt\n \t\n\x00\n', 'a.xlsx', "ends with '.xlsx', wanted one of .tsv .csv .jsonl"),
    ('id,prompt\na,\nb,\n', 'a.csv', 'none of 2 rows can be used; the first: line 2: the prompt is empty'),
    ('{"prompt": 3}', 'a.jsonl', 'line 1: prompt is 3, wanted a text'),
    ('\xff\xfei\x00d'.encode('latin-1'), 'a.csv', 'holds no prompts|has columns'),
])
def test_a_table_without_prompts_is_one_clear_error(content, path, wanted):
  with pytest.raises(errors.UserError, match=wanted) as error:
    parse(content, path)
  assert '\n' not in str(error.value)


def test_rows_that_cannot_be_used_are_named_and_the_others_are_kept():
  rows = ['id\tprompt\tseed\tseconds', 'a\tpiano', 'b\t', 'c\t' + 'x' * 10_000, 'd\tpiano\t-1', 'e\tpiano\t1.5',
          'f\tpiano\t\tnan', 'g\tpiano\t\t0', 'h\tpiano\t\tlong', 'a\tother', 'i\tpiano\t1\t2\t3', 'j\trock']
  found, rejected = parse('\n'.join(rows))
  assert [prompt.id for prompt in found] == ['a', 'j']
  said = {row.id or row.line: row.reason for row in rejected}
  assert said == {
      'b': 'the prompt is empty, wanted a description of the music',
      'c': 'the prompt has 10000 characters, wanted at most 2000',
      'd': 'seed is -1, wanted 0 to 2147483647', 'e': "seed is '1.5', wanted a whole number",
      'f': 'seconds is nan, wanted more than 0 and at most 86400',
      'g': 'seconds is 0.0, wanted more than 0 and at most 86400',
      'h': "seconds is 'long', wanted a number",
      'a': 'the id is that of line 2 already', 11: 'the row has 5 cells, the header 4'}


def test_no_line_ends_the_reading():
  bad = ['[' * 100_000, '[]', 'nothing', '{"prompt": ["a"]}', '{"prompt": "a", "id": {}}',
         '{"prompt": "a", "seed": 1e400}', '{"prompt": "a", "seed": true}',
         '{"prompt": "a", "seconds": "\\ud800"}', '{"prompt": "\\ud800"}', '{"prompt": null}']
  found, rejected = parse('\n'.join([*bad, '{"prompt": "piano"}']), 'a.jsonl')
  assert [prompt.text for prompt in found] == ['piano'] and len(rejected) == len(bad)
  json.dumps([vars(row) for row in rejected], ensure_ascii=False).encode()  # can be written
  huge = 'id,prompt\na,' + 'x' * 200_000 + '\nb,piano\n'
  assert [prompt.id for prompt in parse(huge, 'a.csv')[0]] == ['b']
  assert reasons(b'id\tprompt\na\t\xff\nb\tpiano\n') == {2: 'the prompt is not UTF-8'}


def test_prompts_in_any_writing_are_kept_as_they_are():
  texts = ['ピアノ 🎹🎶', 'موسيقى هادئة', 'שלום', 'naïve café', "'; DROP TABLE"]
  found, rejected = parse('prompt\n' + '\n'.join(texts))
  assert [prompt.text for prompt in found] == texts and not rejected
  assert len({prompt.id for prompt in found}) == 5


NAME = set(string.ascii_letters + string.digits + '._-')


@pytest.mark.parametrize('prompt_id', [
    '../../etc/passwd', '..', '.', '.hidden', 'a/b', 'a\\b', 'C:\\x', 'con', 'NUL.txt', 'job', 'summary-1',
    'a b', '🎹', 'x' * 5000, 'a\nb', 'a\x00b', 'dot.', '-' * 200, 'عربي', '*?'])
def test_names_are_safe_and_stable(prompt_id):
  name = prompts.file_name(prompt_id)
  assert set(name) <= NAME and not name.startswith('.') and not name.endswith('.') and len(name) <= 100
  assert name.split('.')[0].lower() not in ('con', 'nul', 'job') and not name == prompt_id
  assert name == prompts.file_name(prompt_id) != prompts.file_name(prompt_id + '?')


def test_an_id_that_makes_a_good_name_is_the_name():
  for prompt_id in ('calm', '-0Gj8-vB1q4_30', 'a.b', 'x' * 100, '007'):
    assert prompts.file_name(prompt_id) == prompt_id
  assert prompts.file_name('../a b').startswith('a-b-')


def test_ids_that_differ_in_case_have_names_that_differ_in_more():
  found, rejected = parse('id\tprompt\nSong\ta\nsong\tb\nSONG\tc\n')
  names = [prompt.name for prompt in found]
  assert names[0] == 'Song' and len({name.casefold() for name in names}) == 3 and not rejected
  taken = parse(f'id\tprompt\nSong\ta\n{names[1]}\tc\nsong\tb\n')[1]
  assert [row.reason for row in taken] == [f'the file name {names[1]} is taken already']


def test_without_an_id_it_is_made_of_the_text():
  (one, two), rejected = parse('prompt\nA calm piano!\nRock\nA calm piano!\n')
  assert one.id == one.name and one.id.startswith('A-calm-piano-') and two.id.startswith('Rock-')
  assert [row.reason for row in rejected] == ['the id is that of line 2 already']
  assert parse('{"text": "Rock"}', 'a.jsonl')[0][0].id == two.id


def test_batches_are_cut_in_the_order_of_the_list_and_by_length():
  rows = [('a', 10), ('b', 5), ('c', 9.5), ('d', 10), ('e', 4.2)]
  found, _ = parse('id\tprompt\tseconds\n' + '\n'.join(f'{i}\tx\t{s}' for i, s in rows))
  cut = prompts.batches(found, 2)
  assert [(seconds, [p.id for p in members]) for seconds, members in cut] == [
      (10, ['a', 'c']), (10, ['d']), (5, ['b', 'e'])]


def test_shares_cover_the_list_once_and_keep_batches_whole():
  found, _ = parse('prompt\n' + '\n'.join(f'piece {i}' for i in range(50)))
  whole = jobs.Job('a.tsv', 'out', batch_size=4, shard=(0, 1)).batches(found)
  for count in (2, 3, 20):
    shares = [jobs.Job('a.tsv', 'out', batch_size=4, shard=(i, count)).batches(found)
              for i in range(count)]
    assert sorted((batch for share in shares for batch in share), key=str) == sorted(whole, key=str)


def test_a_seed_is_made_of_the_runs_seed_and_the_id_alone():
  (a, b, c), _ = parse('id\tprompt\tseed\na\tpiano\nb\tpiano\nc\tpiano\t5\n')
  (alone,), _ = parse('{"prompt": "other words", "id": "b"}', 'a.jsonl')
  job = jobs.Job('a.tsv', 'out', batch_size=4, seed=3, num_samples=3)
  seeds = {job.example_seed(prompt, sample) for prompt in (a, b, c) for sample in range(3)}
  assert len(seeds) == 9 and all(0 <= seed < 2**31 for seed in seeds)
  assert job.example_seed(c, 0) == 5
  other = jobs.Job('b.csv', 'elsewhere', batch_size=7, seed=3, shard=(1, 9))
  assert other.example_seed(alone, 0) == job.example_seed(b, 0)
  assert jobs.Job('a.tsv', 'out', seed=4).example_seed(b, 0) != job.example_seed(b, 0)


@pytest.mark.parametrize('change, wanted', [
    ({'batch_size': 0}, 'batch_size is 0'), ({'num_samples': 0}, 'num_samples is 0'),
    ({'keep_best': 2}, 'keep_best is 2, num_samples is 1'), ({'file_format': 'mp3'}, "format is 'mp3'"),
    ({'shard': (4, 4)}, 'shard is 4/4'), ({'seconds': float('nan')}, 'seconds is nan')])
def test_settings_that_cannot_be_are_named(change, wanted):
  with pytest.raises(errors.UserError, match=wanted):
    jobs.Job('a.tsv', 'out', **change)
