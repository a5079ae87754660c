"""L3. The three stages of a batch on their way, window by window.

Axes: B examples, C sections of a story, T frames, Q levels, W windows.

  semantic  sliding windows of the trained length, the second half of one is the start of the next
  coarse    likewise, in windows of its own length, each with the semantic tokens of its moment
  fine      independent windows, as many as there are in one batch

MusicLM sections 2.5, 3.2 and 6.  The paper gives windows for long semantic sequences only (15 s
kept, 15 s new); the acoustic ones follow the same rule here.  What a window draws depends on its
example's key and its number alone: music made at once and music made bit by bit are the same.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import errors, sampling, token_layout
from musiclm_jax.generation import windows

MAX_WINDOWS_AT_ONCE = 64  # of the fine stage: bounds memory, changes nothing else


@dataclasses.dataclass(frozen=True)
class StageSampling:
  """How one stage draws its tokens, see sampling.Sampler.sample."""

  temperature: float = 1.0  # 0 takes the likeliest token
  top_k: int = 0  # 0 for all
  top_p: float = 1.0
  guidance: float = 1.0  # above 1: closer to the prompt

  def __post_init__(self):
    if not 0 <= self.temperature < float('inf'):
      raise errors.UserError(f'temperature is {self.temperature}, wanted 0 or more')
    if self.top_k < 0:
      raise errors.UserError(f'top_k is {self.top_k}, wanted 0 (all) or more')
    if not 0 < self.top_p <= 1:
      raise errors.UserError(f'top_p is {self.top_p}, wanted more than 0 and at most 1')
    if not 0 <= self.guidance < float('inf'):
      raise errors.UserError(f'guidance is {self.guidance}, wanted 0 or more')


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the stages draw their tokens; the temperatures are those of MusicLM section 4.2."""

  semantic: StageSampling = StageSampling(temperature=1.0)
  coarse: StageSampling = StageSampling(temperature=0.95)
  fine: StageSampling = StageSampling(temperature=0.4)

  def guided(self, guidance: float) -> 'Sampling':
    """Returns the same with guidance of the stages that hear the prompt and the melody."""
    return dataclasses.replace(self, **{
        name: dataclasses.replace(getattr(self, name), guidance=guidance)
        for name in ('semantic', 'coarse')})


@dataclasses.dataclass(frozen=True)
class Conditions:
  """What the music of a batch is to be.

  mulan: codes int32[B, C, Q], those of section c from second changes[c] on; changes[0] is 0.
  overlap: seconds of the music before that are heard where a section begins; None for as much as
    windows always hear (half their length, as in the paper).
  given: {'semantic', 'acoustic'}: codes int32[T, Q] of whole seconds that every example goes on from.
  melody: codes int32[R, Q] of a tune that begins where what is given ends, row r of its window from
    second r on; None without one. Stages hear nothing of a tune before its start and after its end.
  """

  mulan: np.ndarray
  changes: tuple[int, ...] = (0,)
  overlap: int | None = None
  given: Mapping[str, np.ndarray] | None = None
  melody: np.ndarray | None = None

  def at(self, second: int) -> np.ndarray:
    """Returns the music tokens int32[B, 1, Q] of a moment."""
    section = np.searchsorted(self.changes, second, side='right') - 1
    return self.mulan[:, section:section + 1]

  def tune(self, stream: token_layout.TokenStream, start: int, seconds: float
           ) -> tuple[np.ndarray, np.ndarray]:
    """Returns melody codes int32[T, Q] from second `start` of the tune on, and which it has bool[T]."""
    rows = np.arange(stream.num_frames(seconds)) * stream.hop_seconds + start
    there = (rows >= 0) & (rows < (0 if self.melody is None else len(self.melody)))
    codes = np.zeros((len(rows), stream.num_levels), np.int32)
    if there.any():
      codes[there] = self.melody[rows[there]]
    return codes, there


class _Stream:
  """Codes int32[B, T, Q], of which the first `second` seconds are made."""

  def __init__(self, stream: token_layout.TokenStream, batch: int, seconds: int, given=None):
    self.rate = stream.frame_rate
    self.codes = np.zeros((batch, seconds * self.rate, stream.num_levels), np.int32)
    self.second = 0
    if given is not None:
      self.append(np.broadcast_to(given, (batch, *given.shape)))

  def append(self, codes: np.ndarray) -> None:
    first = self.second * self.rate
    self.codes[:, first:first + codes.shape[1]] = codes
    self.second += codes.shape[1] // self.rate

  def between(self, start: int, end: int) -> np.ndarray:
    return self.codes[:, start * self.rate:end * self.rate]


class Run:
  """One batch: makes its acoustic tokens, once."""

  def __init__(self, samplers: Mapping[str, sampling.Sampler], conditions: Conditions, seconds: int,
               keys: jax.Array, how: Sampling = Sampling(),
               on_progress: Callable[[str, float], None] = lambda stage, share: None):
    """Args:
      samplers: of token_layout.STAGES.
      conditions: see there.
      seconds: of the music, with what is given.
      keys: one an example, [B].
      on_progress: called now and then with the stage and the share of it that is done.
    """
    self._samplers, self._conditions, self._how = samplers, conditions, how
    self._stages = {name: samplers[name].stage for name in token_layout.STAGES}
    self._on_progress, self._batch = on_progress, len(keys)
    lengths = {name: int(stage.seconds) for name, stage in self._stages.items()}
    # A window of the acoustic stages is never cut short: their prefix has its trained length.
    self.seconds = max(seconds, lengths['coarse'], lengths['fine'])
    if conditions.overlap is not None:  # nor is the window where a section begins
      self.seconds = max(self.seconds, conditions.changes[-1] + max(lengths.values()))
    given = self._given()
    self.streams = {
        name: _Stream(stage.target, self._batch, self.seconds, given.get(name))
        for name, stage in self._stages.items()}
    self._begin = begin = self.streams['fine'].second
    steps = {'semantic': _half(lengths['semantic']), 'coarse': _half(lengths['coarse']),
             'fine': lengths['fine']}
    self._windows = {
        name: windows.sliding(self.seconds, lengths[name], steps[name], begin,
                              conditions.changes if _hears_prompt(stage) else (),
                              conditions.overlap)
        for name, stage in self._stages.items()}
    self._done = dict.fromkeys(token_layout.STAGES, 0)
    self._keys = {name: _folded(keys, i) for i, name in enumerate(token_layout.STAGES)}

  def _given(self) -> dict[str, np.ndarray]:
    if self._conditions.given is None:
      return {}
    acoustic = self._conditions.given['acoustic']
    levels = self._stages['coarse'].target.num_levels
    return {'semantic': self._conditions.given['semantic'],
            'coarse': acoustic[:, :levels], 'fine': acoustic[:, levels:]}

  def at_once(self) -> np.ndarray:
    """Returns acoustic codes int32[B, T, Q], stage after stage: all fine windows go together."""
    self._until('semantic', self.seconds)
    self._until('coarse', self.seconds)
    self._fine()
    return self._acoustic(0)

  def bit_by_bit(self) -> Iterator[np.ndarray]:
    """Yields the acoustic codes int32[B, T, Q] in parts, each as soon as it can be made."""
    start = self.streams['fine'].second
    if start:
      yield self._acoustic(0)
    while start < self.seconds:
      self._next('coarse')
      self._fine()
      yield self._acoustic(start)
      start = self.streams['fine'].second

  def _acoustic(self, start: int) -> np.ndarray:
    end = self.streams['fine'].second
    return np.concatenate(
        [self.streams[name].between(start, end) for name in ('coarse', 'fine')], axis=-1)

  def _until(self, name: str, second: int) -> None:
    while self.streams[name].second < second:
      self._next(name)

  def _next(self, name: str) -> None:
    """Makes the next window of a sliding stage, and before it what it needs of the one above."""
    stage, stream, number = self._stages[name], self.streams[name], self._done[name]
    window, length = self._windows[name][number], int(self._stages[name].seconds)
    if name == 'coarse':
      self._until('semantic', min(window.start + length, self.seconds))
    given = stage.flatten_stream(stage.target, stream.between(window.start, window.first))
    codes = self._sample(name, min(length, self.seconds), self._prefix(name, window),
                         _folded(self._keys[name], number), given, number)
    first = (window.first - window.start) * stream.rate
    stream.append(codes[:, first:first + (window.last - window.first) * stream.rate])
    self._done[name] += 1

  def _fine(self) -> None:
    """Makes all fine windows whose coarse tokens are there."""
    length, stream = int(self._stages['fine'].seconds), self.streams['fine']
    numbers = [number for number in range(self._done['fine'], len(self._windows['fine']))
               if self._windows['fine'][number].start + length <= self.streams['coarse'].second]
    if not numbers:
      return
    made = [self._windows['fine'][number] for number in numbers]
    prefix = np.concatenate([self._prefix('fine', window) for window in made])
    keys = jnp.concatenate([_folded(self._keys['fine'], number) for number in numbers])
    codes = np.concatenate([
        self._sample('fine', length, prefix[row:row + MAX_WINDOWS_AT_ONCE],
                     keys[row:row + MAX_WINDOWS_AT_ONCE], None,
                     numbers[0] + row * len(numbers) / len(prefix))
        for row in range(0, len(prefix), MAX_WINDOWS_AT_ONCE)])
    for window, new in zip(made, np.split(codes, len(made)), strict=True):
      frames = slice(*((second - window.start) * stream.rate for second in window[1:]))
      stream.append(new[:, frames])
    self._done['fine'] += len(made)

  def _prefix(self, name: str, window: windows.Window) -> np.ndarray:
    """Returns the ids int32[B, P] that a window is made from."""
    stage, codes = self._stages[name], {}
    for stream in stage.prefix:
      if stream.name == token_layout.PROMPT:
        codes[stream.name] = self._conditions.at(window.first)
      elif stream.name == token_layout.MELODY:
        tune, there = self._conditions.tune(stream, window.start - self._begin, stage.seconds)
        codes[stream.name] = np.broadcast_to(tune, (self._batch, *tune.shape))
      else:
        end = window.start + int(stage.seconds)
        codes[stream.name] = self.streams[stream.name].between(window.start, end)
    ids = stage.flatten_prefix(codes)
    if token_layout.MELODY in codes:
      ids = stage.hidden(ids, token_layout.MELODY, ~there)
    return ids

  def _sample(self, name, seconds, prefix, keys, given, done: float) -> np.ndarray:
    """Returns codes int32[rows, T, Q] of windows; `done` of all windows are made already."""
    how, stage, total = getattr(self._how, name), self._stages[name], len(self._windows[name])
    rows = len(prefix) / self._batch  # windows that are made together
    self._on_progress(name, done / total)
    ids = self._samplers[name].sample(
        prefix, keys, temperature=how.temperature, top_k=how.top_k, top_p=how.top_p,
        guidance=how.guidance, num_frames=stage.target.num_frames(seconds), given=given,
        on_progress=lambda now, end: self._on_progress(name, (done + rows * now / end) / total))
    return stage.unflatten(np.asarray(ids))


def check_sampling(how: Sampling, stages: Mapping[str, token_layout.StageLayout],
                   condition_dropout: Mapping[str, float]) -> None:
  """Raises an error for guidance of a stage that was not trained to be guided."""
  for name, stage in stages.items():
    if getattr(how, name).guidance == 1:
      continue
    if not _hears_prompt(stage):
      raise errors.UserError(f'guidance of the {name} stage: it does not hear the prompt')
    if not condition_dropout[name]:
      raise errors.UserError(
          f'guidance is {getattr(how, name).guidance:g}, but the {name} stage was trained without '
          'condition_dropout (LanguageModelObjective), so it cannot be guided')


def _hears_prompt(stage: token_layout.StageLayout) -> bool:
  return token_layout.PROMPT in stage.conditions


def _half(seconds: int) -> int:
  return max(seconds // 2, 1)


def _folded(keys: jax.Array, number: int) -> jax.Array:
  """Returns another key for each of `keys`, of which there is one an example."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def example_keys(seed: int | Sequence[int], batch: int) -> jax.Array:
  """Returns one key an example: of its number and `seed`, or of its own one of `batch` seeds."""
  if isinstance(seed, int | np.integer):
    return _numbered(jax.random.key(seed), jnp.arange(batch))
  if len(seed) != batch:
    raise errors.UserError(f'{len(seed)} seeds for {batch} prompts, wanted one each')
  return jnp.stack([jax.random.key(each) for each in seed])


def _numbered(key: jax.Array, numbers: jax.Array) -> jax.Array:
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
