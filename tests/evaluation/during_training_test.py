"""Music made while a stage trains: its figures reach the run's files, and are those of its weights."""

import csv
import dataclasses

import jax
import numpy as np
import pytest
from small_system import DECODER, LAYOUT

from musiclm_jax import errors, generate, optimizers, train
from musiclm_jax.data import records
from musiclm_jax.evaluation import during_training
from musiclm_jax.objectives import language_model

OBJECTIVE = language_model.LanguageModelObjective(DECODER, LAYOUT, 'coarse', 2)


class Noise:
  """Sequences of random codes without end."""

  def iterator(self, batch_size, seed, shard_index, num_shards):
    self._rows, self._random = batch_size, np.random.default_rng(seed)
    return self

  def __next__(self):
    stage = OBJECTIVE.stage_layout
    ids = stage.flatten({
        stream.name: self._random.integers(0, stream.codebook_size, (
            self._rows, stream.num_frames(stage.seconds), stream.num_levels))
        for stream in stage.streams})
    weights = np.arange(stage.sequence_length) >= stage.prefix_length
    return {'decoder_input_tokens': np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=1),
            'decoder_target_tokens': ids,
            'decoder_loss_weights': np.broadcast_to(weights, ids.shape).astype(np.float32)}

  def save(self, path):
    del path

  def restore(self, path):
    del path


@pytest.fixture(scope='module')
def waveforms(tmp_path_factory):
  path, random = tmp_path_factory.mktemp('records'), np.random.default_rng(0)
  clips = [0.2 * random.standard_normal(48_000).astype(np.float32) for _ in range(3)]
  records.write_shard(path / records.shard_name('test', 0, 1), [
      records.waveform_record(str(i), clip, captions=[['slow', 'slow piano'], ['loud rock'], []][i])
      for i, clip in enumerate(clips)])
  records.write_info(path, {'kind': 'waveforms'})
  return path


@pytest.fixture(scope='module')
def evaluation(system, waveforms):
  return during_training.GeneratedMusic(
      waveforms, system, every=2, num_clips=2, seconds=2, shown=1)


def test_a_run_writes_its_figures(evaluation, tmp_path):
  state = train.train(
      workdir=str(tmp_path), objective=OBJECTIVE, dataset=Noise(), evaluations=[evaluation],
      optimizer=optimizers.adamw(1e-2), total_steps=3, batch_size=8, log_every=1,
      checkpoint_every=10)
  with open(tmp_path / 'metrics.csv', encoding='utf-8') as lines:
    found = [(int(row[0]), row[1], float(row[2])) for row in csv.reader(lines)
             if row[1].startswith('generated/')]
  assert [(step, name) for step, name, _ in found] == [
      (step, f'generated/{name}') for step in (2, 3) for name in ('mcc', 'mcc_permuted', 'fad_mulan')]
  metrics, media = evaluation(OBJECTIVE, jax.device_get({'params': state.params}))
  assert metrics == pytest.approx({name.split('/')[1]: value for step, name, value in found if step == 3},
                                  abs=1e-4)
  kind, clips, rate = media['music']
  assert kind == 'audio' and clips.shape == (1, 48_000) and rate == 24_000


def test_the_stage_in_training_is_heard(evaluation, system):
  """With the weights that were exported, the music is that of the exported models."""
  musiclm = generate.MusicLM.from_pretrained(system)
  _, media = evaluation(OBJECTIVE, musiclm.models['coarse'].variables)
  expected = musiclm.generate(['slow piano', 'loud rock'], seconds=2)
  np.testing.assert_allclose(media['music'][1], expected[:1], atol=1e-4)


def test_errors(evaluation, system, waveforms):
  with pytest.raises(errors.UserError, match='has 2 clips of split test with captions, wanted num_clips, 3'):
    during_training.GeneratedMusic(waveforms, system, num_clips=3)
  with pytest.raises(errors.UserError, match='num_clips is 1, every is 1000'):
    during_training.GeneratedMusic(waveforms, system, num_clips=1)
  other = dataclasses.replace(LAYOUT, coarse_levels=1)
  objective = dataclasses.replace(OBJECTIVE, layout=other)
  with pytest.raises(errors.UserError, match='coarse_levels is 1 in this run, 2 in'):
    evaluation(objective, {})
