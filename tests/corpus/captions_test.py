import re

import numpy as np
import pytest

from musiclm_jax.corpus import captions, compose, styles, vocabulary


def _clips(genre, seed):
  piece = compose.compose(genre, 30.0, np.random.default_rng(seed))
  return piece, captions.clip_facts(piece, 0.0, 30.0)


@pytest.mark.parametrize('genre', sorted(styles.STYLES))
@pytest.mark.parametrize('held_out', [False, True])
def test_captions_agree_with_the_facts(genre, held_out):
  piece, facts = _clips(genre, 5)
  texts, aspects, _ = captions.write(facts, held_out, np.random.default_rng(0))
  assert 3 <= len(texts) <= 4
  everything = ' '.join(texts)
  for bpm in re.findall(r'(\d+) (?:bpm|beats per minute)', everything):
    assert int(bpm) == round(piece.bpm)
  if 'drums' not in facts.instruments:
    assert 'drum groove' not in everything and ' keep the beat' not in everything
  else:
    assert 'no drums' not in everything and 'without any drums' not in everything
  assert facts.genre in aspects and facts.mood in aspects


def _mood_words(text: str, templates) -> set[str]:
  """Returns the words that `text` puts where the templates of its moods have {mood} or {mood2}."""
  found = set()
  for template in templates['mood']:
    pattern = re.sub(r'\\{mood2?\\}', '([a-z-]+)', re.escape(template))
    for groups in re.findall(pattern, text):
      found |= {groups} if isinstance(groups, str) else set(groups)
  return found


@pytest.mark.parametrize('genre', sorted(styles.STYLES))
@pytest.mark.parametrize('held_out', [False, True])
def test_the_moods_of_a_caption_are_those_of_the_piece(genre, held_out):
  piece, facts = _clips(genre, 5)
  said = set()
  for seed in range(8):
    texts, _, _ = captions.write(facts, held_out, np.random.default_rng(seed))
    said |= _mood_words(' '.join(texts), vocabulary.HELD_OUT if held_out else vocabulary.TRAIN)
  assert said and said <= set(vocabulary.MOODS[piece.mood].split('|'))


def test_only_players_of_the_clip_are_named():
  for seed in range(6):
    _, facts = _clips('pop', seed)
    rng = np.random.default_rng(seed)
    heard = {n for i in facts.instruments.values() for n in i.names}
    for named in ('flute', 'accordion', 'trumpet', 'violin', 'banjo'):
      if named not in heard:
        texts, aspects, _ = captions.write(facts, False, rng)
        assert not any(re.search(rf'\b{named}\b', t) for t in texts + aspects)


def test_a_player_who_rests_is_not_a_fact():
  piece = compose.compose('rock', 60.0, np.random.default_rng(4))
  drums = next(t for t in piece.tracks if t.role == 'drums')
  drums.notes = [n for n in drums.notes if float(piece.seconds(n.start)) > 31]
  assert 'drums' not in captions.clip_facts(piece, 0.0, 30.0).instruments
  assert 'drums' in captions.clip_facts(piece, 30.0, 60.0).instruments


def test_held_out_phrasings_are_disjoint():
  assert vocabulary.TRAIN.keys() == vocabulary.HELD_OUT.keys()
  train = {t for group in vocabulary.TRAIN.values() for t in group}
  held_out = {t for group in vocabulary.HELD_OUT.values() for t in group}
  assert not train & held_out


def test_articles_and_verbs_agree():
  for genre in styles.STYLES:
    for held_out in (False, True):
      _, facts = _clips(genre, 11)
      for seed in range(8):
        texts, _, _ = captions.write(facts, held_out, np.random.default_rng(seed))
        for text in texts:
          assert not re.search(r'\b[Aa] [aeio]', text), text
          assert not re.search(r'\b[Aa]n [^aeiou8ERFA]', text), text
          assert '{' not in text and '  ' not in text
          if text[-1] == '.':
            assert text[0].isupper() or text[0].isdigit(), text


def test_tempo_words():
  assert captions.tempo_words(60) == ('slow', 'very slow')
  assert captions.tempo_words(170)[0] == 'very fast'
  assert captions.is_plural('strings') and not captions.is_plural('upright bass')
