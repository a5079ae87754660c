import collections
import json

import numpy as np
import pytest
import soundfile

from musiclm_jax import errors
from musiclm_jax.corpus import build, render, styles


@pytest.fixture(scope='module')
def soundfont():
  try:
    render.load_fluidsynth()
    fonts = render.find_soundfonts([])
  except errors.UserError as error:
    pytest.skip(str(error))
  return [next((f for f in fonts if f.endswith('.sf2')), fonts[0])]  # sf3 takes seconds to unpack


def _files(folder):
  files = [p for p in folder.rglob('*') if p.is_file()]
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope='module')
def corpus(soundfont, tmp_path_factory):
  folder = tmp_path_factory.mktemp('corpus') / 'one'
  rows = build.build(
    output=str(folder), hours=4 / 120, seed=3, soundfonts=soundfont, test_share=0.4
  )
  return folder, rows


def test_the_clips_are_music_of_the_promised_form(corpus):
  folder, rows = corpus
  assert rows == [json.loads(line) for line in (folder / 'corpus.jsonl').read_text().splitlines()]
  assert len(rows) == 4
  for row in rows:
    audio, rate = soundfile.read(folder / row['path'])
    assert rate == 24_000 and len(audio) == 720_000 == row['seconds'] * rate
    assert 0.1 < np.abs(audio).max() <= 0.98
    assert -32 < 20 * np.log10(audio.std()) < -10
    frames = audio.reshape(-1, 24_000).std(axis=1)
    assert np.mean(frames > 1e-3) > 0.75
    assert {'id', 'split', 'captions', 'aspects', 'piece', 'source', 'licence'} <= row.keys()
  assert 'CC0' in (folder / 'LICENCES' / 'README.txt').read_text()


def test_the_seed_decides_every_byte_whatever_the_workers(corpus, soundfont, tmp_path):
  folder, _ = corpus
  build.build(output=str(tmp_path / 'two'), hours=4 / 120, seed=3, soundfonts=soundfont,
              test_share=0.4, workers=2)
  assert _files(folder) == _files(tmp_path / 'two')


def test_the_split_is_by_piece_and_balanced():
  specs = build.plan(7.0, 0, 0.1)
  assert sum(s.num_clips for s in specs) == 840
  pieces = [s.name for s in specs]
  assert len(set(pieces)) == len(pieces)
  share = np.mean([s.split == 'test' for s in specs])
  assert 0.07 < share < 0.13
  for split in ('train', 'test'):
    counts = collections.Counter(s.genre for s in specs if s.split == split)
    assert counts.keys() == styles.STYLES.keys()
    assert max(counts.values()) - min(counts.values()) <= 2


def test_scores_and_takes_are_held_out_too():
  items = [type('Item', (), {'stem': f'{i:03d}'}) for i in range(50)]
  pools = build._divide(items, lambda i: i.stem, 0.1, np.random.default_rng(0))
  assert len(pools['test']) == 5
  assert not {i.stem for i in pools['test']} & {i.stem for i in pools['train']}


@pytest.mark.parametrize('options, match', [
  ({'hours': 0}, '--hours'),
  ({'hours': float('nan')}, '--hours'),
  ({'hours': 1, 'test_share': 1.0}, '--test_share'),
  ({'hours': 1, 'workers': 0}, '--workers'),
  ({'hours': 1, 'add_folder': 'x'}, '--captions'),
  ({'hours': 1, 'soundfonts': ['/nowhere.sf2']}, 'nowhere.sf2'),
])
def test_bad_options_are_named(tmp_path, options, match):
  if 'soundfonts' in options:
    pytest.importorskip('fluidsynth')
  with pytest.raises(errors.UserError, match=match):
    build.build(output=str(tmp_path / 'out'), **options)


def test_a_full_output_is_refused(tmp_path):
  (tmp_path / 'x').write_text('')
  with pytest.raises(errors.UserError, match='not an empty folder'):
    build.build(output=str(tmp_path), hours=1)
