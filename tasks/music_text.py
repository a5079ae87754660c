"""L5. Crops of waveforms with one of their texts, for MuLan."""

import math
from collections.abc import Mapping

import seqio
import tensorflow as tf

from musiclm_jax import errors, text
from musiclm_jax.data import preprocessors, records
from tasks import mixtures, sources

# MuLan section 3.2: SF:LF:PL:ASET of a minibatch.
MULAN_RATES = {'short': 2, 'long': 2, 'playlist': 1, 'labels': 1}


def music_text(directory: mixtures.Directories, vocabulary, crop_seconds: float, text_length: int,
               crops_per_record: int = 1,
               shuffle_buffer_seconds: float = 1280) -> seqio.Task | seqio.Mixture:
  """Returns an unregistered task of a random crop and a random caption of each record.

  {'waveform': int16[crop_seconds at 24 kHz], 'text_tokens': int32[text_length], padded with 0};
  `vocabulary` is a data.vocabularies.WordPieceVocabulary. Records without captions are left out.
  """
  return mixtures.by_rate('music_text', directory, lambda folders, share: crops_with_texts(
      'music_text', folders, preprocessors.keep('pcm', 'captions'), vocabulary, crop_seconds,
      text_length, crops_per_record, share * shuffle_buffer_seconds))


def music_text_sources(
    directory: sources.Directories, vocabulary, crop_seconds: float, text_length: int,
    rates: Mapping[str, float] | None = None, crops_per_record: int = 1,
    shuffle_buffer_seconds: float = 1280) -> seqio.Mixture:
  """Returns an unregistered mixture of a task for each text source; examples as of `music_text`.

  `rates` are relative numbers of examples of text.SOURCES, MULAN_RATES by default. Each
  task takes a random crop and a random text of the source, of every record that has one. The tasks
  go through the records in orders of their own and share one shuffle buffer's memory.
  """
  rates = dict(MULAN_RATES if rates is None else rates)
  _check_rates(directory, rates)
  share = shuffle_buffer_seconds / sum(rates.values())
  return mixtures.Mixture('music_text_sources', [
      (crops_with_texts(
          f'music_text_{source}', directory, preprocessors.texts_as_captions(source),
          vocabulary, crop_seconds, text_length, crops_per_record, share * rate), rate)
      for source, rate in rates.items()])


def crops_with_texts(
    prefix: str, directory: sources.Directories, select: preprocessors.Preprocessor, vocabulary,
    crop_seconds: float, text_length: int, crops_per_record: int, shuffle_buffer_seconds: float
) -> seqio.Task:
  """Returns the task, PREFIX_0123abcd, of waveform records whose captions are those `select` leaves.

  What is cached of it are whole clips with all their captions.
  """
  return seqio.Task(
      sources.task_name(prefix, directory, 'waveforms'),
      source=sources.records_source(directory, 'waveforms', records.WAVEFORM_FEATURES),
      preprocessors=[
          select,
          preprocessors.captioned,
          seqio.CacheDatasetPlaceholder(),
          preprocessors.random_crops(sources.num_samples(crop_seconds), crops_per_record),
          preprocessors.random_caption,
          preprocessors.tokenize_caption(vocabulary, text_length),
      ],
      output_features={
          'waveform': sources.integers(tf.int16),
          'text_tokens': seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32),
      },
      shuffle_buffer_size=max(1, int(shuffle_buffer_seconds / crop_seconds)),
  )


def _check_rates(directory: sources.Directories, rates: Mapping[str, float]) -> None:
  """Raises an error for a source that is unknown, or that the records of a split do not have."""
  for source, rate in rates.items():
    if source not in text.SOURCES:
      raise errors.UserError(f'unknown text source {source!r}, wanted some of '
                             f'{list(text.SOURCES)}')
    if not (0 < rate < math.inf):
      raise errors.UserError(f'the rate of text source {source!r} is {rate}, wanted above 0')
  if not rates:
    raise errors.UserError(f'no text source, wanted some of {list(text.SOURCES)}')
  for split, found in _text_sources(directory).items():
    if missing := sorted(set(rates) - found):
      raise errors.UserError(
          f'{sources.as_list(directory)} have no {missing[0]!r} texts in their {split} split, '
          f'only {sorted(found)}')


def _text_sources(directory: sources.Directories) -> dict[str, set[str]]:
  """Returns {split: sources of texts that some record of it has}, of all directories together."""
  found = {}
  for path in sources.as_list(directory):
    texts = records.read_info(path, 'waveforms').get('texts', {})
    for split in records.splits(path):
      counts = texts.get(split, {}) if isinstance(texts, dict) else {}
      present = {source for source in text.SOURCES
                 if isinstance(counts, dict) and counts.get(source)}
      found[split] = found.get(split, set()) | present
  return found
