import collections
import json

import mido
import numpy as np
import pytest
import soundfile

from musiclm_jax import errors, text
from musiclm_jax.corpus import build, render, scores, styles


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
    assert row['texts'].keys() == set(text.SOURCES) and all(row['texts'].values())
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
    pytest.importorskip('fluidsynth', exc_type=ImportError)  # also without the C library
  with pytest.raises(errors.UserError, match=match):
    build.build(output=str(tmp_path / 'out'), **options)


def test_a_full_output_is_refused(tmp_path):
  (tmp_path / 'x').write_text('')
  with pytest.raises(errors.UserError, match='not an empty folder'):
    build.build(output=str(tmp_path), hours=1)


class _NoiseRenderer:
  soundfonts = ('none.sf2',)

  def render(self, piece, seconds, font, rng):
    return 0.1 * rng.standard_normal(int(seconds * 24_000)).astype(np.float32)


def _write_take(path):
  track = mido.MidiTrack()
  for _ in range(64):
    track.append(mido.Message('note_on', note=36, velocity=80, time=0))
    track.append(mido.Message('note_off', note=36, velocity=0, time=120))
  mido.MidiFile(ticks_per_beat=120, tracks=[track]).save(path)


def test_broken_drum_takes_are_skipped(tmp_path):
  (tmp_path / 'audio').mkdir()
  _write_take(tmp_path / 'good.mid')
  (tmp_path / 'broken.mid').write_bytes((tmp_path / 'good.mid').read_bytes()[:40])
  good, broken, missing = (
    (scores.Source(str(tmp_path), f'{name}.mid'), 'rock', 120.0)
    for name in ('good', 'broken', 'missing')
  )
  feels = set()
  for index in range(4):
    made = [
      build.make_piece(
        build.PieceSpec(index, 'rock', 'train', 1, 0, performances=takes),
        _NoiseRenderer(),
        str(tmp_path),
      )
      for takes in ((good,), (broken, good, missing))
    ]
    assert made[0] == made[1]
    feels |= {row['metadata']['drums'] for row in made[0]}
  assert 'human' in feels
  rows = build.make_piece(
    build.PieceSpec(0, 'rock', 'train', 1, 0, performances=(broken,)),
    _NoiseRenderer(),
    str(tmp_path),
  )
  assert [row['licence'] for row in rows] == ['CC0-1.0']


@pytest.fixture
def own_music(tmp_path, monkeypatch):
  """The options of a corpus with both kinds of rows, on a machine that needs no FluidSynth."""
  monkeypatch.setattr(render, 'load_fluidsynth', lambda: None)
  monkeypatch.setattr(render, 'find_soundfonts', lambda given: ['none.sf2'])
  monkeypatch.setattr(render, 'Renderer', lambda soundfonts: _NoiseRenderer())
  (tmp_path / 'music').mkdir()
  soundfile.write(tmp_path / 'music' / 'a.wav', np.zeros(24_000), 24_000)
  (tmp_path / 'captions.csv').write_text('path,caption\na.wav,Silence\n')
  return {
    'output': str(tmp_path / 'out'),
    'hours': 1 / 120,
    'add_folder': str(tmp_path / 'music'),
    'captions_csv': str(tmp_path / 'captions.csv'),
  }


def test_compositions_come_before_the_users_music(own_music):
  rows = build.build(**own_music)
  assert [row['source'] for row in rows] == ['own composition', 'a.wav']


def test_an_unreadable_recording_is_found_before_anything_is_rendered(
  own_music, tmp_path, monkeypatch
):
  rendered = []
  monkeypatch.setattr(build, 'make_piece', lambda *args: rendered.append(args) or [])
  (tmp_path / 'music' / 'a.wav').write_bytes(b'this is no audio')
  with pytest.raises(errors.UserError, match='a.wav'):
    build.build(**own_music)
  assert not rendered
