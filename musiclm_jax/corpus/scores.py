"""L4. Given MIDI: finding it, reading it, arranging scores for other players."""

import contextlib
import csv
import dataclasses
import io
import os
import re
import zipfile

import mido
import numpy as np

from musiclm_jax import errors
from musiclm_jax.corpus import drums as drumming
from musiclm_jax.corpus import harmony, styles
from musiclm_jax.corpus.instruments import INSTRUMENTS
from musiclm_jax.corpus.notes import Note, Piece, Section, Track, tempo_curve

_MAX_BYTES = 8_000_000
_MAX_BEATS = 100_000


@dataclasses.dataclass(frozen=True)
class Source:
  """One readable file of a folder or zip; picklable, so workers can open it."""

  container: str
  name: str

  def read(self) -> bytes:
    if zipfile.is_zipfile(self.container):
      with _open_zip(self.container, self.name) as archive:
        if archive.getinfo(self.name).file_size > _MAX_BYTES:
          raise errors.UserError(f'{self.name!r} is larger than {_MAX_BYTES} bytes')
        return archive.read(self.name)
    path = os.path.join(self.container, self.name)
    if os.path.getsize(path) > _MAX_BYTES:
      raise errors.UserError(f'{path!r} is larger than {_MAX_BYTES} bytes')
    with open(path, 'rb') as f:
      return f.read()

  @property
  def stem(self) -> str:
    return os.path.splitext(os.path.basename(self.name))[0]


@contextlib.contextmanager
def _open_zip(container: str, name: str = ''):
  """Opens a zip; whatever is wrong with it, or with its member `name`, is a UserError."""
  try:
    with zipfile.ZipFile(container) as archive:
      yield archive
  except errors.UserError:
    raise
  except Exception as error:  # zipfile raises many kinds: a bad CRC, a password, an odd header
    member = f'{name!r} in ' if name else ''
    raise errors.UserError(f'{member}{container!r} cannot be read as a zip file: {error}') from error


def list_files(container: str, flag: str) -> list[Source]:
  """Returns all files below a folder or in a zip, sorted by name."""
  if os.path.isdir(container):
    names = [
      os.path.relpath(os.path.join(root, f), container).replace(os.sep, '/')
      for root, _, files in os.walk(container)
      for f in files
    ]
  elif zipfile.is_zipfile(container):
    with _open_zip(container) as archive:
      names = [i.filename for i in archive.infolist() if not i.is_dir()]
  else:
    raise errors.UserError(f'{flag}={container!r} is neither a folder nor a zip file')
  return [Source(container, name) for name in sorted(names)]


def list_scores(container: str) -> list[Source]:
  """Returns the MIDI files that are not below a drum collection (a folder with info.csv)."""
  files = list_files(container, '--scores')
  drum_folders = tuple(f.name[: -len('info.csv')] for f in files if f.name.endswith('info.csv'))
  found = [
    f
    for f in files
    if f.name.lower().endswith(('.mid', '.midi'))
    and not any(f.name.startswith(d) for d in drum_folders)
  ]
  if not found:
    raise errors.UserError(f'--scores={container!r} holds no .mid files')
  return found


def read_midi(source: Source):
  """Returns (mido file, {track index: notes in beats}) ; raises UserError when it is not MIDI."""
  try:
    midi = mido.MidiFile(file=io.BytesIO(source.read()), clip=True)
    resolution = float(midi.ticks_per_beat)
    return midi, {i: _track_notes(t, resolution) for i, t in enumerate(midi.tracks)}
  except errors.UserError:
    raise
  except Exception as error:  # mido raises many kinds on broken files
    raise errors.UserError(f'{source.name!r} cannot be read as MIDI: {error}') from error


def _track_notes(track, resolution: float) -> list[Note]:
  notes, held, tick = [], {}, 0
  for message in track:
    tick += message.time
    if message.type not in ('note_on', 'note_off'):
      continue
    key = (message.channel, message.note)
    if key in held:
      start, velocity = held.pop(key)
      notes.append(
        Note(start / resolution, max(0.05, (tick - start) / resolution), message.note, velocity)
      )
    if message.type == 'note_on' and message.velocity > 0:
      held[key] = (tick, message.velocity)
  return sorted(notes)


_DRUM_COLUMNS = ('beat_type', 'time_signature', 'duration', 'midi_filename', 'style', 'bpm')


def list_performances(container: str) -> list[tuple[Source, str, float]]:
  """Returns (source, style, bpm) of the 4/4 beats that info.csv lists."""
  files = list_files(container, '--drums')
  index = next((f for f in files if f.name.split('/')[-1] == 'info.csv'), None)
  if index is None:
    raise errors.UserError(
      f'--drums={container!r} holds no info.csv (as the Groove MIDI Dataset has)'
    )
  known = {f.name: f for f in files}
  folder = index.name[: -len('info.csv')]
  found = []
  try:
    rows = list(csv.DictReader(io.StringIO(index.read().decode('utf-8', 'replace'))))
  except csv.Error as error:
    raise errors.UserError(
      f'{index.name!r} in --drums={container!r} is not a csv file: {error}'
    ) from error
  for row in rows:
    values = [row.get(column) for column in _DRUM_COLUMNS]
    if None in values:
      continue  # a short row
    kind, metre, seconds, name, style, bpm = values
    try:
      if kind == 'beat' and metre == '4-4' and float(seconds) > 8:
        found.append((known[folder + name], style, float(bpm)))
    except (KeyError, ValueError):
      continue
  if not found:
    raise errors.UserError(f'{index.name!r} in --drums={container!r} lists no 4-4 beats')
  return found


def read_performance(source: Source, style: str, bpm: float) -> drumming.Performance | None:
  """Returns the take in General MIDI keys, in whole bars; None when shorter than two bars."""
  _, tracks = read_midi(source)
  notes = sorted(
    n._replace(pitch=drumming.to_general_midi(n.pitch)) for t in tracks.values() for n in t
  )
  bars = int((notes[-1].start + 0.2) // 4) if notes else 0
  if bars < 2:
    return None
  return drumming.Performance(
    source.stem, style, bpm, tuple(n for n in notes if n.start < bars * 4), bars
  )


# genre -> players for (melody, upper accompaniment, inner voice, bass); '' leaves the voice out.
_ARRANGEMENTS = {
  'solo piano': (('piano', 'piano', '', 'piano'),),
  'string quartet': (('violin', 'violin', 'viola', 'cello'),),
  'orchestral': (
    ('french horn', 'strings', '', 'double bass section'),
    ('oboe', 'strings', 'harp', 'cello'),
    ('trumpet', 'strings', 'brass section', 'double bass section'),
    ('flute', 'pizzicato strings', '', 'cello'),
    ('violin', 'strings', 'choir', 'double bass section'),
  ),
  'chamber': (
    ('clarinet', 'piano', '', 'piano'),
    ('cello', 'piano', '', 'piano'),
    ('flute', 'harp', '', 'harp'),
    ('violin', 'piano', '', 'piano'),
    ('oboe', 'harpsichord', '', 'harpsichord'),
    ('french horn', 'piano', '', 'piano'),
    ('flute', 'nylon guitar', '', 'nylon guitar'),
    ('bassoon', 'piano', '', 'piano'),
  ),
  'chiptune': (('square lead', 'square lead', '', 'saw lead'),),
  'ambient': (
    ('celesta', 'warm pad', '', 'deep synth bass'),
    ('pan flute', 'halo pad', '', 'deep synth bass'),
    ('electric piano', 'slow strings', '', ''),
  ),
  'folk': (
    ('violin', 'nylon guitar', '', 'upright bass'),
    ('flute', 'steel guitar', '', 'nylon guitar'),
    ('accordion', 'steel guitar', '', 'upright bass'),
    ('recorder', 'harp', '', 'harp'),
  ),
  'synthwave': (
    ('saw lead', 'synth strings', '', 'synth bass'),
    ('square lead', 'poly synth', '', 'synth bass'),
  ),
  'lo-fi hip hop': (
    ('vibraphone', 'electric piano', '', 'upright bass'),
    ('jazz guitar', 'electric piano', '', 'deep synth bass'),
  ),
}
_SCORE_BEATS = {'chiptune': 'chip_beat', 'synthwave': 'eighties', 'lo-fi hip hop': 'boom_bap'}


def arrange(source: Source, genre: str, seconds: float, rng: np.random.Generator) -> Piece:
  """Returns an excerpt of the score for other players, at another tempo and in another key."""
  style = styles.STYLES[genre]
  midi, tracks = read_midi(source)
  voices = [t for t in tracks.values() if len(t) >= 12]
  if not voices:
    raise errors.UserError(f'{source.name!r} holds no playable voices')
  beats = max(n.start for v in voices for n in v)
  if beats > _MAX_BEATS:
    raise errors.UserError(f'{source.name!r} is {beats:.0f} beats long, wanted at most {_MAX_BEATS}')
  metre = read_metre(midi)
  low, high = style.bpm
  bpm = round(float(np.clip(read_tempo(midi) * rng.uniform(0.85, 1.2), low * 0.9, high * 1.1)), 1)
  length = int(seconds * bpm / 60 / metre + 1) * metre
  start = _excerpt(voices, length, metre, rng)
  parts = _split(voices, start, length)
  weights = np.bincount(
    [n.pitch % 12 for part in parts for n in part for _ in range(1 + int(n.duration * 2))],
    minlength=12,
  ).astype(float)
  if weights.sum() < 24:
    raise errors.UserError(f'{source.name!r} is too sparse to arrange')
  tonic, mode, margin = harmony.estimate_key(weights)
  shift = int(rng.integers(-4, 5))
  players = _ARRANGEMENTS[genre][int(rng.integers(len(_ARRANGEMENTS[genre])))]
  made = []
  for role, name, part in zip(('lead', 'comp', 'comp2', 'bass'), players, parts, strict=True):
    if name and part:
      made.append(_voice(role, INSTRUMENTS[name], part, shift, rng))
  sections, feel = [Section('verse', 0, length, 0.75)], ''
  if genre in _SCORE_BEATS and metre in (2, 4):
    kit = INSTRUMENTS[style.kits.split(',')[0]]
    feel = drumming.feel(kit)
    made.append(
      Track(
        'drums',
        kit,
        drumming.written(
          _SCORE_BEATS[genre], [('verse', 0, length - length % 4, 0.8, True)],
          4, bpm, style.swing, 0.8, rng,
        ),
      )
    )
  known = margin > 0.06  # otherwise no key is claimed
  return Piece(
    genre,
    _mood(style, mode, bpm, rng),
    (tonic + shift) % 12 if known else None,
    mode if known else None,
    bpm,
    metre,
    made,
    sections,
    tempo_curve(bpm, length + metre, style.rubato, rng),
    feel,
    style.effects,
    title(source),
    licence(source),
  )


def _mood(style, mode, bpm, rng) -> str:
  fits = [m for m in style.moods.split() if mode in styles.MOODS[m].modes] or style.moods.split()
  if bpm < 80:
    fits = [m for m in fits if styles.MOODS[m].tempo <= 1.0] or fits
  elif bpm > 112:
    fits = [m for m in fits if styles.MOODS[m].tempo >= 0.95] or fits
  return fits[int(rng.integers(len(fits)))]


def title(source: Source) -> str:
  """'scores__Arne,_Thomas_____The_Weeders' -> 'Arne, Thomas - The Weeders'."""
  words = re.sub('_{2,}', ' - ', source.stem.removeprefix('scores__')).replace('_', ' ')
  return ' '.join(c for c in words.split() if c.isprintable())


def licence(source: Source) -> str:
  """Returns what is known of the licence of a score."""
  where = (source.container + '/' + source.name).lower()
  return 'CC0-1.0' if 'openscore' in where and 'cc0' in where else 'that of the given score'


def read_metre(midi) -> int:
  """Returns quarter notes a bar, 2, 3 or 4, of a mido file."""
  for track in midi.tracks:
    for message in track:
      if message.type == 'time_signature':
        beats = message.numerator * 4 / message.denominator
        return int(beats) if beats in (2, 3, 4) else 3 if beats == 1.5 else 4
  return 4


def read_tempo(midi) -> float:
  """Returns beats a minute of a mido file: the median of what it says."""
  tempi = [
    mido.tempo2bpm(m.tempo)
    for t in midi.tracks
    for m in t
    if m.type == 'set_tempo' and m.tempo > 0  # a broken file may hold 0
  ]
  return float(np.clip(np.median(tempi), 40, 220)) if tempi else 100.0


def _excerpt(voices, length: int, metre: int, rng) -> int:
  """Returns the bar line in beats of a well-filled excerpt."""
  starts = np.sort([n.start for v in voices for n in v])
  last = starts[-1] - length * 0.97
  if last < 0:
    raise errors.UserError(f'the score is shorter than {length} beats')
  bars = np.arange(0, last + 1e-6, metre)
  counts = np.array(
    [np.searchsorted(starts, b + length) - np.searchsorted(starts, b) for b in bars]
  )
  good = bars[counts >= 0.75 * counts.max()]
  return int(good[int(rng.integers(len(good)))])


def _split(voices, start: int, length: int):
  """Returns (melody, upper, inner, bass) notes of the excerpt, from beat 0."""
  cut = [
    [
      n._replace(start=n.start - start, duration=min(n.duration, start + length - n.start))
      for n in v
      if start <= n.start < start + length
    ]
    for v in voices
  ]
  cut = [v for v in cut if v]
  if len(cut) >= 4:
    cut.sort(key=lambda v: -np.mean([n.pitch for n in v]))
    return cut[0], cut[1], [n for v in cut[2:-1] for n in v], cut[-1]
  if len(cut) < 2:
    return (cut[0] if cut else []), [], [], []
  lead, rest = (
    cut[0],
    sorted((n for v in cut[1:] for n in v), key=lambda n: (round(n.start, 2), n.pitch)),
  )
  upper, inner, bass = [], [], []
  onsets = {}
  for note in rest:
    onsets.setdefault(round(note.start, 2), []).append(note)
  for group in onsets.values():
    for index, note in enumerate(group):
      if index == 0 and note.pitch < 58:
        bass.append(note)
      elif index == len(group) - 1 or note.pitch >= 64:
        upper.append(note)
      else:
        inner.append(note)
  return lead, upper, inner, bass


def _voice(role, instrument, part, shift, rng) -> Track:
  pitches = np.array([n.pitch + shift for n in part])
  octaves = np.arange(-3, 4) * 12
  outside = [
    np.mean((pitches + o < instrument.low) | (pitches + o > instrument.high)) + 0.02 * abs(o) / 12
    for o in octaves
  ]
  move = shift + int(octaves[int(np.argmin(outside))])
  balance = {'lead': 1.12, 'bass': 0.95}.get(role, 0.85)
  notes = []
  for note in part:
    pitch = note.pitch + move
    while pitch > instrument.high:
      pitch -= 12
    while pitch < instrument.low:
      pitch += 12
    phrase = 5 * np.sin(2 * np.pi * note.start / 16)
    velocity = 74 * balance + phrase + rng.normal(0, 4) + (4 if note.start % 1 < 0.01 else 0)
    notes.append(
      Note(
        max(0.0, note.start + rng.normal(0, 0.012)),
        note.duration * 0.96,
        pitch,
        int(np.clip(velocity, 20, 122)),
      )
    )
  pan = 64 + (0 if role in ('lead', 'bass') else int(rng.integers(-30, 31)))
  return Track(role, instrument, sorted(notes), pan, instrument.level)
