"""L4. Texts of a clip by MuLan's sources (text.py, SOURCES), beside its captions.

  short     titles and tags: the clip's tag and aspects, alone and several together
  long      descriptions: the sentences and the paragraph of its captions
  playlist  titles that a listener gives a playlist of such music, in phrasings of the split
  labels    names of AudioSet's ontology that hold for the clip, 'Guitar, Sad music'
"""

import numpy as np

from musiclm_jax.corpus import captions, vocabulary

# In the place of {genre}: a kind of music, not a piece of it.
_KINDS = {
  'solo piano': 'piano music',
  'string quartet': 'string quartets',
  'orchestral': 'orchestral music',
  'chamber': 'chamber music',
  'latin': 'latin music',
  'folk': 'folk music',
  'pop': 'pop music',
  'house': 'house music',
  'ambient': 'ambient music',
  'lo-fi hip hop': 'lo-fi beats',
}
PLAYLISTS = {
  'train': (
    '{mood} {genre}',
    'best of {genre}',
    '{genre} for {use}',
    'music for {use}',
    '{mood} instrumentals',
    '{mood} music for {use}',
    'my {mood} {genre} mix',
    '{genre} essentials',
    '{mood} vibes: {genre}',
    'instrumental {genre} with {player}',
    '{tempo} and {mood}',
    '{player} favourites',
    'pure {genre}',
    '{mood} {player} music',
    '{genre} | {mood} | {tempo}',
    'the sound of {use}',
  ),
  'test': (
    'songs that feel {mood} ({genre})',
    '{use}: a {genre} collection',
    'only {genre}, only {mood}',
    '{player} and other {mood} sounds',
    'nothing but {mood} {genre}',
    'a playlist for {use}',
  ),
}
_GENRE_LABELS = {
  'rock': 'Rock music',
  'metal': 'Heavy metal|Rock music',
  'pop': 'Pop music',
  'soul': 'Soul music|Rhythm and blues',
  'funk': 'Funk',
  'blues': 'Blues',
  'jazz': 'Jazz',
  'bossa nova': 'Music of Latin America|Jazz',
  'latin': 'Music of Latin America|Salsa music',
  'reggae': 'Reggae',
  'country': 'Country',
  'folk': 'Folk music|Traditional music',
  'lo-fi hip hop': 'Hip hop music|Background music',
  'house': 'House music|Electronic music|Electronic dance music',
  'synthwave': 'Electronic music|Electronica',
  'chiptune': 'Video game music|Electronic music',
  'ambient': 'Ambient music|New-age music',
  'solo piano': 'Classical music',
  'string quartet': 'Classical music',
  'orchestral': 'Soundtrack music|Classical music',
  'chamber': 'Classical music',
}
_MOOD_LABELS = {
  'happy': 'Happy music',
  'playful': 'Happy music',
  'sad': 'Sad music',
  'melancholic': 'Sad music',
  'energetic': 'Exciting music',
  'epic': 'Exciting music',
  'calm': 'Tender music',
  'romantic': 'Tender music',
  'aggressive': 'Angry music',
  'tense': 'Scary music',
  'dark': 'Scary music',
}
_FAMILY_LABELS = {
  'piano': 'Piano|Keyboard (musical)',
  'chromatic percussion': 'Percussion',
  'organ': 'Organ|Keyboard (musical)',
  'guitar': 'Guitar|Plucked string instrument',
  'bass': 'Bass guitar|Guitar|Plucked string instrument',
  'strings': 'Bowed string instrument',
  'ensemble': '',
  'brass': 'Brass instrument',
  'reed': 'Wind instrument, woodwind instrument',
  'pipe': 'Wind instrument, woodwind instrument',
  'synth lead': 'Synthesizer',
  'synth pad': 'Synthesizer',
  'synth effects': 'Synthesizer',
  'ethnic': 'Musical instrument',
  'percussive': 'Percussion',
  'drums': 'Percussion|Drum kit|Drum',
}
# By plain name; a name not here has its family's labels. '=' stands for those.
_PLAYER_LABELS = {
  'electric piano': 'Electric piano|Keyboard (musical)',
  'dx piano': 'Electric piano|Keyboard (musical)',
  'harpsichord': 'Harpsichord|Keyboard (musical)',
  'clavinet': 'Keyboard (musical)',
  'celesta': 'Keyboard (musical)',
  'glockenspiel': 'Glockenspiel|Mallet percussion|=',
  'music box': 'Chime',
  'vibraphone': 'Vibraphone|Mallet percussion|=',
  'marimba': 'Marimba, xylophone|Mallet percussion|=',
  'xylophone': 'Marimba, xylophone|Mallet percussion|=',
  'organ': 'Hammond organ|=',
  'rock organ': 'Hammond organ|=',
  'accordion': 'Accordion',
  'harmonica': 'Harmonica',
  'nylon guitar': 'Acoustic guitar|=',
  'steel guitar': 'Acoustic guitar|=',
  'jazz guitar': 'Electric guitar|=',
  'clean guitar': 'Electric guitar|=',
  'muted guitar': 'Electric guitar|=',
  'overdriven guitar': 'Electric guitar|=',
  'distorted guitar': 'Electric guitar|=',
  'upright bass': 'Double bass|Bowed string instrument',
  'synth bass': 'Synthesizer',
  'deep synth bass': 'Synthesizer',
  'violin': 'Violin, fiddle|=',
  'fiddle': 'Violin, fiddle|Bowed string instrument',
  'cello': 'Cello|=',
  'double bass section': 'Double bass|=',
  'tremolo strings': 'String section|=',
  'pizzicato strings': 'Pizzicato|String section|=',
  'harp': 'Harp|Plucked string instrument',
  'timpani': 'Timpani|Drum|Percussion',
  'strings': 'String section|Bowed string instrument',
  'slow strings': 'String section|Bowed string instrument',
  'synth strings': 'Synthesizer',
  'choir': 'Choir',
  'voice oohs': 'Choir',
  'trumpet': 'Trumpet|=',
  'muted trumpet': 'Trumpet|=',
  'trombone': 'Trombone|=',
  'french horn': 'French horn|=',
  'synth brass': 'Synthesizer',
  'soprano sax': 'Saxophone|=',
  'alto sax': 'Saxophone|=',
  'tenor sax': 'Saxophone|=',
  'clarinet': 'Clarinet|=',
  'flute': 'Flute|=',
  'brass section': '=',
  'whistle': 'Whistling',
  'sitar': 'Sitar|Plucked string instrument',
  'banjo': 'Banjo|Plucked string instrument',
  'kalimba': 'Percussion',
  'steel drums': 'Steelpan|=',
  'electronic drums': 'Drum machine|Percussion',
  '808 drums': 'Drum machine|Percussion',
  'orchestral percussion': 'Percussion',
}


def write(
  facts: captions.Facts,
  texts: list[str],
  aspects: list[str],
  held_out: bool,
  rng: np.random.Generator,
) -> dict[str, list[str]]:
  """Returns {source: texts} of a clip with these captions and aspects."""
  long = [text for text in texts if text.endswith('.')]
  return {
    'short': _short([text for text in texts if text not in long], aspects, rng),
    'long': long,
    'playlist': _playlists(facts, held_out, rng),
    'labels': _labels(facts, rng),
  }


def _short(tags: list[str], aspects: list[str], rng) -> list[str]:
  """Returns the tags, all aspects together, and three times some of them in another order."""
  few = [
    ', '.join(rng.permutation(aspects)[: int(rng.integers(2, 5))].tolist()) for _ in range(3)
  ]
  return list(dict.fromkeys([*tags, ', '.join(aspects), *few]))


def _playlists(facts: captions.Facts, held_out: bool, rng) -> list[str]:
  """Returns three titles, each of another phrasing."""
  templates = PLAYLISTS['test' if held_out else 'train']
  moods = vocabulary.MOODS[facts.mood].split('|')
  players = [name for player in facts.instruments.values() for name in player.names]
  titles = []
  for index in rng.permutation(len(templates))[:3]:
    title = templates[index].format(
      genre=_KINDS.get(facts.genre, facts.genre),
      mood=moods[int(rng.integers(len(moods)))],
      use=str(rng.choice(vocabulary.USES[facts.genre].split('|'))),
      tempo=str(rng.choice(captions.tempo_words(facts.bpm))),
      player=players[int(rng.integers(len(players)))],
    )
    titles.append(title if rng.random() < 0.5 else title[0].upper() + title[1:])
  return titles


def labels(facts: captions.Facts) -> list[str]:
  """Returns the names of AudioSet's ontology that hold, the genre's first."""
  found = ['Music', *_GENRE_LABELS[facts.genre].split('|')]
  if facts.mood in _MOOD_LABELS:
    found.append(_MOOD_LABELS[facts.mood])
  for player in facts.instruments.values():
    family = _FAMILY_LABELS.get(player.family, '')
    own = _PLAYER_LABELS.get(player.name, '=').split('|')
    found += [name for label in own for name in (family.split('|') if label == '=' else [label])]
  return [name for name in dict.fromkeys(found) if name]


def _labels(facts: captions.Facts, rng) -> list[str]:
  """Returns all labels together, and twice some of them: a recording's list is seldom complete."""
  known = labels(facts)
  special = [name for name in known if name not in ('Music', 'Musical instrument')]
  some = [
    ', '.join(rng.permutation(special)[: int(rng.integers(1, 4))].tolist()) for _ in range(2)
  ]
  return list(dict.fromkeys([', '.join(known), *some]))
