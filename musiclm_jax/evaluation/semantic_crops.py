"""L5. The semantic stage of a system, and crops of records as it was trained on them."""

import collections
import dataclasses
import os
from collections.abc import Iterator

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from musiclm_jax import (
    audio_tokenizer,
    checkpoints,
    errors,
    generate,
    music_tokens,
    sampling,
    token_layout,
)
from musiclm_jax.data import preprocessors, records
from musiclm_jax.evaluation import memorization

_TOKENIZERS = ('w2v_bert', 'semantic_quantizer', 'mulan', 'mulan_quantizer')  # of what is read here
_RECORD = {
    'mulan': tf.TensorSpec([None, None], tf.int32), 'semantic': tf.TensorSpec([None, 1], tf.int32),
    'mulan_embeddings': tf.TensorSpec([None, None], tf.float32),
    'melody': tf.TensorSpec([None, None], tf.int32)}


@dataclasses.dataclass(frozen=True)
class SemanticStage:
  """centroids float32[K, D] of its tokens; codebooks float32[Q, K, E] of the music tokens."""

  sampler: sampling.Sampler
  centroids: np.ndarray
  codebooks: np.ndarray
  saved: token_layout.SavedLayout
  directory: epath.Path

  @classmethod
  def load(cls, directory: str | os.PathLike | None = None) -> 'SemanticStage':
    """Returns that of a directory of exported models (default: the tiny set of the package)."""
    musiclm = generate.MusicLM.from_pretrained(directory)
    model = musiclm.models['semantic']
    directory = model.directory.parent
    saved = token_layout.read_layout(model.directory)
    quantizer = checkpoints.load_model(directory / 'semantic_quantizer', 'semantic_quantizer')
    if quantizer.fingerprint != saved.tokenizers.get('semantic_quantizer'):
      raise errors.UserError(
          f'{quantizer.directory} is not the quantizer that {model.directory} was trained on')
    return cls(
        sampling.Sampler(model.config, model.variables['params'], musiclm.stage('semantic')),
        np.asarray(quantizer.variables['codebooks']['centroids']),
        np.asarray(musiclm.models['mulan_quantizer'].variables['codebooks']['embeddings']),
        saved, directory)

  def check_reads(self, recorded: token_layout.SavedLayout, where: str) -> None:
    """Raises an error when tokens of `recorded` are not those that the stage was trained on."""
    mine, theirs = self.saved.layout, recorded.layout
    levels = min(mine.mulan.num_levels, theirs.mulan.num_levels)  # more of them are not read
    read = dataclasses.replace(mine, semantic=theirs.semantic, mulan=dataclasses.replace(
        theirs.mulan, num_levels=levels))
    prints = [{name: saved.tokenizers.get(name) for name in _TOKENIZERS}
              for saved in (self.saved, recorded)]
    token_layout.check_same(
        token_layout.SavedLayout(mine, prints[0]), token_layout.SavedLayout(read, prints[1]),
        str(self.directory / 'semantic'), where)


class Crops:
  """One crop of each record, in their order, as tasks.tokens makes them; left_out: too short ones.

  Of what the stage hears there are the music tokens, as in the paper; a melody is hidden.

  `found` yields records as records.read_tokens does, with a 'piece' where it is known; without it
  every record is a piece of its own.
  """

  def __init__(self, found: Iterator[dict], stage: SemanticStage, window_seconds: int, seed: int = 0):
    self._found, self._stage, self._seed = found, stage, seed
    self._window_seconds, self.left_out = window_seconds, 0

  @classmethod
  def of_tokens(cls, directory: str, split: str, stage: SemanticStage, seed: int = 0) -> 'Crops':
    """Returns crops of the token records that tools/extract_tokens.py wrote."""
    info = records.read_info(directory, 'tokens')
    stage.check_reads(token_layout.read_layout(directory), str(directory))
    found = records.read_tokens(directory, split)
    return cls(found, stage, int(info['window_seconds']), seed)

  @classmethod
  def of_waveforms(cls, directory: str, split: str, stage: SemanticStage, seed: int = 0,
                   batch_size: int = 4) -> 'Crops':
    """Returns crops of waveform records, made tokens by the tokenizers beside the stage."""
    info = records.read_info(directory, 'waveforms')
    tokenizer = audio_tokenizer.Tokenizer.load(
        stage.directory, batch_size=batch_size, clip_seconds=_whole_seconds(info, directory),
        acoustic_levels=stage.saved.layout.acoustic.num_levels)
    stage.check_reads(tokenizer.layout(stage.saved.layout.coarse_levels), str(stage.directory))
    return cls(_tokenized(directory, split, tokenizer), stage, music_tokens.WINDOW_SECONDS, seed)

  def __iter__(self) -> Iterator[memorization.Example]:
    stage, melody = self._stage.sampler.stage, self._stage.saved.layout.melody
    pieces, failed = collections.deque(), []

    def arrays():
      try:
        for record in self._found:
          if len(record['semantic_tokens']) < stage.target_frames:
            self.left_out += 1
            continue
          pieces.append(record.get('piece') or record['id'])
          yield {
              'mulan': record['mulan_tokens'], 'semantic': record['semantic_tokens'][:, None],
              'mulan_embeddings': record['mulan_embeddings'].astype(np.float32),
              'melody': np.zeros((0, melody.num_levels if melody else 0), np.int32)}
      except errors.UserError as error:  # TensorFlow would wrap it
        failed.append(error)

    with seqio.utils.map_seed_manager(self._seed):
      crops = preprocessors.crop_tokens(
          self._stage.saved.layout, stage, self._stage.codebooks, self._window_seconds,
          crops_per_record=1)(tf.data.Dataset.from_generator(arrays, output_signature=_RECORD))
    for crop in crops.as_numpy_iterator():  # in the order of the records
      prefix = crop['prefix']
      if token_layout.MELODY in stage.conditions:
        prefix = stage.hidden(prefix, token_layout.MELODY)
      yield memorization.Example(prefix, crop['targets'], pieces.popleft())
    if failed:
      raise failed[0]


def _tokenized(directory, split, tokenizer) -> Iterator[dict]:
  clips = records.read_waveforms(directory, split)
  for clip, tokens in audio_tokenizer.tokenized(clips, tokenizer):
    if tokens is not None:
      yield tokens | {'id': clip['id'], 'piece': clip['piece']}


def _whole_seconds(info: dict, directory: str) -> int:
  """Returns how many whole seconds the longest clip has, 30 where the records do not say."""
  longest = info.get('longest_seconds', 30.0)
  if not isinstance(longest, int | float) or not 1 <= longest <= 3600:
    raise errors.UserError(f'{directory}: longest_seconds is {longest!r}, wanted 1 to 3600')
  return int(longest)
