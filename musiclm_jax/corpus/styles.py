"""L4. The genres: harmony, tempo, players and feel of each, in one table per genre.

A part is 'instrument/pattern': a name in parts.PATTERNS, or a way of playing that compose.py knows
(melodies, walking). Beats are names in drums.BEATS.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Mood:
  """How a mood bends a composition; the words for it are in vocabulary.py."""

  modes: tuple[str, ...]
  tempo: float = 1.0
  velocity: float = 1.0
  register: int = 0  # semitones
  density: float = 1.0


MOODS: Mapping[str, Mood] = {
    'happy': Mood(('major', 'mixolydian'), 1.08, 1.03, 2, 1.1),
    'sad': Mood(('minor', 'dorian'), 0.86, 0.82, -2, 0.75),
    'energetic': Mood(('major', 'minor', 'mixolydian', 'dorian'), 1.14, 1.14, 0, 1.25),
    'calm': Mood(('major', 'lydian', 'dorian'), 0.86, 0.76, 0, 0.7),
    'dark': Mood(('minor', 'phrygian'), 0.94, 1.0, -6, 0.9),
    'dreamy': Mood(('major', 'lydian', 'dorian'), 0.9, 0.82, 4, 0.8),
    'epic': Mood(('minor', 'dorian', 'major'), 1.0, 1.16, 0, 1.05),
    'romantic': Mood(('major', 'minor'), 0.88, 0.88, 0, 0.85),
    'tense': Mood(('minor', 'phrygian'), 1.06, 1.05, -3, 1.1),
    'playful': Mood(('major', 'mixolydian', 'lydian'), 1.1, 0.95, 5, 1.2),
    'melancholic': Mood(('minor', 'dorian'), 0.9, 0.84, -2, 0.8),
    'hopeful': Mood(('major', 'lydian'), 1.0, 0.98, 2, 0.95),
    'groovy': Mood(('minor', 'dorian', 'mixolydian', 'major'), 1.0, 1.05, 0, 1.1),
    'nostalgic': Mood(('major', 'minor', 'dorian'), 0.95, 0.88, 0, 0.9),
    'aggressive': Mood(('minor', 'phrygian'), 1.12, 1.22, -3, 1.25),
    'relaxed': Mood(('major', 'dorian', 'mixolydian', 'minor'), 0.93, 0.88, 0, 0.85),
    'mysterious': Mood(('minor', 'phrygian', 'dorian', 'lydian'), 0.92, 0.84, -1, 0.8),
}


@dataclasses.dataclass(frozen=True)
class Style:
  """One genre. `parts`: role -> (probability, 'instrument/pattern' choices)."""

  name: str
  bpm: tuple[int, int]
  moods: str
  modes: str
  major: tuple[str, ...]
  minor: tuple[str, ...]
  parts: Mapping[str, tuple[float, str]]
  beats: str = ''
  kits: str = 'drums'
  grooves: tuple[str, ...] = ()  # prefixes of the styles of human drum performances
  chord_size: int = 3
  swing: float = 0.0  # share of an eighth by which off-beats come late
  rubato: float = 0.0
  metres: tuple[int, ...] = (4,)
  melody: float = 1.0  # notes per beat, roughly
  loudness: float = -19.0  # dB RMS
  reverb: float = 0.35
  effects: tuple[str, ...] = ()
  scores: float = 0.0  # share of pieces arranged from given scores
  cycle: bool = False  # one progression throughout, not one per section


_POP_MAJOR = ('1 5 6 4', '1 6 4 5', '6 4 1 5', '1 4 6 5', '4 1 5 6', '1 3 4 5', '1 2 6 4')
_POP_MINOR = ('1 6 3 7', '1 4 6 7', '1 7 6 7', '6 7 1 1', '1 3 7 4', '1 6 4 5:maj')
_ROCK_MAJOR = ('1 b7:maj 4 1', '1 4 5 4', '1 5 4 4', '1 b3:maj 4 1', '6 4 1 5')
_ROCK_MINOR = ('1 7 6 7', '1 3 7 4:maj', '1 6 7 1', '1 1 6 7', '1 4 7 3')
_JAZZ_MAJOR = ('2 5:7 1 6:7', '1 6:7 2 5:7', '3:m7 6:7 2 5:7', '1,6:7 2,5:7 3:m7,6:7 2,5:7',
    '4 b7:9 1 6:7')
_JAZZ_MINOR = ('1:m7 4:m7 2 5:7', '1:m7 6 2 5:7', '4:m7 7:7 3 6', '1:m7,6 2,5:7 1:m7 5:7')
_CLASSICAL_MAJOR = ('1 4 5:7 1', '1 6 2 5:7', '1,5 6,3 4,1 2,5:7', '1 2 5:7 1', '1 5 1,4 5:7')
_CLASSICAL_MINOR = ('1 4 5:7 1', '1 6 4 5:7', '1,5:7 1,6 4,2 5:7', '1 7 6 5:7', '1 4 7 3')
_FOLK_MAJOR = ('1 4 1 5', '1 5 6 4', '1 1 4 5', '1 b7:maj 1 5', '1 4 5 1')
_FOLK_MINOR = ('1 7 1 7', '1 7 6 7', '1 3 7 1', '1 4 1 5:m')

STYLES: Mapping[str, Style] = {s.name: s for s in (
    Style('rock', (104, 160), 'energetic hopeful aggressive nostalgic dark',
        'major minor mixolydian',
          _ROCK_MAJOR, _ROCK_MINOR,
          {'lead': (.75, 'overdriven guitar/melody,overdriven guitar/riff,distorted guitar/melody,'
              'organ/melody'),
           'comp': (1, 'overdriven guitar/power8,overdriven guitar/strum,distorted guitar/power8'),
           'comp2': (.35, 'clean guitar/arp8,organ/block,piano/quarter,steel guitar/strum'),
           'bass': (1, 'picked bass/root8,electric bass/root8')},
          'rock8 rock_busy halftime', 'room drums,power drums,drums', ('rock', 'punk'), 3,
              loudness=-16.5),
    Style('metal', (125, 190), 'aggressive dark epic tense energetic', 'minor phrygian',
          _ROCK_MINOR, ('1 1 6 7', '1 2:maj 1 7', '1 6 7 1', '1 1 b5:5 4', '1 2:maj 3 2:maj'),
          {'lead': (.65, 'distorted guitar/riff,distorted guitar/melody'),
           'comp': (1, 'distorted guitar/chug,distorted guitar/chug,distorted guitar/power8'),
           'pad': (.15, 'choir/block,strings/block'), 'bass': (1,
              'picked bass/chug_bass,picked bass/root8')},
          'metal_double metal_gallop halftime', 'power drums', (), 2, melody=1.6, loudness=-15.0,
              reverb=.2),
    Style('pop', (92, 128), 'happy hopeful romantic nostalgic energetic playful', 'major minor',
          _POP_MAJOR, _POP_MINOR,
          {'lead': (.9, 'synth pluck/melody,piano/melody,flute/melody,voice oohs/melody,'
              'saw lead/melody,alto sax/melody'),
           'comp': (1, 'piano/quarter,piano/broken,clean guitar/arp8,steel guitar/strum,'
              'dx piano/broken'),
           'pad': (.6, 'warm pad/block,strings/block,synth strings/block'),
           'bass': (1, 'electric bass/root8,synth bass/root8,electric bass/syncopated')},
          'pop_beat four_floor rock8', 'drums,electronic drums', ('pop', 'rock/indie'), 3,
              loudness=-17.5),
    Style('soul', (68, 104), 'romantic groovy relaxed hopeful nostalgic', 'major dorian minor',
          ('1 4 1 4', '1 6 2 5:9', '4 3 2 1', '1 3 4 5:9'), ('1 4 1 4', '1 6 2:m7 5:7', '1 7 4 4'),
          {'lead': (.8, 'tenor sax/melody,organ/melody,voice oohs/melody,trumpet/melody'),
           'comp': (1, 'electric piano/soul_keys,organ/soul_keys,clean guitar/offbeat'),
           'counter': (.45, 'brass section/stabs'), 'pad': (.35, 'organ/block,strings/block'),
           'bass': (1, 'electric bass/syncopated,fretless bass/syncopated')},
          'soul_beat pop_beat', 'drums', ('soul', 'gospel'), 4, swing=.12, loudness=-19),
    Style('funk', (94, 120), 'groovy energetic playful happy', 'dorian mixolydian',
          ('1:9 1:9 4:9 1:9', '1:9 1:9 1:9 4:9', '1:9 4:9 1:9 5:9'), ('1:m9 1:m9 4:9 4:9',
              '1:m7 4:9 1:m7 4:9', '1:m9 1:m9 1:m9 7:9'),
          {'lead': (.5, 'clavinet/riff,alto sax/riff,trumpet/riff,organ/riff'),
           'comp': (1, 'clean guitar/funk16,muted guitar/funk16,clavinet/funk16'),
           'counter': (.6, 'brass section/stabs'), 'comp2': (.3,
              'organ/block,electric piano/offbeat'),
           'bass': (1, 'slap bass/funk_bass,slap bass/funk_bass,electric bass/funk_bass')},
          'funk_beat', 'drums,room drums', ('funk', 'jazz/funk', 'afrobeat', 'neworleans'), 4,
              melody=1.3, loudness=-18),
    Style('blues', (66, 132), 'relaxed sad groovy melancholic', 'mixolydian dorian',
          ('1:7 1:7 1:7 1:7 4:7 4:7 1:7 1:7 5:7 4:7 1:7 5:7',
              '1:7 4:7 1:7 1:7 4:7 4:7 1:7 1:7 5:7 4:7 1:7 5:7'),
          ('1:m7 1:m7 1:m7 1:m7 4:m7 4:m7 1:m7 1:m7 b6:7 5:7 1:m7 5:7',),
          {'lead': (.95, 'overdriven guitar/blues_lead,harmonica/blues_lead,'
              'clean guitar/blues_lead,tenor sax/blues_lead'),
           'comp': (1, 'piano/shuffle_comp,clean guitar/shuffle_comp,organ/shuffle_comp'),
           'bass': (1, 'electric bass/walking,upright bass/walking')},
          'shuffle', 'drums', ('blues', 'rock/shuffle'), 4, swing=.33, melody=1.1, loudness=-19,
              cycle=True),
    Style('jazz', (96, 208), 'relaxed groovy playful romantic mysterious', 'major dorian minor',
          _JAZZ_MAJOR, _JAZZ_MINOR,
          {'lead': (.75, 'tenor sax/bebop,muted trumpet/bebop,alto sax/bebop,vibraphone/bebop,'
              'clarinet/bebop,jazz guitar/bebop'),
           'comp': (1, 'piano/charleston,piano/charleston,jazz guitar/charleston'), 'bass': (1,
              'upright bass/walking')},
          'swing_ride', 'jazz drums,brushed drums', ('jazz/swing', 'jazz/mediumfast', 'jazz/fast'),
              4,
          swing=.3, melody=1.5, loudness=-20.5, reverb=.3),
    Style('bossa nova', (112, 148), 'relaxed romantic calm dreamy nostalgic', 'major minor dorian',
          ('1 2:9 2 5:7', '1 6:7 2 5:7', '4 b7:9 3:m7 6:7', '1 1 2 5:9'), ('1:m9 4:m7 2 5:7',
              '1:m9 1:m9 6 5:7', '4:m7 7:9 3 6'),
          {'lead': (.85, 'flute/melody,nylon guitar/melody,tenor sax/melody,vibraphone/melody'),
           'comp': (1, 'nylon guitar/bossa'), 'comp2': (.3,
              'electric piano/block,piano/charleston'),
           'pad': (.2, 'strings/block'), 'bass': (1, 'upright bass/bossa_bass,'
              'fretless bass/bossa_bass')},
          'bossa_beat', 'brushed drums,jazz drums', ('latin/brazilian-bossa',), 4, melody=.9,
              loudness=-21),
    Style('latin', (92, 126), 'happy energetic playful groovy', 'minor major dorian',
          ('1 4 5:7 4', '1 1 5:7 5:7', '1 4 1 5:7'), ('1 4 5:7 1', '1 7 6 5:7', '1 1 5:7 5:7',
              '4 1 5:7 1'),
          {'lead': (.85, 'trumpet/melody,flute/melody,trombone/melody,steel drums/melody'),
           'comp': (1, 'bright piano/montuno,piano/montuno'), 'counter': (.55,
              'brass section/stabs'),
           'bass': (1, 'upright bass/tumbao,electric bass/tumbao')},
          'salsa_beat', 'drums', ('latin/brazilian-samba', 'afrocuban', 'latin/merengue'), 3,
              melody=1.2, loudness=-18),
    Style('reggae', (66, 88), 'relaxed happy groovy hopeful', 'major minor dorian',
          ('1 4 1 4', '1 5 6 4', '1 2 1 2', '1 1 4 5'), ('1 7 1 7', '1 4 1 4', '1 6 7 1'),
          {'lead': (.7, 'organ/melody,trombone/melody,clean guitar/melody,harmonica/melody'),
           'comp': (1, 'clean guitar/skank,muted guitar/skank'), 'comp2': (.7,
              'organ/bubble,piano/skank'),
           'bass': (1, 'electric bass/reggae_bass,fretless bass/reggae_bass')},
          'one_drop', 'drums,room drums', ('reggae',), 3, swing=.15, melody=.8, loudness=-18.5),
    Style('country', (88, 138), 'happy nostalgic hopeful playful', 'major mixolydian', _FOLK_MAJOR,
        _FOLK_MINOR,
          {'lead': (.9, 'fiddle/melody,clean guitar/melody,harmonica/melody,banjo/melody'),
           'comp': (1, 'steel guitar/boom_chick'), 'comp2': (.5,
              'banjo/roll,piano/quarter,clean guitar/arp8'),
           'bass': (1, 'upright bass/two_beat,electric bass/two_beat')},
          'train_beat two_step', 'drums,brushed drums', ('country',), 3, melody=1.1, loudness=-19),
    Style('folk', (76, 126), 'calm nostalgic melancholic hopeful romantic',
        'major dorian minor mixolydian',
          _FOLK_MAJOR, _FOLK_MINOR,
          {'lead': (.85, 'violin/melody,flute/melody,accordion/melody,recorder/melody,'
              'harmonica/melody,whistle/melody'),
           'comp': (1, 'steel guitar/fingerpick,nylon guitar/fingerpick,steel guitar/strum,'
              'harp/arp8'),
           'counter': (.3, 'cello/long'), 'bass': (.5, 'upright bass/two_beat')},
          '', 'drums', (), 3, metres=(4, 4, 3), rubato=.015, loudness=-21, scores=.15),
    Style('lo-fi hip hop', (66, 90), 'relaxed nostalgic dreamy calm melancholic',
        'major dorian minor',
          ('1 6 2 5:9', '4 3 2 1', '2 5:9 1 6', '1 3 6 4'), ('1 4 6 5:m7', '6 7:7 1 1',
              '1 6 4 5:m7', '4 1 6 7:7'),
          {'lead': (.55, 'vibraphone/melody,jazz guitar/melody,flute/melody,piano/melody,'
              'kalimba/melody'),
           'comp': (1, 'electric piano/lazy,piano/lazy,jazz guitar/lazy'), 'pad': (.4,
              'warm pad/block'),
           'bass': (1, 'upright bass/lazy_bass,fretless bass/lazy_bass,deep synth bass/lazy_bass')},
          'boom_bap', 'drums,808 drums', ('hiphop',), 4, swing=.22, melody=.6, loudness=-19,
              effects=('lofi',), scores=.08),
    Style('house', (118, 130), 'energetic groovy happy dark', 'minor dorian major',
          ('1 1 4 4', '6 4 1 5', '1 3 4 4'), ('1 1 6 7', '1 4 1 4', '6 7 1 1', '1 3 6 7'),
          {'lead': (.7, 'saw lead/riff,synth pluck/riff,square lead/riff,bright piano/riff'),
           'comp': (1, 'dx piano/house_stab,bright piano/house_stab,poly synth/house_stab,'
              'organ/house_stab'),
           'pad': (.6, 'warm pad/block,synth strings/block,sweep pad/block'),
           'bass': (1, 'synth bass/offbeat_bass,deep synth bass/offbeat_bass')},
          'house_beat', 'electronic drums,808 drums', (), 4, melody=1.2, loudness=-16.5,
              reverb=.25),
    Style('synthwave', (84, 118), 'nostalgic dreamy energetic dark', 'minor major', _POP_MAJOR,
        _POP_MINOR,
          {'lead': (.9, 'saw lead/melody,square lead/melody,synth brass/melody'),
           'comp': (1, 'synth pluck/arp16,saw lead/arp16,poly synth/arp16'),
           'pad': (.9, 'synth strings/block,warm pad/block,poly synth/block'), 'bass': (1,
              'synth bass/octave8,synth bass/root16')},
          'eighties four_floor', 'electronic drums', (), 3, melody=.8, loudness=-17, reverb=.5,
              scores=.06),
    Style('chiptune', (120, 172), 'playful energetic happy tense', 'major minor', _POP_MAJOR,
        _POP_MINOR,
          {'lead': (1, 'square lead/melody'), 'comp': (1, 'square lead/arp16'),
           'counter': (.4, 'saw lead/harmony'), 'bass': (1, 'saw lead/octave8_low,'
              'square lead/root8_low')},
          'chip_beat', 'electronic drums', (), 3, melody=1.5, loudness=-18, reverb=0.0,
              effects=('chip',), scores=.2),
    Style('ambient', (50, 80), 'calm dreamy mysterious melancholic dark',
        'major lydian dorian minor',
          ('1 1 4 4', '1 5 4 4', '4 4 1 1', '1 2:maj 1 2:maj'), ('1 1 6 6', '1 4 1 4', '1 3 6 7'),
          {'lead': (.6, 'celesta/sparse,glockenspiel/sparse,electric piano/sparse,'
              'pan flute/sparse,piano/sparse'),
           'comp': (.5, 'harp/slow_arp,kalimba/slow_arp,glass pad/long_chords'),
           'pad': (1, 'warm pad/block,halo pad/block,sweep pad/block,choir pad/block,'
              'slow strings/block'),
           'pad2': (.5, 'glass pad/block,choir pad/block,halo pad/block'), 'bass': (.4,
              'deep synth bass/drone')},
          '', 'drums', (), 4, melody=.3, loudness=-23, reverb=.75, scores=.1),
    Style('solo piano', (60, 126), 'romantic melancholic calm playful sad hopeful', 'major minor',
          _CLASSICAL_MAJOR, _CLASSICAL_MINOR,
          {'lead': (1, 'piano/melody'), 'comp': (1, 'piano/alberti,piano/broken_low,piano/waltz,'
              'piano/block_low')},
          '', 'drums', (), 3, metres=(4, 3, 4), rubato=.05, melody=1.1, loudness=-22, reverb=.45,
              scores=.5),
    Style('string quartet', (66, 138), 'romantic playful melancholic tense hopeful', 'major minor',
          _CLASSICAL_MAJOR, _CLASSICAL_MINOR,
          {'lead': (1, 'violin/melody'), 'counter': (1, 'violin/harmony'), 'comp': (1,
              'viola/quartet_pulse,viola/long'),
           'bass': (1, 'cello/quartet_bass,cello/roots')},
          '', 'drums', (), 3, metres=(4, 3, 4), rubato=.03, melody=1.1, loudness=-21, reverb=.45,
              scores=.5),
    Style('orchestral', (70, 140), 'epic hopeful dark tense romantic mysterious',
        'minor major dorian',
          ('1 5 6 4', '1 b6:maj b7:maj 1', '1 3 4 5', '6 4 1 5'), ('1 6 3 7', '1 6 4 5:maj',
              '1 7 6 5:maj', '1 3:maj 6 4'),
          {'lead': (1, 'french horn/melody,violin/melody,trumpet/melody,flute/melody,oboe/melody'),
           'comp': (1, 'strings/ostinato,pizzicato strings/ostinato,tremolo strings/block'),
              'pad': (.9, 'strings/block,choir/block,french horn/block'),
           'counter': (.5, 'brass section/long,french horn/long,trombone/long'), 'comp2': (.35,
              'harp/arp8,timpani/timpani'),
           'bass': (1, 'double bass section/roots,cello/roots')},
          'cinematic', 'orchestral percussion', (), 3, metres=(4, 4, 3), rubato=.01, melody=.7,
              loudness=-19, reverb=.65, scores=.3),
    Style('chamber', (60, 120), 'romantic sad calm playful nostalgic', 'major minor',
        _CLASSICAL_MAJOR, _CLASSICAL_MINOR,
          {'lead': (1, 'clarinet/melody,flute/melody,cello/melody,violin/melody,oboe/melody,'
              'french horn/melody,bassoon/melody'),
           'comp': (1, 'piano/alberti,piano/broken,harpsichord/alberti,harp/broken,'
              'nylon guitar/fingerpick')},
          '', 'drums', (), 3, metres=(4, 3, 4), rubato=.04, loudness=-21.5, reverb=.45, scores=.6),
)}
