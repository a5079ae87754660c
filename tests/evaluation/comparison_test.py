"""Comparing systems: which clips count, what is left out, the numbers, the reports, the memory."""

import csv
import html
import json
import os
import pathlib
import tracemalloc

import numpy as np
import pytest

from musiclm_jax import audio, errors, generate
from musiclm_jax.evaluation import (
    clip_folders,
    comparison,
    comparison_html,
    comparison_report,
    embeddings,
    frechet,
    kld,
)

RATE = 8_000
HOSTILE = '<script>alert("1")</script> & $x^2$'


def _features(waveform):
  """Returns f32[N, 3]: loudness, brightness and mean of each tenth of a second."""
  frames = waveform[:len(waveform) // 800 * 800].reshape(-1, 800)
  return np.stack([np.abs(frames).mean(1), np.abs(np.diff(frames)).mean(1), frames.mean(1)], axis=1)


EMBEDDING = embeddings.Embedding('mine', 'first', RATE, _features)
CLASSIFIER = kld.Classifier('ear', 'first', RATE, lambda waveform: 30 * _features(waveform))
IDS = [f'clip_{i:02d}' for i in range(12)]


def _clip(number, loudness, seconds=1.2):
  random = np.random.default_rng(number)
  wave = random.normal(size=round(seconds * RATE)) * np.linspace(0.5, 1, round(seconds * RATE))
  return (loudness * wave / 3).astype(np.float32)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder of systems: `same` is the reference, `quiet` is not; and captions of 13 clips.

  `quiet` lacks clip_00, has clip_01 broken, and a clip that nobody asked for.
  """
  folder = tmp_path_factory.mktemp('systems')
  for i, name in enumerate(IDS):
    for system, loudness in (('reference', 0.8), ('same', 0.8), ('quiet', 0.2)):
      audio.write(folder / system / f'{name}.wav', _clip(i, loudness), RATE)
  (folder / 'quiet' / 'clip_00.wav').unlink()
  (folder / 'quiet' / 'clip_01.wav').write_bytes(b'no audio at all')
  audio.write(folder / 'quiet' / 'stranger.wav', _clip(99, 0.2), RATE)
  with open(folder / 'captions.csv', 'w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(['id', 'caption'])
    writer.writerows([[name, f'{HOSTILE} {name}'] for name in [*IDS, 'clip_99']])
  return folder


def _match(folder, names=('same', 'quiet'), reference=True, **options):
  found = {name: clip_folders.find_clips(folder / name) for name in names}
  if reference:
    found['reference'] = clip_folders.find_clips(folder / 'reference')
  return clip_folders.match(clip_folders.read_captions(folder / 'captions.csv'), found, **options)


@pytest.fixture(scope='module', name='report')
def _report(folder):
  models = comparison.Models([EMBEDDING], CLASSIFIER)
  return comparison.compare(_match(folder), models, progress=False)


def test_one_bad_clip_is_left_out_for_all_and_listed(folder, report):
  assert [clip.id for clip in report.clips] == IDS[2:]
  assert list(report.left_out) == ['clip_01'] and 'clip_01.wav' in report.left_out['clip_01']
  assert report.missing == {'same': ('clip_99',), 'reference': ('clip_99',),
                            'quiet': ('clip_00', 'clip_99')}
  match = _match(folder)
  assert match.ids == tuple(IDS[1:]) and match.unknown['quiet'] == ('stranger',)


def test_scores_are_those_of_the_clips_by_hand(folder, report):
  same, quiet, reference = report.systems
  read = lambda system: [audio.read(str(folder / system / f'{name}.wav'), RATE) for name in IDS[2:]]
  moments = {system: frechet.Moments.of(np.concatenate([_features(x).astype(np.float32)
                                                        for x in read(system)]))
             for system in ('quiet', 'reference')}
  assert quiet.fad['mine'].distance == pytest.approx(
      frechet.distance(moments['quiet'], moments['reference']), rel=1e-6)
  assert quiet.fad['mine'].num_embeddings == 120 and quiet.seconds == pytest.approx(12)
  assert same.fad['mine'].distance == pytest.approx(0, abs=1e-12) and same.kld == 0
  config = kld.KldConfig()
  pairs = [[CLASSIFIER.probabilities(x, config) for x in pair]
           for pair in zip(read('reference'), read('quiet'), strict=True)]
  assert quiet.kld == pytest.approx(np.mean([kld.divergence(*pair, config) for pair in pairs]))
  assert not reference.fad and reference.kld is None and same.mcc is None
  assert quiet.fad['mine'].extrapolated.counts[-1] == 120


def test_only_the_first_seconds_are_heard(folder):
  models = comparison.Models([EMBEDDING])
  report = comparison.compare(_match(folder, ['quiet']), models, seconds=0.5, progress=False)
  assert report.systems[0].fad['mine'].num_embeddings == 50
  with pytest.raises(errors.UserError, match='seconds is 0'):
    comparison.compare(_match(folder), models, seconds=0, progress=False)


def test_saved_statistics_take_the_place_of_the_reference(folder, report, tmp_path):
  models = comparison.Models([EMBEDDING])
  comparison.compare(_match(folder), models, statistics_dir=tmp_path, progress=False)
  match = _match(folder, reference=False)
  found = comparison.compare(match, models, statistics_dir=tmp_path, progress=False)
  assert found.systems[1].fad == report.systems[1].fad
  fewer = _match(folder, max_clips=4)
  found = comparison.compare(fewer, models, statistics_dir=tmp_path, progress=False)
  assert any('saved statistics are of 10 clips' in line for line in found.warnings)
  other = embeddings.Embedding('mine', 'second', RATE, _features)
  with pytest.raises(errors.UserError, match='its fingerprint is first'):
    comparison.compare(match, comparison.Models([other]), statistics_dir=tmp_path, progress=False)
  with pytest.raises(errors.UserError, match='need the folder of the reference'):
    comparison.compare(match, models, progress=False)


def test_embeddings_that_fail_leave_their_clip_out(folder):
  failing = embeddings.Embedding(
      'mine', 'f', RATE, lambda x: _features(x) + (np.nan if x[0] > 0 else 0))
  found = comparison.compare(_match(folder), comparison.Models([failing]), progress=False)
  reasons = {name: reason for name, reason in found.left_out.items() if name != 'clip_01'}
  assert 0 < len(reasons) < 10 and all('not finite' in reason for reason in reasons.values())
  never = embeddings.Embedding('mine', 'f', RATE, lambda x: np.zeros((0, 3)))
  with pytest.raises(errors.UserError, match='none of 11 clips could be measured'):
    comparison.compare(_match(folder), comparison.Models([never]), progress=False)


def test_a_single_embedding_has_no_distance_and_ends_nothing(folder, tmp_path):
  one = embeddings.Embedding('one', 'f', RATE, lambda x: _features(x)[:1])
  found = comparison.compare(_match(folder, max_clips=1), comparison.Models([one]), progress=False)
  assert np.isnan(found.systems[0].fad['one'].distance) and 'singular' in found.warnings[0]
  comparison_report.write_json(tmp_path / 'a.json', found)
  stored = json.loads((tmp_path / 'a.json').read_text())
  assert stored['systems'][0]['fad']['one']['distance'] is None
  comparison_html.write(tmp_path / 'a.html', found)


def test_the_shipped_mulan_hears_which_caption_is_whose(tmp_path):
  held_out = pathlib.Path(__file__).parents[1] / 'pretrained' / 'held_out'
  lines = [json.loads(line) for line in (held_out / 'captions.jsonl').read_text().splitlines()[:4]]
  captions = {line['id']: line['caption'] for line in lines}
  match = clip_folders.match(captions, {'real': clip_folders.find_clips(held_out)})
  models = comparison.load_models(['mcc'], generate.TINY)
  found = comparison.compare(match, models, seconds=5.0, progress=False).systems[0].mcc
  assert found.num_clips == 4 and found.cosine > found.permuted + 0.3


# --- Which clips ------------------------------------------------------------------------------


def test_a_sample_of_clips_is_always_the_same(folder):
  some = _match(folder, max_clips=5).ids
  assert len(some) == 5 and list(some) == sorted(some)
  assert set(_match(folder, max_clips=3).ids) < set(some)


def test_captions_by_id_by_path_and_of_a_corpus(tmp_path):
  (tmp_path / 'a.csv').write_text('path,caption\nx/one.flac,A song.\nx/one.flac,A longer  song.\n,no\n')
  assert clip_folders.read_captions(tmp_path / 'a.csv') == {'one': 'A longer song.'}
  lines = [{'id': 'b', 'path': 'b.wav', 'split': split, 'captions': ['x', 'longest']}
           for split in ('test', 'train')]
  (tmp_path / 'corpus.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  assert clip_folders.read_captions(tmp_path / 'corpus.jsonl') == {'b': 'longest'}
  for content, message in [('caption\nx\n', 'wanted id or path'), ('id\nx\n', 'wanted also'),
                           ('id,caption\na,\n', 'no rows with an id')]:
    (tmp_path / 'bad.csv').write_text(content)
    with pytest.raises(errors.UserError, match=message):
      clip_folders.read_captions(tmp_path / 'bad.csv')


def test_folders_that_do_not_fit_are_named(folder, tmp_path):
  with pytest.raises(errors.UserError, match='1 captions, same 12'):
    clip_folders.match({'x': 'A song.'}, {'same': clip_folders.find_clips(folder / 'same')})
  with pytest.raises(errors.UserError, match='holds no audio'):
    clip_folders.find_clips(tmp_path)
  assert clip_folders.named(['a=x', 'y/b/'], 'r') == {'a': 'x', 'b': 'y/b/', 'reference': 'r'}
  for given in (['a=x', 'a=y'], ['reference=x'], ['=x'], ['a=']):
    with pytest.raises(errors.UserError):
      clip_folders.named(given, None)
  with pytest.raises(errors.UserError, match='no metric'):
    comparison.load_models(['fat'], generate.TINY)
  for metrics, names in (([], ['mulan']), (['fad'], [])):
    with pytest.raises(errors.UserError, match='nothing to measure'):
      comparison.load_models(metrics, generate.TINY, names=names)
  with pytest.raises(errors.UserError, match='give --yamnet=DIR'):
    comparison.load_models(['kld'], generate.TINY)


# --- Reports ----------------------------------------------------------------------------------


def test_the_table_has_the_papers_rows_beside(report):
  lines = comparison_report.text(report).splitlines()
  assert lines[0] == '10 clips, at most 10 s of each (same 12 s, quiet 12 s, reference 12 s); 1 left out'
  assert '| Mubert (paper) | – | 0.45 | 9.60 | – | 1.58 | 0.32 | – |' in lines
  assert any(line.startswith('| quiet | 10 | – | – | 0.') for line in lines)
  assert any(line.startswith('left out: clip_01: ') for line in lines)
  assert 'missing: quiet has no file for 2 captions (clip_00, clip_99)' in lines


def test_json_and_csv_hold_ids_and_every_figure(report, tmp_path):
  comparison_report.write_json(tmp_path / 'a.json', report)
  stored = json.loads((tmp_path / 'a.json').read_text())
  assert stored['num_clips'] == 10 and stored['ids'] == IDS[2:]
  assert stored['systems'][1]['fad']['mine']['distance'] == report.systems[1].fad['mine'].distance
  assert stored['settings']['models'] == {'fad mine': 'first', 'kld ear': 'first'}
  assert stored['settings']['kld']['direction'] == 'reference_generated'
  comparison_report.write_csv(tmp_path / 'a.csv', report)
  with open(tmp_path / 'a.csv', newline='') as stream:
    rows = {row['system']: row for row in csv.DictReader(stream)}
  assert float(rows['quiet']['kld']) == report.systems[1].kld
  assert rows['MusicLM']['fad_vggish'] == '4.0' and rows['quiet']['fad_vggish'] == ''


@pytest.mark.parametrize('inline', [False, True])
def test_the_page_plays_clips_and_escapes_what_came_from_outside(folder, report, tmp_path, inline):
  path = folder / 'page' / 'index.html'
  comparison_html.write(path, report, players=3, inline_audio=inline)
  page = path.read_text()
  assert '<script' not in page and html.escape(HOSTILE) in page and '$x^2$' in page
  assert page.count('<audio ') == 9 and page.count('data:image/png') == 2
  assert page.count('data:audio/wav;base64,') == (9 if inline else 0)
  if not inline:
    linked = [part.split('"')[0] for part in page.split('src="')[1:] if part.startswith('../')]
    assert len(linked) == 9 and all((path.parent / name).exists() for name in linked)


def test_names_of_files_that_are_markup_are_only_names(tmp_path):
  name = 'a"onerror="x<b> #1 ü'
  for system in ('$s$<i>', 'reference'):
    audio.write(tmp_path / system / f'{name}.wav', _clip(0, 0.5), RATE)
  files = {system: clip_folders.find_clips(tmp_path / system) for system in ('$s$<i>', 'reference')}
  match = clip_folders.match({name: 'A song.'}, files)
  found = comparison.compare(match, comparison.Models([EMBEDDING]), progress=False)
  comparison_html.write(tmp_path / 'index.html', found)
  page = (tmp_path / 'index.html').read_text()
  assert '<i>' not in page and '<b>' not in page and 'a"onerror' not in page
  assert 'src="reference/a%22onerror%3D%22x%3Cb%3E%20%231%20%C3%BC.wav"' in page


# --- Memory -----------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
  """200 clips of 10 s at 24 kHz, in two folders, are 192 MB of float32."""
  rate, seconds = 24_000, 10
  for system in ('a', 'reference'):
    audio.write(tmp_path / system / '000.wav', _clip(0, 0.5, seconds * rate / RATE), rate)
    for i in range(1, 200):
      os.link(tmp_path / system / '000.wav', tmp_path / system / f'{i:03d}.wav')
  names = [f'{i:03d}' for i in range(200)]
  files = {system: clip_folders.find_clips(tmp_path / system) for system in ('a', 'reference')}
  measured = []

  def embed(waveform):
    measured.append(tracemalloc.get_traced_memory()[0])
    return waveform.reshape(-1, 24)

  models = comparison.Models([embeddings.Embedding('mine', 'f', rate, embed)])
  match = clip_folders.match(dict.fromkeys(names, 'A song.'), files)
  tracemalloc.start()
  try:
    found = comparison.compare(match, models, progress=False)
  finally:
    tracemalloc.stop()
  assert found.systems[0].fad['mine'].num_embeddings == 200 * seconds * rate // 24
  assert measured[-1] - measured[100] < 1_000_000  # bytes; a clip is 960,000
