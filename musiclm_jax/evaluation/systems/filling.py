"""L5. A folder of generated clips, ID.wav or another ending for each caption, by any system.

What is there already stays, so a run that was stopped goes on; a caption that fails is listed.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from musiclm_jax import audio, errors


@dataclasses.dataclass(frozen=True)
class Sound:
  """What a system made: float32[S] at `rate`, or the bytes of an audio file with its ending."""

  waveform: np.ndarray | None = None
  rate: int = 0
  content: bytes = b''
  suffix: str = '.wav'


class System(Protocol):
  """Makes sounds for captions, `batch_size` at a time; an error is that of the whole batch."""

  batch_size: int

  def generate(self, ids: Sequence[str], captions: Sequence[str], seconds: float,
               seed: int) -> list[Sound]:
    """Returns a sound for each caption."""


def fill(system: System, captions: Mapping[str, str], output_dir: str, *, seconds: float = 10.0,
         seed: int = 0, progress: bool = True) -> dict[str, str]:
  """Writes a clip for each caption and returns {id: reason} of those that failed.

  Args:
    system: makes the sounds.
    captions: {id: caption}; ids become file names.
    output_dir: the folder.
    seconds: of each clip, as far as the system has a choice.
    seed: of the system.
    progress: show a bar.
  """
  import tqdm

  if not 0 < seconds <= 600:
    raise errors.UserError(f'seconds is {seconds:g}, wanted more than 0, at most 600')
  folder, ids = pathlib.Path(output_dir), sorted(captions)
  for name in ids:
    if name in ('', '.', '..') or '/' in name or '\0' in name:
      raise errors.UserError(f'the id {name!r} cannot be the name of a file')
  failed = {}
  with tqdm.tqdm(total=len(ids), desc='generating', unit=' clips', disable=not progress) as bar:
    for start in range(0, len(ids), system.batch_size):
      part = ids[start:start + system.batch_size]
      if not all(_present(folder, name) for name in part):
        try:
          sounds = system.generate(part, [captions[name] for name in part], seconds, seed)
          for name, sound in zip(part, sounds, strict=True):
            if not _present(folder, name):
              _write(folder, name, sound)
        except (errors.UserError, OSError) as error:
          reason = ' '.join(str(error).split())
          failed |= {name: reason for name in part if not _present(folder, name)}
          bar.write(f'failed: {", ".join(part)}: {reason}', file=sys.stderr)
      bar.update(len(part))
  if len(failed) == len(ids):
    raise errors.UserError(f'nothing of {len(ids)} clips was made; the first: {failed[ids[0]]}')
  return failed


def _present(folder: pathlib.Path, name: str) -> bool:
  return any((folder / f'{name}{suffix}').exists() for suffix in audio.SUFFIXES)


def _write(folder: pathlib.Path, name: str, sound: Sound) -> None:
  path = folder / f'{name}{sound.suffix}'
  if sound.waveform is not None:
    audio.write(path, sound.waveform, sound.rate)
    return
  if sound.suffix not in audio.SUFFIXES:
    raise errors.UserError(f'{name}: a file with suffix {sound.suffix!r}, wanted one of '
                           f'{" ".join(audio.SUFFIXES)}')
  with audio.atomic_path(path) as temporary:
    pathlib.Path(temporary).write_bytes(sound.content)
