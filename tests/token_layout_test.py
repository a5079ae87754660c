"""Ids, offsets and order, with the ids written out."""

import dataclasses
import json

import numpy as np
import pytest

from musiclm_jax import errors, token_layout
from musiclm_jax.token_layout import TokenStream

MULAN = TokenStream('mulan', 2, 4, 0)
SEMANTIC = TokenStream('semantic', 1, 8, 25)
ACOUSTIC = TokenStream('acoustic', 3, 10, 50)
LAYOUT = token_layout.TokenLayout(MULAN, SEMANTIC, ACOUSTIC, coarse_levels=2)
COARSE = LAYOUT.stage('coarse', 0.04)  # one semantic frame, two acoustic ones
CODES = {
    'mulan': np.array([[3, 0]]), 'semantic': np.array([[5]]), 'coarse': np.array([[7, 1], [2, 9]])}
IDS = [7, 8, 17, 27, 31, 22, 39]


def test_two_frames_in_literal_ids():
  np.testing.assert_array_equal(COARSE.flatten(CODES), IDS)
  np.testing.assert_array_equal(COARSE.flatten_prefix(CODES), IDS[:3])
  np.testing.assert_array_equal(COARSE.unflatten(IDS[3:]), CODES['coarse'])
  np.testing.assert_array_equal(COARSE.first_ids, [20, 30, 20, 30])
  assert [COARSE.legal_range(i) for i in range(7)] == [
      (4, 8), (8, 12), (12, 20), (20, 30), (30, 40), (20, 30), (30, 40)]
  assert (COARSE.prefix_length, COARSE.target_length, COARSE.vocab_size) == (3, 4, 128)
  np.testing.assert_array_equal(COARSE.times, [-2, -1, 0, 0, 1, 2, 3])


def test_a_batch_is_its_rows():
  batch = {name: np.stack([codes, codes * 0]) for name, codes in CODES.items()}
  ids = COARSE.flatten(batch)
  np.testing.assert_array_equal(ids, [IDS, [4, 8, 12, 20, 30, 20, 30]])
  assert ids.dtype == np.int32
  np.testing.assert_array_equal(COARSE.unflatten(ids[:, 3:]), batch['coarse'])


@pytest.mark.parametrize('name', token_layout.STAGES)
@pytest.mark.parametrize('fine_uses_mulan', [False, True])
def test_unflatten_inverts_flatten_and_ids_are_legal(name, fine_uses_mulan):
  layout = dataclasses.replace(LAYOUT, fine_uses_mulan=fine_uses_mulan)
  stage, rng = layout.stage(name, 0.4), np.random.default_rng(0)
  codes = {
      s.name: rng.integers(0, s.codebook_size, (2, s.num_frames(0.4), s.num_levels))
      for s in stage.streams}
  ids = stage.flatten(codes)
  assert ids.shape == (2, stage.sequence_length) == (2, len(stage.times))
  np.testing.assert_array_equal(
      stage.unflatten(ids[:, stage.prefix_length:]), codes[stage.target.name])
  for position in range(stage.sequence_length):
    first, end = stage.legal_range(position)
    assert np.all((first <= ids[:, position]) & (ids[:, position] < end))
  # Offsets alone do the same, as in a tf.data map.
  by_hand = codes[stage.target.name] + stage.level_offsets(stage.target)
  np.testing.assert_array_equal(by_hand.reshape(2, -1), ids[:, stage.prefix_length:])


def test_positions_are_where_ids_are_and_hidden_ones_are_masked():
  ids = np.arange(100, 100 + COARSE.prefix_length)[None]
  where = [COARSE.positions(stream.name) for stream in COARSE.streams]
  assert [each.start for each in where] == [0, *(each.stop for each in where[:-1])]
  assert where[-1].stop == COARSE.sequence_length
  hidden = COARSE.hidden(ids, 'mulan')
  assert (hidden[:, where[0]] == token_layout.MASK_ID).all()
  np.testing.assert_array_equal(hidden[:, where[1]], ids[:, where[1]])


MELODY = TokenStream('melody', 2, 4, 1, window_seconds=4, hop_seconds=3)
WITH_MELODY = dataclasses.replace(LAYOUT, melody=MELODY)


@pytest.mark.parametrize('seconds, frames', [(3, 0), (4, 1), (6, 1), (7, 2), (9.9, 2), (10, 3), (30, 9)])
def test_windows_of_a_melody_that_are_inside_a_crop(seconds, frames):
  assert MELODY.num_frames(seconds) == frames
  rows = list(range(100))[MELODY.rows(5, seconds)]
  assert rows == [5 + 3 * i for i in range(frames)]
  assert all(row + 4 <= 5 + seconds for row in rows)


def test_a_melody_comes_after_mulan_where_a_window_of_it_fits():
  stage = WITH_MELODY.stage('semantic', 7)
  codes = {'mulan': np.array([[3, 0]]), 'melody': np.array([[0, 1], [2, 3]])}
  np.testing.assert_array_equal(stage.flatten_prefix(codes), [7, 8, 12, 17, 14, 19])
  np.testing.assert_array_equal(stage.times[:8], [-2, -1, 0, 1, 75, 76, 0, 1])
  np.testing.assert_array_equal(
      stage.hidden(stage.flatten_prefix(codes), 'melody', [False, True]), [7, 8, 12, 17, 3, 3])
  names = {stage: [s.name for s in WITH_MELODY.stage(stage, 4).prefix] for stage in token_layout.STAGES}
  assert names == {'semantic': ['mulan', 'melody'], 'coarse': ['mulan', 'melody', 'semantic'],
                   'fine': ['coarse']}
  assert WITH_MELODY.stage('coarse', 3) == LAYOUT.stage('coarse', 3)
  assert stage.conditions == ('mulan', 'melody') and COARSE.conditions == ('mulan',)


def test_a_layout_with_a_melody_in_its_file(tmp_path):
  prints = {name: name.upper() for name in WITH_MELODY.tokenizers}
  assert set(prints) - set(LAYOUT.tokenizers) == {'melody', 'melody_quantizer'}
  token_layout.write_layout(tmp_path, WITH_MELODY, prints)
  saved = token_layout.read_layout(tmp_path)
  assert saved == token_layout.SavedLayout(WITH_MELODY, prints)
  assert saved.used_by(LAYOUT) == token_layout.SavedLayout(
      LAYOUT, {name: prints[name] for name in LAYOUT.tokenizers})
  old = LAYOUT.to_json()  # as written before there were melodies
  del old['melody'], old['mulan']['window_seconds'], old['mulan']['hop_seconds']
  assert token_layout.TokenLayout.from_json(old) == LAYOUT
  with pytest.raises(errors.UserError, match='layout.melody is .* in a, None in b'):
    token_layout.check_same(WITH_MELODY, LAYOUT, 'a', 'b')


@pytest.mark.parametrize('change', [{'frame_rate': 25}, {'hop_seconds': 0}])
def test_windows_that_cannot_be(change):
  with pytest.raises(errors.UserError, match='melody has windows of 4 s every . s at frame_rate'):
    dataclasses.replace(MELODY, **change)


def test_every_id_belongs_to_one_level():
  stage = LAYOUT.stage('coarse', 0.4)
  owned = [i for s in stage.streams for first in stage.level_offsets(s)
           for i in range(first, first + s.codebook_size)]
  assert owned == list(range(token_layout.NUM_RESERVED, len(owned) + token_layout.NUM_RESERVED))
  assert stage.vocab_size == 128


def test_aligned_tokens_have_equal_times():
  stage = LAYOUT.stage('coarse', 0.4)
  semantic, coarse = stage.times[2:12], stage.times[12:].reshape(20, 2)
  np.testing.assert_array_equal(semantic, coarse[::2, 0])
  assert np.all(np.diff(stage.times[12:]) == 1)


def test_defaults_are_musiclm():
  layout = token_layout.TokenLayout()
  lengths = {name: layout.stage(name, seconds).sequence_length
             for name, seconds in (('semantic', 30), ('coarse', 10), ('fine', 3))}
  assert lengths == {'semantic': 762, 'coarse': 2262, 'fine': 1800}
  assert layout.fine.levels == slice(4, 12) and layout.coarse.levels == slice(0, 4)
  assert layout.stage('semantic', 30).vocab_size == 13440  # 4 + 12 * 1024 + 1024, rounded up


@pytest.mark.parametrize('change, message', [
    ({'coarse': np.array([[7, 10], [2, 9]])}, r'coarse code 10 at \(0, 1\) is not in \[0, 10\)'),
    ({'coarse': np.array([[7, 1]])}, 'coarse codes have 1 frames, .* has 2'),
    ({'coarse': np.array([[7], [1]])}, r'shape \[2, 1\], wanted \[frames, 2\]'),
])
def test_flatten_says_what_is_wrong(change, message):
  with pytest.raises(errors.UserError, match=message):
    COARSE.flatten(CODES | change)


def test_other_errors():
  with pytest.raises(errors.UserError, match=r'id 19 at target position 2 .* \[20, 30\)'):
    COARSE.unflatten([27, 31, 19, 39])
  with pytest.raises(errors.UserError, match='needs coarse codes'):
    COARSE.flatten({'mulan': CODES['mulan'], 'semantic': CODES['semantic']})
  with pytest.raises(errors.UserError, match='not a whole number of semantic frames'):
    LAYOUT.stage('semantic', 0.05).target_length  # noqa: B018
  with pytest.raises(errors.UserError, match="unknown stage 'mellow'"):
    LAYOUT.stage('mellow', 1)
  with pytest.raises(errors.UserError, match='coarse_levels is 3, wanted 1 to 2'):
    dataclasses.replace(LAYOUT, coarse_levels=3)


def test_layout_file_round_trip_and_differences(tmp_path):
  tokenizers = {'mulan': 'a', 'semantic': 'b', 'acoustic': 'c'}
  token_layout.write_layout(tmp_path, LAYOUT, tokenizers)
  saved = token_layout.read_layout(tmp_path)
  assert saved == token_layout.SavedLayout(LAYOUT, tokenizers)
  token_layout.check_same(saved, saved, 'data', 'model')
  other = dataclasses.replace(saved, tokenizers=tokenizers | {'semantic': 'z'})
  with pytest.raises(errors.UserError, match='tokenizers.semantic is b in data, z in model'):
    token_layout.check_same(saved, other, 'data', 'model')
  token_layout.check_same(LAYOUT, other, 'config', 'model')  # a bare layout has no tokenizers
  wider = dataclasses.replace(LAYOUT, semantic=TokenStream('semantic', 1, 16, 25))
  with pytest.raises(errors.UserError, match='semantic.codebook_size is 8 in data, 16 in config'):
    token_layout.check_same(saved, wider, 'data', 'config')


def test_bad_layout_files(tmp_path):
  with pytest.raises(errors.UserError, match='has no layout.json'):
    token_layout.read_layout(tmp_path)
  for text, message in (('{', 'not a token layout'), ('{"format_version": 9}', 'format_version 9'),
                        ('{"format_version": 1, "layout": {}}', 'not a token layout')):
    (tmp_path / 'layout.json').write_text(text)
    with pytest.raises(errors.UserError, match=message):
      token_layout.read_layout(tmp_path)


@pytest.mark.parametrize('text', [
    '{', '[]', '\udcff', '{"format_version": 1}',
    json.dumps({'format_version': 1, 'tokenizers': {}, 'layout': LAYOUT.to_json() | {
        'mulan': LAYOUT.to_json()['mulan'] | {'num_levels': '6'}}}),
    json.dumps({'format_version': 1, 'tokenizers': {}, 'layout': []}),
    json.dumps({'format_version': 1, 'tokenizers': {}, 'layout': LAYOUT.to_json() | {'melody': [4]}}),
    json.dumps({'format_version': 1, 'tokenizers': {}, 'layout': WITH_MELODY.to_json() | {
        'melody': WITH_MELODY.to_json()['melody'] | {'hop_seconds': -3}}}),
])
def test_a_broken_layout_file_is_named(tmp_path, text):
  (tmp_path / 'layout.json').write_text(text, errors='surrogateescape')
  with pytest.raises(errors.UserError, match='not a token layout'):
    token_layout.read_layout(tmp_path)
