"""L0. Token ids: the only module that knows an id, an offset or the order of a sequence.

Axes: B batch, T frames, Q levels (quantizers), P prefix ids, N target ids, L = P + N.

A stage's sequence is its prefix streams, then its target stream, each frame-major and
level-minor. Coarse stage with 2 mulan levels x 4 codes, 8 semantic codes, 2 coarse levels x 10:

  ids        0 PAD   1 BOS   2 EOS   3 MASK
  mulan      4..7    level 0     8..11   level 1
  semantic  12..19   level 0
  coarse    20..29   level 0    30..39   level 1          vocab_size 128 (40, rounded up)

  mulan [[3 0]]   semantic [[5]]   coarse [[7 1] [2 9]]
  -> 7 8 | 17 | 27 31 22 39
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from musiclm_jax import errors

PAD_ID = 0  # SeqIO's padding: never a code, so that it drops out of every loss
BOS_ID = 1
EOS_ID = 2
MASK_ID = 3
NUM_RESERVED = 4
VOCAB_MULTIPLE = 128  # a lane of the TPU's matrix unit
FORMAT_VERSION = 1
STAGES = ('semantic', 'coarse', 'fine')
# The streams that a listener sets, by a prompt and by a tune; training may hide them.
PROMPT, MELODY = CONDITIONS = ('mulan', 'melody')
# The models whose weights decide what a token means; the last two where a layout has melodies.
TOKENIZERS = ('soundstream', 'w2v_bert', 'semantic_quantizer', 'mulan', 'mulan_quantizer')
MELODY_TOKENIZERS = ('melody', 'melody_quantizer')
LAYOUT_FILE = 'layout.json'


@dataclasses.dataclass(frozen=True)
class TokenStream:
  """Codes int[T, Q] in [0, codebook_size): Q = num_levels, T = seconds * frame_rate.

  frame_rate 0 means one frame a clip (MuLan). first_level is the level of the recorded stream
  that becomes level 0 here: fine of MusicLM is levels 4..11 of the codec.

  A stream of windows (melody) has frame_rate 1: row s of what is recorded is of the seconds
  [s, s + window_seconds). A crop takes every hop_seconds-th row, of windows that are inside it:
  of 10 s, with windows of 4 s every 3 s, the rows 0, 3 and 6.
  """

  name: str
  num_levels: int
  codebook_size: int
  frame_rate: int
  first_level: int = 0
  window_seconds: int = 0
  hop_seconds: int = 1

  def __post_init__(self):
    if self.window_seconds and (self.frame_rate != 1 or self.hop_seconds < 1):
      raise errors.UserError(
          f'{self.name} has windows of {self.window_seconds} s every {self.hop_seconds} s at '
          f'frame_rate {self.frame_rate}, wanted hops of 1 s or more and frame_rate 1')

  @property
  def levels(self) -> slice:
    """Returns which levels of the recorded stream these are: `acoustic[:, stream.levels]`."""
    return slice(self.first_level, self.first_level + self.num_levels)

  def num_frames(self, seconds: float) -> int:
    """Returns how many frames a crop of `seconds` has; an error when that is not a whole number."""
    if not self.frame_rate:
      return 1
    if self.window_seconds:
      return max(int((seconds - self.window_seconds) // self.hop_seconds) + 1, 0)
    frames = seconds * self.frame_rate
    if frames <= 0 or abs(frames - round(frames)) > 1e-6:
      raise errors.UserError(
          f'{seconds} s is not a whole number of {self.name} frames at {self.frame_rate} Hz')
    return round(frames)

  def rows(self, start: int, seconds: float) -> slice:
    """Returns which recorded frames a crop from second `start` has; not for one frame a clip."""
    first = start * self.frame_rate
    return slice(first, first + self.num_frames(seconds) * self.hop_seconds, self.hop_seconds)


@dataclasses.dataclass(frozen=True)
class StageLayout:
  """Prefix streams, then one target stream; every level of every stream owns its ids."""

  name: str
  prefix: tuple[TokenStream, ...]
  target: TokenStream
  seconds: float

  @property
  def streams(self) -> tuple[TokenStream, ...]:
    return (*self.prefix, self.target)

  def stream(self, name: str) -> TokenStream:
    for stream in self.streams:
      if stream.name == name:
        return stream
    raise errors.UserError(
        f'stage {self.name} has no stream {name!r}, only {[s.name for s in self.streams]}')

  def first_id(self, stream: TokenStream) -> int:
    """Returns the id of code 0 of level 0 of `stream`."""
    first = NUM_RESERVED
    for other in self.streams:
      if other == stream:
        return first
      first += other.num_levels * other.codebook_size
    raise errors.UserError(f'stage {self.name} has no stream {stream}')

  def level_offsets(self, stream: TokenStream) -> np.ndarray:
    """Returns int32[Q]: what to add to codes [..., T, Q] of `stream` to get ids."""
    levels = np.arange(stream.num_levels, dtype=np.int32)
    return self.first_id(stream) + stream.codebook_size * levels

  @property
  def vocab_size(self) -> int:
    used = NUM_RESERVED + sum(s.num_levels * s.codebook_size for s in self.streams)
    return -(-used // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

  @property
  def prefix_length(self) -> int:
    return sum(s.num_levels * s.num_frames(self.seconds) for s in self.prefix)

  @property
  def target_frames(self) -> int:
    return self.target.num_frames(self.seconds)

  @property
  def target_length(self) -> int:
    return self.target.num_levels * self.target_frames

  @property
  def sequence_length(self) -> int:
    return self.prefix_length + self.target_length

  @property
  def codebook_size(self) -> int:
    """Returns how many ids are legal at a target position."""
    return self.target.codebook_size

  @property
  def first_ids(self) -> np.ndarray:
    """Returns int32[N]: position i of the target may hold ids first_ids[i] + [0, codebook_size)."""
    return np.tile(self.level_offsets(self.target), self.target_frames)

  def legal_range(self, position: int) -> tuple[int, int]:
    """Returns (first, past the last) legal id at `position` of the whole sequence of L ids."""
    if not 0 <= position < self.sequence_length:
      raise IndexError(f'position {position} of a {self.name} sequence of {self.sequence_length}')
    stream, span = next(each for each in self._spans() if position < each[1].stop)
    level = (position - span.start) % stream.num_levels
    first = int(self.level_offsets(stream)[level])
    return first, first + stream.codebook_size

  @property
  def times(self) -> np.ndarray:
    """Returns int32[L]: the moment of each position, in steps of the stream with most ids a second.

    Coarse with 25 Hz semantic and 50 Hz x 4 levels, 200 steps a second:
      mulan 6 levels: -6 .. -1;   semantic: 0 8 16 ..;   coarse: 0 1 2 3 | 4 5 6 7 | ..
      melody 6 levels every 3 s: 0 1 2 3 4 5 | 600 601 ..
    so that a semantic token and the acoustic tokens of the same moment have equal times.
    """
    rate = max(s.frame_rate * s.num_levels for s in self.streams)
    times = []
    for stream in self.streams:
      levels = np.arange(stream.num_levels)
      if not stream.frame_rate:
        times.append(levels - stream.num_levels)
        continue
      frames = np.arange(stream.num_frames(self.seconds)) * stream.hop_seconds
      starts = frames * rate // stream.frame_rate
      times.append((starts[:, None] + levels).reshape(-1))
    return np.concatenate(times).astype(np.int32)

  def flatten_stream(self, stream: TokenStream, codes: Any) -> Any:
    """Returns ids int32[T * Q] or [B, T * Q] for codes [T, Q] or [B, T, Q], any number of frames."""
    if codes.ndim not in (2, 3) or codes.shape[-1] != stream.num_levels:
      raise errors.UserError(
          f'{stream.name} codes have shape {list(codes.shape)}, wanted [frames, '
          f'{stream.num_levels}] or [batch, frames, {stream.num_levels}]')
    if isinstance(codes, np.ndarray):
      _check_range(codes, stream)
      codes = codes.astype(np.int32)
    ids = codes + self.level_offsets(stream)
    return ids.reshape(*ids.shape[:-2], -1)

  def flatten_prefix(self, codes: Mapping[str, Any]) -> np.ndarray:
    """Returns ids int32[P] or [B, P]; `codes` maps each prefix stream's name to [T, Q] / [B, T, Q]."""
    return self._flatten(codes, self.prefix)

  def positions(self, name: str) -> slice:
    """Returns where the ids of the stream called `name` are in the sequence; an error without it."""
    wanted = self.stream(name)
    return next(span for stream, span in self._spans() if stream == wanted)

  def _spans(self):
    """Yields each stream with where its ids are in the sequence."""
    first = 0
    for stream in self.streams:
      length = stream.num_levels * stream.num_frames(self.seconds)
      yield stream, slice(first, first + length)
      first += length

  @property
  def conditions(self) -> tuple[str, ...]:
    """Returns which of CONDITIONS this stage hears."""
    return tuple(s.name for s in self.prefix if s.name in CONDITIONS)

  def hidden(self, prefix_ids: Any, name: str, frames: Any = True) -> Any:
    """Returns ids [.., P] with MASK for those of the prefix stream `name` at `frames` bool[T]."""
    where, positions = np.zeros(self.prefix_length, bool), self.positions(name)
    stream = self.stream(name)
    frames = np.broadcast_to(frames, stream.num_frames(self.seconds))
    where[positions] = np.repeat(frames, stream.num_levels)
    return prefix_ids * ~where + MASK_ID * where

  def flatten(self, codes: Mapping[str, Any]) -> np.ndarray:
    """Returns ids int32[L] or [B, L]: the prefix, then the target."""
    return self._flatten(codes, self.streams)

  def _flatten(self, codes, streams):
    ids = []
    for stream in streams:
      if stream.name not in codes:
        raise errors.UserError(
            f'stage {self.name} needs {stream.name} codes, got only {sorted(codes)}')
      array = np.asarray(codes[stream.name])
      wanted = stream.num_frames(self.seconds)
      if array.ndim >= 2 and array.shape[-2] != wanted:
        raise errors.UserError(
            f'{stream.name} codes have {array.shape[-2]} frames, a {self.name} sequence of '
            f'{self.seconds} s has {wanted}')
      ids.append(self.flatten_stream(stream, array))
    return np.concatenate(ids, axis=-1)

  def unflatten(self, ids: Any) -> np.ndarray:
    """Returns codes int32[T, Q] or [B, T, Q] of target ids [N] or [B, N], any whole frames.

    Exact inverse of `flatten_stream(target, codes)`; an id outside its level is an error.
    """
    ids = np.asarray(ids)
    num_levels, size = self.target.num_levels, self.target.codebook_size
    if ids.ndim not in (1, 2) or ids.shape[-1] % num_levels:
      raise errors.UserError(
          f'{self.name} ids have shape {list(ids.shape)}, wanted a multiple of {num_levels} ids')
    codes = ids.reshape(*ids.shape[:-1], -1, num_levels) - self.level_offsets(self.target)
    wrong = np.argwhere(((codes < 0) | (codes >= size)).reshape(ids.shape))
    if wrong.size:
      where = tuple(wrong[0])
      first = int(self.level_offsets(self.target)[where[-1] % num_levels])
      raise errors.UserError(
          f'id {ids[where]} at target position {where[-1]} of a {self.name} sequence is not in '
          f'[{first}, {first + size})')
    return codes.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class TokenLayout:
  """The recorded streams and how the stages share them. The defaults are MusicLM's.

  semantic: mulan -> semantic;   coarse: mulan, semantic -> acoustic[:, :coarse_levels];
  fine: (mulan,) acoustic[:, :coarse_levels] -> acoustic[:, coarse_levels:].
  A melody, in the paper TokenStream('melody', 24, 512, 1, window_seconds=4, hop_seconds=3), comes
  after mulan in semantic and coarse, where a crop is as long as one of its windows (appendix C).
  """

  mulan: TokenStream = TokenStream('mulan', 12, 1024, 0)
  semantic: TokenStream = TokenStream('semantic', 1, 1024, 25)
  acoustic: TokenStream = TokenStream('acoustic', 12, 1024, 50)
  coarse_levels: int = 4
  fine_uses_mulan: bool = False
  melody: TokenStream | None = None

  def __post_init__(self):
    for name, stream in self.recorded.items():
      if stream.name != name:
        raise errors.UserError(f'layout stream {name} is named {stream.name!r}')
    if not 0 < self.coarse_levels < self.acoustic.num_levels:
      raise errors.UserError(
          f'coarse_levels is {self.coarse_levels}, wanted 1 to {self.acoustic.num_levels - 1}')

  @property
  def recorded(self) -> dict[str, TokenStream]:
    """Returns the streams that token records hold, by name."""
    streams = {'mulan': self.mulan, 'semantic': self.semantic, 'acoustic': self.acoustic}
    return streams | ({} if self.melody is None else {MELODY: self.melody})

  @property
  def tokenizers(self) -> tuple[str, ...]:
    """Returns the names of the models that make the recorded streams."""
    return TOKENIZERS + (() if self.melody is None else MELODY_TOKENIZERS)

  @property
  def coarse(self) -> TokenStream:
    return dataclasses.replace(self.acoustic, name='coarse', num_levels=self.coarse_levels)

  @property
  def fine(self) -> TokenStream:
    return dataclasses.replace(
        self.acoustic, name='fine', num_levels=self.acoustic.num_levels - self.coarse_levels,
        first_level=self.acoustic.first_level + self.coarse_levels)

  def stage(self, name: str, seconds: float) -> StageLayout:
    melody = self.melody is not None and self.melody.num_frames(seconds) > 0
    conditions = (self.mulan, self.melody) if melody else (self.mulan,)
    if name == 'semantic':
      return StageLayout(name, conditions, self.semantic, seconds)
    if name == 'coarse':
      return StageLayout(name, (*conditions, self.semantic), self.coarse, seconds)
    if name == 'fine':
      mulan = (self.mulan,) if self.fine_uses_mulan else ()
      return StageLayout(name, (*mulan, self.coarse), self.fine, seconds)
    raise errors.UserError(f'unknown stage {name!r}, wanted one of {list(STAGES)}')

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> 'TokenLayout':
    try:
      names = ('mulan', 'semantic', 'acoustic', *([MELODY] if value.get(MELODY) else []))
      streams = {name: _stream_from_json(value[name]) for name in names}
      return cls(**{**value, **streams})
    except (KeyError, TypeError, AttributeError) as error:
      raise errors.UserError(f'not a token layout: {error}') from error


@dataclasses.dataclass(frozen=True)
class SavedLayout:
  """What layout.json holds: the layout, and the sha256 of the weights of each of TOKENIZERS."""

  layout: TokenLayout
  tokenizers: Mapping[str, str]

  def to_text(self) -> str:
    """Returns the text of layout.json."""
    return json.dumps({'format_version': FORMAT_VERSION, 'layout': self.layout.to_json(),
                       'tokenizers': dict(self.tokenizers)}, indent=2) + '\n'

  def used_by(self, layout: TokenLayout) -> 'SavedLayout':
    """Returns `layout`, of which records of this one are read, with the tokenizers it needs."""
    wanted = (name for name in layout.tokenizers if name in self.tokenizers)
    return SavedLayout(layout, {name: self.tokenizers[name] for name in wanted})


def write_layout(directory: str, layout: TokenLayout, tokenizers: Mapping[str, str]) -> None:
  """Writes DIRECTORY/layout.json; tokenizers is {'soundstream': sha256, 'w2v_bert': .., ..}."""
  _file(directory).write_text(SavedLayout(layout, tokenizers).to_text())


def read_layout(directory: str) -> SavedLayout:
  """Returns what DIRECTORY/layout.json says."""
  path = _file(directory)
  if not path.exists():
    raise errors.UserError(f'{directory} has no {LAYOUT_FILE}')
  try:
    value = json.loads(path.read_text())
    version = value['format_version']
    if version != FORMAT_VERSION:
      raise errors.UserError(f'{path} has format_version {version}, wanted {FORMAT_VERSION}')
    return SavedLayout(TokenLayout.from_json(value['layout']), dict(value['tokenizers']))
  except errors.UserError:
    raise
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise errors.UserError(f'{path} is not a token layout: {error}') from error


def check_same(
    a: SavedLayout | TokenLayout, b: SavedLayout | TokenLayout, a_name: str, b_name: str) -> None:
  """Raises an error naming both sides and their first difference; a bare layout has no tokenizers."""
  for key, x, y in _differences(_comparable(a, b), _comparable(b, a)):
    raise errors.UserError(f'{a_name} and {b_name} do not fit: {key} is {x} in {a_name}, '
                           f'{y} in {b_name}')


def _stream_from_json(value: Mapping[str, Any]) -> TokenStream:
  sizes = {key: size for key, size in value.items() if key != 'name'}
  if not all(type(size) is int and size >= 0 for size in sizes.values()):
    raise TypeError(f'{dict(value)} has a size that is not a whole number')
  return TokenStream(**value)


def _comparable(value, other):
  if isinstance(value, TokenLayout):
    return {'layout': value.to_json()}
  tokenizers = {} if isinstance(other, TokenLayout) else {'tokenizers': dict(value.tokenizers)}
  return {'layout': value.layout.to_json(), **tokenizers}


def _differences(a, b, path=''):
  for key in sorted(a.keys() | b.keys()):
    x, y, name = a.get(key), b.get(key), f'{path}{key}'
    if isinstance(x, dict) and isinstance(y, dict):
      yield from _differences(x, y, f'{name}.')
    elif x != y:
      yield name, x, y


def _check_range(codes, stream):
  wrong = np.argwhere((codes < 0) | (codes >= stream.codebook_size))
  if wrong.size:
    where = tuple(int(i) for i in wrong[0])
    raise errors.UserError(
        f'{stream.name} code {codes[where]} at {where} is not in [0, {stream.codebook_size})')


def _file(directory):
  from etils import epath  # also reads gs://; not needed for the arithmetic above

  return epath.Path(directory) / LAYOUT_FILE
