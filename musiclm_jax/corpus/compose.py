"""L4. A whole composition in a genre: key, mood, form, players, and every part of every section."""

import numpy as np

from musiclm_jax.corpus import drums as drumming
from musiclm_jax.corpus import harmony, melody, parts, styles
from musiclm_jax.corpus.instruments import INSTRUMENTS
from musiclm_jax.corpus.notes import Note, Piece, Section, Track, tempo_curve

# Four-bar phrases: name, level, roles that rest.
_PHRASES = {
  'intro': (0.45, {'lead', 'counter', 'drums'}),
  'verse': (0.65, {'counter', 'pad'}),
  'chorus': (1.0, set()),
  'bridge': (0.5, {'counter', 'drums', 'comp2'}),
  'solo': (0.8, {'pad'}),
  'outro': (0.45, {'counter'}),
}
_FORMS = (
  ('verse', 'verse', 'chorus', 'chorus'),
  ('intro', 'verse', 'chorus', 'verse', 'chorus'),
  ('chorus', 'verse', 'verse', 'chorus'),
  ('verse', 'chorus', 'bridge', 'chorus'),
  ('intro', 'verse', 'verse', 'chorus', 'bridge', 'chorus'),
  ('verse', 'chorus', 'solo', 'chorus'),
)
_STEADY_FORMS = (('verse', 'verse', 'solo', 'verse'), ('verse', 'chorus', 'verse', 'chorus'))
_MELODIC = ('melody', 'riff', 'bebop', 'blues_lead')


def _pick(rng: np.random.Generator, choices):
  return choices[int(rng.integers(len(choices)))]


class Composer:
  """Writes one piece; the draws come in a fixed order from one generator."""

  def __init__(
    self, style: styles.Style, seconds: float, rng: np.random.Generator, performances=()
  ):
    self.style, self.rng = style, rng
    self.mood_name = _pick(rng, style.moods.split())
    self.mood = styles.MOODS[self.mood_name]
    shared = [m for m in style.modes.split() if m in self.mood.modes]
    self.mode = _pick(rng, shared or style.modes.split())
    self.tonic = int(rng.integers(12))
    self.metre = int(_pick(rng, style.metres))
    low, high = style.bpm
    self.bpm = round(
      float(np.clip(rng.uniform(low, high) * self.mood.tempo, low * 0.92, high * 1.06)), 1
    )
    self.performance = self._choose_performance(performances)
    bar_seconds = self.metre * 60 / self.bpm
    ends = rng.random() < 0.5  # half of the pieces end inside the last clip, half are faded
    self.bars = max(4, int((seconds - (3.0 if ends else -1.0)) / bar_seconds))
    self.ends = ends
    self.sections = self._form()
    self.progressions = self._progressions()
    self.tempo = tempo_curve(self.bpm, (self.bars + 3) * self.metre, style.rubato, rng)

  def _choose_performance(self, performances):
    fits = [p for p in performances if self.style.bpm[0] * 0.9 <= p.bpm <= self.style.bpm[1] * 1.1]
    if not fits or self.metre != 4 or self.rng.random() > 0.6:
      return None
    performance = _pick(self.rng, fits)
    self.bpm = float(performance.bpm)
    return performance

  def _form(self) -> list[Section]:
    steady = self.style.cycle or not self.style.beats
    form = _pick(self.rng, _STEADY_FORMS if steady else _FORMS)
    length = 4 if not self.style.cycle else 12
    if not steady and self.bars > 24 and self.rng.random() < 0.5:
      length = 8
    sections, bar, turn = [], 0, 0
    while bar < self.bars:
      name = form[turn % len(form)] if turn < len(form) else form[1 + (turn - 1) % (len(form) - 1)]
      size = min(length if name != 'intro' else min(4, length), self.bars - bar)
      level = float(np.clip(_PHRASES[name][0] + self.rng.normal(0, 0.06), 0.3, 1.0))
      sections.append(Section(name, bar * self.metre, (bar + size) * self.metre, level))
      bar, turn = bar + size, turn + 1
    return sections

  def _progressions(self) -> dict[str, list[str]]:
    pool = self.style.major if self.mode in harmony.MAJOR_LIKE else self.style.minor
    verse = _pick(self.rng, pool).split()
    rest = [p.split() for p in pool if p.split() != verse] or [verse]
    chorus = _pick(self.rng, rest) if self.rng.random() < 0.7 and not self.style.cycle else verse
    bridge = _pick(self.rng, rest) if not self.style.cycle else verse
    return {
      'intro': verse,
      'verse': verse,
      'outro': verse,
      'chorus': chorus,
      'solo': verse,
      'bridge': bridge,
    }

  def chords(self) -> list[list[harmony.Chord]]:
    """Returns the chords of every bar, and of one more bar for the last chord."""
    bars = []
    for section in self.sections:
      progression = self.progressions[section.name]
      for bar in range(round((section.end - section.start) / self.metre)):
        at = section.start + bar * self.metre
        index = len(bars) if self.style.cycle else bar
        bars.append(
          harmony.bar_chords(
            progression[index % len(progression)],
            self.tonic,
            self.mode,
            self.style.chord_size,
            at,
            self.metre,
          )
        )
    size = self.style.chord_size
    bars.append(
      [harmony.chord('1', self.tonic, self.mode, size, len(bars) * self.metre, self.metre)]
    )
    return bars

  def compose(self) -> Piece:
    """Returns the piece with all its tracks."""
    bars = self.chords()
    tracks = []
    for role, (probability, choices) in self.style.parts.items():
      present = self.rng.random() < probability
      name, pattern = _pick(self.rng, choices.split(',')).split('/')
      if present:
        tracks.append(self._track(role, name, pattern, bars))
    for track in [t for t in tracks if t.notes == 'harmony']:
      lead = next(t for t in tracks if t.role == 'lead')
      track.notes = melody.harmonise(
        lead.notes, lambda beat: self._chord_at(bars, beat), self.tonic, self.mode
      )
    tracks += self._drum_tracks()
    self._shape(tracks)
    tracks = [t for t in tracks if t.notes]
    credits = ('Groove MIDI Dataset (CC-BY-4.0)',) if self.performance else ()
    return Piece(
      self.style.name,
      self.mood_name,
      self.tonic,
      self.mode,
      self.bpm,
      self.metre,
      tracks,
      self.sections,
      self.tempo,
      self._feel(tracks),
      self.style.effects,
      'own composition',
      'CC-BY-4.0' if self.performance else 'CC0-1.0',
      credits,
      # The last bar sounds only in a piece that ends.
      tuple(chord for bar in (bars if self.ends else bars[:-1]) for chord in bar),
    )

  def _feel(self, tracks) -> str:
    kit = next((t.instrument for t in tracks if t.role == 'drums'), None)
    if kit is None:
      return ''
    return 'human' if self.performance else drumming.feel(kit)

  def _chord_at(self, bars, beat: float) -> harmony.Chord:
    bar = bars[min(int(beat // self.metre), len(bars) - 1)]
    return next((c for c in reversed(bar) if c.start <= beat + 1e-6), bar[0])

  def _track(self, role: str, name: str, pattern: str, bars) -> Track:
    instrument = INSTRUMENTS[name]
    pan = 64 + int(self.rng.integers(-34, 35)) * (role not in ('bass', 'lead'))
    track = Track(role, instrument, [], pan, instrument.level)
    if pattern == 'harmony':
      track.notes = 'harmony'
    elif pattern in _MELODIC:
      self._sing(track, pattern, bars)
    elif pattern == 'sparse':
      for _, bar in self._playing(role):
        track.notes += melody.sparse(
          bars[bar],
          instrument.low,
          min(instrument.high, 92),
          self.rng,
          int(62 * self.mood.velocity),
          self.metre,
        )
    elif pattern == 'walking':
      position = instrument.low + 10
      for _, bar in self._playing(role):
        notes, position = parts.walking(
          bars[bar],
          bars[bar + 1][0].root,
          position,
          self.metre,
          instrument.low,
          instrument.high,
          self.rng,
        )
        track.notes += notes
    else:
      self._accompany(track, pattern, bars)
    if self.ends and role not in ('counter', 'comp2') and track.notes:
      track.notes += self._last_chord(role, instrument, bars[-1][0])
    return track

  def _playing(self, role: str):
    """Yields (section, bar) where `role` plays; the main accompaniment never rests."""
    kind = role.rstrip('2') if role != 'comp2' else role
    for section in self.sections:
      resting = _PHRASES[section.name][1]
      steady = not self.style.beats
      if kind in resting and not (steady and kind in ('lead', 'pad', 'counter', 'comp2')):
        continue
      for bar in range(round(section.start / self.metre), round(section.end / self.metre)):
        yield section, bar

  def _sing(self, track: Track, kind: str, bars):
    instrument = track.instrument
    low = max(instrument.low, 55 if kind != 'riff' else 50)
    high = min(instrument.high, low + 26)
    shift = int(np.clip(self.mood.register, low - instrument.low - 12, instrument.high - high))
    low, high = max(instrument.low, low + shift + 3), min(instrument.high, high + shift)
    if high - low < 12:
      low, high = instrument.low, instrument.high
    density = self.style.melody * self.mood.density
    singer = melody.Singer(kind, self.metre, density, low, high, self.tonic, self.mode, self.rng)
    for section, bar in self._playing(track.role):
      index = bar - round(section.start / self.metre)
      lift = 3.0 if section.name == 'chorus' else 0.0
      track.notes += singer.bar(bars[bar], section.name, index, lift, 88)

  def _accompany(self, track: Track, name: str, bars):
    pattern = parts.PATTERNS[name]
    is_bass = track.role == 'bass' or name == 'timpani'
    verse, chorus = _pick(self.rng, pattern.bars), _pick(self.rng, pattern.bars)
    if self.mood.density < 0.8 and not is_bass:
      chorus = verse
    centre = pattern.centre + (0 if is_bass else int(np.clip(self.mood.register, -4, 4)))
    previous = None
    for section, bar in self._playing(track.role):
      index = bar - round(section.start / self.metre)
      written = chorus if section.name in ('chorus', 'solo') else verse
      if index % 4 == 3 and self.rng.random() < 0.4:
        written = pattern.bars[-1]
      notes, previous = parts.play(
        pattern, written, bars[bar], bars[bar + 1][0].root, centre, previous, self.metre, is_bass
      )
      track.notes += notes
    if is_bass and track.instrument.low > min((n.pitch for n in track.notes), default=127):
      track.notes = [
        n._replace(pitch=n.pitch + 12 * (n.pitch < track.instrument.low)) for n in track.notes
      ]

  def _last_chord(self, role, instrument, harm) -> list[Note]:
    length = self.metre * 0.9
    if role == 'bass':
      pitches = [harmony.nearest(instrument.low + 8, [harm.root])]
    elif role == 'lead':
      pitches = [harmony.nearest(min(instrument.high - 8, 72), [harm.root])]
    else:
      pitches = harmony.voicing(harm, min(62, instrument.high - 6), None)
    return [Note(harm.start, length, p, 82) for p in pitches]

  def _drum_tracks(self) -> list[Track]:
    rng = self.rng
    kit = INSTRUMENTS[_pick(rng, self.style.kits.split(','))]
    if not self.style.beats:
      return []
    no_intro = rng.random() < 0.5
    plays = [
      (
        s.name,
        s.start,
        s.end,
        s.level,
        not (s.name == 'intro' and no_intro)
        and not (s.name == 'bridge' and not self.style.cycle and rng.random() < 0.6),
      )
      for s in self.sections
    ]
    if self.mood_name in ('calm', 'dreamy') and self.style.name == 'orchestral':
      return []
    if self.performance:
      notes = drumming.performed(self.performance, plays, self.metre)
    else:
      tight = 0.95 if 'electronic' in self.style.kits or self.style.name == 'chiptune' else 0.25
      notes = drumming.written(
        self.style.beats,
        plays,
        self.metre,
        self.bpm,
        self.style.swing,
        tight,
        rng,
        fills=self.style.name not in ('house', 'bossa nova', 'orchestral', 'jazz'),
      )
    if self.ends:
      end = self.bars * self.metre
      notes += [Note(end, 1.0, drumming.KICK, 96), Note(end, 1.0, drumming.CRASH, 92)]
    return [Track('drums', kit, notes, 64, 1.0)]

  def _shape(self, tracks: list[Track]):
    """Dynamics of the sections and the mood, swing, and the small unevenness of hands."""
    rng, bps = self.rng, self.bpm / 60
    machine = self.style.name in ('house', 'chiptune', 'synthwave')
    starts = np.array([s.start for s in self.sections])
    for track in tracks:
      if track.role == 'drums':
        continue
      shaped = []
      balance = {'lead': 1.06, 'bass': 1.0, 'drums': 1.0}.get(track.role, 0.92)
      if self.style.name == 'solo piano':
        balance = 1.1 if track.role == 'lead' else 0.85
      for note in track.notes:
        section = self.sections[max(0, int(np.searchsorted(starts, note.start, 'right')) - 1)]
        level = 0.72 + 0.34 * section.level
        swing = self.style.swing * 0.5 if abs(note.start % 1 - 0.5) < 0.01 else 0.0
        lag = 0.0 if machine else float(rng.normal(0, 0.007)) * bps
        velocity = note.velocity * level * self.mood.velocity * balance + rng.normal(
          0, 0 if machine else 4
        )
        shaped.append(
          Note(
            max(0.0, note.start + swing + lag),
            note.duration,
            note.pitch,
            int(np.clip(velocity, 14, 127)),
          )
        )
      track.notes = sorted(shaped)


def compose(style_name: str, seconds: float, rng: np.random.Generator, performances=()) -> Piece:
  """Returns a composition of about `seconds` in the named genre."""
  return Composer(styles.STYLES[style_name], seconds, rng, performances).compose()
