"""The codec at bitrates of choice: levels that fit, files of a wanted size, rates that change."""

import io
import itertools

import numpy as np
import pytest

from musiclm_jax import bitstream, codec, errors


def _waveform(samples=3003, seed=0):
  """Returns noise that swells and fades, so that packets differ in what they need."""
  swell = 0.05 + np.abs(np.sin(np.arange(samples) / 500))
  return (swell * np.random.RandomState(seed).randn(samples)).astype(np.float32)


def _file(small_codec, waveform, num_levels=None) -> bytes:
  stream = io.BytesIO()
  assert codec.write(stream, small_codec, [waveform], num_levels) == len(waveform)
  return stream.getvalue()


def _reader(content: bytes) -> bitstream.Reader:
  return bitstream.Reader(io.BytesIO(content), 'song.codes')


@pytest.mark.parametrize('kbps, levels', [
    (None, 4), (0.2, 1), (0.39, 1), (0.4, 2), (0.6, 3), (0.79, 3), (0.8, 4)])
def test_levels_are_the_most_that_fit(small_codec, kbps, levels):
  assert small_codec.levels(kbps) == levels


@pytest.mark.parametrize('kbps', [0.19, 0.81, 0, -1, float('nan'), float('inf')])
def test_bitrates_that_the_model_does_not_have_are_refused(small_codec, kbps):
  with pytest.raises(errors.UserError, match='kbps asked for, .*small has 0.2 to 0.8, in steps'):
    small_codec.levels(kbps)


def test_rates_are_read(small_codec, tmp_path):
  path = tmp_path / 'rates.txt'
  for text, levels in (('0.2\n0.8\n0.55\n', [1, 4, 2]), ('0.6', [3]), ('\n 0.4 \r\n\n', [2])):
    path.write_text(text)
    assert codec.read_rates(str(path), small_codec) == levels


@pytest.mark.filterwarnings('error')  # a warning is a line more than the error
@pytest.mark.parametrize('content, reason', [
    (b'', 'rates.txt holds no bitrates'),
    (b' \n\n', 'rates.txt holds no bitrates'),
    (b'0.2\nfast\n', 'rates.txt is not a list of bitrates.*fast'),
    (b'0.2 0.4\n0.4 0.4\n', 'rates.txt is not a list of bitrates'),
    (b'0.2 0.4\n', 'rates.txt is not a list of bitrates'),
    (b'\xff\xfe\0', 'rates.txt is not a list of bitrates'),
    (b'0.2\nnan\n', 'nan kbps asked for'),
    (b'0.2\n9\n', '9 kbps asked for'),
])
def test_rates_that_are_none_are_refused(small_codec, tmp_path, content, reason):
  (tmp_path / 'rates.txt').write_bytes(content)
  with pytest.raises(errors.UserError, match=reason) as error:
    codec.read_rates(str(tmp_path / 'rates.txt'), small_codec)
  assert '\n' not in str(error.value)


def test_rates_come_from_files_only(small_codec):
  for name in ('/does/not/exist', 'http://localhost:9/rates.txt'):
    with pytest.raises(FileNotFoundError, match=name):
      codec.read_rates(name, small_codec)


def test_rates_are_of_the_second_in_which_a_packet_begins(small_codec):
  content = _file(small_codec, _waveform())  # 8 packets, of a second each
  for rates, wanted in (([2], [2] * 8), ([1, 4, 2], [1, 4, 2, 2, 2, 2, 2, 2]),
                        (list(range(100)), list(range(8)))):
    assert codec.levels_for_rates(_reader(content), rates) == wanted
  halves = io.BytesIO()
  codec.write(halves, codec.Codec(small_codec.model, 25), [_waveform(1000)])
  assert codec.levels_for_rates(_reader(halves.getvalue()), [1, 2, 3]) == [1, 1, 2, 2, 3]


def _reduced(content: bytes, levels) -> bytes:
  stream = io.BytesIO()
  codec.reduce(_reader(content), stream, levels)
  return stream.getvalue()


def test_a_reduced_file_holds_the_first_levels(small_codec):
  content = _file(small_codec, _waveform(), 3)
  levels = [1, 4, 2, 3, 1, 2, 3, 1]
  stream = io.BytesIO()
  assert codec.reduce(_reader(content), stream, levels) == [1, 3, 2, 3, 1, 2, 3, 1]
  reader = _reader(stream.getvalue())
  assert reader.header == _reader(content).header
  for packet, full, most in zip(reader, _reader(content), levels, strict=True):
    np.testing.assert_array_equal(packet, full[:, :most])
  assert reader.num_samples == 3003
  assert _reduced(content, [3] * 8) == content


def test_a_file_of_a_size_uses_most_of_it_and_no_more(small_codec):
  content = _file(small_codec, _waveform())
  least = len(_reduced(content, [1] * 8))
  step = 25  # bytes of a level of 50 frames of 4 bits
  sizes = []
  for target in range(least, len(content) + 10):
    levels = codec.levels_for_size(_reader(content), small_codec, target)
    size = len(_reduced(content, levels))
    assert size <= target and (size > target - step or levels == [4] * 8)
    sizes.append(size)
  assert sizes[0] == least and sizes[-1] == len(content) and sizes == sorted(sizes)
  assert codec.levels_for_size(_reader(content), small_codec, 10**12) == [4] * 8
  for target in (1, least - 1):
    with pytest.raises(errors.UserError, match=f'{target} bytes asked for, one level .*{least}'):
      codec.levels_for_size(_reader(content), small_codec, target)


def test_a_file_of_a_size_has_its_levels_where_they_explain_most(small_codec):
  """Of all ways to spend the bytes, for packets whose levels explain less and less."""
  loudness = np.repeat([0.02, 1, 0.3, 2], 400)  # a second and a packet each
  waveform = loudness * np.random.RandomState(0).randn(1600)
  content = _file(small_codec, waveform.astype(np.float32))
  explained = np.array([small_codec.explained(codes) for codes in _reader(content)])
  assert (np.diff(explained) < 0).all()
  totals = np.cumsum(explained, axis=1)
  worth = lambda levels: sum(total[q - 1] for total, q in zip(totals, levels, strict=True))
  for extra in range(13):
    target = len(_reduced(content, [1] * 4)) + 25 * extra
    levels = codec.levels_for_size(_reader(content), small_codec, target)
    every = itertools.product(range(1, 5), repeat=4)
    found = sorted(worth(choice) for choice in every if sum(choice) == 4 + extra)
    np.testing.assert_allclose(worth(levels), found[-1])
    if 0 < extra < 7:
      assert found[0] < 0.99 * found[-1], 'it does not matter where they are'


def test_a_file_of_fewer_levels_can_be_sized_too(small_codec):
  content = _file(small_codec, _waveform(), 2)
  assert codec.levels_for_size(_reader(content), small_codec, 10**6) == [2] * 8


def test_a_level_explains_the_energy_it_adds(small_codec):
  codes = np.concatenate(list(small_codec.encode([_waveform(499)])))
  vectors = lambda codes: small_codec.model.module.apply(
      small_codec.model.variables, codes[None], method=lambda module, x: module.quantizer.decode(x))
  for q, explained in enumerate(small_codec.explained(codes)):
    alone = np.where(np.arange(4) == q, codes, -1)
    np.testing.assert_allclose(explained, np.square(vectors(alone)).sum(), rtol=1e-4)
