import re

import numpy as np
import pytest

from musiclm_jax import text
from musiclm_jax.corpus import captions, compose, instruments, styles, text_sources, vocabulary

# Names of AudioSet's ontology under Music, those that the tables may use.
ONTOLOGY = set("""
Music|Musical instrument|Plucked string instrument|Guitar|Electric guitar|Bass guitar
Acoustic guitar|Banjo|Sitar|Mandolin|Keyboard (musical)|Piano|Electric piano|Organ
Hammond organ|Synthesizer|Harpsichord|Percussion|Drum kit|Drum machine|Drum|Timpani
Mallet percussion|Marimba, xylophone|Glockenspiel|Vibraphone|Steelpan|Orchestra|Brass instrument
French horn|Trumpet|Trombone|Bowed string instrument|String section|Violin, fiddle|Pizzicato|Cello
Double bass|Wind instrument, woodwind instrument|Flute|Saxophone|Clarinet|Harp|Chime|Harmonica
Accordion|Choir|Whistling|Pop music|Hip hop music|Rock music|Heavy metal|Rhythm and blues|Soul music
Reggae|Country|Funk|Folk music|Jazz|Classical music|Electronic music|House music|Electronica
Electronic dance music|Ambient music|New-age music|Music of Latin America|Salsa music|Blues
Traditional music|Background music|Soundtrack music|Video game music|Happy music|Sad music
Tender music|Exciting music|Angry music|Scary music
""".strip().replace('\n', '|').split('|'))


def _facts(genre, seed=5):
  return captions.clip_facts(compose.compose(genre, 30.0, np.random.default_rng(seed)), 0.0, 30.0)


def _write(genre, held_out=False, seed=0):
  facts, rng = _facts(genre), np.random.default_rng(seed)
  texts, aspects, _ = captions.write(facts, held_out, rng)
  found = text_sources.write(facts, texts, aspects, held_out, np.random.default_rng(seed))
  return facts, texts, aspects, found


@pytest.mark.parametrize('genre', sorted(styles.STYLES))
def test_every_source_has_texts_that_hold(genre):
  facts, texts, aspects, found = _write(genre)
  assert found.keys() == set(text.SOURCES) and all(found.values())
  assert set(found['long']) <= set(texts) and all(t.endswith('.') for t in found['long'])
  assert set(texts) <= {*found['long'], *found['short']}
  parts = {part for t in found['short'] if t not in texts for part in t.split(', ')}
  assert parts <= set(aspects)
  for title in found['playlist']:
    assert '{' not in title and not title.endswith('.')
  labels = text_sources.labels(facts)
  assert set(labels) <= ONTOLOGY
  assert 'Music' in labels and found['labels'][0] == ', '.join(labels)
  assert ('Drum kit' in labels) <= ('drums' in facts.instruments)


def test_every_player_and_mood_has_labels_of_the_ontology():
  tables = (text_sources._GENRE_LABELS, text_sources._MOOD_LABELS, text_sources._FAMILY_LABELS,
            text_sources._PLAYER_LABELS)
  used = {name for table in tables for names in table.values() for name in names.split('|')}
  assert used - {'', '='} <= ONTOLOGY
  players = {player.name: player for player in instruments.INSTRUMENTS.values()}
  assert text_sources._PLAYER_LABELS.keys() <= players.keys()
  assert text_sources._GENRE_LABELS.keys() == styles.STYLES.keys()
  assert text_sources._MOOD_LABELS.keys() <= vocabulary.MOODS.keys()
  assert text_sources._KINDS.keys() <= styles.STYLES.keys()
  families = {player.family for player in players.values()}
  assert families <= text_sources._FAMILY_LABELS.keys()


def _shape(template: str) -> re.Pattern:
  return re.compile(re.sub(r'\\{\w+\\}', '.+', re.escape(template)), re.IGNORECASE)


def test_playlist_phrasings_of_the_test_split_are_its_own():
  train, test = text_sources.PLAYLISTS['train'], text_sources.PLAYLISTS['test']
  assert len(train) >= 12 and not set(train) & set(test)
  for seed in range(6):
    title_of = {held_out: _write('rock', held_out, seed)[3]['playlist'] for held_out in (False, True)}
    for held_out, templates in ((False, train), (True, test)):
      assert all(any(_shape(t).fullmatch(title) for t in templates) for title in title_of[held_out])
    assert len(set(title_of[False])) == 3


def test_the_seed_decides_and_the_captions_do_not_move():
  first, again, other = (_write('jazz', seed=s) for s in (1, 1, 2))
  assert first[3] == again[3] != other[3]
  assert first[1] == again[1]
