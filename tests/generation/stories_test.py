import json

import pytest

from musiclm_jax import errors
from musiclm_jax.generation import stories

STORY = stories.Story(((0, 'calm piano'), (15, 'drums enter'), (75, 'loud rock, with guitar')))


def test_command_line():
  assert stories.load('0:00 calm piano; 0:15 drums enter;1:15 loud rock, with guitar') == STORY
  assert stories.load('0 calm piano ; 15 drums enter; 0:01:15   loud rock, with guitar; ') == STORY
  assert stories.load('0 a', 2) == stories.Story(((0, 'a'),), overlap=2)
  assert stories.load('0:00 静か').texts == ('静か',)


def test_files(tmp_path):
  rows = [('start', 'text'), ('0:00', 'calm piano'), ('0:15', 'drums enter'),
          ('1:15', 'loud rock, with guitar')]
  (tmp_path / 'a.tsv').write_text('\n'.join('\t'.join(row) for row in rows))
  (tmp_path / 'b.csv').write_text('\n'.join(f'{start},"{text}"' for start, text in rows[1:]))
  (tmp_path / 'c.json').write_text(json.dumps(STORY.sections))
  (tmp_path / 'd.json').write_text(
      json.dumps([{'start': start, 'text': text} for start, text in STORY.sections]))
  for name in ('a.tsv', 'b.csv', 'c.json', 'd.json'):
    assert stories.load(str(tmp_path / name)) == STORY, name


def test_the_text_of_a_moment():
  assert [STORY.text_at(second) for second in (0, 14, 15, 74, 75, 900)] == [
      'calm piano'] * 2 + ['drums enter'] * 2 + ['loud rock, with guitar'] * 2
  assert STORY.seconds == 90


@pytest.mark.parametrize('story, message', [
    ('', 'is neither a file nor'),
    ('calm piano', 'is neither a file nor'),
    ('none.tsv', 'is neither a file nor'),
    ('0:05 calm piano', 'starts at 5 s, wanted 0:00'),
    ('0:00 a; 0:10 b; 0:10 c', 'at 10 s after one at 10 s'),
    ('0:00 a; 0:10.5 b', "at '0:10.5', wanted whole seconds"),
    ('0:00 a; 1:2:3:4 b', "at '1:2:3:4', wanted whole seconds"),
])
def test_bad_stories(story, message):
  with pytest.raises(errors.UserError, match=message):
    stories.load(story)


@pytest.mark.parametrize('name, content, message', [
    ('a.json', '{', 'is no story'),
    ('a.json', '[[0, 1]]', 'is no section'),
    ('a.json', '[{"start": 0}]', 'is no story'),
    ('a.json', '7', 'is no story'),
    ('a.json', '[[true, "a"]]', 'wanted whole seconds'),
    ('a.tsv', '0:00\tcalm\tpiano', 'is no section'),
    ('a.tsv', '', 'starts at no s'),
    ('a.tsv', b'\xff\xfe\xfa', 'is no story'),
])
def test_bad_files(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(errors.UserError, match=message):
    stories.load(str(tmp_path / name))
