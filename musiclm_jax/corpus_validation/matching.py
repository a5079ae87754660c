"""Which recordings are the same, by their fingerprints, in time nearly linear in their number.

A quarter of all words, chosen by their value so that copies choose alike, are sorted; recordings
that share words at one distance in time are candidates, and the bits of their common part decide.
"""

import collections
import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from musiclm_jax.corpus_validation import fingerprints

# Of 480 copies of 48 recordings (Opus at 32 kbps, mp3 at 24, AAC, other rates, offsets, gains) 99%
# differ in less than this share of bits; see README. What is alike by chance differs in half.
MAX_BIT_ERRORS = 0.2
MIN_FRAMES = 60  # heard in common, 1.4 s
MIN_OVERLAP = 0.5  # of the shorter recording's frames
_INDEXED = 4  # one word of as many
_NEIGHBOURS = 12  # entries of other recordings that one is paired with, of those with its word
_REPEATS = 3  # entries of one recording with the same word
_ALIGNMENTS = 4  # distances in time that are tried for a pair
_MIN_VOTES = 2  # words in common at one distance


@dataclasses.dataclass(frozen=True)
class Match:
  """Recordings `first` < `second` are the same: `second` starts `offset` s after `first` does."""

  first: int
  second: int
  bit_errors: float
  offset: float
  overlap: float  # s


class Store:
  """Fingerprints in a temporary file: memory does not grow with the hours."""

  def __init__(self):
    self._file = tempfile.TemporaryFile()
    self._bounds = [0]

  def __len__(self) -> int:
    return len(self._bounds) - 1

  def append(self, words: np.ndarray) -> None:
    """Takes uint32[T] of the next recording."""
    self._file.seek(0, 2)
    self._file.write(np.asarray(words, np.uint32).tobytes())
    self._bounds.append(self._bounds[-1] + len(words))

  def __getitem__(self, index: int) -> np.ndarray:
    """Returns uint32[T]."""
    start, end = self._bounds[index:index + 2]
    self._file.seek(4 * start)
    return np.frombuffer(self._file.read(4 * (end - start)), np.uint32)

  def close(self) -> None:
    self._file.close()


def find(store: Sequence[np.ndarray], wanted: Callable[[np.ndarray, np.ndarray], np.ndarray]
         | None = None, join: bool = True) -> list[Match]:
  """Returns the matches among recordings, best first by recording.

  Args:
    store: uint32[T] of each recording.
    wanted: of int[P] first and second says which pairs to look at; all without it.
    join: leave out matches that say nothing new: a group of copies is connected by those found.
  """
  pairs = _candidates(store, wanted)
  groups, matches = Groups(), []
  for first, second, offsets in pairs:
    if join and groups.root(first) == groups.root(second):
      continue
    match = compare(store[first], store[second], offsets)
    if match:
      matches.append(dataclasses.replace(match, first=first, second=second))
      groups.join(first, second)
  return sorted(matches, key=lambda match: (match.first, match.second))


def compare(first: np.ndarray, second: np.ndarray, offsets: Iterable[int]) -> Match | None:
  """Returns the best match of two fingerprints at distances of frames near `offsets`, or None."""
  wanted = max(MIN_FRAMES, MIN_OVERLAP * min(np.count_nonzero(first), np.count_nonzero(second)))
  best = None
  for offset in sorted({at + step for at in offsets for step in (-1, 0, 1)}):
    start = max(0, offset)
    length = min(len(first) - start, len(second) - max(0, -offset))
    if length < wanted:
      continue
    errors, heard = fingerprints.bit_error_rate(
        first[start:start + length], second[max(0, -offset):max(0, -offset) + length])
    if heard >= wanted and errors <= MAX_BIT_ERRORS and (best is None or errors < best.bit_errors):
      seconds = 1 / fingerprints.FRAMES_PER_SECOND
      best = Match(0, 0, errors, offset * seconds, heard * seconds)
  return best


class Groups:
  """Sets of things that are joined two by two."""

  def __init__(self):
    self._parents = {}

  def root(self, item):
    """Returns what all members of the item's set have in common."""
    parents = self._parents
    while (parent := parents.get(item, item)) != item:
      parents[item] = item = parents.get(parent, parent)
    return item

  def join(self, first, second) -> None:
    roots = sorted((self.root(first), self.root(second)))
    self._parents[roots[1]] = roots[0]

  def members(self, items: Iterable) -> list[list]:
    """Returns the sets of two and more among `items`."""
    found = collections.defaultdict(list)
    for item in items:
      found[self.root(item)].append(item)
    return [members for members in found.values() if len(members) > 1]


def _candidates(store, wanted) -> list[tuple[int, int, list[int]]]:
  """Returns [(first, second, offsets in frames), ..], pairs with most words in common first."""
  words, owners, frames = _index(store)
  votes = []
  for distance in range(1, _NEIGHBOURS * _REPEATS + 1):
    same = (words[distance:] == words[:-distance]) & (owners[distance:] != owners[:-distance])
    left = np.flatnonzero(same)
    right = left + distance
    if wanted is not None:
      left, right = (side[wanted(owners[left], owners[right])] for side in (left, right))
    votes.append(np.stack([owners[left], owners[right], frames[left] - frames[right]]))
  first, second, offset = np.concatenate(votes, axis=1)  # the index is in order of owners
  order = np.lexsort([offset, second, first])
  return _ranked(first[order], second[order], offset[order])


def _index(store) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (uint32[N] words, int32[N] recordings, int32[N] frames), sorted in this order."""
  words, owners, frames = [], [], []
  for owner in range(len(store)):
    found = store[owner]
    hashes = found * np.uint32(2654435761)
    at = np.flatnonzero((hashes < 2 ** 32 // _INDEXED) & (found != 0))
    words.append(found[at])
    owners.append(np.full(len(at), owner, np.int32))
    frames.append(at.astype(np.int32))
  if not words:
    return np.zeros(0, np.uint32), np.zeros(0, np.int32), np.zeros(0, np.int32)
  words, owners, frames = (np.concatenate(parts) for parts in (words, owners, frames))
  order = np.lexsort([frames, owners, words])
  words, owners, frames = words[order], owners[order], frames[order]
  often = np.zeros(len(words), bool)
  often[_REPEATS:] = (words[_REPEATS:] == words[:-_REPEATS]) & (
      owners[_REPEATS:] == owners[:-_REPEATS])
  return words[~often], owners[~often], frames[~often]


def _ranked(first, second, offset) -> list[tuple[int, int, list[int]]]:
  """Returns candidates of sorted votes (first, second, offset) int[V]."""
  if not len(first):
    return []
  new = np.ones(len(first), bool)
  # Offsets that differ by a frame are one: where a copy begins between two frames, both occur.
  new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0) | (np.diff(offset) > 1)
  starts = np.flatnonzero(new)
  counts = np.diff(np.append(starts, len(first)))
  starts, counts = starts[counts >= _MIN_VOTES], counts[counts >= _MIN_VOTES]
  middles = starts + counts // 2
  order = np.lexsort([-counts, second[middles], first[middles]])
  found = {}
  for pair, at, votes in zip(
      zip(first[middles[order]].tolist(), second[middles[order]].tolist(), strict=True),
      offset[middles[order]].tolist(), counts[order].tolist(), strict=True):
    offsets, most = found.setdefault(pair, ([], votes))
    if len(offsets) < _ALIGNMENTS:
      offsets.append(at)
  ranking = sorted(found.items(), key=lambda item: (-item[1][1], item[0]))
  return [(*pair, offsets) for pair, (offsets, _) in ranking]
