"""L2. Steps from a record to an example, dataset -> dataset; the tasks string them together.

Axes: S samples, W MuLan windows, Q levels, T frames, D embedding.
Randomness comes only through map_over_dataset's stateless seeds, and there is no py_function:
the position of such a pipeline can be saved (data/datasets.py).
A step that may drop every record says by its attribute `wanted` what it looks for.
"""

from collections.abc import Callable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from musiclm_jax import token_layout

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]


def random_crops(num_samples: int, crops_per_record: int = 1) -> Preprocessor:
  """Returns a step from {'pcm': bytes, ..} to {'waveform': int16[S], ..}; other keys are kept.

  Several crops of one record follow each other, so that 30 s are not read for 1 s of training;
  the task's shuffle buffer then mixes them. A clip shorter than S is followed by silence:

    crops of 3 samples:  pcm 5 6 7 8  ->  5 6 7   or   6 7 8;      pcm 5 6  ->  5 6 0
  """
  num_bytes = 2 * num_samples

  @seqio.map_over_dataset(num_seeds=1)
  def crop(example, seed):
    pcm = example.pop('pcm')
    # Only the crop is copied and decoded, not the whole clip.
    silence = tf.repeat(tf.constant([b'\0']), tf.maximum(num_bytes - tf.strings.length(pcm), 0))
    pcm = tf.strings.join([pcm, tf.strings.reduce_join(silence)])
    last = tf.strings.length(pcm) // 2 - num_samples
    start = tf.random.stateless_uniform([crops_per_record], seed, 0, last + 1, tf.int32)
    pcm = tf.strings.substr(tf.repeat(pcm, crops_per_record), 2 * start,
                            tf.fill([crops_per_record], num_bytes))
    waveform = tf.io.decode_raw(pcm, tf.int16)
    rest = {name: tf.repeat(value[None], crops_per_record, axis=0)
            for name, value in example.items()}
    return {'waveform': tf.ensure_shape(waveform, [crops_per_record, num_samples]), **rest}

  return lambda dataset: crop(dataset).unbatch()


def versions_of(kinds: Sequence[str]) -> Preprocessor:
  """Returns a step that leaves out versions of other kinds, and melodies of which one or none is left."""

  @seqio.map_over_dataset
  def choose(example):
    wanted = tf.reduce_any(example['kinds'][:, None] == tf.constant(list(kinds)), axis=1)
    return example | {name: tf.boolean_mask(example[name], wanted) for name in ('versions', 'kinds')}

  def chosen(dataset):
    return choose(dataset).filter(lambda example: tf.size(example['versions']) > 1)

  chosen.wanted = f'two versions of the kinds {list(kinds)}'
  return chosen


def version_pairs(num_samples: int, max_shift: int) -> Preprocessor:
  """Returns a step from a melody record to {'waveform': int16[2, S], 'piece': int32[1]}.

  Two different versions, and of each the same part: a version that is slower lasts longer, so the
  crops start at the same share of what a version is longer than S, each then moved by up to
  `max_shift` samples.  A shorter one is followed by silence.  'piece' is a hash of its name.

    crops of 4, share 1/2:   1 2 3 4 5 6 7 8  ->  3 4 5 6        1 2 3 4 5 6  ->  2 3 4 5
  """
  num_bytes = 2 * num_samples

  @seqio.map_over_dataset(num_seeds=3)
  def pair(example, seeds):
    versions = example['versions']
    order = tf.argsort(tf.random.stateless_uniform(tf.shape(versions), seeds[0]))
    pcm = tf.ensure_shape(tf.gather(versions, order[:2]), [2])
    silence = tf.strings.reduce_join(tf.repeat(tf.constant(b'\0'), num_bytes))
    lengths = tf.maximum(tf.strings.length(pcm) // 2, num_samples)
    room = tf.cast(lengths - num_samples, tf.float32)
    share = tf.random.stateless_uniform([], seeds[1])
    shift = tf.random.stateless_uniform([2], seeds[2], -float(max_shift), float(max_shift))
    start = tf.cast(tf.clip_by_value(share * room + shift, 0.0, room), tf.int32)
    pcm = tf.strings.substr(pcm + silence, 2 * start, tf.fill([2], num_bytes))
    waveform = tf.ensure_shape(tf.io.decode_raw(pcm, tf.int16), [2, num_samples])
    piece = tf.strings.to_hash_bucket_fast(example['piece'][None], 2**31 - 1)
    return {'waveform': waveform, 'piece': tf.cast(piece, tf.int32)}

  return pair


def keep(*names: str) -> Preprocessor:
  """Returns a step that drops every other feature."""
  return seqio.map_over_dataset(lambda example: {name: example[name] for name in names})


def beside(name: str, feature: str, source: seqio.DataSource,
           steps: Sequence[Preprocessor]) -> Preprocessor:
  """Returns a step that adds `feature` of another source's examples, under `name`.

  That source's train split goes round without end, in file order, through `steps`; its pairs with
  the examples differ in every epoch unless the one's number divides the other's.
  """

  def add(dataset):
    other = source.get_dataset(split='train', shuffle=False).repeat()
    for step in steps:
      other = step(other)
    pairs = tf.data.Dataset.zip((dataset, other))
    return pairs.map(lambda example, more: {**example, name: more[feature]})

  return add


def texts_as_captions(source: str) -> Preprocessor:
  """Returns a step to {'pcm', 'captions'}: 'texts_<source>' in the place of the captions."""
  return seqio.map_over_dataset(
      lambda example: {'pcm': example['pcm'], 'captions': example[f'texts_{source}']})


def captioned(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Drops records without a caption."""
  return dataset.filter(lambda example: tf.size(example['captions']) > 0)


captioned.wanted = 'a caption'


@seqio.map_over_dataset(num_seeds=1)
def random_caption(example, seed):
  """Replaces 'captions' string[n] by one of them, 'caption' string[]."""
  captions = example.pop('captions')
  index = tf.random.stateless_uniform([], seed, 0, tf.size(captions), tf.int32)
  return {**example, 'caption': captions[index]}


def tokenize_caption(vocabulary, length: int) -> Preprocessor:
  """Returns a step from 'caption' to 'text_tokens' int32[length]: [CLS] a b [SEP] 0 0."""

  @seqio.map_over_dataset
  def tokenize(example):
    ids = vocabulary.fit(vocabulary.encode_tf(example.pop('caption')), length)
    ids = tf.pad(ids, [[0, length - tf.size(ids)]])
    return {**example, 'text_tokens': tf.ensure_shape(ids, [length])}

  return tokenize


def parse_tokens(layout: token_layout.TokenLayout, embedding_dim: int) -> Preprocessor:
  """Returns a step from a token record to its arrays.

  {'mulan': int32[W, Q], 'mulan_embeddings': float32[W, D], 'semantic': int32[T_s, 1],
  'acoustic': int32[T_a, Q]}, and 'melody': int32[R, Q] of a layout with melodies.
  """

  @seqio.map_over_dataset
  def parse(example):
    def codes(name):
      levels = layout.recorded[name].num_levels
      return tf.reshape(tf.cast(example[f'{name}_tokens'], tf.int32), [-1, levels])

    embeddings = tf.cast(tf.io.decode_raw(example['mulan_embeddings'], tf.float16), tf.float32)
    return {**{name: codes(name) for name in layout.recorded},
            'mulan_embeddings': tf.reshape(embeddings, [-1, embedding_dim])}

  return parse


def crop_tokens(layout: token_layout.TokenLayout, stage: token_layout.StageLayout,
                codebooks: np.ndarray, window_seconds: int, crops_per_record: int) -> Preprocessor:
  """Returns a step from a record's arrays to {'prefix': int32[P], 'targets': int32[N]} of ids.

  A crop starts on a whole second, so all streams start together. Frames after the end of a short
  record are PAD. Window w covers the seconds [w, w + window_seconds): M of a crop are the codes
  of the average embedding of the windows inside it, or of the one window nearest to the crop
  when none is inside (a 3 s crop has the M of the 10 s around it).
  """
  clock = layout.semantic
  seconds = int(stage.seconds)

  @seqio.map_over_dataset(num_seeds=1)
  def crop(example, seed):
    record_seconds = tf.shape(example['semantic'])[0] // clock.frame_rate
    starts = tf.random.stateless_uniform(
        [crops_per_record], seed, 0, tf.maximum(record_seconds - seconds, 0) + 1, tf.int32)

    def ids(stream, start):
      if stream.name == layout.mulan.name:
        codes = _crop_mulan(example, start, seconds, window_seconds, codebooks)[:, stream.levels]
      else:
        source = example[stream.name if stream.name in layout.recorded else 'acoustic']
        codes = source[stream.rows(start, stage.seconds), stream.levels]
      flat = tf.reshape(codes + stage.level_offsets(stream), [-1])
      length = stream.num_frames(stage.seconds) * stream.num_levels
      flat = tf.pad(flat, [[0, length - tf.size(flat)]], constant_values=token_layout.PAD_ID)
      return tf.ensure_shape(flat, [length])

    def one(start):
      prefix = [ids(stream, start) for stream in stage.prefix]
      return {'prefix': tf.concat(prefix, axis=0), 'targets': ids(stage.target, start)}

    crops = [one(starts[i]) for i in range(crops_per_record)]
    return {name: tf.stack([c[name] for c in crops]) for name in ('prefix', 'targets')}

  return lambda dataset: crop(dataset).unbatch()


def quantize(vector: tf.Tensor, codebooks: np.ndarray) -> tf.Tensor:
  """Returns int32[Q]: the residual quantizer's codes of float32[D]; codebooks float32[Q, K, D]."""
  codes = []
  for codebook in np.asarray(codebooks, np.float32):
    # argmin |v - e|^2 without the constant |v|^2
    scores = tf.constant((codebook ** 2).sum(-1)) - 2 * tf.linalg.matvec(codebook, vector)
    code = tf.argmin(scores, output_type=tf.int32)
    vector -= tf.gather(codebook, code)
    codes.append(code)
  return tf.stack(codes)


def _crop_mulan(example, start, seconds, window_seconds, codebooks):
  """Returns int32[1, Q], the M codes of the crop [start, start + seconds)."""
  num_windows = tf.shape(example['mulan'])[0]
  inside = seconds - window_seconds + 1  # windows inside the crop
  if inside <= 1:
    nearest = start - (window_seconds - seconds) // 2
    nearest = tf.clip_by_value(nearest, 0, num_windows - 1)
    return example['mulan'][nearest][None]
  embedding = tf.reduce_mean(example['mulan_embeddings'][start:start + inside], axis=0)
  return quantize(tf.math.l2_normalize(embedding), codebooks)[None]
