"""The text mapper, fitted to a few clips of the shipped MuLan's."""

import json
import pathlib

import numpy as np
import pytest

from musiclm_jax import audio, checkpoints, errors, fit_mapper, generate, music_tokens
from musiclm_jax.data import records
from musiclm_jax.models import mapper as mapper_model

HELD_OUT = pathlib.Path(__file__).parent / 'pretrained' / 'held_out'
MULAN = str(generate.TINY / 'mulan')


@pytest.fixture(scope='module')
def waveforms(tmp_path_factory):
  """Returns a directory of eight clips to fit to, of four pieces, and two held out."""
  directory = tmp_path_factory.mktemp('records')
  lines = [json.loads(line) for line in (HELD_OUT / 'captions.jsonl').read_text().splitlines()]
  serialised = [
      records.waveform_record(
          clip['id'], audio.read(str(HELD_OUT / f'{clip["id"]}.ogg')),
          [clip['caption'], f'this is {clip["caption"]}'], f'piece{i % 4}' if i < 8 else f't{i}')
      for i, clip in enumerate(lines[:10])]
  for split, part in (('train', serialised[:8]), ('test', serialised[8:])):
    records.write_shard(directory / records.shard_name(split, 0, 1), part)
  records.write_info(directory, {'kind': 'waveforms'})
  return str(directory)


def test_the_whole_way_from_records_to_a_model_of_this_mulan(waveforms, tmp_path):
  report = fit_mapper.fit_mapper(
      MULAN, waveforms, str(tmp_path), quantizer=str(generate.TINY / 'mulan_quantizer'),
      max_steps=100, hidden_dim=16)
  assert report.split == 'test' and report.without.pairs == report.mapped.pairs == 4
  assert 0 <= report.steps <= 100 and len(report.mapped.agreement) == 6
  mapper, mulan = (checkpoints.load_model(path) for path in (str(tmp_path), MULAN))
  music_tokens.check_fitted_to(mapper, mulan)
  assert mapper.extra['report']['error'] == pytest.approx(report.error)
  train = fit_mapper._embedded(mulan, waveforms, 'train', 1.0, None)
  assert len(train.audio) == 8 and train.clip.tolist() == [i // 2 for i in range(16)]
  captions, clips = train.of(np.arange(8) == 3)
  np.testing.assert_array_equal(captions, train.captions[6:8])
  np.testing.assert_array_equal(clips, train.audio[[3, 3]])


def test_a_gap_that_can_be_learnt_is_closed_for_pieces_that_were_not_fitted_to():
  """Texts are the clips' vectors moved to one side, as a cone apart is."""
  def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

  audio = unit(np.random.default_rng(0).standard_normal((300, 8)))
  captions = unit(audio + 1.5 * np.eye(8)[0])
  config = mapper_model.MapperConfig(dim=8, hidden_dim=32, dropout_rate=0.0)
  params, steps, error = fit_mapper._fit(
      config, (captions[:250], audio[:250]), (captions[250:], audio[250:]), 3e-3, 64, 600, 4, 0)
  before = 1 - (captions[250:] * audio[250:]).sum(-1).mean()
  mapped = mapper_model.Mapper(config).apply({'params': params}, captions[250:])
  after = 1 - (np.asarray(mapped) * audio[250:]).sum(-1).mean()
  assert steps > 0 and after < before / 3
  np.testing.assert_allclose(after, error, atol=1e-5)


def test_pieces_are_held_out_whole():
  pieces = np.array(['a', 'b', 'a', 'c', 'd', 'd'])
  for seed in range(5):
    held_out = fit_mapper._held_out(pieces, 0.3, seed)
    assert 0 < held_out.sum() < 6
    assert not set(pieces[held_out]) & set(pieces[~held_out])
  with pytest.raises(errors.UserError, match='1 piece to fit to, wanted at least 2'):
    fit_mapper._held_out(np.array(['a', 'a']), 0.5, 0)


def test_what_it_cannot_be_fitted_to_is_named(tmp_path, waveforms):
  with pytest.raises(errors.UserError, match='held_out_share is 0, wanted'):
    fit_mapper.fit_mapper(MULAN, waveforms, str(tmp_path), held_out_share=0)
  with pytest.raises(errors.UserError, match='holds a mulan, wanted a mulan_quantizer'):
    fit_mapper.fit_mapper(MULAN, waveforms, str(tmp_path), quantizer=MULAN)
  silent = tmp_path / 'records'
  records.write_shard(silent / records.shard_name('train', 0, 1),
                      [records.waveform_record('a', np.zeros(24_000))])
  records.write_info(silent, {'kind': 'waveforms'})
  with pytest.raises(errors.UserError, match='has no captions in its train split'):
    fit_mapper.fit_mapper(MULAN, str(silent), str(tmp_path))
