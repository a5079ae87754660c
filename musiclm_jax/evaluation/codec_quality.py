"""L5. How well a codec keeps music, at several bitrates, beside Opus.  Axes: S T Q levels K codes.

Every codec goes through a real file: what is measured is what comes back out of its bytes, and
their number.  Distance is the objective's `mel_distance` (objectives/soundstream.py).
"""

import csv
import dataclasses
import functools
import io
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import audio, bitstream, codec, errors
from musiclm_jax.models import quantizers
from musiclm_jax.objectives import losses, soundstream

DEFAULT_KBPS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
DEFAULT_OPUS_KBPS = (6.0, 12.0)
SPECTRAL_FLOOR = 5e-3  # the one that gin/models/soundstream_tiny.gin trains with
MAX_SECONDS = 300.0  # of a file; it is measured in one piece, in memory
_OPUS_RANGE = (6.0, 256.0)  # kbps of one channel that opusenc takes
_MOST_LATE = 8  # samples
_SILENCE = 1e-8  # energy that losses.si_sdr adds, lest it divide by zero


@dataclasses.dataclass(frozen=True)
class Quality:
  """One codec at one bitrate; each file counts the same, however long it is."""

  codec: str
  kbps: float  # nominal
  file_kbps: float  # of the files' bytes, headers and checksums included
  mel_distance: float  # decibels
  si_sdr: float  # decibels, over the files that are not silent; NaN when all are


@dataclasses.dataclass(frozen=True)
class Level:
  """The use of one level's codes over all files."""

  codes_used: int
  perplexity: float  # how many codes are in use, evenly counted


@dataclasses.dataclass(frozen=True)
class Report:
  qualities: list[Quality]
  levels: list[Level]
  num_files: int
  seconds: float  # of audio, all files together


def audio_files(names: Iterable[str], max_files: int | None = None) -> list[pathlib.Path]:
  """Returns audio files, each once: those named, and sorted, those below the folders named.

  Of more than `max_files`, some are taken evenly from the whole list.
  """
  found = {}
  for name in names:
    path = pathlib.Path(os.path.expanduser(name))
    if not path.exists():
      raise errors.UserError(f'{name} does not exist, wanted an audio file or a folder of them')
    members = [path]
    if path.is_dir():
      members = sorted(
          member for member in path.rglob('*')
          if member.suffix.lower() in audio.SUFFIXES and member.is_file())
    if not members:
      raise errors.UserError(f'{name} holds no audio file ({", ".join(audio.SUFFIXES)})')
    found |= {os.path.realpath(member): member for member in members}
  files = list(found.values())
  if max_files is None or len(files) <= max_files:
    return files
  return [files[i * len(files) // max_files] for i in range(max_files)]


def evaluate(
    model: codec.Codec,
    files: Sequence[str | os.PathLike],
    kbps: Sequence[float] | None = None,
    opus_kbps: Sequence[float] = DEFAULT_OPUS_KBPS,
    seconds: float = 30.0,
    floor: float = SPECTRAL_FLOOR,
    progress: bool = True,
) -> Report:
  """Returns the quality of a codec, and of Opus, on audio files of any length.

  Args:
    model: is run once to encode a file, at all levels; fewer levels are a prefix of those.
    files: audio of any rate, heard in mono at the model's rate.
    kbps: bitrates of the model; default: those of `DEFAULT_KBPS` that it has.
    opus_kbps: bitrates of Opus, none to leave it out.
    seconds: of a longer file, its beginning.
    floor: below about this magnitude, spectra count as silent.
    progress: show a bar.
  """
  import tqdm

  if not 0 < seconds <= MAX_SECONDS:
    raise errors.UserError(f'seconds is {seconds:g}, wanted more than 0, at most {MAX_SECONDS:g}')
  if not files:
    raise errors.UserError('there are no audio files to measure, wanted at least one')
  if opus_kbps:
    check_opus(opus_kbps)
  num_levels = chosen_levels(model, kbps)
  rate, name = model.config.sample_rate, model.model.name
  keys = [(name, model.config.kbps(levels)) for levels in num_levels]
  keys += [('opus', float(nominal)) for nominal in sorted(set(opus_kbps))]
  measured = {key: [] for key in keys}  # of each file: (bytes, distance, SI-SDR)
  counts = np.zeros((model.config.num_quantizers, model.config.codebook_size), np.int64)
  total = 0.0
  for path in tqdm.tqdm(files, unit='file', desc='measuring', disable=not progress):
    waveform = audio.read_beginning(path, seconds, rate)
    total += len(waveform) / rate
    whole, codes = _encoded(model, waveform)
    counts += code_counts(codes, model.config.codebook_size)
    for (kind, nominal), rows in measured.items():
      if kind == 'opus':
        decoded, size = through_opus(waveform, rate, nominal)
      else:
        decoded, size = _reduced(model, whole, model.levels(nominal))
      rows.append((size, *measure(waveform, decoded, rate, floor)))
  qualities = [_summary(*key, rows, total) for key, rows in measured.items()]
  return Report(qualities, level_usage(counts), len(files), total)


def chosen_levels(model: codec.Codec, kbps: Sequence[float] | None) -> list[int]:
  """Returns the numbers of levels of these bitrates, rising; a bitrate it lacks is an error."""
  most = model.config.num_quantizers
  if kbps is None:
    least, limit = model.config.kbps(1), model.config.kbps(most)
    kbps = [value for value in DEFAULT_KBPS if least <= value <= limit] or [limit]
  return sorted({model.levels(value) for value in kbps})


def measure(
    target: np.ndarray, estimate: np.ndarray, rate: int, floor: float = SPECTRAL_FLOOR
) -> tuple[float, float]:
  """Returns (mel distance, SI-SDR), both in decibels, of f32[S] against a target f32[S].

  The mel distance is the mean over the objective's windows, bands and frames of |20 log10|.
  A silent target has no SI-SDR: it is NaN.
  """
  length = len(target)
  padding = (0, -length % rate)  # to whole seconds: few shapes to compile
  centred = [np.pad(x - x.mean(dtype=np.float64), padding) for x in (target, estimate)]
  plain = [np.pad(x, padding) for x in (target, estimate)]
  pairs = [np.stack(pair)[:, None].astype(np.float32) for pair in (plain, centred)]
  distance, ratio = _measured(*pairs, length, rate, floor)
  silent = np.square(centred[0]).sum() <= _SILENCE
  return float(distance), float('nan') if silent else float(ratio)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _measured(plain, centred, length, rate, floor):
  """Returns (f32[], f32[]) of f32[2, 1, P], target and estimate, of which `length` samples count.

  As `losses.spectral_distance`, over the frames that it would have without the padding.
  """
  windows = soundstream.SoundStreamObjective.spectral_windows
  distance = 0.0
  for window in windows:
    scale = losses.SpectralScale(window, rate, soundstream.SoundStreamObjective.num_mels, floor)
    target, estimate = (scale.log(scale.magnitudes(waveform)) for waveform in plain)
    frames = jnp.mean(jnp.abs(target - estimate), axis=(0, 2))
    count = 1 + length // (window // 4)
    heard = jnp.arange(len(frames)) < count
    distance += jnp.sum(jnp.where(heard, frames, 0.0)) / count
  decibels = 20.0 / np.log(10.0) * distance / len(windows)
  return decibels, losses.si_sdr(*centred)[0]


def code_counts(codes: np.ndarray, codebook_size: int) -> np.ndarray:
  """Returns int64[Q, K]: how often each level of int[T, Q] has each code."""
  return np.stack([np.bincount(level, minlength=codebook_size) for level in codes.T])


def level_usage(counts: np.ndarray) -> list[Level]:
  """Returns the use of the codes of each level of int[Q, K] counts."""
  perplexity = np.asarray(quantizers.perplexity(jnp.asarray(counts, jnp.float32)))
  used = (counts > 0).sum(axis=1)
  return [Level(int(u), float(p)) for u, p in zip(used, perplexity, strict=True)]


def _encoded(model: codec.Codec, waveform: np.ndarray) -> tuple[bytes, np.ndarray]:
  """Returns (the bitstream at all levels, its codes int32[T, Q]) of f32[S]."""
  stream = io.BytesIO()
  codec.write(stream, model, [waveform])
  whole = stream.getvalue()
  return whole, np.concatenate(list(bitstream.Reader(io.BytesIO(whole), 'the bitstream')))


def _reduced(model: codec.Codec, whole: bytes, num_levels: int) -> tuple[np.ndarray, int]:
  """Returns (f32[S], bytes) of a bitstream cut to its first levels."""
  reader = lambda content: bitstream.Reader(io.BytesIO(content), 'the bitstream')
  packets = sum(1 for _ in reader(whole))
  stream = io.BytesIO()
  codec.reduce(reader(whole), stream, [num_levels] * packets)
  reduced = stream.getvalue()
  return np.concatenate(list(codec.read(reader(reduced), model))), len(reduced)


def _summary(kind: str, kbps: float, rows: list[tuple], seconds: float) -> Quality:
  size, distance, ratio = np.asarray(rows, np.float64).T
  heard = ratio[~np.isnan(ratio)]
  return Quality(kind, kbps, 8 * size.sum() / seconds / 1000, float(distance.mean()),
                 float(heard.mean()) if len(heard) else float('nan'))


# --- Opus -------------------------------------------------------------------------------------


def check_opus(kbps: Sequence[float] = ()) -> None:
  """Raises an error where Opus's programs are missing, or do not take these bitrates."""
  for program in ('opusenc', 'opusdec'):
    if not shutil.which(program):
      raise errors.UserError(f'the program {program} is not installed, which codes with Opus: '
                             'install it (Debian: apt install opus-tools), or leave Opus out')
  least, most = _OPUS_RANGE
  for value in kbps:
    if not least <= value <= most:  # nor for NaN
      raise errors.UserError(f'{value:g} kbps asked for, Opus has {least:g} to {most:g}')


def through_opus(waveform: np.ndarray, rate: int, kbps: float) -> tuple[np.ndarray, int]:
  """Returns (f32[S] in [-1, 1], bytes of the .opus file) of f32[S] at `rate`.

  opusenc's defaults (variable bitrate, 20 ms frames, highest complexity), told that this is music,
  with no room left for comments.  At 6 kbps what opusdec gives is a sample or two late, which would
  cost it SI-SDR: it is moved back.
  """
  check_opus([kbps])
  with tempfile.TemporaryDirectory() as folder:  # the programs see no names but these
    original, coded, decoded = (f'{folder}/{name}' for name in ('in.wav', 'a.opus', 'out.wav'))
    audio.write(original, waveform, rate)
    _run('opusenc', '--quiet', '--music', '--padding', '0', '--bitrate', f'{kbps:.3f}',
         original, coded)
    _run('opusdec', '--quiet', '--float', '--rate', str(rate), coded, decoded)
    found = np.clip(audio.read(decoded, rate), -1.0, 1.0)
    return _moved_back(found, waveform), os.path.getsize(coded)


def _moved_back(late: np.ndarray, waveform: np.ndarray) -> np.ndarray:
  """Returns f32[S], `late` moved back by the 0 to 8 samples that make it most like f32[S]."""
  length = len(waveform)
  late = np.pad(late, (0, max(0, length + _MOST_LATE - len(late))))
  shifts = [late[shift : shift + length] for shift in range(_MOST_LATE + 1)]
  return max(shifts, key=lambda shifted: float(np.dot(shifted, waveform)))


def _run(program: str, *arguments: str) -> None:
  done = subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                        text=True, errors='replace', check=False)
  if done.returncode:
    lines = (done.stderr or done.stdout).strip().splitlines() or ['it does not say why']
    raise errors.UserError(f'{program} failed with code {done.returncode}: {lines[-1]}')


# --- Reports ----------------------------------------------------------------------------------


def tables(report: Report) -> str:
  """Returns the report as two tables in markdown, under a line that says what was heard."""
  quality = [(row.codec, f'{row.kbps:g}', f'{row.file_kbps:.2f}', f'{row.mel_distance:.2f}',
              '-' if np.isnan(row.si_sdr) else f'{row.si_sdr:.2f}')
             for row in report.qualities]
  usage = [(f'{i}', f'{level.codes_used}', f'{level.perplexity:.1f}')
           for i, level in enumerate(report.levels, 1)]
  return '\n\n'.join([
      f'{report.num_files} files, {report.seconds:.1f} s',
      table(('codec', 'kbps nominal', 'kbps of the file', 'mel distance dB', 'SI-SDR dB'),
            quality),
      table(('level', 'codes used', 'perplexity'), usage),
  ])


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table in markdown; the first column is text, the others numbers."""
  lines = [names, ['---'] + ['---:'] * (len(names) - 1), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write_csv(path: str | os.PathLike, report: Report) -> None:
  """Writes a row for each bitrate, then one for each level; what a row has not is left empty."""
  rows = [{'codec': row.codec, 'kbps_nominal': row.kbps, 'kbps_of_file': row.file_kbps,
           'mel_distance_db': row.mel_distance, 'si_sdr_db': row.si_sdr}
          for row in report.qualities]
  name = report.qualities[0].codec
  rows += [{'codec': name, 'level': i, 'codes_used': level.codes_used,
            'perplexity': level.perplexity} for i, level in enumerate(report.levels, 1)]
  columns = list(dict.fromkeys(column for row in rows for column in row))
  with open(path, 'w', newline='', encoding='utf-8') as stream:
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    writer.writerows(rows)
