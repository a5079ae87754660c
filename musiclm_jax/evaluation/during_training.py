"""L5. Music made while one of the three stages trains: MCC and FAD of few clips, and the clips.

The stage in training takes the place of the exported one; the other models stay as they are. Figures of
few clips say whether a run goes up or down, not how good a system is: tools/evaluate.py does.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from musiclm_jax import checkpoints, errors, generate, music_tokens, token_layout
from musiclm_jax.evaluation import embeddings, frechet, mcc
from musiclm_jax.models import registry

log = logging.getLogger(__name__)


class GeneratedMusic:
  """An evaluation that train.train calls: `evaluation(objective, variables)`, every `every` steps.

  name: of its metrics in TensorBoard.
  """

  name = 'generated'

  def __init__(self, waveforms: str, models_dir: str | None = None, every: int = 1000,
               split: str = 'test', num_clips: int = 16, seconds: float = 10.0,
               embedding: str = 'mulan', shown: int = 4, seed: int = 0):
    """Args:
      waveforms: records with captions; those of `split` are the prompts and what FAD compares with.
      models_dir: the other exported models; default: those of the package.
      every: steps between evaluations.
      num_clips: the first ones of the split that have a caption.
      seconds: of each clip.
      embedding: for FAD, an exported model of models_dir: 'mulan' or 'w2v_bert'.
      shown: clips that TensorBoard gets to hear.
      seed: the same music is asked for every time.
    """
    if num_clips < 2 or every < 1:
      raise errors.UserError(
          f'num_clips is {num_clips}, every is {every}: wanted 2 clips, every step or more')
    self.every, self._shown, self._seed = every, shown, seed
    self._seconds = seconds
    directory = os.fspath(models_dir or generate.TINY)
    self._musiclm = generate.MusicLM.from_pretrained(directory)
    self._mulan = embeddings.of_mulan(self._musiclm.models['mulan'])
    self._embedding = self._mulan if embedding == self._mulan.name else embeddings.load(
        embedding, embeddings.directory(embedding, directory, {}))
    self._prompts, clips = _captioned(waveforms, split, num_clips)
    length = round(seconds * self._musiclm.sample_rate)
    self._reference = _moments([self._embedding(clip[:length]) for clip in clips])
    log.info('%s', frechet.warning(self._reference) or f'{self.name}: enough clips for FAD')

  def __call__(self, objective: Any, variables: Mapping[str, Any]
               ) -> tuple[dict[str, float], dict[str, tuple[str, np.ndarray, int]]]:
    """Returns ({'mcc', 'mcc_permuted', 'fad_EMBEDDING'}, {name: ('audio', f32[N, S], rate)}).

    `variables` are those of objective.model, on the host.
    """
    musiclm = self._with(objective, variables)
    waveforms = musiclm.generate(self._prompts, seconds=self._seconds, seed=self._seed)
    heard = [self._mulan(waveform) for waveform in waveforms]
    agreement = mcc.agreement(musiclm.embed_text(self._prompts),
                              np.stack([music_tokens.unit_mean(rows) for rows in heard]))
    points = heard if self._embedding is self._mulan else list(map(self._embedding, waveforms))
    distance = frechet.distance(_moments(points), self._reference)
    metrics = {'mcc': agreement.cosine, 'mcc_permuted': agreement.permuted,
               f'fad_{self._embedding.name}': distance}
    return metrics, {'music': ('audio', waveforms[:self._shown], musiclm.sample_rate)}

  def _with(self, objective, variables) -> generate.MusicLM:
    """Returns the models with the stage in training in its place."""
    name = objective.model_name
    if name not in token_layout.STAGES:
      raise errors.UserError(f'a {name} makes no music by itself, wanted a run of one of '
                             f'{list(token_layout.STAGES)}')
    token_layout.check_same(objective.layout, self._musiclm.layout, 'this run',
                            str(self._musiclm.models[name].directory))
    stage = checkpoints.ExportedModel(
        name=name, config=objective.config, module=registry.build(name, objective.config),
        variables=dict(variables), extra=dict(objective.export_extra),
        directory=self._musiclm.models[name].directory, fingerprint='in training')
    return dataclasses.replace(self._musiclm, models=self._musiclm.models | {name: stage})


def _captioned(waveforms: str, split: str, count: int) -> tuple[list[str], list[np.ndarray]]:
  """Returns (captions, clips f32[S]) of the first records of a split that have a caption."""
  from musiclm_jax.data import records  # TensorFlow
  prompts, clips = [], []
  for record in records.read_waveforms(waveforms, split):
    if record['captions']:
      prompts.append(max(record['captions'], key=len)[:generate.MAX_PROMPT_CHARACTERS])
      clips.append(record['waveform'])
    if len(prompts) == count:
      return prompts, clips
  raise errors.UserError(f'{waveforms} has {len(prompts)} clips of split {split} with captions, '
                         f'wanted num_clips, {count}')


def _moments(points: list[np.ndarray]) -> frechet.Moments:
  return functools.reduce(frechet.Moments.__add__, map(frechet.Moments.of, points))
