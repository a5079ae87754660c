"""Files of codes: what is read is what was written, and no damage goes unseen."""

import dataclasses
import io
import os
import struct
import zlib

import numpy as np
import pytest

from musiclm_jax import bitstream, errors

HEADER = bitstream.Header(bytes(range(16)), 400, 8, 3, 4)
HEADER_SIZE = 48


def _packets(seed, num_packets=4, most_frames=6, header=HEADER):
  """Returns int32[T, Q] codes, each of a length and of levels of its own."""
  random = np.random.RandomState(seed)
  shapes = [(random.randint(1, most_frames + 1), random.randint(1, header.num_levels + 1))
            for _ in range(num_packets)]
  return [random.randint(0, 2**header.bits_per_code, shape, np.int32) for shape in shapes]


def _samples(packets, header=HEADER, cut=3):
  return header.hop_length * sum(map(len, packets)) - cut


def _write(stream, packets, header=HEADER):
  writer = bitstream.Writer(stream, header)
  for codes in packets:
    writer.write(codes)
  writer.close(_samples(packets, header))


def _written(packets, header=HEADER) -> bytes:
  stream = io.BytesIO()
  _write(stream, packets, header)
  return stream.getvalue()


def _sizes(packets, header=HEADER) -> list[int]:
  return [bitstream.packet_size(*codes.shape, header.bits_per_code) for codes in packets]


def _assert_same(found, wanted):
  assert len(found) == len(wanted)
  for a, b in zip(found, wanted, strict=True):
    assert a.dtype == np.int32
    np.testing.assert_array_equal(a, b)


def _assert_refused(content: bytes, packets=(), reason=''):
  """Asserts one line that names the file, after no other codes than the first of `packets`."""
  found = []
  with pytest.raises(errors.UserError, match=reason) as error:
    found.extend(bitstream.Reader(io.BytesIO(content), 'song.codes'))
  assert str(error.value).startswith('song.codes ') and '\n' not in str(error.value)
  _assert_same(found, packets[: len(found)])


def test_packing_is_as_the_docstring_says():
  packed = bitstream.pack(np.array([[1, 1023]]), 10)
  assert ''.join(f'{byte:08b}' for byte in packed) == '0000000001' '1111111111' '0000'
  np.testing.assert_array_equal(bitstream.unpack(packed, 1, 2, 10), [[1, 1023]])


@pytest.mark.parametrize('bits', [1, 3, 4, 8, 10, 13, 16])
def test_unpack_is_the_inverse_of_pack(bits):
  random = np.random.RandomState(bits)
  for frames, levels in ((1, 1), (7, 3), (50, 12)):
    codes = random.randint(0, 2**bits, (frames, levels))
    codes[0, 0], codes[-1, -1] = 0, 2**bits - 1
    packed = bitstream.pack(codes, bits)
    assert len(packed) == -(-frames * levels * bits // 8)
    np.testing.assert_array_equal(bitstream.unpack(packed, frames, levels, bits), codes)


@pytest.mark.parametrize('seed', range(3))
def test_sizes_are_what_is_written(seed):
  packets = _packets(seed)
  assert len(_written(packets)) == bitstream.frame_size() + sum(_sizes(packets))


def test_the_file_is_laid_out_as_the_docstring_says():
  """Files outlive the program: this is read with `struct` alone."""
  codes = np.array([[1, 2, 3], [4, 5, 15]])
  content = _written([codes])
  magic, *fields, crc = struct.unpack_from('<8sBBBBIIQ16sI', content)
  assert magic == b'SSTREAM\n' and fields == [1, 3, 4, 0, 400, 8, 13, bytes(range(16))]
  assert crc == zlib.crc32(content[:44])
  packet = content[HEADER_SIZE:HEADER_SIZE + 6]
  assert packet == b'\x02\x00\x03' b'\x12\x34\x5f'
  end = content[HEADER_SIZE + 10:]
  assert end[:11] == b'\x00\x00\x00' + struct.pack('<Q', 13)
  assert content[HEADER_SIZE + 6:HEADER_SIZE + 10] == struct.pack('<I', zlib.crc32(packet))
  assert end[11:] == struct.pack('<I', zlib.crc32(packet + end[:11]))


@pytest.mark.parametrize('seed', range(5))
def test_round_trip_in_a_file(tmp_path, seed):
  packets = _packets(seed, num_packets=10, most_frames=100)
  with open(tmp_path / 'a', 'wb') as stream:
    stream.write(b'before')  # the codes may begin anywhere
    _write(stream, packets)
    stream.write(b'after')
  content = (tmp_path / 'a').read_bytes()
  assert content.startswith(b'before') and content.endswith(b'after')
  reader = bitstream.Reader(io.BytesIO(content[6:-5]), 'a')
  assert reader.header == dataclasses.replace(HEADER, num_samples=_samples(packets))
  assert reader.num_samples == _samples(packets)
  _assert_same(list(reader), packets)


@pytest.mark.parametrize('seed', range(3))
def test_round_trip_through_a_pipe(seed):
  """A pipe cannot go back: its header does not know the length, its end does."""
  packets = _packets(seed)
  out, into = os.pipe()
  with open(into, 'wb') as stream:
    _write(stream, packets)
  with open(out, 'rb') as stream:
    reader = bitstream.Reader(stream, 'pipe')
    assert reader.header == HEADER and reader.num_samples is None
    _assert_same(list(reader), packets)
  assert reader.num_samples == _samples(packets)


def test_what_is_appended_to_a_file_is_whole(tmp_path):
  """Of `>> FILE` all writes go to the end, wherever the stream was told to go."""
  packets = _packets(0)
  with open(tmp_path / 'a', 'ab') as stream:
    _write(stream, packets)
  with open(tmp_path / 'a', 'rb') as stream:
    reader = bitstream.Reader(stream, 'a')
    _assert_same(list(reader), packets)
  assert reader.num_samples == _samples(packets)


@pytest.mark.parametrize('codes', [
    np.zeros((0, 1), int), np.zeros((1, 0), int), np.zeros((1, 4), int), np.array([[16]]),
    np.array([[-1]]), np.zeros((bitstream.MAX_FRAMES + 1, 1), int)])
def test_what_has_no_place_in_a_packet_is_not_written(codes):
  stream = io.BytesIO()
  writer = bitstream.Writer(stream, HEADER)
  with pytest.raises(AssertionError):
    writer.write(codes)
  assert len(stream.getvalue()) == HEADER_SIZE


def test_the_longest_packet():
  codes = np.random.RandomState(0).randint(0, 16, (bitstream.MAX_FRAMES, 3))
  _assert_same(list(bitstream.Reader(io.BytesIO(_written([codes])), 'a')), [codes])


def test_every_cut_is_seen():
  packets = _packets(0)
  content = _written(packets)
  for length in range(len(content)):
    _assert_refused(content[:length], packets)


def test_every_flipped_bit_is_seen():
  packets = _packets(1)
  content = _written(packets)
  for bit in range(8 * len(content)):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    _assert_refused(bytes(damaged), packets)


def test_packets_out_of_order_left_out_or_twice_are_seen():
  packets = _packets(2)
  content = _written(packets)
  borders = HEADER_SIZE + np.cumsum([0, *_sizes(packets)])
  header, end = content[:HEADER_SIZE], content[borders[-1]:]
  parts = [content[a:b] for a, b in zip(borders[:-1], borders[1:], strict=True)]
  assert header + b''.join(parts) + end == content
  for order in ([1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3], [1, 2, 3], [0, 0, 1, 2, 3], [0, 1, 2], []):
    _assert_refused(header + b''.join(parts[i] for i in order) + end, packets)
  other = _written(_packets(3))
  _assert_refused(content[:-15] + other[-15:], packets)  # the end of another file


def test_bytes_after_the_end_are_refused():
  packets = _packets(0)
  for more in (b'\0', _written(packets)):
    _assert_refused(_written(packets) + more, packets, 'goes on after its end')


@pytest.mark.parametrize('content, reason', [
    (b'', 'is empty'),
    (b'RIFF$\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0' + bytes(40), 'is not a file of codes'),
    (np.random.RandomState(0).bytes(500), 'is not a file of codes'),
    (bytes(500), 'is not a file of codes'),
    (bitstream.MAGIC, 'cut off in its header'),
])  # fmt: skip
def test_foreign_files_are_refused(content, reason):
  _assert_refused(content, reason=reason)


def test_another_version_is_refused():
  content = bytearray(_written(_packets(0)))
  content[len(bitstream.MAGIC)] = 2
  _assert_refused(bytes(content), reason='has format version 2, wanted 1')


@pytest.mark.parametrize('change', [
    {'num_levels': 0}, {'bits_per_code': 0}, {'bits_per_code': 17}, {'sample_rate': 0},
    {'hop_length': 0}])
def test_headers_that_no_codec_wrote_are_refused(change):
  header = dataclasses.replace(HEADER, **change)
  _assert_refused(header.to_bytes() + bytes(100), reason='header that no codec wrote')


def _finished(content: bytes, num_samples: int, covered: bytes) -> bytes:
  """Returns `content` with an end whose checksum is right; it covers `covered` and the end."""
  end = b'\0\0\0' + struct.pack('<Q', num_samples)
  return content + end + struct.pack('<I', zlib.crc32(covered + end))


def test_lengths_that_do_not_agree_are_refused():
  """Also when every checksum is right: the file is wrong, not damaged."""
  packet = b'\x02\x00\x01\x00'
  body = packet + struct.pack('<I', zlib.crc32(packet))
  for samples, good in ((8, False), (9, True), (16, True), (17, False), (2**63, False)):
    content = _finished(HEADER.to_bytes() + body, samples, packet)
    if good:
      reader = bitstream.Reader(io.BytesIO(content), 'a')
      assert [codes.shape for codes in reader] == [(2, 1)] and reader.num_samples == samples
    else:
      _assert_refused(content, [np.zeros((2, 1))], 'has 2 frames of 8 samples for')
  header = dataclasses.replace(HEADER, num_samples=16).to_bytes()
  _assert_refused(_finished(header + body, 15, packet), [np.zeros((2, 1))], 'by its header, 15 by')


def test_a_file_without_samples_is_refused():
  _assert_refused(_finished(HEADER.to_bytes(), 0, b''), reason='holds no samples')


@pytest.mark.parametrize('levels', [0, 4, 255])
def test_levels_that_the_header_does_not_have_are_refused(levels):
  packet = struct.pack('<HB', 1, levels) + bytes(200)
  _assert_refused(HEADER.to_bytes() + packet, reason=f'a packet has {levels} levels')
