"""L5. Systems on this machine: exported models of this project, and a folder that is there already."""

import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence

from musiclm_jax import errors, generate
from musiclm_jax.evaluation.systems import filling


class MusicLM:
  """Exported models, as tools/generate.py runs them; a clip depends on its id, not on the others."""

  def __init__(self, model: str | None = None, batch_size: int = 16):
    self.batch_size, self._musiclm = batch_size, generate.MusicLM.from_pretrained(model)

  def generate(self, ids: Sequence[str], captions: Sequence[str], seconds: float,
               seed: int) -> list[filling.Sound]:
    """Returns the music of the captions; those that are too long are cut."""
    prompts = [caption[:generate.MAX_PROMPT_CHARACTERS] for caption in captions]
    seeds = [zlib.crc32(f'{seed} {name}'.encode()) for name in ids]
    waveforms = self._musiclm.generate(prompts, seconds=seconds, seed=seeds)
    return [filling.Sound(waveform, self._musiclm.sample_rate) for waveform in waveforms]


class Folder:
  """Clips that another program has made, under the names of their ids, or as `files` says."""

  batch_size = 1

  def __init__(self, files: Mapping[str, str]):
    self._files = files

  def generate(self, ids: Sequence[str], captions: Sequence[str], seconds: float,
               seed: int) -> list[filling.Sound]:
    """Returns the files' bytes as they are: nothing is resampled, nothing is cut."""
    del captions, seconds, seed
    if missing := [name for name in ids if name not in self._files]:
      raise errors.UserError(f'there is no file for {missing[0]}')
    return [filling.Sound(content=pathlib.Path(self._files[name]).read_bytes(),
                          suffix=os.path.splitext(self._files[name])[1].lower()) for name in ids]
