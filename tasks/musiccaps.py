"""L5. MusicCaps as a TFDS dataset, from the public csv and the clips that the user has.

  DIR/musiccaps-public.csv
  DIR/clips/-0Gj8-vB1q4_30.wav       YouTube id, start second; anywhere below DIR

  tfds build tasks/musiccaps.py --manual_dir=DIR --data_dir=data --num_shards=16

A row without its clip is counted and left out, and so is a clip that cannot be decoded; which ones
were used and which were not is written beside the records. Splits: `eval` and `train` by the
AudioSet split of the clip, and `balanced`, a part of `eval` with as many clips of each genre.
"""

import itertools
import logging
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from musiclm_jax import audio, errors, musiccaps, prepare_audio, text
from tasks import captions

log = logging.getLogger(__name__)

_DESCRIPTION = """
MusicCaps: 5,521 clips of 10 s from AudioSet, each with a caption of about four sentences and a
list of about eleven aspects, written by ten musicians. 2,858 clips are of AudioSet's eval split and
2,663 of its train split; 1,000 of the former make up a subset balanced by genre. The audio is not
part of MusicCaps: clips that were not given to the builder are left out of the splits, and
metadata.json has the counts.
"""
_CITATION = """
@article{agostinelli2023musiclm,
  title = {{MusicLM}: Generating Music From Text},
  author = {Agostinelli, Andrea and Denk, Timo I. and Borsos, Zal{\\'a}n and Engel, Jesse and
            Verzetti, Mauro and Caillon, Antoine and Huang, Qingqing and Jansen, Aren and
            Roberts, Adam and Tagliasacchi, Marco and Sharifi, Matt and Zeghidour, Neil and
            Frank, Christian},
  journal = {arXiv preprint arXiv:2301.11325},
  year = {2023},
}
"""


class MusicCaps(tfds.core.GeneratorBasedBuilder):
  """Builds the splits eval, train and balanced, of the clips there are."""

  name = 'musiccaps'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'The public csv of 5,521 rows.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      f'Put {musiccaps.CSV_FILE} (https://www.kaggle.com/datasets/googleai/musiccaps) into the directory, and '
      f'anywhere below it the clips as YTID_START with one of {" ".join(musiccaps.SUFFIXES)}: '
      '-0Gj8-vB1q4_30.wav')

  def _info(self) -> tfds.core.DatasetInfo:
    scalar = tfds.features.Scalar
    return tfds.core.DatasetInfo(
        builder=self,
        description=_DESCRIPTION,
        features=captions.clip_features(
            aspects=captions.texts('short descriptions, as "mellow piano melody"'),
            audioset_labels=captions.texts("AudioSet's labels as machine ids, as /m/04rlf"),
            author_id=scalar(np.int32, doc='which of the ten musicians wrote the caption'),
            start_s=scalar(np.int32, doc='second of the YouTube video where the clip begins'),
            end_s=scalar(np.int32, doc='second where it ends; the file may end before'),
            is_balanced_subset=scalar(np.bool_, doc='of the 1,000 clips balanced by genre'),
            is_audioset_eval=scalar(np.bool_, doc="of AudioSet's eval split, not train"),
        ),
        homepage='https://www.kaggle.com/datasets/googleai/musiccaps',
        citation=_CITATION,
        license='Captions and aspects: CC BY-SA 4.0. The clips are not part of the dataset.',
        metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    folder = os.fspath(dl_manager.manual_dir)
    splits = musiccaps.split_rows(musiccaps.read_rows(os.path.join(folder, musiccaps.CSV_FILE)))
    found = musiccaps.find_clips(folder)
    wanted = {(row.ytid, row.start) for row in itertools.chain(*splits.values())}
    if not wanted & set(found):
      raise errors.UserError(
          f'{folder} holds no clip of the {len(wanted)} of {musiccaps.CSV_FILE}, wanted files named '
          f'YTID_START with one of {" ".join(musiccaps.SUFFIXES)}, as -0Gj8-vB1q4_30.wav')
    filled = captions.filled({split: self._generate_examples(split, rows, folder, found)
                              for split, rows in splits.items()})
    if not filled:
      raise errors.UserError(f'none of the {len(wanted & set(found))} clips in {folder} that '
                             f'{musiccaps.CSV_FILE} names could be read')
    return filled

  def _generate_examples(self, split: str, rows: list[musiccaps.Row], folder: str, found: dict) -> Iterator:
    used, left_out = [], []
    for row in rows:
      try:
        path, waveform = _read_clip(row, found.get((row.ytid, row.start), ()))
      except (errors.UserError, OSError) as error:
        left_out.append((row.ytid, row.start, text.one_line(str(error))))
        continue
      used.append((row.ytid, row.start, os.path.relpath(path, folder)))
      example = _example(row, waveform)
      yield example['id'], example
    missing = sum((row.ytid, row.start) not in found for row in rows)
    counts = {'rows': len(rows), 'used': len(used), 'missing': missing,
              'unreadable': len(left_out) - missing}
    self.info.metadata[split] = counts
    directory = pathlib.Path(self.data_dir)
    captions.write_list(directory / f'{split}_used.csv', ('ytid', 'start_s', 'file'), used)
    captions.write_list(
        directory / f'{split}_left_out.csv', ('ytid', 'start_s', 'reason'), left_out)
    log.warning('musiccaps %s: %s', split, ', '.join(f'{n} {what}' for what, n in counts.items()))


def _read_clip(row: musiccaps.Row, paths: list[str]) -> tuple[str, np.ndarray]:
  """Returns (path, float32[S] at 24 kHz) of the first readable file, cut as the row says."""
  reasons = []
  for path in paths:
    try:
      waveform = audio.read_beginning(path, row.end - row.start)
      if len(waveform) >= prepare_audio.MIN_SECONDS * audio.SAMPLE_RATE:
        return path, waveform
      reasons.append(f'{path} lasts {len(waveform) / audio.SAMPLE_RATE:.2f} s, wanted at least '
                     f'{prepare_audio.MIN_SECONDS} s')
    except (errors.UserError, OSError, UnicodeError) as error:  # the last: a name that is not UTF-8
      reasons.append(str(error))
  raise errors.UserError('; '.join(reasons) or 'missing')


def _example(row: musiccaps.Row, waveform: np.ndarray) -> dict:
  return captions.clip_example(
      row.id, waveform, [row.caption], row.ytid, aspects=list(row.aspects),
      audioset_labels=list(row.labels), author_id=row.author_id, start_s=row.start, end_s=row.end,
      is_balanced_subset=row.balanced, is_audioset_eval=row.eval)
