"""The codec of files and streams, with a small random model: the plumbing, not the sound."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from musiclm_jax import bitstream, codec, errors

HOP, BLOCK = 8, 400  # of the small codec: samples a frame, samples a second
DIFFERENCE = 1e-5  # of waveforms that are computed in blocks of another size


def _waveform(samples=3003, seed=0):
  """Returns noise that swells and fades, so that packets differ in what they need."""
  swell = 0.05 + np.abs(np.sin(np.arange(samples) / 500))
  return (swell * np.random.RandomState(seed).randn(samples)).astype(np.float32)


def _cut(rows, seed, most):
  """Returns the rows in chunks of random lengths: the first ones of one row, some of none."""
  random = np.random.RandomState(seed)
  ends = np.cumsum([1, 1, 1, *random.randint(0, most, len(rows))])
  return np.split(rows, ends[ends < len(rows)])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _whole(module, method, variables, inputs, options):
  return module.apply(variables, inputs, method=method, **options)


def _whole_codes(small_codec, waveform, **options):
  model = small_codec.model
  return np.asarray(_whole(model.module, 'encode', model.variables, waveform[None], options)[0])


def _whole_decoded(small_codec, codes, **options):
  model = small_codec.model
  decoded = _whole(model.module, 'decode', model.variables, codes[None], options)[0]
  return np.clip(decoded, -1, 1)


def _file(small_codec, waveform, num_levels=None) -> bytes:
  stream = io.BytesIO()
  assert codec.write(stream, small_codec, [waveform], num_levels) == len(waveform)
  return stream.getvalue()


def _reader(content: bytes) -> bitstream.Reader:
  return bitstream.Reader(io.BytesIO(content), 'song.codes')


# --- Chunks of any length -------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(4))
def test_chunks_of_any_length_give_the_codes_of_the_whole(small_codec, seed):
  waveform = _waveform()
  wanted = _whole_codes(small_codec, waveform)
  assert wanted.shape == (376, 4) and len(np.unique(wanted)) > 8
  blocks = list(small_codec.encode(_cut(waveform, seed, most=(5, 50, 700, 3000)[seed])))
  assert [len(block) for block in blocks] == [50] * 7 + [26]
  codes = np.concatenate(blocks)
  assert codes.dtype == np.int32
  np.testing.assert_array_equal(codes, wanted)


@pytest.mark.parametrize('block_frames', [1, 7, 1000])
def test_blocks_of_any_length_give_the_codes_of_the_whole(small_codec, block_frames):
  other = codec.Codec(small_codec.model, block_frames)
  waveform = _waveform(499)
  codes = list(other.encode([waveform]))
  assert max(map(len, codes)) == min(63, block_frames)
  codes = np.concatenate(codes)
  np.testing.assert_array_equal(codes, _whole_codes(small_codec, waveform))
  decoded = np.concatenate(list(other.decode([codes])))
  np.testing.assert_allclose(decoded, _whole_decoded(small_codec, codes), atol=DIFFERENCE)


@pytest.mark.parametrize('samples', [1, 8, 399, 401])
def test_silence_fills_the_last_frame(small_codec, samples):
  waveform = _waveform(samples)
  codes = np.concatenate(list(small_codec.encode(_cut(waveform, 0, 90))))
  assert codes.shape == (-(-samples // HOP), 4)
  filled = np.pad(waveform, (0, len(codes) * HOP - samples))
  np.testing.assert_array_equal(codes, np.concatenate(list(small_codec.encode([filled]))))


def test_fewer_levels_are_the_first_ones(small_codec):
  waveform = _waveform(803)
  codes = np.concatenate(list(small_codec.encode([waveform])))
  for levels in (1, 3):
    fewer = np.concatenate(list(small_codec.encode([waveform], levels)))
    np.testing.assert_array_equal(fewer, codes[:, :levels])


@pytest.mark.parametrize('seed', range(3))
def test_packets_of_any_length_decode_to_the_whole(small_codec, seed):
  codes = _whole_codes(small_codec, _waveform())
  decoded = list(small_codec.decode(_cut(codes, seed, most=(3, 30, 200)[seed])))
  assert [len(block) for block in decoded] == [BLOCK] * 7 + [26 * HOP]
  assert decoded[0].dtype == np.float32
  np.testing.assert_allclose(
      np.concatenate(decoded), _whole_decoded(small_codec, codes), atol=DIFFERENCE)


def test_packets_of_different_levels_decode_to_the_whole(small_codec):
  """Whatever the packets: levels that are missing are as if they had never been there."""
  codes = _whole_codes(small_codec, _waveform())
  levels = np.random.RandomState(0).randint(1, 5, len(codes))
  packets = [frame[None, :most] for frame, most in zip(codes, levels, strict=True)]
  silenced = np.where(np.arange(4) < levels[:, None], codes, -1)
  decoded = np.concatenate(list(small_codec.decode(packets)))
  np.testing.assert_allclose(decoded, _whole_decoded(small_codec, silenced), atol=DIFFERENCE)


def test_what_is_decoded_stays_in_range(small_codec):
  loud = dataclasses.replace(small_codec.model, variables=jax.tree.map(
      lambda leaf: leaf * 3, small_codec.model.variables))
  decoded = np.concatenate(list(codec.Codec(loud).decode([_whole_codes(small_codec, _waveform())])))
  assert np.abs(decoded).max() == 1


@pytest.mark.parametrize('side', ['encoder', 'decoder'])
def test_denoising_in_chunks_is_denoising_of_the_whole(small_codec, export_codec, tmp_path, side):
  model = export_codec(tmp_path, dataclasses.replace(small_codec.config, denoising=side))
  waveform, denoise = _waveform(499), {'denoise': jnp.array([True])}
  encoding, decoding = side == 'encoder', side == 'decoder'
  codes = np.concatenate(list(model.encode(_cut(waveform, 0, 90), denoise=encoding)))
  np.testing.assert_array_equal(
      codes, _whole_codes(model, waveform, **denoise if encoding else {}))
  decoded = np.concatenate(list(model.decode(_cut(codes, 0, 9), denoise=decoding)))
  np.testing.assert_allclose(
      decoded, _whole_decoded(model, codes, **denoise if decoding else {}), atol=DIFFERENCE)
  kept = (_whole_codes(model, waveform) if encoding else _whole_decoded(model, codes))
  assert not np.array_equal(kept, codes if encoding else decoded)
  with pytest.raises(errors.UserError, match='cannot denoise in its (en|de)coder: its denoising is'):
    list(model.decode([codes], True) if encoding else model.encode([waveform], denoise=True))


def test_no_more_than_a_block_is_read_ahead(small_codec):
  """Memory stays constant, and what is said now is heard in a block's time, not at the end."""
  chunk, pulled, given = 37, 0, 0

  def chunks():
    nonlocal pulled
    for _ in range(300):
      pulled += 1
      yield _waveform(chunk)

  for codes in small_codec.encode(chunks()):
    given += len(codes)
    ahead = pulled * chunk - given * HOP
    assert ahead < chunk, 'a block was whole, and more was read before it was given out'
  assert pulled == 300 and given == -(-300 * chunk // HOP)

  pulled = given = 0
  packets = (codes for codes in np.zeros((300, 3, 2), int))

  def counted():
    nonlocal pulled
    for codes in packets:
      pulled += 1
      yield codes

  for waveform in small_codec.decode(counted()):
    given += len(waveform)
    assert pulled * 3 - given // HOP < 3
  assert pulled == 300 and given == 300 * 3 * HOP


def test_switching_levels_makes_no_click():
  """With the model of the package, on a steady chord: the decoder's memory joins the packets.

  A steady signal has jumps from sample to sample of its own; where the levels change there is none
  that neither of the two has.  Packets that are decoded each for itself have them.
  """
  shipped = codec.Codec.load()
  time = np.arange(72_000) / 24_000
  chord = 0.2 * sum(np.sin(2 * np.pi * hertz * time) for hertz in (220, 277.2, 329.6))
  codes = np.concatenate(list(shipped.encode([chord.astype(np.float32)])))
  packets = np.split(codes, len(codes) // 5)
  packets = [packet[:, : 1 + 7 * (i % 2)] for i, packet in enumerate(packets)]
  borders = np.arange(1, len(packets)) * 5 * shipped.config.hop_length

  def jumps(packets):
    return np.abs(np.diff(np.concatenate(list(shipped.decode(packets)))))

  steady = max(jumps([codes]).max(), jumps([codes[:, :1]]).max())
  switched = jumps(packets)
  assert switched[borders - 1].max() <= steady
  assert switched[borders - 1].max() <= np.delete(switched, borders - 1).max()
  alone = np.concatenate([next(shipped.decode([packet])) for packet in packets])
  assert np.abs(np.diff(alone))[borders - 1].max() > 2 * steady, 'the measure sees no clicks'


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('samples', [1, 400, 3003])
def test_a_file_gives_back_as_many_samples_as_it_took(small_codec, samples):
  waveform = _waveform(samples)
  stream = io.BytesIO()
  assert codec.write(stream, small_codec, _cut(waveform, 0, 90), 3) == samples
  pieces = list(codec.read(_reader(stream.getvalue()), small_codec))
  decoded = np.concatenate(pieces)
  assert decoded.shape == (samples,) and max(map(len, pieces)) <= BLOCK + HOP
  wanted = _whole_decoded(small_codec, _whole_codes(small_codec, waveform)[:, :3])[:samples]
  np.testing.assert_allclose(decoded, wanted, atol=DIFFERENCE)


def test_a_file_says_which_model_it_needs(small_codec, export_codec, tmp_path):
  content = _file(small_codec, _waveform(499))
  other = export_codec(tmp_path / 'other', seed=1)
  for use in (lambda reader: list(codec.read(reader, other)),
              lambda reader: codec.levels_for_size(reader, other, 10_000)):
    with pytest.raises(errors.UserError, match='song.codes: .*give the model') as error:
      use(_reader(content))
    for model in (small_codec, other):
      assert model.model_id.hex() in str(error.value)


def test_another_decoder_reads_the_same_files(small_codec, export_codec, tmp_path):
  """A decoder may be trained further; the codes stay what they are."""
  content = _file(small_codec, _waveform(499))
  other = export_codec(tmp_path, decoder_seed=1)
  assert other.model.fingerprint != small_codec.model.fingerprint
  assert other.model_id == small_codec.model_id
  before, after = (np.concatenate(list(codec.read(_reader(content), model)))
                   for model in (small_codec, other))
  assert before.shape == after.shape == (499,) and np.abs(before - after).max() > 1e-3


@pytest.mark.parametrize('change', [
    {'hop_length': 1}, {'sample_rate': 24_000}, {'num_levels': 9}, {'bits_per_code': 10}])
def test_a_header_that_disagrees_with_its_model_is_refused(small_codec, change):
  """A model id is soon copied: what else the header says is not believed."""
  header = dataclasses.replace(small_codec.header(), **change)
  stream = io.BytesIO()
  writer = bitstream.Writer(stream, header)
  writer.write(np.full((3, header.num_levels), 2**header.bits_per_code - 1))
  writer.close(3 * header.hop_length)
  for use in (lambda reader: list(codec.read(reader, small_codec)),
              lambda reader: codec.levels_for_size(reader, small_codec, 10_000)):
    with pytest.raises(errors.UserError, match='song.codes'):
      use(_reader(stream.getvalue()))


def test_codes_that_the_model_does_not_have_are_refused(small_codec):
  """12 codes take 4 bits, which hold up to 15."""
  stream = io.BytesIO()
  writer = bitstream.Writer(stream, small_codec.header())
  writer.write(np.full((3, 4), 12))
  writer.close(24)
  for use in (lambda reader: list(codec.read(reader, small_codec)),
              lambda reader: codec.levels_for_size(reader, small_codec, 10_000)):
    with pytest.raises(errors.UserError, match='codes of 4 levels up to 12; .* 4 levels of 12'):
      use(_reader(stream.getvalue()))
  for wrong in (np.zeros((2, 5), int), np.zeros((0, 5), int)):
    with pytest.raises(errors.UserError, match='codes of 5 levels'):
      list(small_codec.decode([wrong]))


def test_a_file_is_described(small_codec):
  stream = io.BytesIO()
  codes = _whole_codes(small_codec, _waveform(1003))
  writer = bitstream.Writer(stream, small_codec.header())
  for packet, levels in zip(np.split(codes, [50, 100]), (4, 1, 2), strict=True):
    writer.write(packet[:, :levels])
  writer.close(1003)
  bits = 4 * (50 * 4 + 50 * 1 + 26 * 2)
  assert codec.describe(_reader(stream.getvalue())).splitlines() == [
      '2.51 s at 400 Hz, 50 frames a second',
      f'{bits / 1000 / (1003 / 400):.2f} kbps on average, 0.2 to 0.8; the model has up to 0.8',
      f'model {small_codec.model_id.hex()}']
  with pytest.raises(errors.UserError, match='is cut off'):
    codec.describe(_reader(stream.getvalue()[:-1]))


@pytest.mark.parametrize('already', [False, True])
def test_all_levels_of_audio_or_of_codes(small_codec, tmp_path, already):
  waveform = _waveform(803)
  content = _file(small_codec, waveform)
  if already:
    (tmp_path / 'a').write_bytes(content)
  else:
    soundfile.write(tmp_path / 'a', waveform, 400, format='WAV', subtype='FLOAT')
  stream = io.BytesIO()
  codec.write_full(str(tmp_path / 'a'), stream, small_codec)
  assert stream.getvalue() == content
