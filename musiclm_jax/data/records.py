"""L2. Records on disk: waveforms, melodies and tokens as sharded TFRecord files of tf.train.Example.

Axes: S samples, W MuLan windows, Q quantizers, T frames (T_s semantic, T_a acoustic).

A waveform record (DIR/train-00000-of-00016.tfrecord, and DIR/info.json):

  id        b'piece12-000'
  pcm       int16 little endian, mono at 24 kHz, at most 30 s: 2 S bytes
  captions  [b'A slow waltz for piano and cello.', b'sad piano']     may be empty
  piece     b'piece12'           clips of one piece never fall into two splits
  texts_short, texts_long, texts_playlist, texts_labels
            [b'sad piano, 66 bpm']   what MuLan's sources say, as captions; each may be absent

A melody record, all versions of a few seconds of a melody:

  id        b'melody_00012'
  piece     b'song7'             melodies of one piece never fall into two splits
  versions  [int16 pcm as above, ..]    two or more, of a few seconds; lengths differ with the tempo
  kinds     [b'instrument', b'hum', ..]     one for each version

A token record (TOKENS_DIR/train-..., layout.json, info.json, mulan_codebooks.npy), all raw codes:

  id               b'piece12-000'
  mulan_tokens     int64[W * Q]         window-major: q0 q1 .. of window 0, then of window 1
  mulan_embeddings float16[W, 128] as bytes, little endian
  semantic_tokens  int64[T_s]
  acoustic_tokens  int64[T_a * Q]       frame-major: [[a0 a1] [b0 b1]] -> a0 a1 b0 b1
  melody_tokens    int64[R * Q]         as mulan_tokens; absent without a melody model
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf
from etils import epath

from musiclm_jax import audio, errors, text

FORMAT_VERSION = 1
_SHARD = re.compile(r'(.+)-\d{5}-of-(\d{5})\.tfrecord')  # as shard_name makes them
CODEBOOKS_FILE = 'mulan_codebooks.npy'  # float32[Q, K, D] of the MuLan quantizer

WAVEFORM_FEATURES = {
    'id': tf.io.FixedLenFeature([], tf.string),
    'pcm': tf.io.FixedLenFeature([], tf.string),
    'captions': tf.io.RaggedFeature(tf.string),
    'piece': tf.io.FixedLenFeature([], tf.string, default_value=''),
    **{f'texts_{source}': tf.io.RaggedFeature(tf.string) for source in text.SOURCES},
}
MELODY_FEATURES = {
    'id': tf.io.FixedLenFeature([], tf.string),
    'piece': tf.io.FixedLenFeature([], tf.string),
    'versions': tf.io.RaggedFeature(tf.string),
    'kinds': tf.io.RaggedFeature(tf.string),
}
TOKEN_FEATURES = {
    'id': tf.io.FixedLenFeature([], tf.string),
    'mulan_tokens': tf.io.RaggedFeature(tf.int64),
    'mulan_embeddings': tf.io.FixedLenFeature([], tf.string),
    'semantic_tokens': tf.io.RaggedFeature(tf.int64),
    'acoustic_tokens': tf.io.RaggedFeature(tf.int64),
    'melody_tokens': tf.io.RaggedFeature(tf.int64),
}


def waveform_record(record_id: str, waveform: np.ndarray, captions: Iterable[str] = (),
                    piece: str = '', texts: Mapping[str, Iterable[str]] | None = None) -> bytes:
  """Returns a serialised waveform record of float32[S] at 24 kHz.

  `texts` are those of some of text.SOURCES: {'short': ['sad piano'], 'labels': ['Piano', 'Music']}.
  """
  texts = {source: list(values) for source, values in (texts or {}).items()}
  if unknown := sorted(set(texts) - set(text.SOURCES)):
    raise errors.UserError(f'unknown text source {unknown[0]!r}, wanted some of {text.SOURCES}')
  return _example({
      **{f'texts_{source}': values for source, values in texts.items() if values},
      'id': [record_id], 'piece': [piece], 'captions': list(captions),
      'pcm': [audio.to_pcm16(waveform).astype('<i2').tobytes()],
  })


def melody_record(record_id: str, piece: str, versions: Iterable[np.ndarray],
                  kinds: Iterable[str]) -> bytes:
  """Returns a serialised melody record of versions float32[S] at 24 kHz, each of a kind."""
  return _example({
      'id': [record_id], 'piece': [piece], 'kinds': list(kinds),
      'versions': [audio.to_pcm16(version).astype('<i2').tobytes() for version in versions],
  })


def token_record(record_id: str, tokens: Mapping[str, np.ndarray]) -> bytes:
  """Returns a serialised token record.

  `tokens`: mulan_tokens int[W, Q], mulan_embeddings float[W, 128], semantic_tokens int[T_s],
  acoustic_tokens int[T_a, Q], and, of a layout with melodies, melody_tokens int[R, Q].
  """
  codes = ('mulan_tokens', 'semantic_tokens', 'acoustic_tokens')
  codes += ('melody_tokens',) if 'melody_tokens' in tokens else ()
  return _example({
      'id': [record_id],
      'mulan_embeddings': [np.asarray(tokens['mulan_embeddings']).astype('<f2').tobytes()],
      **{name: np.asarray(tokens[name]).reshape(-1) for name in codes},
  })


def shard_name(split: str, index: int, num_shards: int) -> str:
  """Returns 'train-00003-of-00016.tfrecord'."""
  return f'{split}-{index:05d}-of-{num_shards:05d}.tfrecord'


def write_shard(path, serialised: Iterable[bytes]) -> int:
  """Returns how many records were written; the shard appears whole or not at all."""
  count = 0
  with audio.atomic_path(path) as temporary, tf.io.TFRecordWriter(temporary) as writer:
    for record in serialised:
      writer.write(record)
      count += 1
  return count


def list_shards(directory, split: str) -> list[str]:
  """Returns the sorted shard paths of a split, gs:// too; a missing shard of the set is an error."""
  paths = [path for path in _shards(directory) if _split_of(path.name) == split]
  if not paths:
    raise errors.UserError(f'{directory} holds no {split}-*.tfrecord files; '
                           f'its splits are {splits(directory)}')
  wanted = int(_SHARD.fullmatch(paths[0].name)[2])
  if len(paths) != wanted:
    raise errors.UserError(f'{directory} holds {len(paths)} of {wanted} {split} shards')
  return [os.fspath(path) for path in paths]


def splits(directory) -> list[str]:
  """Returns the split names of a record directory, sorted."""
  return sorted({_split_of(path.name) for path in _shards(directory)})


def _shards(directory) -> list[epath.Path]:
  found = (path for path in epath.Path(directory).iterdir() if _SHARD.fullmatch(path.name))
  return sorted(found, key=lambda path: path.name)


def _split_of(name: str) -> str:
  return _SHARD.fullmatch(name)[1]


def read_waveforms(directory, split: str) -> Iterator[dict]:
  """Yields {'id', 'waveform': float32[S], 'captions': [str, ..], 'piece', 'texts'} in file order.

  'texts' is {source: [str, ..]} of the sources the record has.
  """
  for path in list_shards(directory, split):
    yield from read_waveform_shard(path)


def read_waveform_shard(path) -> Iterator[dict]:
  """Yields the records of one waveform shard as `read_waveforms` does."""
  for feature in _read_shard(path):
    yield {
        'id': feature['id'].bytes_list.value[0].decode(),
        'waveform': audio.from_pcm16(np.frombuffer(feature['pcm'].bytes_list.value[0], '<i2')),
        'captions': [value.decode() for value in feature['captions'].bytes_list.value],
        'piece': b''.join(feature['piece'].bytes_list.value).decode(),
        'texts': {source: [value.decode() for value in feature[f'texts_{source}'].bytes_list.value]
                  for source in text.SOURCES if f'texts_{source}' in feature},
    }


def read_melodies(directory, split: str) -> Iterator[dict]:
  """Yields {'id', 'piece', 'versions' [float32[S], ..], 'kinds' [str, ..]} in file order."""
  read_info(directory, 'melodies')
  for path in list_shards(directory, split):
    for feature in _read_shard(path):
      versions = [np.frombuffer(pcm, '<i2') for pcm in feature['versions'].bytes_list.value]
      kinds = [kind.decode() for kind in feature['kinds'].bytes_list.value]
      if not 2 <= len(versions) == len(kinds):
        raise errors.UserError(f'{path} holds a melody of {len(versions)} versions and '
                               f'{len(kinds)} kinds, wanted two or more, a kind for each')
      yield {
          'id': feature['id'].bytes_list.value[0].decode(),
          'piece': feature['piece'].bytes_list.value[0].decode(),
          'versions': [audio.from_pcm16(version) for version in versions],
          'kinds': kinds,
      }


def read_clips(directory, split: str, kind: str = 'waveforms') -> Iterator[np.ndarray]:
  """Yields float32[S]: what waveform records hold, or every version of 'melodies'."""
  if kind == 'melodies':
    for record in read_melodies(directory, split):
      yield from record['versions']
    return
  for record in read_waveforms(directory, split):
    yield record['waveform']


def _read_shard(path) -> Iterator[Mapping]:
  """Yields the features of each record of a shard; a damaged one is a UserError."""
  try:
    for serialised in tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator():
      yield tf.train.Example.FromString(serialised).features.feature
  except tf.errors.OpError as error:
    raise errors.UserError(f'{path} is damaged: {str(error).splitlines()[0]}') from error


def read_tokens(directory, split: str) -> Iterator[dict]:
  """Yields {'id', 'mulan_tokens' int32[W, Q], 'mulan_embeddings' float16[W, 128],
  'semantic_tokens' int32[T_s], 'acoustic_tokens' int32[T_a, Q]} in file order."""
  info = read_info(directory, 'tokens')
  for path in list_shards(directory, split):
    for feature in _read_shard(path):

      def integers(name, levels, feature=feature):
        return np.array(feature[name].int64_list.value, np.int32).reshape(-1, levels)

      embeddings = np.frombuffer(feature['mulan_embeddings'].bytes_list.value[0], '<f2')
      mulan_tokens = integers('mulan_tokens', info['mulan_levels'])
      yield {
          'id': feature['id'].bytes_list.value[0].decode(),
          'mulan_tokens': mulan_tokens,
          'mulan_embeddings': embeddings.reshape(len(mulan_tokens), -1),
          'semantic_tokens': integers('semantic_tokens', 1)[:, 0],
          'acoustic_tokens': integers('acoustic_tokens', info['acoustic_levels']),
          **({'melody_tokens': integers('melody_tokens', info['melody_levels'])}
             if 'melody_levels' in info else {}),
      }


def write_info(directory, info: Mapping) -> None:
  """Writes info.json, the mark of a complete directory: it is written last."""
  with audio.atomic_path(pathlib.Path(directory) / 'info.json') as temporary:
    pathlib.Path(temporary).write_text(
        json.dumps({'format_version': FORMAT_VERSION, **info}, indent=2) + '\n')


def read_info(directory, *kinds: str) -> dict:
  """Returns info.json of a complete directory of 'waveforms', 'melodies' or 'tokens', one of `kinds`."""
  path = epath.Path(directory) / 'info.json'
  if not path.parent.is_dir():
    raise errors.UserError(f'{directory} does not exist, wanted a directory of records')
  if not path.exists():
    raise errors.UserError(f'{directory} has no info.json: not a directory of records, '
                           'or its writing was interrupted')
  try:
    info = json.loads(path.read_bytes())
    found, version = info['kind'], info['format_version']
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise errors.UserError(f'{path} does not describe records: {error!r}') from error
  if found not in kinds or version != FORMAT_VERSION:
    raise errors.UserError(f'{directory} holds {found} records of format {version}, '
                           f'wanted {" or ".join(kinds)} of format {FORMAT_VERSION}')
  return info


def _example(features: Mapping) -> bytes:
  def feature(values):
    if isinstance(values, np.ndarray):
      return tf.train.Feature(int64_list=tf.train.Int64List(value=values.astype(np.int64)))
    values = [value.encode() if isinstance(value, str) else value for value in values]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

  features = {name: feature(values) for name, values in sorted(features.items())}
  return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(
      deterministic=True)
