"""The captions of a corpus: which files have some, how long they are, which repeat each other."""

import collections
import dataclasses
import itertools
import os
import pathlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from musiclm_jax import errors, text
from musiclm_jax.corpus_validation import languages, matching

NEAR = 0.8  # Jaccard index of the words and pairs of words of two captions that are nearly the same
_HASHES, _BANDS = 64, 16  # minimal hashes; bands of 4 find pairs at NEAR with probability 0.9998
_NEIGHBOURS = 4
_PRIME = 2 ** 31 - 1


@dataclasses.dataclass
class Captions:
  """Captions of files, and rows of the table that are of no use."""

  of_file: dict[str, list[str]]
  source: str = ''  # the file they came from; '' where the corpus itself has them
  without_file: list[str] = dataclasses.field(default_factory=list)  # paths that no file has
  empty: list[str] = dataclasses.field(default_factory=list)  # paths of rows without a text
  problem: str = ''  # why a table beside the audio could not be used


def read(input_dir: str, path: str | None, own: Mapping[str, Sequence[str]]) -> Captions:
  """Returns the captions of files {name: captions of the corpus itself}.

  The table at `path` counts, or one of text.TABLES in the folder where the corpus has no captions.
  """
  found = Captions({name: [line for value in values if (line := text.one_line(value))]
                    for name, values in own.items()})
  found.empty = [name for name, values in own.items() for value in values if not text.one_line(value)]
  if any(own.values()):
    if path:
      raise errors.UserError(f'{input_dir} has captions of its own: leave out {path}')
    return found
  if path:
    return _with_table(found, path)
  tables = (os.path.join(input_dir, name) for name in text.TABLES)
  beside = next(filter(os.path.isfile, tables), None)
  try:
    return _with_table(found, beside) if beside else found
  except errors.UserError as error:  # nobody asked for it
    found.problem = str(error)
    return found


def _with_table(found: Captions, path: str) -> Captions:
  names = {unicodedata.normalize('NFC', name): name for name in found.of_file}
  names.update((name, name) for name in found.of_file)
  rows = text.read_table(path, ('path', 'caption'))
  found.source = path
  for row in rows:
    # Accented letters may be written composed or not, as file systems differ in it.
    where = pathlib.PurePosixPath(row['path']).as_posix()
    name = names.get(where) or names.get(unicodedata.normalize('NFC', where))
    caption = text.one_line(row['caption'])
    if name is None:
      found.without_file.append(row['path'])
    elif not caption:
      found.empty.append(name)
    else:
      found.of_file[name].append(caption)
  return found


def describe(captions: Captions) -> dict:
  """Returns counts, lengths, languages and repetitions, as JSON takes them."""
  texts = list(itertools.chain(*captions.of_file.values()))
  lengths = np.array([len(languages.words(caption)) for caption in texts])
  detect, by = languages.detector()
  of_language = languages.counts(texts, detect)
  files = collections.defaultdict(set)
  for name, of_file in captions.of_file.items():
    for caption in of_file:
      files[_normal(caption)].add(name)
  distinct = list(files)
  return {
      'source': captions.source, 'problem': captions.problem, 'count': len(texts),
      'distinct': len(distinct),
      'files_with': sum(map(bool, captions.of_file.values())),
      'files_without': [name for name, of_file in captions.of_file.items() if not of_file],
      'without_file': captions.without_file, 'empty': captions.empty,
      'words': {'lengths': _counts(lengths),
                'median': float(np.median(lengths)) if texts else None},
      'language': {
          'by': by, 'min_words': languages.MIN_WORDS,
          'counts': {name: len(found) for name, found in
                     sorted(of_language.items(), key=lambda item: (-len(item[1]), item[0]))},
          'not_english': [caption for name, found in of_language.items()
                          if name not in ('en', languages.UNSURE) for caption in found]},
      'repeated': [{'caption': caption, 'files': sorted(names)}
                   for caption, names in files.items() if len(names) > 1],
      'near': near_duplicates(distinct),
  }


def near_duplicates(texts: Sequence[str]) -> list[list[str]]:
  """Returns groups of texts that share NEAR of their words and pairs of words.

  Candidates agree in a band of minimal hashes (Broder 1997), so the time is near linear.
  """
  shingles = [_shingles(line) for line in texts]
  signatures = _signatures(shingles)
  groups = matching.Groups()
  for band in np.split(signatures, _BANDS, axis=1) if len(texts) else ():
    _, keys = np.unique(band, axis=0, return_inverse=True)
    order = np.argsort(keys, kind='stable')
    for distance in range(1, _NEIGHBOURS + 1):
      same = np.flatnonzero(keys[order][distance:] == keys[order][:-distance])
      for first, second in zip(order[same], order[same + distance], strict=True):
        if groups.root(first) != groups.root(second) and _alike(shingles[first], shingles[second]):
          groups.join(first, second)
  return [[texts[i] for i in members] for members in groups.members(range(len(texts)))]


def _alike(first: frozenset, second: frozenset) -> bool:
  return len(first & second) >= NEAR * len(first | second)


def _shingles(line: str) -> frozenset[int]:
  found = languages.words(line.lower()) or [line]
  pairs = map(' '.join, itertools.pairwise(found))
  return frozenset(zlib.crc32(part.encode()) % _PRIME for part in itertools.chain(found, pairs))


def _signatures(shingles: Sequence[frozenset[int]]) -> np.ndarray:
  """Returns uint32[texts, _HASHES]."""
  random = np.random.RandomState(0)
  scale = random.randint(1, _PRIME, _HASHES, np.int64)
  shift = random.randint(0, _PRIME, _HASHES, np.int64)
  found = np.zeros((len(shingles), _HASHES), np.uint32)
  for row, values in zip(found, shingles, strict=True):
    values = np.fromiter(values, np.int64, len(values))
    row[:] = ((values[:, None] * scale + shift) % _PRIME).min(axis=0)
  return found


def _normal(caption: str) -> str:
  return re.sub(r'[\s.!]+$', '', caption.casefold())


def _counts(values: Iterable[int]) -> dict[str, int]:
  counts = collections.Counter(map(int, values))
  return {str(value): counts[value] for value in sorted(counts)}
