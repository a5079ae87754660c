"""L4. Drums: written beats with human feel, and human performances read from MIDI files.

A beat is a bar of sixteenths per drum: 'x' plain, 'X' accent, 'o' soft (ghost).
"""

import dataclasses

import numpy as np

from musiclm_jax.corpus.instruments import Instrument
from musiclm_jax.corpus.notes import Note

KICK, STICK, SNARE, CLAP, CLOSED, PEDAL, OPEN, RIDE, CRASH = 36, 37, 38, 39, 42, 44, 46, 51, 49
TAMBOURINE, COWBELL, SHAKER, CLAVES, CONGA_HIGH, CONGA_LOW = 54, 56, 70, 75, 63, 64
_KEYS = {
  'K': KICK,
  'T': STICK,
  'S': SNARE,
  'P': CLAP,
  'H': CLOSED,
  'F': PEDAL,
  'O': OPEN,
  'R': RIDE,
  'J': TAMBOURINE,
  'W': COWBELL,
  'M': SHAKER,
  'V': CLAVES,
  'C': CONGA_HIGH,
  'D': CONGA_LOW,
  'L': 43,
  'B': 41,
  'G': 57,
}

BEATS = {
  'rock8': (
    'K x.....x.x.......|S ....X.......X...|H X.x.X.x.X.x.X.x.',
    'K x.......x.x.....|S ....X.......X...|R X.x.X.x.X.x.X.x.',
  ),
  'rock_busy': (
    'K x..x..x.x..x....|S ....X.......X..o|H X.x.X.x.X.x.X.x.',
    'K x.x...x.x.x.....|S ....X..o.o..X...|O x...x...x...x...',
  ),
  'halftime': (
    'K X.....x.........|S ........X.......|R x...x...x...x...',
    'K X..x......x.....|S ........X.......|O x...x...x...x...',
  ),
  'metal_double': (
    'K xxxxxxxxxxxxxxxx|S ....X.......X...|R X...X...X...X...',
    'K xxxxxxxxxxxxxxxx|S ..X...X...X...X.|G x...x...x...x...',
  ),
  'metal_gallop': (
    'K x.xxx.xxx.xxx.xx|S ....X.......X...|H X...X...X...X...',
    'K X.xxX.xxX.xxX.xx|S ....X.......X...|O x...x...x...x...',
  ),
  'pop_beat': (
    'K X.......X.x.....|S ....X.......X...|H x.x.x.x.x.x.x.x.',
    'K X..x....X..x....|S ....X.......X...|P ....x.......x...|H x.x.x.x.x.x.x.x.',
  ),
  'four_floor': (
    'K X...X...X...X...|P ....X.......X...|O ..x...x...x...x.',
    'K X...X...X...X...|S ....X.......X...|H x.xxx.xxx.xxx.xx',
  ),
  'soul_beat': (
    'K x......x..x.....|S ....X.......X..o|H x.xox.xox.xox.xo',
    'K x.......x.x....x|S ....X..o....X...|H x.x.x.x.x.x.x.x.|J ....x.......x...',
  ),
  'funk_beat': (
    'K X..x..x..x..x...|S ....X..o.o..X..o|H xoxxxoxxxoxxxoxO',
    'K X.x....x..x..x..|S ....X..o.oo.X.o.|H x.xxx.xxx.xxx.xx',
    'K X......x.xx.....|S ..o.X.o..o..X..o|H xxxxxxxxxxxxxxxx',
  ),
  'shuffle': (
    'K X.......X.......|S ....X.......X...|R X.x.X.x.X.x.X.x.',
    'K X.....x.X.......|S ....X.......X...|H X.x.X.x.X.x.X.x.',
  ),
  'swing_ride': (
    'R X...X.x.X...X.x.|F ....x.......x...|K o.......o.......',
    'R X...X.x.X...X.x.|F ....x.......x...|S ......o.......o.|K o.......o.....o.',
    'R X...X.x.X.x.X...|F ....x.......x...|S ..o.........o...',
  ),
  'bossa_beat': (
    'K x.....xxx.....xx|T x..x..x...x..x..|H oxoxoxoxoxoxoxox',
    'K x.....x.x.....x.|T ..x...x.x..x..x.|M xoxoxoxoxoxoxoxo',
  ),
  'salsa_beat': (
    (
      'C ..x..xx...x..xx.|D ......x.......xx|W X...x.x.X...x.x.|V x..x..x...x.x...|'
      'K ......x.......x.'
    ),
    'C x.xx..xx..xx..xx|D ....x.......x.x.|W X.x.x.x.X.x.x.x.|V ..x.x...x..x..x.',
  ),
  'one_drop': (
    'K ........X.......|T ........X.......|H x.xox.x.x.xox.x.',
    'K ........X.......|S ........x.......|H x.x.x.x.x.x.x.xx|T ....o.......o...',
    'K X...X...X...X...|T ........X.......|H x.xox.x.x.xox.x.',
  ),
  'train_beat': ('S XoxoXoxoXoxoXoxo|K x...x...x...x...', 'S oxXooxXooxXooxXo|K x...x...x...x...'),
  'two_step': (
    'K X.......X.......|T ....X.......X...|H x.x.x.x.x.x.x.x.',
    'K X.......X.......|S ....X.......X...|H x...x...x...x...',
  ),
  'boom_bap': (
    'K X......x..x.....|S ....X.......X...|H x.xxx.x.x.xxx.x.',
    'K X.x....x.x......|S ....X.......X..o|H x.x.x.x.x.x.x.x.',
    'K X.....x...x.....|T ....X.......X...|H x.x.x.xxx.x.x.x.',
  ),
  'house_beat': (
    'K X...X...X...X...|P ....X.......X...|O ..X...X...X...X.|H x.x.x.x.x.x.x.x.',
    'K X...X...X...X...|P ....X..x....X...|O ..X...X...X...X.|M xoxxxoxxxoxxxoxx',
  ),
  'eighties': (
    'K X.....x.X.......|S ....X.......X...|H x.x.x.x.x.x.x.x.',
    'K X...X...X...X...|S ....X.......X...|P ....x.......x...|H xxxxxxxxxxxxxxxx',
  ),
  'chip_beat': (
    'K X...x...X...x...|S ....X.......X...|H x.x.x.x.x.x.x.x.',
    'K X..x..x.X..x..x.|S ....X.......X.xx|H xxxxxxxxxxxxxxxx',
  ),
  'cinematic': (
    'B X.....x.x.......|L ............x.x.',
    'B X..x..x.X..x..x.|L ........x.....xx',
    'B X...x...X...x.xx',
  ),
}
FILLS = (
  'S ........xxXxxxXX|K X...X...X.......',
  'S ....X...xx......|L ............xxXX|K X.......X.......',
  'S ........X.x.X.xX',
  'K X.......x.......|S ............XxXx',
)

# Roland TD-11 keys of the Groove MIDI Dataset -> General MIDI.
_TD11 = {
  22: 42,
  26: 46,
  40: 38,
  50: 50,
  48: 50,
  47: 47,
  45: 47,
  58: 43,
  43: 43,
  55: 49,
  57: 57,
  52: 57,
  59: 51,
  53: 53,
  37: 37,
}
_LEVELS = {'x': 84, 'X': 108, 'o': 46, 'O': 84}


@dataclasses.dataclass(frozen=True)
class Performance:
  """A human drummer's take, starting on a bar line."""

  name: str
  style: str
  bpm: float
  notes: tuple[Note, ...]  # General MIDI keys
  bars: int


def read_beat(beat: str, metre: int) -> list[tuple[float, int, int]]:
  """Returns (beat, key, velocity): 'K x...' -> [(0.0, 36, 84)]."""
  hits = []
  for line in beat.split('|'):
    drum, steps = line.split(' ', 1)
    hits += [
      (i / 4, OPEN if mark == 'O' and drum == 'H' else _KEYS[drum], _LEVELS[mark])
      for i, mark in enumerate(steps[: metre * 4])
      if mark != '.'
    ]
  return sorted(hits)


def human(
  hits,
  start: float,
  bpm: float,
  tightness: float,
  volume: float,
  swing: float,
  rng: np.random.Generator,
) -> list[Note]:
  """Returns notes with the timing and touch of a hand; `tightness` 1 is a machine."""
  spread = (1 - tightness) * 0.010 * bpm / 60
  notes = []
  for beat, key, velocity in hits:
    late = swing * 0.5 if abs(beat % 1 - 0.5) < 0.01 else swing * 0.15 if beat % 0.5 else 0.0
    lag = rng.normal(0, spread) + (spread * 0.6 if key in (SNARE, CLAP) else 0)
    touch = rng.normal(0, 7 * (1 - tightness) + 1)
    notes.append(
      Note(
        max(0.0, start + beat + late + lag),
        0.2,
        key,
        int(np.clip(velocity * volume + touch, 12, 127)),
      )
    )
  return notes


def written(
  beats: str,
  sections,
  metre: int,
  bpm: float,
  swing: float,
  tightness: float,
  rng: np.random.Generator,
  fills: bool = True,
) -> list[Note]:
  """Returns the drum part of `sections` [(name, start, end, level, plays)]."""
  names = beats.split()
  beat = BEATS[names[rng.integers(len(names))]]
  fill = FILLS[rng.integers(len(FILLS))]
  notes = []
  for name, start, end, level, plays in sections:
    if not plays:
      continue
    full = min(len(beat) - 1, 1 if name == 'chorus' else 2 if name == 'bridge' else 0)
    bars = int(round((end - start) / metre))
    for bar in range(bars):
      at = start + bar * metre
      last = bar == bars - 1 and bars > 1
      hits = read_beat(fill if last and fills else beat[full], metre)
      if level < 0.5:
        hits = [h for h in hits if h[1] != SNARE or h[2] < 100] or hits
      if bar == 0 and fills and name in ('chorus', 'verse') and level > 0.5:
        hits.append((0.0, CRASH, 100))
      notes += human(hits, at, bpm, tightness, 0.72 + 0.34 * level, swing, rng)
  return notes


def performed(performance: Performance, sections, metre: int) -> list[Note]:
  """Returns the performance, looped by whole bars, where drums play."""
  length = performance.bars * metre
  notes = []
  for _, start, end, level, plays in sections:
    if not plays:
      continue
    first = int(start // length)
    for loop in range(first, int(end // length) + 1):
      for note in performance.notes:
        at = note.start + loop * length
        if start - 1e-6 <= at < end:
          velocity = int(np.clip(note.velocity * (0.75 + 0.3 * level), 10, 127))
          notes.append(note._replace(start=at, velocity=velocity))
  return notes


def feel(kit: Instrument) -> str:
  """Returns what a written beat sounds like on `kit`, a key of vocabulary.DRUM_FEELS."""
  return 'machine' if 'drum machine' in kit.names else 'written'


def to_general_midi(key: int) -> int:
  return _TD11.get(key, key)
