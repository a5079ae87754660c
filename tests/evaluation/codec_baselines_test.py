"""Floor and ceiling: a codec's resynthesis, and its tokens in another order."""

import numpy as np
import pytest

from musiclm_jax import audio, errors
from musiclm_jax.evaluation import codec_baselines


def test_shuffling_keeps_frames_or_the_codes_of_each_level():
  codes = np.arange(40).reshape(20, 2)
  frames = codec_baselines.shuffled(codes, 'frames', np.random.default_rng(0))
  assert (frames != codes).any() and sorted(map(tuple, frames)) == sorted(map(tuple, codes))
  tokens = codec_baselines.shuffled(codes, 'tokens', np.random.default_rng(0))
  np.testing.assert_array_equal(np.sort(tokens, axis=0), codes)
  assert not set(map(tuple, tokens)) <= set(map(tuple, codes))


def test_both_folders_are_what_the_codec_says(small_codec, tmp_path):
  waveform = np.random.default_rng(0).normal(scale=0.1, size=700).astype(np.float32)
  audio.write(tmp_path / 'a.wav', waveform, 400)
  (tmp_path / 'broken.wav').write_bytes(b'no audio')
  files = {'a': str(tmp_path / 'a.wav'), 'broken': str(tmp_path / 'broken.wav')}
  write = lambda out, **options: codec_baselines.write(
      files, tmp_path / out, small_codec, seconds=1.5, progress=False, **options)
  assert list(write('out', num_levels=2)) == ['broken']
  heard = audio.read(str(tmp_path / 'a.wav'), 400)[:600]
  codes = np.concatenate(list(small_codec.encode([heard], 2)))
  wanted = np.concatenate(list(small_codec.decode([codes])))[:600]
  found = {kind: audio.read(str(tmp_path / 'out' / kind / 'a.wav'), 400)
           for kind in ('resynthesised', 'shuffled')}
  np.testing.assert_allclose(found['resynthesised'], wanted, atol=1e-4)
  assert len(found['shuffled']) == 600 and np.abs(found['shuffled'] - wanted).max() > 0.01
  write('again', num_levels=2)
  same = audio.read(str(tmp_path / 'again' / 'shuffled' / 'a.wav'), 400)
  np.testing.assert_array_equal(same, found['shuffled'])
  with pytest.raises(errors.UserError, match='already exists'):
    write('out')


def test_what_cannot_be_is_said(small_codec, tmp_path):
  for options, message in [({'shuffle': 'words'}, 'shuffle is'), ({'num_levels': 5}, 'has 4'),
                           ({'seconds': 0.0}, 'seconds is 0')]:
    with pytest.raises(errors.UserError, match=message):
      codec_baselines.write({'a': 'a.wav'}, tmp_path, small_codec, progress=False, **options)
  with pytest.raises(errors.UserError, match='none of 1 files'):
    codec_baselines.write({'a': 'none.wav'}, tmp_path, small_codec, progress=False)
