"""Copies of a recording are found whatever was done to them; other recordings are not."""

import io
import time

import numpy as np
import pytest
import soundfile

from musiclm_jax import audio
from musiclm_jax.corpus_validation import fingerprints, matching


def _print(waveform, rate=24_000, size=None):
  printer = fingerprints.Fingerprinter(rate)
  for start in range(0, len(waveform), size or max(1, len(waveform))):
    printer.add(waveform[start:start + (size or len(waveform))])
  return printer.finish()


def _coded(waveform, form, subtype=None, rate=24_000):
  content = io.BytesIO()
  soundfile.write(content, waveform, rate, format=form, subtype=subtype)
  return audio.read(io.BytesIO(content.getvalue()))


COPIES = {
    'mp3': lambda waveform: _coded(waveform, 'MP3'),
    'vorbis': lambda waveform: _coded(waveform, 'OGG'),
    'opus': lambda waveform: _coded(waveform, 'OGG', 'OPUS'),
    '8 bit': lambda waveform: _coded(waveform, 'WAV', 'PCM_U8'),
    'quiet': lambda waveform: 0.05 * waveform,
    'inverted': lambda waveform: -waveform,
    'loud and clipped': lambda waveform: np.clip(4 * waveform, -1, 1),
    'begins 0.511 s later': lambda waveform: waveform[12_264:],
    'begins 0.9 s earlier': lambda waveform: np.concatenate([np.zeros(21_600, 'f4'), waveform]),
    'a piece as mp3': lambda waveform: _coded(waveform[70_001:130_001], 'MP3'),
}


def test_copies_are_found_and_others_are_not(piece):
  originals = [_print(piece(seed)) for seed in range(12)]
  names, store = list(COPIES), list(originals)
  store += [_print(COPIES[name](piece(0))) for name in names]
  matches = matching.find(store, join=False)
  found = {(match.first, match.second): match for match in matches}
  assert {names[second - 12] for first, second in found if first == 0} == set(names)
  assert not [pair for pair in found if 0 < pair[0] < 12]
  later = found[0, 12 + names.index('begins 0.511 s later')]
  assert later.offset == pytest.approx(0.511, abs=0.03) and later.bit_errors < 0.1
  assert found[0, 12 + names.index('begins 0.9 s earlier')].offset == pytest.approx(-0.9, abs=0.03)
  part = found[0, 12 + names.index('a piece as mp3')]
  assert part.offset == pytest.approx(70_001 / 24_000, abs=0.03) and part.overlap < 2.6
  assert len(matching.find(store)) == len(names), 'as many as connect the copies'


def test_only_wanted_pairs_are_compared(piece):
  store = [_print(piece(0)), _print(piece(0)), _print(0.5 * piece(0))]
  matches = matching.find(store, lambda first, second: (first < 2) & (second == 2), join=False)
  assert [(match.first, match.second) for match in matches] == [(0, 2), (1, 2)]


def test_silence_and_noise_match_nothing(piece):
  random = np.random.RandomState(0)
  quiet = [np.concatenate([piece(seed, 1), np.zeros(240_000, 'f4')]) for seed in (1, 2)]
  store = [_print(np.zeros(100_000, 'f4')), _print(np.zeros(100_000, 'f4')), _print(quiet[0]),
           _print(quiet[1]), *(_print(random.randn(100_000)) for _ in range(2)),
           np.zeros(0, np.uint32)]
  assert not store[0].any() and np.count_nonzero(store[2]) < 60
  assert matching.find(store) == [] and matching.find([]) == []


@pytest.mark.parametrize('rate', [8_000, 24_000, 44_100])
def test_pieces_make_no_difference(rate):
  noise = np.random.RandomState(0).randn(3 * rate).astype(np.float32)
  whole = _print(noise, rate)
  assert whole.dtype == np.uint32 and len(whole) == pytest.approx(
      (3 - 0.384) * fingerprints.FRAMES_PER_SECOND, abs=6)
  np.testing.assert_array_equal(_print(noise, rate, 5_001), whole)


def test_what_is_too_short_has_no_fingerprint():
  assert len(_print(np.ones(2_000, 'f4'))) == 0 and len(_print(np.zeros(0, 'f4'))) == 0


def test_time_grows_with_the_number_and_copies_of_one_do_not_square_it():
  """Near 3 h of different recordings and 300 copies of one, then 1,000 copies of one."""
  random = np.random.RandomState(0)
  words = random.randint(1, 2 ** 32, (1_000, 400), np.uint32)
  start = time.process_time()
  assert matching.find([*words, *words[:1].repeat(300, axis=0)]) != []
  copies = matching.find([*words[:1].repeat(1_000, axis=0)])
  assert len(copies) == 999 and time.process_time() - start < 10


def test_a_store_gives_back_what_it_was_given():
  store = matching.Store()
  parts = [np.arange(5, dtype=np.uint32), np.zeros(0, np.uint32), np.array([2 ** 32 - 1], np.uint32)]
  for part in parts:
    store.append(part)
  assert len(store) == 3
  for i in (2, 0, 1):
    np.testing.assert_array_equal(store[i], parts[i])
  store.close()


def test_groups_are_what_is_joined():
  groups = matching.Groups()
  for pair in ((5, 4), (1, 2), (4, 9), (2, 5)):
    groups.join(*pair)
  assert sorted(map(sorted, groups.members(range(10)))) == [[1, 2, 4, 5, 9]]
