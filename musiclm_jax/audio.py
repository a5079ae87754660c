"""L0. Sound files: read at a wanted rate, write atomically.

Axes: S samples, C channels.  Waveforms are float32 in [-1, 1], mono unless C is written.
Anything wrong with a file is a UserError that names the file and the reason.
"""

import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np

from musiclm_jax import errors

SAMPLE_RATE = 24_000
SUFFIXES = ('.wav', '.flac', '.ogg', '.oga', '.opus', '.mp3', '.aif', '.aiff', '.m4a', '.aac',
            '.wma', '.webm')
_WRITABLE = {'.wav': 'WAV', '.flac': 'FLAC'}


def read(source, rate: int = SAMPLE_RATE) -> np.ndarray:
  """Returns float32[S], mono at `rate`; `source` is a path or an open binary file.

  libsndfile decodes wav, flac, ogg, opus and mp3; the ffmpeg program, where there is one,
  decodes the rest.
  """
  import soundfile
  name = _name(source)
  if isinstance(source, str | os.PathLike):
    _check_readable(source)
  try:
    samples, source_rate = soundfile.read(source, dtype='float32', always_2d=True)
  except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
    if not isinstance(source, str | os.PathLike):
      raise errors.UserError(f'{name} is not audio that can be read: {error}') from error
    waveform = _read_with_ffmpeg(source, rate, reason=str(error))
  else:
    waveform = resample(samples.mean(axis=1), source_rate, rate) if samples.size else samples[:, 0]
  return _check_waveform(waveform, name)


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
  """Returns float32[S * to_rate / from_rate] (soxr, high quality)."""
  if from_rate == to_rate:
    return np.asarray(waveform, np.float32)
  import soxr
  return soxr.resample(waveform, from_rate, to_rate).astype(np.float32)


def write(path, waveform: np.ndarray, rate: int = SAMPLE_RATE, overwrite: bool = False) -> None:
  """Writes float[S] or float[S, C] as 16-bit wav or flac; the file appears whole or not at all."""
  import soundfile
  path = pathlib.Path(path)
  check_writable(path, overwrite)
  waveform = np.asarray(waveform, np.float32)
  if not np.isfinite(waveform).all():
    raise errors.UserError(f'{path}: the waveform to write holds NaN or infinite samples')
  with atomic_path(path, overwrite) as temporary:
    soundfile.write(temporary, to_pcm16(waveform), rate, subtype='PCM_16',
                    format=_WRITABLE[path.suffix.lower()])


def check_writable(path, overwrite: bool = False) -> None:
  """Raises before the work, not after it, when `write` could not write `path`."""
  path = pathlib.Path(path)
  if path.suffix.lower() not in _WRITABLE:
    raise errors.UserError(f'{path} has suffix {path.suffix!r}, wanted one of {sorted(_WRITABLE)}')
  if path.is_dir():
    raise errors.UserError(f'{path} is a directory, wanted the name of a file to write')
  if path.exists() and not overwrite:
    raise errors.UserError(f'{path} already exists')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix='.', suffix='.tmp'):
      pass
  except OSError as error:
    raise errors.UserError(f'{path} cannot be written: {error.strerror or error}') from error


def path_inside(folder, name: str, where: str) -> str:
  """Returns the real path of FOLDER/name; a name from outside that leads elsewhere is an error."""
  root = os.path.realpath(folder)
  if '\0' in name:
    raise errors.UserError(f'{where}: path {name!r} holds a zero byte')
  path = os.path.realpath(os.path.join(root, name))
  if os.path.isabs(name) or os.path.commonpath([root, path]) != root:
    raise errors.UserError(f'{where}: path {name!r} leads outside {os.fspath(folder)!r}')
  return path


class atomic_path:
  """Gives a temporary name beside `path`; on success the file takes its final name at once.

  An existing file is replaced with `overwrite`, else it is an error: a link cannot overwrite,
  so of two writers exactly one wins.
  """

  def __init__(self, path, overwrite: bool = False):
    self.path, self.overwrite = pathlib.Path(path), overwrite

  def __enter__(self) -> str:
    if not self.overwrite and self.path.exists():
      raise errors.UserError(f'{self.path} already exists')
    self.path.parent.mkdir(parents=True, exist_ok=True)
    handle, self.temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f'.{self.path.name}.',
                                              suffix='.tmp')
    os.close(handle)
    os.chmod(self.temporary, 0o644)
    return self.temporary

  def __exit__(self, kind, value, trace) -> None:
    try:
      if kind is None and self.overwrite:
        os.replace(self.temporary, self.path)
      elif kind is None:
        os.link(self.temporary, self.path)
    except FileExistsError as error:
      raise errors.UserError(f'{self.path} already exists') from error
    finally:
      pathlib.Path(self.temporary).unlink(missing_ok=True)


def to_pcm16(waveform: np.ndarray) -> np.ndarray:
  """Returns int16[S], rounded and clipped: 1.0 becomes 32767, -1.0 becomes -32768."""
  return np.clip(np.round(np.asarray(waveform) * 32768), -32768, 32767).astype(np.int16)


def from_pcm16(samples: np.ndarray) -> np.ndarray:
  """Returns float32[S] in [-1, 1): the exact inverse of to_pcm16 on int16."""
  return samples.astype(np.float32) / 32768


def _read_with_ffmpeg(path, rate: int, reason: str) -> np.ndarray:
  if not shutil.which('ffmpeg'):
    raise errors.UserError(f'{path} is not audio that can be read: {_first_line(reason)}')
  command = ['ffmpeg', '-v', 'error', '-nostdin', '-protocol_whitelist', 'file', '-i',
             os.fspath(path), '-f', 'f32le', '-ac', '1', '-ar', str(rate), '-']
  result = subprocess.run(command, capture_output=True, check=False)
  if result.returncode:
    why = _first_line(result.stderr.decode(errors='replace')) or reason
    raise errors.UserError(f'{path} is not audio that can be read: {why}')
  return np.frombuffer(result.stdout, '<f4').copy()


def _check_readable(path) -> None:
  if not os.path.exists(path):
    raise errors.UserError(f'{path} does not exist, wanted an audio file')
  if os.path.isdir(path):
    raise errors.UserError(f'{path} is a directory, wanted an audio file')
  if not os.access(path, os.R_OK):
    raise errors.UserError(f'{path} cannot be opened: permission denied')


def _check_waveform(waveform: np.ndarray, name: str) -> np.ndarray:
  if not waveform.size:
    raise errors.UserError(f'{name} holds no samples')
  if not np.isfinite(waveform).all():
    bad = int((~np.isfinite(waveform)).sum())
    raise errors.UserError(f'{name} holds {bad} NaN or infinite samples of {waveform.size}')
  return waveform


def _name(source) -> str:
  if isinstance(source, str | os.PathLike):
    return os.fspath(source)
  return getattr(source, 'name', 'the given file')


def _first_line(text) -> str:
  return (str(text).strip().splitlines() or [''])[0]
