"""What there is to validate: files of a folder, or the clips of waveform records."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from musiclm_jax import audio, errors, prepare_audio
from musiclm_jax.corpus_validation import measurements
from musiclm_jax.extraction import inputs, published


@dataclasses.dataclass(frozen=True)
class Item:
  """One recording; `measure` returns (Measurements, fingerprint uint32[T])."""

  name: str
  path: str
  split: str  # '' of a folder, whose files have none yet
  texts: tuple[str, ...]  # captions that the corpus itself has
  measure: Callable[[], tuple[measurements.Measurements, np.ndarray]]


def find(input_dir: str) -> tuple[Iterator[Item], int, int | None]:
  """Returns (items, files with other suffixes, number of items or None) of a folder.

  The folder holds waveform records, a corpus.jsonl, or any audio files.
  """
  if published.is_remote(input_dir):
    raise errors.UserError(f'{input_dir} is not a local folder, wanted one')
  folder = pathlib.Path(input_dir)
  if (folder / 'info.json').is_file() and next(folder.glob('*-of-*.tfrecord'), None):
    return _recorded(input_dir), 0, None
  sources, others = inputs.find(input_dir)
  has_splits = (folder / prepare_audio.CORPUS_FILE).exists()
  return (_file(source, has_splits) for source in sources), others, len(sources)


def _file(source: prepare_audio.Source, has_splits: bool) -> Item:
  texts = tuple(dict.fromkeys(itertools.chain(source.captions, *source.texts.values())))
  return Item(source.id, source.path, source.split if has_splits else '', texts,
              lambda: measurements.measure_file(source.path, os.path.basename(source.path)))


def _recorded(directory: str) -> Iterator[Item]:
  from musiclm_jax.data import records
  records.read_info(directory, 'waveforms')
  for split in records.splits(directory):
    for record in records.read_waveforms(directory, split):
      waveform = record['waveform'][:, None]
      recording = audio.Recording(audio.SAMPLE_RATE, 1, 'record PCM_16', len(waveform))
      texts = itertools.chain(record['captions'], *record['texts'].values())
      yield Item(record['id'], '', split, tuple(dict.fromkeys(texts)),
                 lambda recording=recording, waveform=waveform:
                 measurements.measure(recording, [waveform]))
