"""L5. Captioned clips in TFDS datasets: what an example holds, and the seqio task over them.

tasks/musiccaps.py and tasks/audio_folder.py build such datasets.  An example is a waveform record
(data/records.py: id, pcm, captions, piece) with features of the dataset's own, in the same
TFRecord files of tf.train.Example, so a task reads both alike and its position can be saved:

  DIR/dataset_info.json, features.json, metadata.json      counts of clips used and left out
  DIR/musiccaps-eval.tfrecord-00000-of-00016
  DIR/eval_used.csv, eval_left_out.csv
"""

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow_datasets as tfds

from musiclm_jax import audio, errors
from musiclm_jax.data import preprocessors
from tasks import mixtures, music_text, sources

MAX_SECONDS = 30  # of a clip, as of any waveform record


def captions(directory: mixtures.Directories, vocabulary, crop_seconds: float, text_length: int,
             crops_per_record: int = 1,
             shuffle_buffer_seconds: float = 1280) -> seqio.Task | seqio.Mixture:
  """Returns an unregistered task of a random crop and a caption of each clip.

  {'waveform': int16[crop_seconds at 24 kHz], 'text_tokens': int32[text_length], padded with 0}, as
  of tasks/music_text.py. `directory` holds what `tfds build` made, data/musiccaps/1.0.0, or
  several such, mixed by rates when they come with some; `vocabulary` is a
  data.vocabularies.WordPieceVocabulary.
  """
  for folder in mixtures.flat(directory):
    if not sources.is_tfds(folder):
      raise errors.UserError(f'{folder} has no {sources.TFDS_FILE}, wanted a directory that '
                             '`tfds build` made, as data/musiccaps/1.0.0')
  return mixtures.by_rate('captions', directory, lambda folders, share: music_text.crops_with_texts(
      'captions', folders, preprocessors.keep('pcm', 'captions'), vocabulary, crop_seconds,
      text_length, crops_per_record, share * shuffle_buffer_seconds))


def clip_features(**more: tfds.features.FeatureConnector) -> tfds.features.FeaturesDict:
  """Returns the features of a captioned clip with those that a dataset adds."""
  return tfds.features.FeaturesDict({
      'id': tfds.features.Text(doc='name of the clip, unique in its split'),
      'pcm': tfds.features.Tensor(shape=(), dtype=np.object_, doc=(
          f'samples: int16 little endian, mono, 24 kHz, at most {MAX_SECONDS} s')),
      'captions': texts('sentences that describe the clip; may be empty'),
      'piece': tfds.features.Text(doc='what the clip was cut from, never in two of train and test'),
      **more,
  })


def texts(doc: str) -> tfds.features.Sequence:
  """Returns the feature of a list of texts."""
  return tfds.features.Sequence(tfds.features.Text(), doc=doc)


def clip_example(clip_id: str, waveform: np.ndarray, sentences: Iterable[str], piece: str,
                 **more) -> dict:
  """Returns the example of float32[S] at 24 kHz that `clip_features` describe."""
  return {'id': clip_id, 'pcm': audio.to_pcm16(waveform).astype('<i2').tobytes(),
          'captions': list(sentences), 'piece': piece, **more}


def filled(splits: Mapping[str, Iterator]) -> dict[str, Iterator]:
  """Returns the splits that have an example: TFDS cannot write others."""
  found = {}
  for name, examples in splits.items():
    first = next(examples, None)
    if first is not None:
      found[name] = itertools.chain([first], examples)
  return found


def write_list(path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
  """Writes a csv; a file name that is not UTF-8 is written with escapes."""
  with audio.atomic_path(path, overwrite=True) as temporary:
    with open(temporary, 'w', encoding='utf-8', errors='backslashreplace', newline='') as file:
      csv.writer(file, lineterminator='\n').writerows([columns, *rows])
