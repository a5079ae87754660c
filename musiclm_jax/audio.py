"""L0. Sound files: read at a wanted rate, write atomically.

Axes: S samples, C channels.  Waveforms are float32 in [-1, 1], mono unless C is written.
Anything wrong with a file is a UserError that names the file and the reason.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from musiclm_jax import errors

SAMPLE_RATE = 24_000
SUFFIXES = ('.wav', '.flac', '.ogg', '.oga', '.opus', '.mp3', '.aif', '.aiff', '.m4a', '.aac',
            '.wma', '.webm')
_WRITABLE = {'.wav': 'WAV', '.flac': 'FLAC'}
_MAX_BLOCK = 2 ** 22  # samples of all channels, 16 MiB, whatever a header says of rate and channels


@dataclasses.dataclass(frozen=True)
class Recording:
  """What a file says of itself."""

  rate: int
  channels: int
  encoding: str  # 'FLAC PCM_16' as libsndfile has it, else ffmpeg's name of the codec, 'aac'
  frames: int | None  # samples of each channel; None where only decoding will tell


def read(source, rate: int = SAMPLE_RATE) -> np.ndarray:
  """Returns float32[S], mono at `rate`; `source` is a path or an open binary file.

  libsndfile decodes wav, flac, ogg, opus and mp3; the ffmpeg program, where there is one,
  decodes the rest.
  """
  found = list(blocks(source, rate))
  return found[0] if len(found) == 1 else np.concatenate(found)


def read_beginning(path, seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
  """Returns f32[S], at most `seconds` of an audio file at `rate`; no more of it is decoded."""
  wanted = max(1, round(seconds * rate))
  found, held, waveforms = blocks(path, rate, min(seconds, 60.0)), 0, []
  for block in found:
    waveforms.append(block)
    held += len(block)
    if held >= wanted:
      break
  found.close()
  return np.concatenate(waveforms)[:wanted]


def blocks(source, rate: int = SAMPLE_RATE, seconds: float = 60.0) -> Iterator[np.ndarray]:
  """Yields what `read` returns in pieces of about `seconds`, so that memory stays constant."""
  import soundfile
  name = _name(source)
  if isinstance(source, str | os.PathLike):
    _check_readable(source)
  count = 0
  try:
    with soundfile.SoundFile(_openable(source)) as file:
      for block in _resampled(file, rate, seconds):
        yield _check_waveform(block, name)
        count += len(block)
  except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
    if count or not isinstance(source, str | os.PathLike):
      raise errors.UserError(f'{name} is not audio that can be read: {error}') from error
    for block in _ffmpeg_blocks(source, rate, seconds, reason=str(error)):
      yield _check_waveform(block, name)
      count += len(block)
  if not count:
    raise errors.UserError(f'{name} holds no samples')


@contextlib.contextmanager
def recorded(path, seconds: float = 10.0) -> Iterator[tuple[Recording, Iterator[np.ndarray]]]:
  """Gives (Recording, iterator of float32[S, C]): the file at its own rate, with all channels.

  The pieces last about `seconds`; memory is bounded, whatever the header says.
  """
  import soundfile
  _check_readable(path)
  promised = None
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(soundfile.SoundFile(_openable(path)))
      recording = Recording(
          file.samplerate, file.channels, f'{file.format} {file.subtype}', file.frames)
      promised = file.frames  # of a file that breaks off ffmpeg decodes what there is
      blocks_ = _frames(file, _block_size(seconds, recording))
      first = next(blocks_, None)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
      stack.close()
      recording, blocks_ = stack.enter_context(_ffmpeg_recorded(path, seconds, str(error)))
      recording = dataclasses.replace(recording, frames=promised)
      first = next(blocks_, None)
    if first is None:
      raise errors.UserError(f'{_name(path)} holds no samples')
    yield recording, _checked(itertools.chain([first], blocks_), _name(path))


def _checked(blocks_: Iterator[np.ndarray], name: str) -> Iterator[np.ndarray]:
  import soundfile
  try:
    for block in blocks_:
      yield _check_waveform(block, name)
  except (soundfile.SoundFileError, RuntimeError) as error:
    raise errors.UserError(f'{name} is not audio that can be read: {error}') from error


def _block_size(seconds: float, recording: Recording) -> int:
  size = min(round(seconds * recording.rate), _MAX_BLOCK // recording.channels)
  return max(1, size if recording.frames is None else min(size, recording.frames))


def _resampled(file, rate: int, seconds: float) -> Iterator[np.ndarray]:
  """Yields float32[S], mono at `rate`, of an open soundfile; the pieces join without seams."""
  import soxr
  mono = _mono(file, max(1, min(round(seconds * file.samplerate), file.frames)))
  if file.samplerate == rate:
    yield from mono
    return
  stream = soxr.ResampleStream(file.samplerate, rate, 1, dtype='float32')
  yield from (piece for block in mono if len(piece := stream.resample_chunk(block)))
  rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)
  if len(rest):
    yield rest


def _mono(file, size: int) -> Iterator[np.ndarray]:
  return (block.mean(axis=1) for block in _frames(file, size))


def _frames(file, size: int) -> Iterator[np.ndarray]:
  """Yields float32[<= size, C] of an open soundfile, as far as it can be decoded.

  Not with its own `blocks`, which yield stale memory where a file breaks off.  Nor does it seek to
  where it is after each read: decoders of mp3 and ogg do not go on as if nothing had been.
  """
  file.seekable = lambda: False
  more = True
  while more:
    block = file.read(size, dtype='float32', always_2d=True)
    more = len(block) == size
    if len(block):
      yield block


def write(path, waveform: np.ndarray, rate: int = SAMPLE_RATE, overwrite: bool = False) -> None:
  """Writes float[S] or float[S, C] as 16-bit wav or flac; the file appears whole or not at all."""
  waveform = np.asarray(waveform, np.float32)
  write_blocks(path, [waveform], rate, overwrite)


def write_blocks(path, waveforms: Iterable[np.ndarray], rate: int = SAMPLE_RATE,
                 overwrite: bool = False) -> None:
  """Writes float[S] or float[S, C] pieces one after the other, as `write` does."""
  import soundfile
  path = pathlib.Path(path)
  check_writable(path, overwrite)
  with atomic_path(path, overwrite) as temporary:
    file = None
    try:
      for waveform in waveforms:
        if not np.isfinite(waveform).all():
          raise errors.UserError(f'{path}: the waveform to write holds NaN or infinite samples')
        file = file or soundfile.SoundFile(
            temporary, 'w', rate, 1 if waveform.ndim == 1 else waveform.shape[1],
            subtype='PCM_16', format=_WRITABLE[path.suffix.lower()])
        file.write(to_pcm16(waveform))
      if not file:
        raise errors.UserError(f'{path}: there are no samples to write')
    finally:
      if file:
        file.close()


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


def _ffmpeg_blocks(path, rate: int, seconds: float, reason: str) -> Iterator[np.ndarray]:
  options = ['-f', 'f32le', '-ac', '1', '-ar', str(rate)]
  with _ffmpeg(path, options, reason) as output:
    while content := output.read(4 * max(1, round(seconds * rate))):
      yield np.frombuffer(content, '<f4').copy()


@contextlib.contextmanager
def _ffmpeg_recorded(path, seconds: float, reason: str):
  """Gives what `recorded` does, by way of the .au format: its header has just rate and channels."""
  with _ffmpeg(path, ['-f', 'au', '-c:a', 'pcm_f32be'], reason) as output:
    header = output.read(24)
    if len(header) == 24:
      _, start, _, _, rate, channels = struct.unpack('>4s5I', header)
      output.read(start - 24)
      recording = Recording(rate, channels, _codec(path), None)
      yield recording, _read_floats(output, channels, _block_size(seconds, recording))
      return
  raise errors.UserError(f'{path} holds no samples')  # where ffmpeg itself did not complain


def _read_floats(output, channels: int, size: int) -> Iterator[np.ndarray]:
  """Yields float32[<= size, channels] of big endian numbers."""
  while content := output.read(4 * channels * size):
    whole = len(content) // (4 * channels) * channels
    yield np.frombuffer(content, '>f4', whole).astype(np.float32).reshape(-1, channels)


@contextlib.contextmanager
def _ffmpeg(path, options: list[str], reason: str):
  """Gives the output of ffmpeg as an open file; a file that it cannot decode is an error."""
  if not shutil.which('ffmpeg'):
    raise errors.UserError(f'{path} is not audio that can be read: {_first_line(reason)}')
  command = ['ffmpeg', '-v', 'error', '-nostdin', '-protocol_whitelist', 'file', '-i',
             os.fspath(path), *options, '-']
  with tempfile.TemporaryFile() as complaints, subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=complaints) as process:
    try:
      yield process.stdout
    finally:
      process.stdout.close()  # a reader who stops early ends ffmpeg, too
    if process.wait():
      complaints.seek(0)
      why = _first_line(complaints.read().decode(errors='replace')) or reason
      raise errors.UserError(f'{path} is not audio that can be read: {why}')


def _codec(path) -> str:
  """Returns ffmpeg's name of the codec, 'unknown' where ffprobe is not there to tell."""
  if not shutil.which('ffprobe'):
    return 'unknown'
  done = subprocess.run(
      ['ffprobe', '-v', 'error', '-protocol_whitelist', 'file', '-select_streams', 'a:0',
       '-show_entries', 'stream=codec_name', '-of', 'csv=p=0', os.fspath(path)],
      stdin=subprocess.DEVNULL, capture_output=True)
  return _first_line(done.stdout.decode(errors='replace')).strip(' ,') or 'unknown'


def _check_readable(path) -> None:
  if not os.path.exists(path):
    raise errors.UserError(f'{path} does not exist, wanted an audio file')
  if os.path.isdir(path):
    raise errors.UserError(f'{path} is a directory, wanted an audio file')
  if not os.access(path, os.R_OK):
    raise errors.UserError(f'{path} cannot be opened: permission denied')


def _openable(source):
  """Returns what libsndfile opens: of a path that is not UTF-8 the bytes."""
  if isinstance(source, str | os.PathLike) and not os.fspath(source).isascii():
    return os.fsencode(source) if os.name == 'posix' else source
  return source


def _check_waveform(waveform: np.ndarray, name: str) -> np.ndarray:
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
