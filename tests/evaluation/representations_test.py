"""The report on representation models, end to end on the shipped ones and a few held-out clips."""

import json
import pathlib

import numpy as np
import pytest

from musiclm_jax import audio, errors, generate
from musiclm_jax.data import records
from musiclm_jax.evaluation import corpus_clips, representations, semantic_content
from musiclm_jax.evaluation import text_audio_retrieval as retrieval

HELD_OUT = pathlib.Path(__file__).parents[1] / 'pretrained' / 'held_out'
LEADS = ('violin', 'piano')


@pytest.fixture(name='clips', scope='module')
def _clips(tmp_path_factory):
  """Returns (records, corpus.jsonl): six captioned clips in train, two in test; one not of the corpus."""
  folder = tmp_path_factory.mktemp('clips')
  lines = [json.loads(line) for line in (HELD_OUT / 'captions.jsonl').read_text().splitlines()[:8]]
  rows, serialised = [], []
  for i, line in enumerate(lines):
    waveform = audio.read(str(HELD_OUT / f'{line["id"]}.ogg'))[:5 * audio.SAMPLE_RATE + 100]
    serialised.append(records.waveform_record(line['id'], waveform, [], f'piece{i}'))
    rows.append({'id': line['id'], 'captions': [line['caption'], 'short'], 'metadata': {
        'instruments': {'lead': LEADS[i % 2]}, 'chords': [[0.0, 2.5, i % 2, 'm'], [2.5, 5.0, 2, 'm']]}})
  serialised.append(records.waveform_record('stranger', np.zeros(9 * audio.SAMPLE_RATE)))
  for split, part in (('train', serialised[:6]), ('test', serialised[6:])):
    records.write_shard(folder / 'records' / records.shard_name(split, 0, 1), part)
  records.write_info(folder / 'records', {'kind': 'waveforms'})
  corpus = folder / 'corpus.jsonl'
  corpus.write_text('\n'.join(map(json.dumps, rows)) + '\n\n')
  return str(folder / 'records'), str(corpus)


def test_every_figure_of_the_shipped_models(clips, tmp_path):
  report = representations.evaluate(
      model_dir=generate.TINY, waveforms_dir=clips[0], corpus=clips[1], progress=False)
  assert [(p.task, p.representation) for p in report.probes] == [
      (task, name) for task in ('family of the lead', 'root of the chord')
      for name in ('semantic tokens', 'the same, shuffled', 'cepstral tokens', 'vectors of the tokens')]
  for probe in report.probes:
    assert probe.accuracy.num_train == 12 and probe.accuracy.num_test == 4
    assert 0 <= probe.accuracy.accuracy <= 1
  assert [(r.direction, r.audio, r.num_clips) for r in report.retrievals] == [
      (direction, heard, 2) for heard in ('10 s', 'whole clip')
      for direction in ('text to audio', 'audio to text')]
  assert report.retrievals[0].chance == (0.5, 1.0, 1.0) and report.retrievals[0].recall[1:] == (1, 1)
  assert report.gap.pairs == 2
  assert report.left_out == ['retrieval by melody: no melody records are given']
  tables = representations.tables(report)
  for part in ('| cepstral tokens |', '| text to audio, 10 s |', 'matched pairs', 'left out: retrieval'):
    assert part in tables
  representations.write_json(tmp_path / 'figures.json', report)
  assert json.loads((tmp_path / 'figures.json').read_text())['gap']['pairs'] == 2


def test_models_that_are_missing_are_left_out_and_said(clips, tmp_path):
  report = representations.evaluate(
      model_dir=tmp_path, waveforms_dir=clips[0], corpus=clips[1], progress=False)
  assert not report.probes and not report.retrievals and report.gap is None
  assert report.left_out[0] == (
      f'semantic tokens: {tmp_path} holds no semantic_quantizer and no w2v_bert')
  assert representations.tables(report).startswith('left out: semantic tokens')


def test_clips_are_those_of_the_corpus_in_whole_seconds(clips):
  rows = corpus_clips.read_rows(clips[1])
  found = list(corpus_clips.clips(rows, clips[0], 'test', None, progress=False))
  assert len(found) == 2 and {len(waveform) for _, _, waveform in found} == {5 * audio.SAMPLE_RATE}
  assert len(list(corpus_clips.clips(rows, clips[0], 'train', 3, progress=False))) == 3
  with pytest.raises(errors.UserError, match='no record of test has an id of the corpus'):
    list(corpus_clips.clips({'other': {}}, clips[0], 'test', None, progress=False))


@pytest.mark.parametrize('line', [
    '[]', '{"id": 3}', '{"captions": []}', '{"id": "a", "captions": "b"}', '{"id": "a", "captions": [1]}',
    '{"id": "a", "metadata": []}', '{', '[' * 100_000])
def test_a_line_that_is_no_clip_is_named(line, tmp_path):
  path = tmp_path / 'corpus.jsonl'
  path.write_text('{"id": "a"}\n' + line + '\n')
  with pytest.raises(errors.UserError, match='corpus.jsonl, line 2: not a JSON object'):
    corpus_clips.read_rows(path)


def test_recall_by_hand():
  queries = np.eye(4, dtype=np.float32)
  answers = np.array([[0.9, 0.1, 0, 0], [0.5, 0.4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
  found = retrieval.recalls('text to audio', '10 s', queries, answers)
  np.testing.assert_allclose(found.recall, (1.0, 1.0, 1.0))
  found = retrieval.recalls('audio to text', '10 s', answers, queries)
  np.testing.assert_allclose(found.recall, (0.75, 1.0, 1.0))  # the second prefers the first text
  assert found.chance == (0.25, 1.0, 1.0) and found.num_clips == 4


def test_the_window_heard():
  clip = np.arange(25 * 24_000)
  assert retrieval.window(clip)[0] == 10 * 24_000 and len(retrieval.window(clip)) == 10 * 24_000
  assert retrieval.window(clip[:12 * 24_000])[0] == 2 * 24_000
  assert len(retrieval.window(clip[:100])) == 100


def test_cepstral_tokens_tell_sounds_apart():
  time = np.arange(48_000) / 24_000
  low, high = (np.sin(2 * np.pi * hertz * time).astype(np.float32) for hertz in (200, 5_000))
  coefficients = {name: semantic_content._cepstral_coefficients(wave, 25)
                  for name, wave in (('low', low), ('high', high))}
  assert coefficients['low'].shape == (50, semantic_content.NUM_COEFFICIENTS)
  tokens = semantic_content._cepstral_codes(coefficients, 4, seed=0)
  low, high = (np.unique(tokens(coefficients[name])[5:-5]) for name in ('low', 'high'))
  assert not set(low) & set(high)
