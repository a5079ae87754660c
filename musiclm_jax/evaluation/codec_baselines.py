"""L5. What a model of codec tokens can reach, and what it must beat: two folders made of recordings.

  resynthesised/ID.wav   through the codec and back: nothing made of its tokens can sound better
  shuffled/ID.wav        the same tokens in another order: the codes of the music without the music

Axes: S samples, T frames, Q levels.
"""

import os
import pathlib
import sys
import zlib
from collections.abc import Mapping

import numpy as np

from musiclm_jax import audio, codec, errors
from musiclm_jax.evaluation import codec_quality

RESYNTHESISED, SHUFFLED = 'resynthesised', 'shuffled'
SHUFFLES = ('frames', 'tokens')


def write(
    files: Mapping[str, str],
    output_dir: str | os.PathLike,
    model: codec.Codec,
    *,
    seconds: float = 10.0,
    num_levels: int | None = None,
    shuffle: str = SHUFFLES[0],
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, str]:
  """Writes both folders and returns {id: reason} of the files that could not be read.

  Args:
    files: {id: path}.
    output_dir: gets both folders.
    model: the codec.
    seconds: of each file, its beginning.
    num_levels: of the codec, the first ones; all by default.
    shuffle: see `shuffled`.
    seed: of the shuffling; each clip draws by its id, whatever others there are.
    overwrite: files that exist are replaced.
    progress: show a bar.
  """
  import tqdm

  if shuffle not in SHUFFLES:
    raise errors.UserError(f'shuffle is {shuffle!r}, wanted one of {", ".join(SHUFFLES)}')
  if not 0 < seconds <= codec_quality.MAX_SECONDS:
    raise errors.UserError(
        f'seconds is {seconds:g}, wanted more than 0, at most {codec_quality.MAX_SECONDS:g}')
  most = model.config.num_quantizers
  if num_levels is not None and not 1 <= num_levels <= most:
    raise errors.UserError(f'{num_levels} levels asked for, {model.model.directory} has {most}')
  rate, left_out = model.config.sample_rate, {}
  for name, path in tqdm.tqdm(files.items(), 'codec', unit=' clips', disable=not progress):
    targets = [pathlib.Path(output_dir) / kind / f'{name}.wav' for kind in (RESYNTHESISED, SHUFFLED)]
    for target in targets:
      audio.check_writable(target, overwrite)
    try:
      waveform = audio.read_beginning(path, seconds, rate)
    except (errors.UserError, OSError) as error:
      left_out[name] = ' '.join(str(error).split())
      tqdm.tqdm.write(f'left out: {left_out[name]}', file=sys.stderr)
      continue
    codes = np.concatenate(list(model.encode([waveform], num_levels)))
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    for target, tokens in zip(targets, (codes, shuffled(codes, shuffle, random)), strict=True):
      decoded = np.concatenate(list(model.decode([tokens])))[: len(waveform)]
      audio.write(target, decoded, rate, overwrite)
  if len(left_out) == len(files):
    reason = next(iter(left_out.values()), 'there are none')
    raise errors.UserError(f'none of {len(files)} files could be read; the first: {reason}')
  return left_out


def shuffled(codes: np.ndarray, shuffle: str, random: np.random.Generator) -> np.ndarray:
  """Returns int[T, Q] codes in another order: whole frames, or each level's tokens by themselves.

  Either way each level has the same codes as often. Of two frames, [[1 2] [3 4]]:

    frames   [[3 4] [1 2]]        tokens   [[3 2] [1 4]], among others
  """
  if shuffle == 'frames':
    return random.permutation(codes)
  return random.permuted(codes, axis=0)
