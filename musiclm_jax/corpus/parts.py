"""L4. What accompanying players do: one bar of sixteenths per pattern, read over the chords.

.  rest          -  hold            x X  the whole chord (X accented)
0..9  chord tone of the voicing, counting up through octaves
r R  root   f  fifth   t  third   s  seventh or octave   o  octave   a  step into the next root
"""

import dataclasses

import numpy as np

from musiclm_jax.corpus import harmony
from musiclm_jax.corpus.notes import Note


@dataclasses.dataclass(frozen=True)
class Pattern:
  bars: tuple[str, ...]
  gate: float = 0.95  # sounding share of the written length
  centre: int = 62  # where chords are voiced; for bass the highest root
  strum: float = 0.0  # beats between the strings of a chord
  velocity: int = 76


def _p(bars: str, **fields) -> Pattern:
  return Pattern(tuple(bars.split()), **fields)


PATTERNS = {
  # Chords.
  'block': _p('X---------------', gate=1.0, velocity=66),
  'block_low': _p('r-------x---x--- R---x---x---x---', centre=60, velocity=68),
  'long': _p('X-------x-------', gate=0.98, velocity=66),
  'long_chords': _p('0-------x------- x---------------', gate=1.0, velocity=62),
  'quarter': _p('X---x---x---x--- X---x---x---x-x-', gate=0.85),
  'strum': _p(
    'X---x-x---x-x-x- X-x-x-x-X-x-x-x- X---x-xx--x-x-x-', strum=0.028, gate=0.9, centre=58
  ),
  'power8': _p(
    'X-x-x-x-X-x-x-x- X-x-xxx-X-x-x-x- X-----x-X---x-x-', gate=0.9, centre=48, velocity=88
  ),
  'chug': _p(
    'X-xxX-xxX-xxX-xx XxxxX-X-XxxxX-X- X-X-xxX-X-xxX-x- X--X--X-X--X--X-',
    gate=0.55,
    centre=45,
    velocity=98,
  ),
  'skank': _p('....X-......X-.. ....X-......X-x-', gate=0.55, strum=0.012, centre=65, velocity=82),
  'bubble': _p('..x...x...x...x. ..x.x.x...x.x.x.', gate=0.6, centre=64, velocity=62),
  'offbeat': _p('....X.......X... ....X.....x.X...', gate=0.5, centre=64),
  'charleston': _p(
    'X-----x-........ ....x-....X-.... ..X---....x-.... X-....X-....x-..',
    gate=0.7,
    centre=61,
    velocity=66,
  ),
  'bossa': _p('r--xr-x-r--xr--x r-x-r--xr-x-r-x-', gate=0.75, centre=59, velocity=68),
  'montuno': _p('0-x0x-0x-x0x-0x- X-0x-x0-x0-x0-x-', gate=0.8, centre=66, velocity=82),
  'funk16': _p(
    'X.xx..x.xx.x.x.x x.x.Xx..x.xxX.x. X..x..X.x..x.xX.',
    gate=0.45,
    centre=66,
    strum=0.008,
    velocity=84,
  ),
  'shuffle_comp': _p('X-x-X-x-X-x-X-x- ..x-X-..x-..X-..', gate=0.7, centre=57, velocity=72),
  'soul_keys': _p('X-----x---x-..x- X---..x-X-..x-x-', gate=0.85, centre=62, velocity=70),
  'lazy': _p(
    'X------x--x----- X---------x--x-- ..X-----x---x---',
    gate=0.95,
    strum=0.03,
    centre=62,
    velocity=62,
  ),
  'house_stab': _p(
    'X-..x-.x-.x-..x- ..X...X...X...X. X..X..X...X..X..', gate=0.55, centre=64, velocity=86
  ),
  'waltz': _p('r---x---x---x---', gate=0.7, centre=60, velocity=66),
  'boom_chick': _p('r---X---f---X--- r---X-x-f---X-x-', gate=0.7, strum=0.015, centre=60),
  'quartet_pulse': _p('x-x-x-x-x-x-x-x- ..x-x-x-..x-x-x-', gate=0.75, centre=57, velocity=64),
  'ostinato': _p(
    '0-0-1-0-2-0-1-0- 0-1-2-1-0-1-2-1- 0-001-002-001-00', gate=0.6, centre=58, velocity=78
  ),
  'stabs': _p(
    '............X-X. X.....X......... ......X-....X--- X.X...........X.',
    gate=0.6,
    centre=66,
    velocity=90,
  ),
  # Broken chords.
  'arp8': _p(
    '0-1-2-3-4-3-2-1- 0-2-1-3-2-4-3-2- 0-1-2-4-3-2-1-2-', gate=1.5, centre=58, velocity=66
  ),
  'arp16': _p(
    '0123012301230123 0123210123432101 0213021302130213 0246024602460246',
    gate=0.8,
    centre=60,
    velocity=74,
  ),
  'slow_arp': _p('0---2---4---3--- 1---3---5---4---', gate=2.0, centre=60, velocity=58),
  'alberti': _p('0-2-1-2-0-2-1-2- 0212021202120212', gate=1.0, centre=55, velocity=56),
  'broken': _p(
    '0-1-2-3-4-3-2-1- r-2-3-4-2-3-4-3- 0---2-3-4---3-2-', gate=1.6, centre=56, velocity=64
  ),
  'broken_low': _p('r-f-0-2-1-2-0-f- R-0-2-1-2-3-2-0-', gate=1.4, centre=54, velocity=58),
  'fingerpick': _p('r-2-1-3-f-2-1-3- r--2f-3-r-2-f-32', gate=1.4, centre=60, velocity=68),
  'roll': _p('2130214021302140 0213021302140214', gate=1.2, centre=64, velocity=70),
  # Bass.
  'root8': _p(
    'R-r-r-r-R-r-r-r- R-r-r-r-R-r-f-a- R-r-r-r-r-r-o-r-', gate=0.92, velocity=88, centre=43
  ),
  'root8_low': _p('R-r-r-r-R-r-r-r- R-r-o-r-R-r-o-r-', gate=0.8, velocity=84, centre=52),
  'root16': _p('RrrrRrrrRrrrRrrr R.rrR.rrR.rrR.ro', gate=0.7, velocity=86, centre=40),
  'chug_bass': _p('R-rrR-rrR-rrR-rr RrrrR-R-RrrrR-R-', gate=0.8, velocity=96, centre=40),
  'syncopated': _p(
    'R--r--r---f-a--- R-----r-f---s-a- R--r-..rf--s-.a-', gate=0.85, velocity=86, centre=43
  ),
  'funk_bass': _p(
    'R..o..r.R.s.o..r R.ro..s.R..r.f.a Rr..o.r..s.of.a.', gate=0.6, velocity=98, centre=43
  ),
  'bossa_bass': _p('R-----f-f-----r-', gate=0.9, velocity=80, centre=43),
  'tumbao': _p('......f-----r--- R-----f-----s---', gate=0.95, velocity=88, centre=45),
  'reggae_bass': _p(
    'R-----r-f---r--- ....R-r-..f-r-.. R---..r-t---f---', gate=0.8, velocity=96, centre=41
  ),
  'two_beat': _p('R-------f------- R-------f---a---', gate=0.7, velocity=82, centre=44),
  'lazy_bass': _p('R---------r---f- R------r--f-----', gate=0.95, velocity=84, centre=42),
  'offbeat_bass': _p('..R-..R-..R-..R- ..R-..R-..R-..o-', gate=0.8, velocity=98, centre=40),
  'octave8': _p('R-o-r-o-R-o-r-o-', gate=0.75, velocity=92, centre=38),
  'octave8_low': _p('R-o-r-o-R-o-f-o-', gate=0.75, velocity=82, centre=52),
  'drone': _p('R---------------', gate=1.0, velocity=70, centre=40),
  'roots': _p('R-------r------- R---------------', gate=0.97, velocity=74, centre=46),
  'quartet_bass': _p(
    'R---t---f---t--- R---r---f---a--- R-------f-------', gate=0.9, velocity=70, centre=50
  ),
  'timpani': _p('R-------....rrrr R-------f-------', gate=0.9, velocity=88, centre=48),
}


def read_bar(bar: str, metre: int) -> list[tuple[float, float, str]]:
  """Returns (start, length, mark) in beats: 'X---x---' -> [(0, 1, 'X'), (1, 1, 'x')]."""
  bar = bar[: metre * 4]
  events = []
  for step, mark in enumerate(bar):
    if mark in '.-':
      continue
    end = step + 1
    while end < len(bar) and bar[end] == '-':
      end += 1
    events.append((step / 4, (end - step) / 4, mark))
  return events


def play(
  pattern: Pattern,
  bar: str,
  chords: list,
  next_root: int,
  centre: float,
  previous: list[int] | None,
  metre: int,
  is_bass: bool,
):
  """Returns (notes of one bar, the last voicing). `chords` cover the bar; starts are absolute."""
  notes = []
  bar_start = chords[0].start
  voicings = {}
  for harm in chords:
    previous = harmony.voicing(harm, centre, previous)
    voicings[harm] = previous
  for start, length, mark in read_bar(bar, metre):
    beat = bar_start + start
    harm = next((c for c in reversed(chords) if c.start <= beat + 1e-6), chords[0])
    # A held chord stops where the harmony changes, and starts again there.
    for piece_start, piece_length, piece in _cut(beat, length, harm, chords):
      tones = voicings[piece]
      strong = mark in 'XR' or piece_start > beat
      velocity = pattern.velocity + (8 if strong else 0)
      if mark in 'xX' and not is_bass:
        pitches = tones
      elif mark in 'xX':
        pitches = [_root(piece, pattern.centre)]
      elif mark.isdigit():
        k = int(mark)
        pitches = [tones[k % len(tones)] + 12 * (k // len(tones))]
      else:
        top = pattern.centre if is_bass else int(centre) - 6
        pitches = [_bass_tone(piece, mark, top, next_root)]
      for index, pitch in enumerate(pitches):
        delay = index * pattern.strum
        notes.append(
          Note(
            piece_start + delay,
            max(0.08, piece_length * pattern.gate - delay),
            int(pitch),
            velocity - index,
          )
        )
  return notes, previous


def _cut(beat, length, harm, chords):
  pieces = [(beat, length, harm)]
  for later in chords:
    if beat + 1e-6 < later.start < beat + length - 1e-6:
      start, size, old = pieces[-1]
      pieces[-1] = (start, later.start - start, old)
      pieces.append((later.start, start + size - later.start, later))
  return pieces


def _root(harm, top: int) -> int:
  return top - (top - harm.root) % 12


def _bass_tone(harm, mark: str, top: int, next_root: int) -> int:
  root = _root(harm, top)
  if mark == 'f':
    return (
      root + (7 if 7 in harm.intervals else 6 if 6 in harm.intervals else 7) - 12 * (root > top - 4)
    )
  if mark == 't':
    return root + (harm.intervals[1] if len(harm.intervals) > 2 else 7)
  if mark == 's':
    return root + (harm.intervals[3] if len(harm.intervals) > 3 and harm.intervals[3] < 12 else 12)
  if mark == 'o':
    return root + 12
  if mark == 'a':
    target = top - (top - next_root) % 12
    return target - 1 if target >= root else target + 1
  return root


def walking(
  chords: list,
  next_root: int,
  position: int,
  metre: int,
  low: int,
  high: int,
  rng: np.random.Generator,
):
  """Returns (quarter notes of one bar, the last pitch): chord tones, then a half step."""
  notes, start = [], chords[0].start
  for beat in range(metre):
    harm = next((c for c in reversed(chords) if c.start <= start + beat + 1e-6), chords[0])
    if abs(harm.start - (start + beat)) < 1e-6:
      pitch = harmony.nearest(position, [harm.root])
    elif beat == metre - 1:
      pitch = harmony.nearest(position, [next_root]) + (1 if rng.random() < 0.4 else -1)
    else:
      direction = 2.5 if rng.random() < 0.55 else -2.5
      pitch = harmony.nearest(position + direction, harm.pitch_classes)
    if not low <= pitch <= high:
      pitch += 12 if pitch < low else -12
    notes.append(Note(start + beat, 0.92, pitch, 84 + (6 if beat % 2 else 0)))
    if rng.random() < 0.12:
      notes.append(Note(start + beat + 0.5, 0.3, pitch, 66))
    position = pitch
  return notes, position
