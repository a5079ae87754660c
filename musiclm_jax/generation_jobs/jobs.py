"""What a batch job is to make: its settings, the names and the seeds of its pieces, its share."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from musiclm_jax import errors, generate
from musiclm_jax.generation_jobs import audio_files, prompts

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Job:
  """Prompts in, audio files out.

  prompts: a tsv, csv or jsonl, see prompts.py; local or of any scheme that fsspec knows.
  output: folder for the files, see object_store.py.
  seconds: of pieces whose row does not say.
  keep_best: of `num_samples` pieces a prompt, how many are written: those most similar to it.
  batch_size: pieces that are made at once.
  shard: (index, count): makes every count-th batch only; None for this host's share.
  """

  prompts: str
  output: str
  seconds: float = 10.0
  seed: int = 0
  how: generate.Sampling = generate.Sampling()
  num_samples: int = 1
  keep_best: int | None = None
  batch_size: int = 8
  file_format: str = 'wav'
  shard: tuple[int, int] | None = None
  model: str | None = None
  text_mapper: bool = False
  weights_dtype: str = ''

  def __post_init__(self):
    for name in ('num_samples', 'batch_size'):
      if getattr(self, name) < 1:
        raise errors.UserError(f'{name} is {getattr(self, name)}, wanted at least 1')
    if not 1 <= self.kept <= self.num_samples:
      raise errors.UserError(f'keep_best is {self.keep_best}, num_samples is {self.num_samples}: '
                             'wanted 1 or more, and no more kept than made')
    if self.file_format not in audio_files.SUFFIXES:
      raise errors.UserError(f'format is {self.file_format!r}, wanted one of '
                             f'{" ".join(audio_files.SUFFIXES)}')
    if self.shard and not 0 <= self.shard[0] < self.shard[1]:
      raise errors.UserError(f'shard is {self.shard[0]}/{self.shard[1]}, wanted 0/N to (N-1)/N')
    generate.check_request([], self.seconds)

  @property
  def kept(self) -> int:
    return self.num_samples if self.keep_best is None else self.keep_best

  @property
  def suffix(self) -> str:
    return audio_files.SUFFIXES[self.file_format]

  def share(self) -> tuple[int, int]:
    """Returns (index, count) of the part of all batches that is made here."""
    return self.shard or (jax.process_index(), jax.process_count())

  def names(self, prompt: prompts.Prompt) -> list[str]:
    """Returns the names of a prompt's files, without suffix: a, or a-1, a-2, … for several."""
    if self.kept == 1:
      return [prompt.name]
    return [f'{prompt.name}-{i + 1}' for i in range(self.kept)]

  def example_seed(self, prompt: prompts.Prompt, sample: int) -> int:
    """Returns the seed of one piece, below 2**31: of the job's seed, the id and the sample alone."""
    if prompt.seed is not None and not sample:
      return prompt.seed
    start = self.seed if prompt.seed is None else f'row {prompt.seed}'
    digest = hashlib.sha256(json.dumps([start, prompt.id, sample]).encode()).digest()
    return int.from_bytes(digest[:4]) >> 1

  def batches(self, table: Sequence[prompts.Prompt]) -> list[tuple[int, list[prompts.Prompt]]]:
    """Returns [(whole seconds, prompts)] of this share; all pieces of a prompt are made together."""
    index, count = self.share()
    return prompts.batches(table, max(self.batch_size // self.num_samples, 1))[index::count]

  def settings(self, table: Sequence[prompts.Prompt]) -> dict[str, Any]:
    """Returns what decides the pieces, beside the model's weights, as JSON values."""
    rows = [[each.id, each.text, each.seconds, each.seed] for each in table]
    return {
        'format_version': FORMAT_VERSION,
        'prompts': hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        'seed': self.seed, 'num_samples': self.num_samples, 'kept': self.kept,
        'batch_size': self.batch_size, 'format': self.file_format,
        'text_mapper': self.text_mapper, 'weights_dtype': self.weights_dtype,
        'how': dataclasses.asdict(self.how)}


def check_same(begun: Mapping[str, Any], now: Mapping[str, Any], output: str) -> None:
  """Raises an error when the files of an output folder were begun with other settings."""
  for name in now:
    if begun.get(name) != now[name]:
      if name in ('prompts', 'model'):
        raise errors.UserError(f'{output} was begun with other {name}, wanted the same or another output')
      raise errors.UserError(f'{output} was begun with {name} {begun.get(name)}, now it is '
                             f'{now[name]}: wanted the same or another output')
