"""L0. Files of codes: a header, packets of frames, an end.  Axes: T frames, Q levels.

All numbers are little endian.

  header   b'SSTREAM\\n'  u8 version  u8 levels  u8 bits per code  u8 0  u32 sample rate
           u32 hop length  u64 samples  16 bytes model id  u32 CRC-32 of the header
  packet   u16 frames  u8 levels  codes  u32 CRC-32 of all packets so far
  end      u16 0  u8 0  u64 samples  u32 CRC-32 of all packets and of this

Codes are packed frame by frame, level by level, most significant bit first, with zeros to the next
byte:  10 bits, [[1, 1023]]  ->  0000000001 1111111111 0000.  A packet has levels of its own, so that
the bitrate can change from one to the next.  `samples` in the header is 2^64 - 1 where it was not
known in advance: when the file was written to a pipe.
"""

import dataclasses
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from musiclm_jax import errors

MAGIC = b'SSTREAM\n'
VERSION = 1
MAX_FRAMES = 2**16 - 1  # of a packet
_HEADER = struct.Struct('<8sBBBxIIQ16s')
_PACKET = struct.Struct('<HB')
_END = struct.Struct('<Q')
_CRC = struct.Struct('<I')
_UNKNOWN = 2**64 - 1


@dataclasses.dataclass(frozen=True)
class Header:
  model_id: bytes  # 16 bytes: which encoder and codebooks made the codes
  sample_rate: int
  hop_length: int
  num_levels: int  # most levels of a packet
  bits_per_code: int
  num_samples: int | None = None

  def to_bytes(self) -> bytes:
    samples = _UNKNOWN if self.num_samples is None else self.num_samples
    packed = _HEADER.pack(
        MAGIC, VERSION, self.num_levels, self.bits_per_code, self.sample_rate, self.hop_length,
        samples, self.model_id)  # fmt: skip
    return packed + _CRC.pack(zlib.crc32(packed))


def pack(codes: np.ndarray, bits_per_code: int) -> bytes:
  """Returns the bytes of int[T, Q] codes."""
  places = np.arange(bits_per_code - 1, -1, -1)
  bits = (np.asarray(codes)[..., None] >> places) & 1
  return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()


def unpack(packed: bytes, num_frames: int, num_levels: int, bits_per_code: int) -> np.ndarray:
  """Returns int32[T, Q], the inverse of `pack`."""
  count = num_frames * num_levels * bits_per_code
  bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=count)
  bits = bits.reshape(num_frames, num_levels, bits_per_code).astype(np.int32)
  return bits @ (1 << np.arange(bits_per_code - 1, -1, -1, dtype=np.int32))


def _packed_size(num_frames: int, num_levels: int, bits_per_code: int) -> int:
  return -(-num_frames * num_levels * bits_per_code // 8)


def packet_size(num_frames: int, num_levels: int, bits_per_code: int) -> int:
  """Returns the bytes that a packet takes in the file."""
  return _PACKET.size + _packed_size(num_frames, num_levels, bits_per_code) + _CRC.size


def frame_size() -> int:
  """Returns the bytes of a file beside its packets."""
  return _HEADER.size + _CRC.size + _PACKET.size + _END.size + _CRC.size


def _can_go_back(stream: BinaryIO) -> bool:
  """Returns whether what is written can be replaced: not in a pipe, nor after `>> FILE`."""
  if not stream.seekable():
    return False
  try:
    return not fcntl.fcntl(stream.fileno(), fcntl.F_GETFL) & os.O_APPEND
  except OSError:  # a stream in memory is no file of the system
    return True


class Writer:
  """Writes a header, then `write(codes)` packet by packet, then `close(num_samples)`."""

  def __init__(self, stream: BinaryIO, header: Header):
    self._stream, self._header, self._crc = stream, header, 0
    self._start = stream.tell() if _can_go_back(stream) else None
    stream.write(header.to_bytes())

  def write(self, codes: np.ndarray) -> None:
    """Writes int[T, Q] as one packet; T from 1 to MAX_FRAMES, Q from 1 to the header's levels."""
    frames, levels = codes.shape
    assert 0 < frames <= MAX_FRAMES and 0 < levels <= self._header.num_levels, codes.shape
    assert codes.min() >= 0 and codes.max() < 1 << self._header.bits_per_code
    self._put(_PACKET.pack(frames, levels) + pack(codes, self._header.bits_per_code))

  def close(self, num_samples: int) -> None:
    """Ends the file; its header learns the length too, where the stream can go back."""
    assert num_samples > 0, num_samples
    self._put(_PACKET.pack(0, 0) + _END.pack(num_samples))
    if self._start is not None:
      self._stream.seek(self._start)
      self._stream.write(dataclasses.replace(self._header, num_samples=num_samples).to_bytes())
      self._stream.seek(0, 2)
    self._stream.flush()

  def _put(self, content: bytes) -> None:
    self._crc = zlib.crc32(content, self._crc)
    self._stream.write(content + _CRC.pack(self._crc))
    self._stream.flush()  # who listens at the other end of a pipe waits for it


class Reader:
  """Reads a header at once, then yields packets: `for codes in Reader(stream, name)`.

  `num_samples` is known after the last packet, at the latest.  A stream that is foreign, damaged
  or cut off is a UserError that names it; nothing after the damage is given out.
  """

  def __init__(self, stream: BinaryIO, name: str):
    self.name, self._stream, self._crc = name, stream, 0
    self.header = self._read_header()
    self.num_samples = self.header.num_samples

  def __iter__(self) -> Iterator[np.ndarray]:
    """Yields int32[T, Q] of each packet."""
    frames_before = 0
    while True:
      head = self._take(_PACKET.size)
      frames, levels = _PACKET.unpack(head)
      if not frames:
        self._read_end(head, frames_before)
        return
      if not 0 < levels <= self.header.num_levels:
        raise self._error(f'is damaged: a packet has {levels} levels')
      bits = self.header.bits_per_code
      packed = self._take(_packed_size(frames, levels, bits))
      self._check(head + packed)
      yield unpack(packed, frames, levels, bits)
      frames_before += frames

  def _read_header(self) -> Header:
    packed = self._stream.read(_HEADER.size)
    if packed[: len(MAGIC)] != MAGIC:
      raise self._error('is not a file of codes that tools/codec.py made' if packed else 'is empty')
    if len(packed) == _HEADER.size and packed[len(MAGIC)] != VERSION:
      raise self._error(f'has format version {packed[len(MAGIC)]}, wanted {VERSION}')
    crc = self._stream.read(_CRC.size)
    if len(crc) < _CRC.size:
      raise self._error('is cut off in its header')
    if _CRC.unpack(crc)[0] != zlib.crc32(packed):
      raise self._error('is damaged: the checksum of its header does not match')
    _, _, levels, bits, rate, hop, samples, model_id = _HEADER.unpack(packed)
    if not (levels and 1 <= bits <= 16 and rate and hop):
      raise self._error(f'has a header that no codec wrote: {levels} levels of {bits} bits,'
                        f' {rate} Hz, hop {hop}')
    return Header(model_id, rate, hop, levels, bits, None if samples == _UNKNOWN else samples)

  def _read_end(self, head: bytes, num_frames: int) -> None:
    packed = self._take(_END.size)
    self._check(head + packed)
    (samples,) = _END.unpack(packed)
    if self.num_samples not in (None, samples):
      raise self._error(f'has {self.num_samples} samples by its header, {samples} by its end')
    hop = self.header.hop_length
    if -(-samples // hop) != num_frames:
      raise self._error(f'has {num_frames} frames of {hop} samples for {samples} samples')
    if not samples:
      raise self._error('holds no samples')
    if self._stream.read(1):
      raise self._error('goes on after its end')
    self.num_samples = samples

  def _check(self, content: bytes) -> None:
    self._crc = zlib.crc32(content, self._crc)
    if _CRC.unpack(self._take(_CRC.size))[0] != self._crc:
      raise self._error('is damaged: the checksum of a packet does not match')

  def _take(self, size: int) -> bytes:
    content = self._stream.read(size)
    if len(content) < size:
      raise self._error('is cut off: it ends inside a packet or before the end mark')
    return content

  def _error(self, what: str) -> errors.UserError:
    return errors.UserError(f'{self.name} {what}')
