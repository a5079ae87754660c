"""L4. Pieces made audible: FluidSynth at 32 kHz, effects, levels, 24 kHz mono clips."""

import os

import numpy as np

from musiclm_jax import errors
from musiclm_jax.audio import SAMPLE_RATE
from musiclm_jax.corpus import styles
from musiclm_jax.corpus.notes import Piece, Track

CLIP_SECONDS = 30.0
_RENDER_RATE = 32_000  # samples up to 20 kHz fold to above 12 kHz, which the resampler removes
_BLOCK = 64  # FluidSynth starts notes at multiples of this
_BEND_SEMITONES = 12  # reach of the pitch wheel of tracks that slide
_OFF, _BEND, _ON = 0, 1, 2  # of one channel at one moment, in this order
FOLDERS = ('/usr/share/sounds/sf3', '/usr/share/sounds/sf2', '/usr/share/soundfonts')
# Known soundfonts: file -> (what to say about it, Debian package).
KNOWN = {
  'MuseScore_General.sf3': ('MuseScore General, MIT licence', 'musescore-general-soundfont'),
  'FluidR3_GM.sf2': ('FluidR3 GM, MIT licence', 'fluid-soundfont-gm'),
  'MuseScore_General_Lite.sf3': (
    'MuseScore General Lite, MIT licence',
    'musescore-general-soundfont-small',
  ),
  'TimGM6mb.sf2': ('TimGM6mb, GPL-2', 'timgm6mb-soundfont'),
}


def find_soundfonts(given: list[str]) -> list[str]:
  """Returns the soundfonts to use: those given, or the best that are installed."""
  for path in given:
    if not os.path.isfile(path):
      raise errors.UserError(f'--soundfont={path!r} is not a file')
    with open(path, 'rb') as f:
      if f.read(12)[8:] != b'sfbk':
        raise errors.UserError(f'--soundfont={path!r} is not an sf2 or sf3 soundfont')
  if given:
    return list(given)
  found = [
    os.path.join(folder, name)
    for name in KNOWN
    for folder in FOLDERS
    if os.path.isfile(os.path.join(folder, name))
  ]
  good = [f for f in found if not f.endswith(('Lite.sf3', 'TimGM6mb.sf2'))]
  if not found:
    raise errors.UserError(
      'no soundfont found: install one (apt install musescore-general-soundfont '
      'fluid-soundfont-gm) or name one with --soundfont=FILE'
    )
  return good or found[:1]


def load_fluidsynth():
  """Returns the pyfluidsynth module."""
  try:
    import fluidsynth
  except ImportError as error:
    raise errors.UserError(
      'rendering needs FluidSynth: apt install libfluidsynth3 and pip install '
      f'pyfluidsynth ({error})'
    ) from error
  return fluidsynth


class Renderer:
  """Holds one synthesizer per soundfont; every piece is played by a fresh one on shared samples."""

  def __init__(self, soundfonts: list[str]):
    self.fluidsynth = load_fluidsynth()
    self.soundfonts = soundfonts
    self._write = self.fluidsynth.cfunc(
      'fluid_synth_write_float',
      self.fluidsynth.c_int,
      ('synth', self.fluidsynth.c_void_p, 1),
      ('len', self.fluidsynth.c_int, 1),
      ('lbuf', self.fluidsynth.c_void_p, 1),
      ('loff', self.fluidsynth.c_int, 1),
      ('lincr', self.fluidsynth.c_int, 1),
      ('rbuf', self.fluidsynth.c_void_p, 1),
      ('roff', self.fluidsynth.c_int, 1),
      ('rincr', self.fluidsynth.c_int, 1),
    )
    self._keep = {}  # keeps decoded samples in FluidSynth's cache

  def _synth(self, soundfont: str, reverb: float):
    synth = self.fluidsynth.Synth(samplerate=float(_RENDER_RATE), gain=0.25)
    synth.setting('synth.polyphony', 160)
    synth.setting('synth.chorus.active', 0)
    font = synth.sfload(soundfont)
    if font == -1:
      raise errors.UserError(f'{soundfont!r} cannot be read as a soundfont')
    if soundfont not in self._keep:
      self._keep[soundfont] = synth
      return self._synth(soundfont, reverb)
    synth.set_reverb(0.25 + 0.5 * reverb, 0.35, 0.6, 0.45 * reverb)
    return synth, font

  def render(
    self, piece: Piece, seconds: float, soundfont: str, rng: np.random.Generator
  ) -> np.ndarray:
    """Returns float32[seconds * 24000] mono, levelled to at most 0.97."""
    import soxr

    reverb = styles.STYLES[piece.genre].reverb * float(rng.uniform(0.7, 1.25))
    synth, font = self._synth(soundfont, reverb)
    try:
      stereo = self._play(synth, font, piece, seconds, reverb)
    finally:
      synth.delete()
    mono = soxr.resample(stereo.mean(axis=0), _RENDER_RATE, SAMPLE_RATE, 'HQ')
    wanted = round(seconds * SAMPLE_RATE)
    mono = np.pad(mono, (0, max(0, wanted - len(mono))))[:wanted].astype(np.float32)
    for effect in piece.effects:
      mono = EFFECTS[effect](mono, rng)
    target = (
      styles.STYLES[piece.genre].loudness + 20 * np.log10(styles.MOODS[piece.mood].velocity) * 0.7
    )
    return level(mono, target + float(rng.normal(0, 1.2)))

  def _play(self, synth, font, piece: Piece, seconds: float, reverb: float) -> np.ndarray:
    channels = {}
    for track in piece.tracks:
      free = [c for c in range(16) if c != 9 and c not in channels.values()]
      channel = 9 if track.role == 'drums' else free[0]
      channels[id(track)] = channel
      instrument = track.instrument
      if synth.program_select(channel, font, instrument.bank, instrument.program) != 0:
        synth.program_select(channel, font, instrument.bank, 0)
      synth.cc(channel, 7, int(np.clip(96 * track.level, 1, 127)))
      synth.cc(channel, 10, track.pan)
      synth.cc(channel, 91, int(127 * min(1.0, reverb * (0.4 if track.role == 'bass' else 1.0))))
      synth.cc(channel, 93, 0)
      if track.bends:
        for control, value in ((101, 0), (100, 0), (6, _BEND_SEMITONES)):  # the wheel's range
          synth.cc(channel, control, value)
    events = sorted(e for t in piece.tracks for e in _events(piece, t, channels[id(t)]))
    total = round(seconds * _RENDER_RATE)
    out = np.zeros((2, total), np.float32)
    at = 0
    for frame, kind, channel, pitch, value in events:
      frame = min(frame, total)
      if frame > at:
        self._fill(synth, out, at, frame)
        at = frame
      if at >= total:
        break
      if kind == _ON:
        synth.noteon(channel, int(np.clip(pitch, 0, 127)), value)
      elif kind == _BEND:
        synth.pitch_bend(channel, value)
      else:
        synth.noteoff(channel, int(np.clip(pitch, 0, 127)))
    self._fill(synth, out, at, total)
    return out

  def _fill(self, synth, out: np.ndarray, start: int, stop: int):
    if stop > start:
      left, right = out[0].ctypes.data, out[1].ctypes.data
      self._write(synth.synth, stop - start, left, start, 1, right, start, 1)


def _events(piece: Piece, track: Track, channel: int) -> list[tuple[int, int, int, int, int]]:
  """Returns (frame, _OFF or _BEND or _ON, channel, pitch, velocity or place of the wheel)."""
  events = []
  starts = piece.seconds([n.start for n in track.notes])
  stops = piece.seconds([n.start + n.duration for n in track.notes])
  for note, start, stop in zip(track.notes, starts, stops, strict=True):
    velocity = max(1, min(127, int(note.velocity)))
    events.append((_frame(start), _ON, channel, note.pitch, velocity))
    events.append((max(_frame(stop), _frame(start) + _BLOCK), _OFF, channel, note.pitch, 0))
  for second, semitones in track.bends:
    wheel = int(np.clip(round(semitones / _BEND_SEMITONES * 8192), -8192, 8191))
    events.append((_frame(second), _BEND, channel, 0, wheel))
  return events


def _frame(second: float) -> int:
  return int(second * _RENDER_RATE) // _BLOCK * _BLOCK


def level(audio: np.ndarray, target_db: float) -> np.ndarray:
  """Returns `audio` at about `target_db` RMS; peaks above 0.65 bend softly and stay below 0.97."""
  rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
  peak = float(np.abs(audio).max(initial=0.0))
  if rms < 1e-6:
    return audio
  audio = audio * min(10 ** (target_db / 20) / rms, 1.5 / peak)
  knee, top = 0.65, 0.97
  size = np.abs(audio)
  bent = knee + (top - knee) * np.tanh((size - knee) / (top - knee))
  return np.where(size > knee, np.sign(audio) * bent, audio).astype(np.float32)


def fade(audio: np.ndarray, tail_seconds: float) -> np.ndarray:
  """Returns `audio` with a 5 ms start and a cosine tail."""
  audio = audio.copy()
  head, tail = int(0.005 * SAMPLE_RATE), int(tail_seconds * SAMPLE_RATE)
  audio[:head] *= np.linspace(0, 1, head, dtype=np.float32)
  audio[-tail:] *= np.cos(np.linspace(0, np.pi / 2, tail)).astype(np.float32)
  return audio


def shape_spectrum(audio: np.ndarray, gain) -> np.ndarray:
  """Returns float64[S]: `audio` with each frequency times gain(hertz float64[F])."""
  size = 1 << (len(audio) - 1).bit_length()  # the FFT of a prime length is slow
  gains = gain(np.fft.rfftfreq(size, 1 / SAMPLE_RATE))
  return np.fft.irfft(np.fft.rfft(audio, size) * gains, size)[: len(audio)]


def _lofi(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A dull, crackling record: low-pass at 4-6 kHz, hiss, clicks."""
  spectrum = np.fft.rfft(audio)
  hz = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
  cutoff = rng.uniform(3800, 6000)
  audio = np.fft.irfft(spectrum / np.sqrt(1 + (hz / cutoff) ** 6) * (hz / (hz + 40)), len(audio))
  loud = float(np.sqrt(np.mean(audio**2))) + 1e-6
  noise = rng.standard_normal(len(audio)) * loud * 0.012
  clicks = (rng.random(len(audio)) < 9 / SAMPLE_RATE) * rng.standard_normal(len(audio)) * loud * 2.0
  crackle = np.convolve(clicks, np.exp(-np.arange(24) / 5.0), 'same')
  return (audio + noise + crackle).astype(np.float32)


def _chip(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """An old games console: few bits, held samples."""
  del rng
  audio = audio / (np.abs(audio).max() + 1e-9)
  held = np.repeat(audio[::2], 2)[: len(audio)]
  return (np.round(held * 24) / 24).astype(np.float32) * 0.5


EFFECTS = {'lofi': _lofi, 'chip': _chip}
