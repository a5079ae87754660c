"""L4. A user's own recordings and captions, through the same door.

Names and texts in the csv come from outside: paths stay inside the folder, ids are made here.
"""

import os

import numpy as np

from musiclm_jax import audio, errors, text
from musiclm_jax.corpus.render import CLIP_SECONDS

_MIN_SECONDS = 5.0
_MAX_CAPTION = 4000


def read_table(folder: str, table: str) -> list[tuple[str, str, list[str], list[str]]]:
  """Returns [(path as given, checked absolute path, captions, aspects)], one per file."""
  if not os.path.isdir(folder):
    raise errors.UserError(f'--add_folder={folder!r} is not a folder')
  found = {}
  for number, row in enumerate(text.read_table(table, ('path', 'caption')), start=2):
    name, caption = row['path'].strip(), _clean(row['caption'])
    if not name or not caption:
      raise errors.UserError(f'{table!r} line {number}: path and caption must not be empty')
    path = _inside(folder, name, f'{table!r} line {number}')
    entry = found.setdefault(path, (name, path, [], []))
    entry[2].append(caption)
    entry[3].extend(a for a in (_clean(x) for x in (row.get('aspects') or '').split(';')) if a)
  if not found:
    raise errors.UserError(f'--captions={table!r} holds no rows')
  return list(found.values())


def _clean(text: str | None) -> str:
  """Returns one line of printable text of bounded length."""
  text = ''.join(c if c.isprintable() else ' ' for c in (text or ''))
  return ' '.join(text.split())[:_MAX_CAPTION]


def _inside(folder: str, name: str, where: str) -> str:
  path = audio.path_inside(folder, name, where)
  if not os.path.isfile(path):
    raise errors.UserError(f'{where}: {name!r} is not a file in {folder!r}')
  return path


def add(table, output: str, test_share: float, seed: int) -> list[dict]:
  """Writes the clips of every file and returns their rows; the split is by file."""
  import soundfile
  from tqdm import tqdm

  rng = np.random.default_rng([seed, 3])
  num_test = round(len(table) * test_share)
  test = set(rng.permutation(len(table))[:num_test].tolist())
  rows = []
  for index, (name, path, captions, aspects) in enumerate(tqdm(table, unit='file', desc='adding')):
    piece = f'user_{index:05d}'
    for clip, part in enumerate(read_clips(path, name)):
      clip_id = f'{piece}_{clip}'
      soundfile.write(
        os.path.join(output, 'audio', clip_id + '.flac'),
        part,
        audio.SAMPLE_RATE,
        subtype='PCM_16',
        format='FLAC',
      )
      rows.append(
        {
          'id': clip_id,
          'path': f'audio/{clip_id}.flac',
          'split': 'test' if index in test else 'train',
          'captions': list(dict.fromkeys(captions)),
          'aspects': list(dict.fromkeys(aspects)),
          'piece': piece,
          'seconds': round(len(part) / audio.SAMPLE_RATE, 3),
          'source': _clean(name),
          'licence': 'as provided by the user',
          'metadata': {},
        }
      )
  return rows


def read_clips(path: str, name: str):
  """Yields float32[<= 720000] mono clips at 24 kHz; a last one under 5 s is dropped."""
  size, rest, count = int(CLIP_SECONDS * audio.SAMPLE_RATE), np.zeros(0, np.float32), 0
  for block in _blocks(path, name):
    rest = np.concatenate([rest, block])
    while len(rest) >= size:
      yield _safe(rest[:size])
      rest, count = rest[size:], count + 1
  if len(rest) >= _MIN_SECONDS * audio.SAMPLE_RATE or (
    count == 0 and len(rest) >= audio.SAMPLE_RATE // 2
  ):
    yield _safe(rest)
  elif count == 0:
    raise errors.UserError(f'{name!r} holds less than half a second of audio')


def _blocks(path: str, name: str):
  """Yields float32[S] at 24 kHz: about 10 s at a time, or whole what only ffmpeg can decode."""
  import soundfile
  import soxr

  try:
    f = soundfile.SoundFile(path)
  except (soundfile.SoundFileError, RuntimeError, TypeError):
    yield audio.read(path)
    return
  with f:
    try:
      rate, finished = f.samplerate, False
      resampler = soxr.ResampleStream(rate, audio.SAMPLE_RATE, 1, dtype='float32')
      while not finished:
        block = f.read(rate * 10, dtype='float32', always_2d=True)
        finished = len(block) < rate * 10
        mono = np.nan_to_num(block.mean(axis=1), nan=0.0, posinf=0.0, neginf=0.0)
        yield resampler.resample_chunk(mono.astype(np.float32), last=finished)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
      raise errors.UserError(f'{name!r} cannot be read as audio: {error}') from error


def _safe(waveform: np.ndarray) -> np.ndarray:
  """Returns `waveform`, turned down when its peak is above 0.97."""
  peak = float(np.abs(waveform).max(initial=0.0))
  return waveform * (0.97 / peak) if peak > 0.97 else waveform
