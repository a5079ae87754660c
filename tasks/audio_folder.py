"""L5. Any folder of audio as a TFDS dataset, with captions and tags where there are some.

  DIR/rock/a.flac (70.5 s)        ->  clips rock/a.flac-000, -001, -002 of at most 30 s
  DIR/captions.csv, .tsv or .jsonl    path,caption,tags
                                      rock/a.flac,A loud song with guitars.,rock; loud

  tfds build tasks/audio_folder.py --manual_dir=DIR --data_dir=data --num_shards=16

Files, splits and clips are those of musiclm_jax/prepare_audio.py: a share of the files, by the hash
of their names, is the test split, and a corpus.jsonl in DIR says its own splits and captions. A
file that cannot be decoded is counted and listed. A table has the column path and one or both of
caption and tags, and may have several rows for a file; in jsonl, tags may be a list.
"""

import collections
import dataclasses
import logging
import os
import pathlib
import unicodedata
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from musiclm_jax import audio, errors, prepare_audio, text
from tasks import captions

log = logging.getLogger(__name__)

_DESCRIPTION = """
Audio files of a folder, cut into clips of equal length at whole seconds, with the captions and tags
of a table beside them. What the recordings are, and under which licence, is known to whoever built
the dataset.
"""


@dataclasses.dataclass
class AudioFolderConfig(tfds.core.BuilderConfig):
  """How files are cut and split, as of prepare_audio.prepare_audio."""

  clip_seconds: int = 30
  test_fraction: float = 0.05


class AudioFolder(tfds.core.GeneratorBasedBuilder):
  """Builds the splits train and test of a folder, or those of its corpus.jsonl."""

  name = 'audio_folder'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'Clips, captions and tags.'}
  BUILDER_CONFIGS = [AudioFolderConfig(
      name='clips_30s', description='Clips of at most 30 s, 5% of the files held out.')]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      f'Put audio ({" ".join(audio.SUFFIXES)}) into the directory and, if you like, one of '
      f'{" ".join(text.TABLES)} with path (below the directory), caption and tags.')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description=_DESCRIPTION,
        features=captions.clip_features(
            tags=captions.texts('tags of the file, as "rock"'),
            start_s=tfds.features.Scalar(np.int32, doc='second of the file where the clip begins'),
            **{f'texts_{source}': captions.texts(f"texts of MuLan's source `{source}`")
               for source in text.SOURCES}),
        license='That of the recordings.',
        metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    folder, config = os.fspath(dl_manager.manual_dir), self.builder_config
    seconds, fraction = config.clip_seconds, config.test_fraction
    if not (isinstance(seconds, int) and prepare_audio.MIN_SECONDS <= seconds <= captions.MAX_SECONDS):
      raise errors.UserError(f'clip_seconds is {seconds!r}, wanted a whole number of '
                             f'{prepare_audio.MIN_SECONDS} to {captions.MAX_SECONDS}')
    if not (isinstance(fraction, int | float) and 0 <= fraction < 1):
      raise errors.UserError(f'test_fraction is {fraction!r}, wanted 0 or more and below 1')
    sources = prepare_audio.find_sources(folder, test_fraction=fraction)
    tags = {}
    if table := _find_table(folder):
      sources, tags = _described(sources, read_table(table), table)
    _check_ids(sources, folder)
    by_split = collections.defaultdict(list)
    for source in sources:
      by_split[source.split].append(source)
    filled = captions.filled({split: self._generate_examples(split, members, tags)
                              for split, members in sorted(by_split.items())})
    if not filled:
      raise errors.UserError(f'none of the {len(sources)} audio files in {folder} could be read')
    return filled

  def _generate_examples(self, split: str, sources: list[prepare_audio.Source],
                         tags: dict[str, list[str]]) -> Iterator:
    used, left_out, clips = [], [], 0
    for source in sources:
      try:
        parts = _read_clips(source.path, self.builder_config.clip_seconds)
      except (errors.UserError, OSError) as error:
        left_out.append((source.id, text.one_line(str(error))))
        continue
      used.append((source.id, len(parts)))
      clips += len(parts)
      for index, (start, waveform) in enumerate(parts):
        clip_id = source.id if len(parts) == 1 else f'{source.id}-{index:03d}'
        yield clip_id, captions.clip_example(
            clip_id, waveform, source.captions, source.piece or source.id,
            tags=tags.get(source.id, []), start_s=start,
            **{f'texts_{name}': list(source.texts.get(name, ())) for name in text.SOURCES})
    counts = {'files': len(sources), 'used': len(used), 'unreadable': len(left_out), 'clips': clips}
    self.info.metadata[split] = counts
    directory = pathlib.Path(self.data_dir)
    captions.write_list(directory / f'{split}_used.csv', ('file', 'clips'), used)
    captions.write_list(directory / f'{split}_left_out.csv', ('file', 'reason'), left_out)
    log.warning('audio_folder %s: %s', split, ', '.join(f'{n} {what}' for what, n in counts.items()))


def _read_clips(path: str, clip_seconds: int) -> list[tuple[int, np.ndarray]]:
  """Returns [(start second, float32[S] at 24 kHz), ..] of a file."""
  waveform = audio.read(path)
  if len(waveform) < prepare_audio.MIN_SECONDS * audio.SAMPLE_RATE:
    raise errors.UserError(f'{path} lasts {len(waveform) / audio.SAMPLE_RATE:.2f} s, wanted at '
                           f'least {prepare_audio.MIN_SECONDS} s')
  return [(start // audio.SAMPLE_RATE, waveform[start:end]) for start, end in
          prepare_audio.clip_bounds(len(waveform), clip_seconds, audio.SAMPLE_RATE)]


def _find_table(folder: str) -> str | None:
  """Returns the path of the one table of the folder, None where there is none."""
  paths = (os.path.join(folder, name) for name in text.TABLES)
  found = [path for path in paths if os.path.isfile(path)]
  if len(found) > 1:
    raise errors.UserError(f'{folder} has {len(found)} tables of captions, wanted one: {found}')
  if found and os.path.exists(os.path.join(folder, prepare_audio.CORPUS_FILE)):
    raise errors.UserError(f'{folder} has a {prepare_audio.CORPUS_FILE} with captions: '
                           f'take out {os.path.basename(found[0])}')
  return found[0] if found else None


def read_table(path: str) -> list[dict]:
  """Returns [{'path', 'caption', 'source': str, 'tags': [str, ..]}, ..] of a csv, tsv or jsonl."""
  suffix = os.path.splitext(path)[1].lower()
  if suffix not in ('.csv', '.tsv', '.jsonl'):
    raise errors.UserError(f'{path} ends in {suffix!r}, wanted .csv, .tsv or .jsonl')
  rows = text.read_table(path, ('path',), lists=('tags',))
  if rows and not any('caption' in row or 'tags' in row for row in rows):
    raise errors.UserError(f'{path} has columns {list(rows[0])}, wanted also caption or tags')
  return [_table_row(row, f'{path}, row {number}') for number, row in enumerate(rows, 1)]


def _table_row(row: dict, where: str) -> dict:
  tags = row.get('tags') or []
  tags = tags.split(';') if isinstance(tags, str) else tags
  if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
    raise errors.UserError(f'{where}: tags are {str(tags)[:100]!r}, wanted a list of texts')
  cells = {name: row.get(name) or '' for name in ('path', 'caption', 'source')}
  for name, value in cells.items():
    if not isinstance(value, str):
      raise errors.UserError(f'{where}: {name} is {str(value)[:100]!r}, wanted a text')
  source = cells['source'].strip()
  if source and source not in text.SOURCES:
    raise errors.UserError(
        f'{where}: source is {source[:100]!r}, wanted one of {list(text.SOURCES)}')
  return {'path': cells['path'], 'caption': text.one_line(cells['caption']), 'source': source,
          'tags': [tag for tag in map(text.one_line, tags) if tag]}


def _described(sources: list[prepare_audio.Source], rows: list[dict], table: str):
  """Returns (sources with the captions of the rows, {file: tags}).

  A row only ever names a file that was found: nothing is opened by its path. Accented letters may
  be written composed or not, as file systems differ in it.
  """
  names = {unicodedata.normalize('NFC', source.id): source.id for source in sources}
  names.update((source.id, source.id) for source in sources)
  found, tags, unknown = collections.defaultdict(dict), collections.defaultdict(dict), 0
  for row in rows:
    path = pathlib.PurePosixPath(row['path']).as_posix()
    name = names.get(path) or names.get(unicodedata.normalize('NFC', path))
    if name is None or not (row['caption'] or row['tags']):
      unknown += 1
      continue
    if row['caption']:
      found[name].setdefault(row['source'], {})[row['caption']] = True  # each text once, in order
    tags[name].update(dict.fromkeys(row['tags']))
  if not found and not tags:
    raise errors.UserError(f'{table}: none of its {unknown} rows names an audio file of the folder')
  if unknown:
    log.warning('%s: %d rows without a text or without a file are left out', table, unknown)
  described = []
  for source in sources:
    of_source = {name: tuple(values) for name, values in found[source.id].items()}
    described.append(
        dataclasses.replace(source, captions=of_source.pop('', ()), texts=of_source))
  return described, {name: list(values) for name, values in tags.items()}


def _check_ids(sources: list[prepare_audio.Source], folder: str) -> None:
  counts = collections.Counter(source.id for source in sources)
  if twice := [name for name, count in counts.items() if count > 1]:
    raise errors.UserError(f'{folder}: {len(twice)} ids are there more than once, first '
                           f'{twice[0][:100]!r}')
