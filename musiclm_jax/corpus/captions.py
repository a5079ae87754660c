"""L4. From a piece to what is true of one clip of it, and from those facts to captions."""

import dataclasses
import string

import numpy as np

from musiclm_jax.corpus import harmony, vocabulary
from musiclm_jax.corpus.instruments import Instrument
from musiclm_jax.corpus.notes import Piece

_ROLES = ('lead', 'counter', 'comp', 'comp2', 'pad', 'pad2', 'bass', 'drums')


@dataclasses.dataclass(frozen=True)
class Facts:
  """What holds for one clip by construction."""

  genre: str
  mood: str
  bpm: float
  metre: int
  key: str | None
  instruments: dict[str, Instrument]  # role -> player heard in this clip
  drum_feel: str
  density: str | None
  dynamics: str | None
  shape: str | None
  effects: tuple[str, ...]


def clip_facts(piece: Piece, start: float, stop: float) -> Facts:
  """Returns the facts of seconds `start`..`stop`; a player counts when heard with 3 notes."""
  players, loudness, onsets = {}, [], []
  for track in piece.tracks:
    begins = piece.seconds([n.start for n in track.notes])
    ends = piece.seconds([n.start + n.duration for n in track.notes])
    inside = (begins < stop - 0.3) & (ends > start)
    if not inside.any():
      continue
    heard = np.minimum(ends[inside], stop) - np.maximum(begins[inside], start)
    if (
      inside.sum() < 3
      or (track.role != 'drums' and heard.sum() < 1.5)
      or np.ptp(begins[inside]) < 4
    ):
      continue
    players[track.role] = track.instrument
    if track.role != 'drums':
      loudness += [track.notes[i].velocity for i in np.flatnonzero(inside)]
    onsets += list(begins[inside])
  onsets = np.array(onsets)
  per_second = len(onsets) / (stop - start)
  middle = (start + stop) / 2
  growth = (np.sum(onsets >= middle) + 5) / (np.sum(onsets < middle) + 5)
  loud = float(np.mean(loudness)) if loudness else 80.0
  key = None
  if piece.tonic is not None:
    key = f'{harmony.NOTE_NAMES[piece.tonic]} {piece.mode}'
  return Facts(
    piece.genre,
    piece.mood,
    piece.bpm,
    piece.metre,
    key,
    {r: players[r] for r in _ROLES if r in players},
    piece.drum_feel if 'drums' in players else '',
    'sparse and spacious' if per_second < 4 else 'busy and full' if per_second > 17 else None,
    'soft and delicate' if loud < 62 else 'loud and forceful' if loud > 88 else None,
    'builds up towards the end'
    if growth > 1.6
    else 'calms down towards the end'
    if growth < 0.55
    else None,
    piece.effects,
  )


def tempo_words(bpm: float) -> tuple[str, ...]:
  """Returns the words for a tempo: 65 -> ('slow', 'very slow')."""
  return tuple(next(words for limit, words in vocabulary.TEMPI if bpm < limit).split('|'))


def is_plural(name: str) -> bool:
  return name.endswith('s') and not name.endswith(('ss', 'Rhodes'))


def _article(phrase: str) -> str:
  if is_plural(phrase):
    return phrase
  vowel = (
    phrase[0].lower() in 'aeiou' or phrase[0] == '8' or phrase.startswith(('R&B', 'FM ', 'e-', 'E'))
  )
  return ('an ' if vowel else 'a ') + phrase


def _join(names: list[str]) -> str:
  return names[0] if len(names) == 1 else ', '.join(names[:-1]) + ' and ' + names[-1]


class Writer:
  """Fills templates for one clip; one generator decides all words."""

  def __init__(self, facts: Facts, held_out: bool, rng: np.random.Generator):
    self.facts, self.rng = facts, rng
    self.templates = vocabulary.HELD_OUT if held_out else vocabulary.TRAIN
    self.split = 'test' if held_out else 'train'
    self.used = []
    self.names = {}  # what each player is called, the same within one caption

  def _choice(self, options):
    options = options.split('|') if isinstance(options, str) else options
    return options[int(self.rng.integers(len(options)))]

  def slots(self) -> dict[str, str]:
    """Returns the words for every slot that is known."""
    facts = self.facts
    for player in facts.instruments.values():
      plain = self.rng.random() < 0.6
      self.names.setdefault(player.name, player.names[0] if plain else self._choice(player.names))
    said = {role: self.names[player.name] for role, player in facts.instruments.items()}
    names = list(dict.fromkeys(said.values()))
    many_all = len(names) > 1 or is_plural(names[0])
    one = said.get('lead') or names[int(self.rng.integers(len(names)))]
    others = [n for n in names if n != one]
    two = [one] + ([others[int(self.rng.integers(len(others)))]] if others else [])
    moods = list(self.rng.permutation(vocabulary.MOODS[facts.mood].split('|')))
    use = self._choice(vocabulary.USES[facts.genre])
    genre = self._choice(vocabulary.GENRES[facts.genre])
    out = {
      'genre': genre,
      'a_genre': _article(genre),
      'mood': moods[0],
      'mood2': moods[1],
      'tempo': self._choice(tempo_words(facts.bpm)),
      'bpm': str(round(facts.bpm)),
      'one': one,
      'two': _join(two),
      'all': _join(names),
      'use': use,
      'metre': f'{facts.metre}/4',
      'all_make': 'make' if many_all else 'makes',
      'all_sound': 'sound together' if many_all else 'sounds alone',
      'key': facts.key,
      'density': facts.density,
      'dynamics': facts.dynamics,
      'shape': facts.shape,
      'effect': self._choice(vocabulary.EFFECTS[facts.effects[0]]) if facts.effects else None,
    }
    out |= self._player_slots(said)
    for key in list(out):
      if out[key]:
        out[key.capitalize()] = out[key][0].upper() + out[key][1:]
    return {k: v for k, v in out.items() if v}

  def _player_slots(self, said: dict[str, str]) -> dict[str, str | None]:
    """Returns the words for the lead, the accompaniment, the bass and the drums, where heard."""
    facts, out = self.facts, {}
    backing = list(
      dict.fromkeys(
        said[r] for r in said if r not in ('lead', 'drums') and said[r] != said.get('lead')
      )
    )
    if 'lead' in said:
      lead = said['lead']
      out |= {
        'lead': lead if is_plural(lead) else 'the ' + lead,
        'a_lead': _article(lead),
        'the_lead': 'the ' + lead,
        'lead_plays': 'play' if is_plural(lead) else 'plays',
        'lead_takes': 'take' if is_plural(lead) else 'takes',
      }
    if backing:
      many = len(backing) > 1 or is_plural(backing[0])
      out |= {
        'backing': _join(backing),
        'backing_list': 'the ' + _join(backing),
        'backing_the': 'the ' + _join(backing),
        'backing_play': 'play' if many else 'plays',
        'backing_back': 'back' if many else 'backs',
        'backing_fill': 'fill' if many else 'fills',
      }
    if 'bass' in said and facts.instruments['bass'] != facts.instruments.get('comp'):
      out['bass'] = _article(said['bass'])
    if 'drums' in said:
      drums = said['drums']
      out |= {
        'drums': drums if is_plural(drums) or 'percussion' in drums else _article(drums),
        'drums_keep': 'keep' if is_plural(drums) else 'keeps',
        'drum_feel': self._choice(vocabulary.DRUM_FEELS[facts.drum_feel])
        if facts.drum_feel and facts.genre != 'orchestral'
        else None,
      }
    return out

  def fill(self, kind: str) -> str | None:
    """Returns one phrase of `kind`, or None when no template's slots are all known."""
    slots = self.slots()
    fits = [
      (i, t)
      for i, t in enumerate(self.templates[kind])
      if _fields(t) <= slots.keys() and (self.split, kind, i) not in self.used
    ]
    if not fits:
      return None
    index, template = fits[int(self.rng.integers(len(fits)))]
    self.used.append((self.split, kind, index))
    text = template.format_map(slots)
    for first, right in ((' A ', ' an '), (' a ', ' an '), ('A ', 'An ')):
      text = _fix_article(text, first, right)
    return text

  def paragraph(self) -> str:
    """Returns two to five sentences in the manner of MusicCaps."""
    rng = self.rng
    kinds = ['opening']
    if 'lead' in self.facts.instruments and rng.random() < 0.8:
      kinds.append('lead')
    if rng.random() < 0.55:
      kinds.append('backing')
    if 'drums' in self.facts.instruments:
      kinds += ['rhythm'] * (rng.random() < 0.7)
    elif rng.random() < 0.35:
      kinds.append('no_drums')
    extra = [
      k
      for k, p in (('mood', 0.75), ('tempo', 0.5), ('detail', 0.35), ('use', 0.5))
      if rng.random() < p
    ]
    kinds += extra or ['mood']
    sentences = [s for s in (self.fill(kind) for kind in kinds[:6]) if s]
    return ' '.join(sentences)


def _fields(template: str) -> set[str]:
  return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def _fix_article(text: str, article: str, right: str) -> str:
  """'a energetic' -> 'an energetic'; articles meet adjectives only once a template is filled."""
  parts = text.split(article)
  if article == 'A ' and not text.startswith('A '):
    return text
  if article == 'A ':
    rest = text[2:]
    return ('An ' if _vowel(rest) else 'A ') + rest
  out = parts[0]
  for part in parts[1:]:
    out += (right if _vowel(part) else article) + part
  return out


def _vowel(text: str) -> bool:
  return text[:1].lower() in ('a', 'e', 'i', 'o') or text.startswith(
    ('8-', 'R&B', 'FM ', 'uptempo', 'uplift', 'uneasy', 'upbeat', 'upright')
  )


def write(facts: Facts, held_out: bool, rng: np.random.Generator):
  """Returns (captions, aspects, phrasings): a tag, a sentence or two, and a paragraph."""
  writer = Writer(facts, held_out, rng)
  kinds = ['tag', 'sentence'] + ['sentence'] * int(rng.random() < 0.5) + ['paragraph']
  captions = []
  for kind in kinds:
    writer.names = {}
    text = writer.paragraph() if kind == 'paragraph' else writer.fill(kind)
    captions += [text] if text else []
  phrasings = ['/'.join(map(str, used)) for used in writer.used]
  return list(dict.fromkeys(captions)), aspects(facts, rng), phrasings


def aspects(facts: Facts, rng: np.random.Generator) -> list[str]:
  """Returns a list of short aspects: genre, moods, tempo, players, key."""

  def choice(text):
    return str(rng.choice(text.split('|')))

  found = [
    facts.genre,
    choice(vocabulary.MOODS[facts.mood]),
    facts.mood,
    str(rng.choice(tempo_words(facts.bpm))) + ' tempo',
  ]
  named = set()
  for role, player in facts.instruments.items():
    if player.name in named:
      continue
    named.add(player.name)
    name = str(rng.choice(player.names))
    found.append(
      {'lead': f'{name} melody', 'bass': name, 'drums': name, 'pad': f'sustained {name}'}.get(
        role, f'{name} accompaniment'
      )
    )
  found += ['instrumental'] if rng.random() < 0.6 else []
  found += ['no drums'] if 'drums' not in facts.instruments and rng.random() < 0.5 else []
  found += [facts.key] if facts.key and rng.random() < 0.4 else []
  found += [facts.density] if facts.density else []
  found += [facts.dynamics] if facts.dynamics else []
  found += [choice(vocabulary.EFFECTS[e]) for e in facts.effects]
  return list(dict.fromkeys(found))
