"""L4. The same melody in many versions, for the melody embedding (MusicLM, 2301.11325, appendix C).

A version has another lead, tempo, loudness, and another accompaniment or none; its kind says what
else is different:
  instrument  nothing more
  vocals      a voice that slides and has vibrato
  hum         a hum alone: sliding, out of tune, with breath
  key         all transposed by up to six semitones
  noise       noise, and a narrow band as of a telephone

All versions of a melody have the same notes, so they last different times.  The first one is of
kind 'instrument'.  Files and melodies.csv are what melody_records.py reads.
"""

import csv
import dataclasses
import math
import os

import numpy as np

from musiclm_jax import errors
from musiclm_jax.audio import SAMPLE_RATE
from musiclm_jax.corpus import drums, melody_excerpts, render, render_pool, scores, singing, styles
from musiclm_jax.corpus.instruments import INSTRUMENTS, Instrument
from musiclm_jax.corpus.notes import Note, Piece, Section, Track

KINDS = ('instrument', 'vocals', 'hum', 'key', 'noise')
COLUMNS = ('path', 'melody', 'start', 'seconds', 'kind', 'piece', 'split', 'source', 'licence')
TABLE_FILE = 'melodies.csv'
_TAIL_SECONDS = 0.3
_LEADS = (
  'piano,electric piano,harpsichord,vibraphone,marimba,music box,celesta,organ,rock organ,accordion,'
  'harmonica,nylon guitar,steel guitar,jazz guitar,clean guitar,overdriven guitar,violin,viola,'
  'cello,pizzicato strings,strings,harp,trumpet,muted trumpet,trombone,french horn,soprano sax,'
  'alto sax,tenor sax,oboe,bassoon,clarinet,flute,recorder,pan flute,whistle,square lead,saw lead,'
  'synth pluck,sitar,banjo,kalimba,fiddle,steel drums'
).split(',')
_VOICES = (
  INSTRUMENTS['choir'], INSTRUMENTS['voice oohs'],
  Instrument('synth voice', 54, 48, 84, ('synth voice',)),
  Instrument('voice lead', 85, 48, 84, ('voice lead',), 0.8),
)
_COMPING = ('piano,electric piano,organ,nylon guitar,steel guitar,clean guitar,strings,harp,'
            'synth strings,warm pad,accordion,marimba,poly synth').split(',')
_CHORD_PATTERNS = ('block,quarter,strum,offbeat,charleston,bossa,arp8,arp16,slow_arp,alberti,'
                   'broken,fingerpick,waltz,boom_chick,soul_keys').split(',')
_BASSES = ('upright bass', 'electric bass', 'synth bass', 'cello')
_BASS_PATTERNS = ('root8', 'roots', 'two_beat', 'lazy_bass', 'drone', 'syncopated')
_HUM_CENTRES = (48, 67)  # where hums lie, MIDI numbers


@dataclasses.dataclass(frozen=True)
class MelodySpec:
  """One melody to make.  Everything random in it comes from (seed, index)."""

  index: int
  split: str
  num_versions: int
  seed: int
  score: scores.Source | None = None


def plan(num_melodies: int, num_versions: int, seed: int, test_share: float,
         score_files=()) -> list[MelodySpec]:
  """Returns the melodies: half from scores, when there are any; no score is in both splits."""
  rng = np.random.default_rng([seed, 4])
  files = sorted(score_files, key=lambda s: s.name)
  order = [files[i] for i in rng.permutation(len(files))]
  num_test = math.ceil(len(order) * test_share)
  pools = {'test': order[:num_test], 'train': order[num_test:]}
  specs, used = [], {'test': 0, 'train': 0}
  for index in range(num_melodies):
    split = 'test' if math.floor((index + 1) * test_share) > math.floor(
        index * test_share) else 'train'
    pool, turn = pools[split], used[split]
    used[split] += 1
    score = pool[turn // 2 % len(pool)] if pool and turn % 2 else None
    specs.append(MelodySpec(index, split, num_versions, seed, score))
  return specs


def make_melody(spec: MelodySpec, renderer: render.Renderer, output: str) -> list[dict]:
  """Renders one melody, writes its versions and returns their rows."""
  import soundfile

  rng = np.random.default_rng([spec.seed, 5, spec.index])
  name, piece, excerpt = f'melody_{spec.index:05d}', f'composition_{spec.index:05d}', None
  if spec.score:
    try:
      piece, excerpt = spec.score.stem, melody_excerpts.from_score(spec.score, rng)
    except errors.UserError:  # broken, or no single voice: an own composition instead
      piece = f'composition_{spec.index:05d}'
  excerpt = excerpt or melody_excerpts.from_composition(rng)
  rest = [KINDS[i] for i in rng.permutation(len(KINDS))]
  kinds = ['instrument', *(rest[i % len(rest)] for i in range(spec.num_versions - 1))]
  leads = [_LEADS[i] for i in rng.permutation(len(_LEADS))]
  rows = []
  for version, kind in enumerate(kinds):
    audio = make_version(excerpt, kind, INSTRUMENTS[leads[version % len(leads)]], renderer, rng)
    path = f'audio/{name}_{version}.flac'
    soundfile.write(os.path.join(output, path), audio, SAMPLE_RATE, subtype='PCM_16', format='FLAC')
    row = (path, name, 0.0, round(len(audio) / SAMPLE_RATE, 3), kind, piece, spec.split,
           excerpt.source, excerpt.licence)
    rows.append(dict(zip(COLUMNS, row, strict=True)))
  return rows


def make_version(excerpt: melody_excerpts.Excerpt, kind: str, lead: Instrument, renderer,
                 rng: np.random.Generator) -> np.ndarray:
  """Returns float32[S] at 24 kHz: the whole melody, in the way of `kind`; `lead` may play it."""
  tempo = excerpt.bpm * float(np.exp(rng.uniform(np.log(0.8), np.log(1.25))))
  drift = float(rng.uniform(-0.1, 0.1))  # from the first beat to the last
  count = math.ceil(excerpt.beats) + 1
  beats = 60 / tempo * (1 + drift * (np.arange(count) / count - 0.5))
  beat_times = np.concatenate([[0.0], np.cumsum(beats)])
  piece = Piece(
    str(rng.choice(list(styles.STYLES))), 'calm', None, None, tempo, excerpt.metre, [],
    [Section('verse', 0, excerpt.beats, 0.75)], beat_times)
  seconds = float(piece.seconds(excerpt.beats)) + _TAIL_SECONDS
  melody = _played(excerpt.melody, rng)
  if kind == 'hum':
    notes = _sung(_moved(melody, int(rng.integers(*_HUM_CENTRES))), piece)
    audio = singing.hum(notes, seconds, singing.draw_manner(True, rng), rng)
    return _finish(audio, rng)
  if kind == 'vocals':
    lead = _VOICES[int(rng.integers(len(_VOICES)))]
  melody = _moved(melody, (lead.low + lead.high) / 2 + rng.uniform(-5, 5), lead)
  track = Track('lead', lead, melody, 64, lead.level * 1.1)
  if kind == 'vocals':
    notes = _sung(melody, piece)
    manner = singing.draw_manner(False, rng)
    track.bends = singing.bends(notes, singing.pitch_curve(notes, seconds, manner, rng))
  piece.tracks = [track, *_accompaniment(excerpt, tempo, rng)]
  if kind == 'key':
    shift = int(rng.choice([-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6]))
    for track in piece.tracks:
      if track.role != 'drums':
        track.notes = [n._replace(pitch=n.pitch + shift) for n in track.notes]
  font = renderer.soundfonts[int(rng.integers(len(renderer.soundfonts)))]
  audio = renderer.render(piece, seconds, font, rng)
  return _finish(_telephone(audio, rng) if kind == 'noise' else audio, rng)


def _played(melody, rng) -> list[Note]:
  """Returns the notes as another player has them: not quite in time, short or long, louder."""
  gate, velocity = rng.uniform(0.7, 1.0), rng.uniform(75, 105)
  return [n._replace(start=max(0.0, n.start + rng.normal(0, 0.015)), duration=n.duration * gate,
                     velocity=int(np.clip(velocity + rng.normal(0, 6), 30, 127)))
          for n in melody]


def _moved(notes, centre: float, instrument: Instrument | None = None) -> list[Note]:
  """Returns the notes in the octave nearest to `centre`, inside the instrument's range if it can."""
  pitches = np.array([n.pitch for n in notes])
  low, high = (instrument.low, instrument.high) if instrument else (0, 127)
  octaves = np.arange(-5, 6) * 12
  costs = [100 * np.mean((pitches + o < low) | (pitches + o > high))
           + abs(pitches.mean() + o - centre) for o in octaves]
  move = int(octaves[int(np.argmin(costs))])
  return [n._replace(pitch=n.pitch + move) for n in notes]


def _sung(notes, piece: Piece) -> list[singing.SungNote]:
  starts = piece.seconds([n.start for n in notes])
  stops = piece.seconds([n.start + n.duration for n in notes])
  return [singing.SungNote(float(a), float(b), n.pitch)
          for a, b, n in zip(starts, stops, notes, strict=True)]


def _accompaniment(excerpt, tempo: float, rng) -> list[Track]:
  """Returns no tracks, the given accompaniment on other instruments, or another over its chords."""
  way = rng.random()
  if way < 0.25:
    return []
  tracks, level = [], float(rng.uniform(0.45, 0.85))
  if way < 0.6 and excerpt.backing:
    for voice in excerpt.backing[:3]:
      is_bass = np.mean([n.pitch for n in voice]) < 50
      tracks.append(_player('bass' if is_bass else 'comp', _BASSES if is_bass else _COMPING,
                            [n._replace(velocity=75) for n in voice], level, rng))
  else:
    pattern = str(rng.choice(_CHORD_PATTERNS))
    tracks.append(_player('comp', _COMPING, excerpt.accompany(pattern, False, rng), level, rng))
    if rng.random() < 0.6:
      pattern = str(rng.choice(_BASS_PATTERNS))
      tracks.append(_player('bass', _BASSES, excerpt.accompany(pattern, True, rng), level, rng))
  if excerpt.metre == 4 and rng.random() < 0.35:
    kit = INSTRUMENTS[str(rng.choice(['drums', 'electronic drums', 'brushed drums']))]
    bars = [('verse', 0, math.ceil(excerpt.beats / 4) * 4, 0.8, True)]
    beat = str(rng.choice(list(drums.BEATS)))
    notes = drums.written(beat, bars, 4, tempo, 0.0, 0.8, rng, fills=False)
    tracks.append(Track('drums', kit, notes, 64, level))
  return tracks


def _player(role: str, names, notes, level: float, rng) -> Track:
  instrument = INSTRUMENTS[names[int(rng.integers(len(names)))]]
  moved = _moved(notes, np.clip(np.mean([n.pitch for n in notes]), instrument.low, instrument.high),
                 instrument)
  notes = [n._replace(start=max(0.0, n.start)) for n in moved]
  return Track(role, instrument, sorted(notes), 64, level * instrument.level)


def _telephone(audio: np.ndarray, rng) -> np.ndarray:
  """Returns `audio` in a narrow band, with noise, white to brown, 2 to 15 dB below it."""
  low, high = rng.uniform(60, 350), rng.uniform(2_500, 8_000)
  narrow = render.shape_spectrum(audio, lambda hertz: 1 / np.sqrt(
    (1 + (low / np.maximum(hertz, 1)) ** 4) * (1 + (hertz / high) ** 6)))
  tilt = rng.uniform(0.0, 1.0)
  noise = render.shape_spectrum(
    rng.standard_normal(len(audio)), lambda hertz: np.maximum(hertz, 50.0) ** -tilt)
  gain = 10 ** (-rng.uniform(2, 15) / 20) * narrow.std() / (noise.std() + 1e-9)
  return (narrow + gain * noise).astype(np.float32)


def _finish(audio: np.ndarray, rng) -> np.ndarray:
  return render.fade(render.level(audio, rng.uniform(-32, -16)), 0.1)


def build(*, output: str, num_melodies: int, num_versions: int = 4, seed: int = 0,
          scores_path: str | None = None, soundfonts: list[str] | None = None,
          test_share: float = 0.1, workers: int = 1) -> list[dict]:
  """Writes the versions and melodies.csv; returns its rows, the same for any number of workers."""
  from tqdm import tqdm

  if num_versions < 2:
    raise errors.UserError(f'--versions={num_versions}: wanted at least 2 of each melody')
  if not 0 <= test_share < 1:
    raise errors.UserError(f'--test_share={test_share} must be at least 0 and below 1')
  if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
    raise errors.UserError(
      f'--output={output!r} is not an empty folder; name a new one or empty it')
  render.load_fluidsynth()
  fonts = render.find_soundfonts(soundfonts or [])
  files = scores.list_scores(scores_path) if scores_path else ()
  specs = plan(num_melodies, num_versions, seed, test_share, files)
  os.makedirs(os.path.join(output, 'audio'), exist_ok=True)
  rows, done = [], render_pool.make_all(make_melody, specs, fonts, output, workers)
  for made in tqdm(done, total=len(specs), unit='melody', desc='rendering'):
    rows += made
  _write_texts(output, rows, fonts)
  return rows


def _write_texts(output: str, rows: list[dict], fonts: list[str]) -> None:
  played = '\n'.join(f'  {os.path.basename(f)}: '
                     f'{render.KNOWN.get(os.path.basename(f), ("licence unknown",))[0]}'
                     for f in fonts)
  with open(os.path.join(output, 'README.txt'), 'w', encoding='utf-8') as f:
    f.write(f'{len({r["melody"] for r in rows})} melodies, {len(rows)} versions, 24 kHz mono flac.\n'
            f'{TABLE_FILE} names the melody, kind, split, source and licence of each file; own '
            f'compositions are CC0-1.0.\nSoundfonts:\n{played}\n')
  with open(os.path.join(output, TABLE_FILE), 'w', encoding='utf-8', newline='') as f:
    writer = csv.DictWriter(f, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
