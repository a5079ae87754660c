"""L3. A codec for audio of any length, in constant memory.  Axes: S samples, T frames, Q levels.

Encoder and decoder run block by block; what a convolution needs of earlier blocks is carried along
(models/soundstream.py, 'past'), so that blocks leave no seams and any chunking gives the same codes.
Latency: one frame (`SoundStreamConfig.latency`, 20 ms at 50 Hz) with blocks of one frame.
"""

import functools
import heapq
import shutil
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from musiclm_jax import audio, bitstream, checkpoints, errors

TINY = epath.Path(__file__).parent / 'pretrained' / 'tiny' / 'soundstream'


class Codec:
  """An exported soundstream: `encode` and `decode` take and give chunks of any length.

    codec = Codec.load()
    codes = list(codec.encode([waveform], num_levels=8))  # int32[<= 50, 8] each
    waveform = np.concatenate(list(codec.decode(codes)))
  """

  def __init__(self, model: checkpoints.ExportedModel, block_frames: int | None = None):
    self.model, self.config = model, model.config
    self._block = block_frames or max(1, round(self.config.frame_rate))  # about a second

  @classmethod
  def load(cls, directory: str | None = None, block_frames: int | None = None) -> 'Codec':
    """Returns the codec of an exported model, by default the small one of the package."""
    return cls(checkpoints.load_model(directory or TINY, 'soundstream'), block_frames)

  @functools.cached_property
  def model_id(self) -> bytes:
    """Returns 16 bytes: which encoder and codebooks; codecs that differ in the decoder share it."""
    return bytes.fromhex(checkpoints.token_fingerprint(self.model))[:16]

  def header(self) -> bitstream.Header:
    c = self.config
    return bitstream.Header(
        self.model_id, c.sample_rate, c.hop_length, c.num_quantizers, c.bits_per_code)

  def levels(self, kbps: float | None) -> int:
    """Returns the most levels that fit a bitrate; None asks for all of them."""
    c = self.config
    if kbps is None:
      return c.num_quantizers
    if not c.kbps(1) <= kbps <= c.kbps(c.num_quantizers):  # nor for NaN
      raise errors.UserError(
          f'{kbps:g} kbps asked for, {self.model.directory} has {c.kbps(1):g} to'
          f' {c.kbps(c.num_quantizers):g}, in steps of {c.kbps(1):g}')
    return int(kbps / c.kbps(1) + 1e-9)

  def encode(
      self, chunks: Iterable[np.ndarray], num_levels: int | None = None, denoise: bool = False
  ) -> Iterator[np.ndarray]:
    """Yields int32[T, Q], a block of frames each, of f32[S] chunks; silence fills the last frame."""
    if denoise:
      self.check_denoising('encoder')
    hop = self.config.hop_length
    options = {'num_quantizers': num_levels, 'denoise': jnp.array([denoise]) if denoise else None}
    step = _Streaming(self.model, 'encode', **options)
    for block, length in _blocks(chunks, self._block * hop):
      yield step(block[None])[0, : -(-length // hop)]

  def decode(
      self, packets: Iterable[np.ndarray], denoise: bool = False
  ) -> Iterator[np.ndarray]:
    """Yields f32[S] in [-1, 1], a block each, of int[T, Q] packets; Q may change between them."""
    if denoise:
      self.check_denoising('decoder')
    step = _Streaming(self.model, 'decode', denoise=jnp.array([True]) if denoise else None)
    full = (self._filled(codes) for codes in packets)
    for block, length in _blocks(full, self._block):
      yield np.clip(step(block[None])[0], -1.0, 1.0)[: length * self.config.hop_length]

  def decode_batch(self, packets: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields f32[B, S] in [-1, 1], a block each, of int[B, T, Q] packets of the same Q."""
    step = _Streaming(self.model, 'decode')
    frames = (np.swapaxes(codes, 0, 1) for codes in packets)  # _blocks cuts the first axis
    for block, length in _blocks(frames, self._block):
      waveforms = step(np.swapaxes(block, 0, 1))
      yield np.clip(waveforms, -1.0, 1.0)[:, : length * self.config.hop_length]

  def check_denoising(self, side: str) -> None:
    """Raises an error when this model cannot take noise out on that side, 'encoder' or 'decoder'."""
    if self.config.denoising != side:
      raise errors.UserError(f'{self.model.directory} cannot denoise in its {side}: its denoising is'
                             f' {self.config.denoising!r}')

  def explained(self, codes: np.ndarray) -> np.ndarray:
    """Returns f64[Q], how much of int[T, Q] codes each level explains.

    It is the energy of the vectors a level adds.  They are the means of what is assigned to them,
    so on average the squared error falls by just that.
    """
    self._check(codes)
    vectors = self._vectors[np.arange(codes.shape[1]), codes]
    return np.square(vectors, dtype=np.float64).sum(axis=(0, 2))

  @functools.cached_property
  def _vectors(self) -> np.ndarray:
    return np.asarray(self.model.variables['codebooks']['quantizer']['embeddings'])

  def _filled(self, codes: np.ndarray) -> np.ndarray:
    """Returns int32[T, all levels]: those that are missing are -1, which is not heard."""
    self._check(codes)
    missing = self.config.num_quantizers - codes.shape[1]
    return np.pad(np.asarray(codes, np.int32), ((0, 0), (0, missing)), constant_values=-1)

  def _check(self, codes: np.ndarray) -> None:
    levels, most = self.config.num_quantizers, codes.max(initial=-1)
    if codes.shape[1] > levels or most >= self.config.codebook_size:
      raise errors.UserError(
          f'codes of {codes.shape[1]} levels up to {most}; {self.model.directory} has {levels}'
          f' levels of {self.config.codebook_size}')


class _Streaming:
  """A method of the model from block to block, `past` carried along; one shape, compiled once."""

  def __init__(self, model: checkpoints.ExportedModel, method: str, **options):
    self._run = functools.partial(_step, model.module, method)
    self._variables = model.variables
    self._static = tuple((k, v) for k, v in sorted(options.items()) if not hasattr(v, 'shape'))
    self._arrays = {k: v for k, v in options.items() if hasattr(v, 'shape')}
    self._past = None

  def __call__(self, block: np.ndarray) -> np.ndarray:
    inputs = (self._static, self._variables)
    if self._past is None:
      empty = functools.partial(self._run, *inputs, {})
      self._past = jax.tree.map(
          lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
          jax.eval_shape(empty, block, self._arrays)[1],
      )
    output, self._past = self._run(*inputs, self._past, block, self._arrays)
    return np.asarray(output)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _step(module, method, static, variables, past, block, arrays):
  return module.apply(
      {**variables, **past}, block, method=method, mutable=['past'], **dict(static), **arrays)


def _blocks(chunks: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
  """Yields (block [size, ..], rows that count) of arrays of any length; zeros fill the last one."""
  waiting, held = [], 0
  for chunk in chunks:
    waiting.append(chunk)
    held += len(chunk)
    if held >= size:
      joined = np.concatenate(waiting)
      whole = held // size * size
      for start in range(0, whole, size):
        yield joined[start : start + size], size
      waiting, held = [joined[whole:]], held - whole
  if held:
    joined = np.concatenate(waiting)
    yield np.pad(joined, [(0, size - held)] + [(0, 0)] * (joined.ndim - 1)), held


def write(stream, codec: Codec, chunks: Iterable[np.ndarray], num_levels: int | None = None,
          denoise: bool = False) -> int:
  """Writes f32[S] chunks as a bitstream and returns the number of samples."""
  num_samples = 0

  def counted():
    nonlocal num_samples
    for chunk in chunks:
      num_samples += len(chunk)
      yield chunk

  writer = bitstream.Writer(stream, codec.header())
  for codes in codec.encode(counted(), num_levels, denoise):
    writer.write(codes)
  writer.close(num_samples)
  return num_samples


def read(reader: bitstream.Reader, codec: Codec, denoise: bool = False) -> Iterator[np.ndarray]:
  """Yields the f32[S] of a bitstream, as long as what was encoded."""
  check_model(reader, codec)
  hop, held = codec.config.hop_length, np.zeros(0, np.float32)
  total = 0
  for waveform in codec.decode(reader, denoise):
    waveform = np.concatenate([held, waveform])
    given, held = waveform[:-hop], waveform[-hop:]  # the last frame may be cut short
    total += len(given)
    yield given
  yield held[: reader.num_samples - total]


def check_model(reader: bitstream.Reader, codec: Codec) -> None:
  """Raises an error when the bitstream's codes are another model's, or its header is not."""
  found, wanted = reader.header, codec.header()
  if found.model_id != wanted.model_id:
    raise errors.UserError(
        f'{reader.name}: the codes are of model {found.model_id.hex()}, {codec.model.directory} is'
        f' {wanted.model_id.hex()}: give the model that encoded them')
  for field in ('num_levels', 'bits_per_code', 'sample_rate', 'hop_length'):
    if getattr(found, field) != getattr(wanted, field):
      raise errors.UserError(f'{reader.name}: {field} is {getattr(found, field)} in its header,'
                             f' {getattr(wanted, field)} in {codec.model.directory}')


def write_full(path: str, stream, codec: Codec) -> None:
  """Writes all levels of an audio file as a bitstream; of a bitstream, a copy."""
  with open(path, 'rb') as source:
    if source.read(len(bitstream.MAGIC)) == bitstream.MAGIC:
      source.seek(0)
      shutil.copyfileobj(source, stream)
      stream.flush()
      return
  write(stream, codec, audio.blocks(path, codec.config.sample_rate))


def reduce(reader: bitstream.Reader, stream, levels: Sequence[int]) -> list[int]:
  """Writes a bitstream again, packet i with its first `levels[i]` levels; returns those it has."""
  writer = bitstream.Writer(stream, reader.header)
  used = []
  for codes, most in zip(reader, levels, strict=True):
    writer.write(codes[:, :most])
    used.append(min(most, codes.shape[1]))
  writer.close(reader.num_samples)
  return used


def read_rates(path: str, codec: Codec) -> list[int]:
  """Returns the levels of each second, of a text file with a bitrate in kbps on each line."""
  try:
    with open(path, encoding='utf-8') as lines:
      rates = [float(line.strip()) for line in lines if line.strip()]
  except ValueError as error:
    raise errors.UserError(f'{path} is not a list of bitrates, one a line: {error}') from error
  if not rates:
    raise errors.UserError(f'{path} holds no bitrates')
  return [codec.levels(rate) for rate in rates]


def levels_for_rates(reader: bitstream.Reader, rates: Sequence[int]) -> list[int]:
  """Returns the levels of each packet: `rates[s]` from second s on, the last one to the end."""
  header, frames, levels = reader.header, 0, []
  for codes in reader:
    second = frames * header.hop_length // header.sample_rate
    levels.append(rates[min(second, len(rates) - 1)])
    frames += len(codes)
  return levels


def describe(reader: bitstream.Reader) -> str:
  """Returns what a bitstream holds, in lines; reads it to its end, so it is known to be whole."""
  header, bits, levels = reader.header, 0, set()
  for codes in reader:
    bits += codes.size * header.bits_per_code
    levels.add(codes.shape[1])
  seconds = reader.num_samples / header.sample_rate
  level = header.bits_per_code * header.sample_rate / header.hop_length / 1000
  return '\n'.join([
      f'{seconds:.2f} s at {header.sample_rate} Hz, {header.sample_rate / header.hop_length:g}'
      ' frames a second',
      f'{bits / 1000 / max(seconds, 1e-9):.2f} kbps on average, {min(levels) * level:g} to'
      f' {max(levels) * level:g}; the model has up to {header.num_levels * level:g}',
      f'model {header.model_id.hex()}',
  ])


def levels_for_size(reader: bitstream.Reader, codec: Codec, target: int) -> list[int]:
  """Returns the levels of each packet, so that the file has at most `target` bytes.

  Each step gives the next level to the packet whose error falls most for its bytes; the first
  level is everyone's.  Each level of a packet explains less than the one before, so that steps in
  this order are the best choice for their size.
  """
  check_model(reader, codec)
  bits = reader.header.bits_per_code
  gains, lengths = [], []
  for codes in reader:
    lengths.append(len(codes))
    # A later level that explains more counts as no more: it cannot be had without those before.
    gains.append(np.minimum.accumulate(codec.explained(codes)))
  sizes = lambda i, q: bitstream.packet_size(lengths[i], q, bits)
  used = bitstream.frame_size() + sum(sizes(i, 1) for i in range(len(gains)))
  if used > target:
    raise errors.UserError(f'{target} bytes asked for, one level takes {used}')
  levels = [1] * len(gains)

  def entry(i):
    q = levels[i]
    return -gains[i][q] / (sizes(i, q + 1) - sizes(i, q)), i

  queue = [entry(i) for i in range(len(gains)) if len(gains[i]) > 1]
  heapq.heapify(queue)
  while queue:
    _, i = heapq.heappop(queue)
    more = sizes(i, levels[i] + 1) - sizes(i, levels[i])
    if used + more > target:
      continue
    used += more
    levels[i] += 1
    if levels[i] < len(gains[i]):
      heapq.heappush(queue, entry(i))
  return levels
