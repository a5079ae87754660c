"""L5. A few examples of a task as the model gets them, back as codes, sound, text and pictures."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from musiclm_jax import audio, checkpoints, codec, errors, text, token_layout
from musiclm_jax.data import datasets, feature_converters, records, vocabularies
from tasks import captions, drawings, melody, music_text, tokens, waveforms

TASKS = (*token_layout.STAGES, 'captions', 'music_text', 'waveforms', 'melody')
SECONDS = {'semantic': 10, 'coarse': 10, 'fine': 3, 'melody': 4}  # of a crop; others: 10
TEXT_LENGTH = 64
_SHOWN = 12  # values of an array


@dataclasses.dataclass(frozen=True)
class Example:
  """What a model gets, and what it means: codes int32[T, Q] of each stream, sound, text.

  `padding` counts the target's ids after the end of a record that is shorter than the crop.
  """

  arrays: Mapping[str, np.ndarray]
  streams: Mapping[token_layout.TokenStream, np.ndarray] = dataclasses.field(default_factory=dict)
  clips: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # f32[S]
  sentence: str | None = None
  padding: int = 0
  rate: int = audio.SAMPLE_RATE


def inspect(
    task: str, directories: Sequence[str], split: str = 'train', num_examples: int = 3,
    seed: int = 0, seconds: float | None = None, vocab_file: str | None = None,
    models: str | None = None, output: str | None = None
) -> Iterator[str]:
  """Yields a text of lines for each example; writes OUTPUT/TASK_SPLIT_SEED_N.png and .wav.

  Tokens are heard with `models`, a directory of exported models or a codec's own: the codec that
  made them decodes the coarse levels of 'coarse' examples, all levels of 'fine' ones.
  """
  seconds = seconds or SECONDS.get(task, 10)
  decoder = None if models is None else _codec(task, directories, models)
  if task in token_layout.STAGES:
    found = _token_examples(task, directories, split, seed, seconds)
  else:
    found = _audio_examples(task, directories, split, seed, seconds, vocab_file)
  if output:
    os.makedirs(output, exist_ok=True)
  for number, example in zip(range(num_examples), found, strict=False):
    if decoder:
      example = dataclasses.replace(
          example, clips={'sound': _heard(decoder, example)}, rate=decoder.config.sample_rate)
    yield '\n'.join([f'example {number}', *('  ' + line for line in _lines(example))])
    if output:
      name = os.path.join(output, f'{task}_{split}_{seed}_{number}')
      with audio.atomic_path(f'{name}.png', overwrite=True) as path:
        drawings.save(path, example.streams, example.clips, example.rate,
                      f'{task}, {split}, example {number}')
      for kind, clip in example.clips.items():
        wav = name if len(example.clips) == 1 else f'{name}_{kind}'
        audio.write(f'{wav}.wav', clip, example.rate, overwrite=True)


def stage_example(stage: token_layout.StageLayout, batch: Mapping[str, np.ndarray]) -> Example:
  """Returns the example of one row, [L] each; ids that no codes become are an error.

  Its input must be the sequence one later, behind BOS, and its weights those of the target alone.
  """
  ids = batch['decoder_target_tokens']
  target = ids[stage.prefix_length:]
  length = int(np.count_nonzero(target != token_layout.PAD_ID))
  wanted_input = np.concatenate([[token_layout.BOS_ID], ids[:-1]])
  scored = np.arange(len(ids)) >= stage.prefix_length
  if not np.array_equal(batch['decoder_input_tokens'], wanted_input):
    raise errors.UserError('decoder_input_tokens are not decoder_target_tokens one position later')
  if not np.array_equal(batch['decoder_loss_weights'], scored & (ids != token_layout.PAD_ID)):
    raise errors.UserError('decoder_loss_weights are not 1 for the ids of the target and 0 elsewhere')
  streams = {}
  for number, stream in enumerate(stage.streams):
    # Each stream is the target of a sequence that ends with it.
    part = dataclasses.replace(stage, prefix=stage.streams[:number], target=stream)
    streams[stream] = part.unflatten(_without_padding(ids[stage.positions(stream.name)], stream))
  return Example(dict(batch), streams, {}, padding=len(target) - length)


def _without_padding(ids: np.ndarray, stream: token_layout.TokenStream) -> np.ndarray:
  """Returns the ids up to the first padding, which only whole frames at the end may be."""
  length = int(np.count_nonzero(ids != token_layout.PAD_ID))
  if ids[:length].min(initial=1) == token_layout.PAD_ID or length % stream.num_levels:
    raise errors.UserError(f'{stream.name} ids have padding before their end or inside a frame')
  return ids[:length]


def _token_examples(stage, directories, split, seed, seconds) -> Iterator[Example]:
  records.read_info(directories[0], 'tokens')
  layout = token_layout.read_layout(directories[0]).layout
  task = tokens.tokens(directories, layout, stage, seconds)
  for row in _rows(task, feature_converters.TokenFeatureConverter(), split, seed):
    yield stage_example(layout.stage(stage, seconds), row)


def _audio_examples(name, directories, split, seed, seconds, vocab_file) -> Iterator[Example]:
  vocabulary = converter = None
  if name in ('captions', 'music_text'):
    vocab_file = vocab_file or os.path.join(codec.TINY.parent, 'mulan', 'vocab.txt')
    vocabulary = vocabularies.WordPieceVocabulary(vocab_file)
    make = captions.captions if name == 'captions' else music_text.music_text
    task = make(directories, vocabulary, seconds, TEXT_LENGTH)
    converter = feature_converters.MusicTextFeatureConverter()
  elif name == 'melody':
    task, converter = melody.melody(directories, seconds), feature_converters.MelodyFeatureConverter()
  else:
    task = waveforms.waveforms(directories, seconds)
    converter = feature_converters.WaveformFeatureConverter()
  for row in _rows(task, converter, split, seed):
    versions = row['waveform'].reshape(-1, row['waveform'].shape[-1])
    names = ['sound'] if len(versions) == 1 else [f'version_{i}' for i in range(len(versions))]
    sentence = None if vocabulary is None else vocabulary.decode(row['text_tokens'].tolist())
    yield Example(row, {}, dict(zip(names, versions, strict=True)), sentence)


def _rows(task, converter, split, seed) -> Iterator[dict[str, np.ndarray]]:
  for batch in datasets.SeqioDataset(task, converter, split, num_epochs=1).iterator(1, seed):
    yield {name: array[0] for name, array in batch.items()}


def _codec(task: str, directories: Sequence[str], models: str) -> codec.Codec:
  """Returns the codec that made the acoustic tokens of the records."""
  if task not in ('coarse', 'fine'):
    raise errors.UserError(f'models are for acoustic tokens, which {task} examples have none of; '
                           'coarse and fine ones do')
  folder = os.path.join(models, 'soundstream')
  found = codec.Codec.load(folder if os.path.isdir(folder) else models)
  saved = token_layout.read_layout(directories[0])
  wanted = saved.tokenizers.get('soundstream')
  if checkpoints.token_fingerprint(found.model, saved.layout.acoustic.num_levels) != wanted:
    raise errors.UserError(
        f'{found.model.directory} is not the codec that made the tokens of {directories[0]}')
  return found


def _heard(decoder: codec.Codec, example: Example) -> np.ndarray:
  """Returns f32[S], the acoustic tokens of an example as sound."""
  parts = [codes for stream, codes in example.streams.items() if stream.name in ('coarse', 'fine')]
  frames = min(map(len, parts))
  packet = np.concatenate([codes[:frames] for codes in parts], axis=1)
  return np.concatenate([np.zeros(0, np.float32), *decoder.decode([packet])])


def _lines(example: Example) -> Iterator[str]:
  """Yields what is printed of an example."""
  for name, array in sorted(example.arrays.items()):
    yield f'{name}: {array.dtype}{list(array.shape)}  {_some(array)}'
  for stream, codes in example.streams.items():
    yield (f'{stream.name}: codes {list(codes.shape)}, all below {stream.codebook_size}, '
           f'{len(np.unique(codes))} different  {_some(codes)}')
  if example.padding:
    yield f'padding: the last {example.padding} ids, after the end of the record'
  for name, clip in example.clips.items():
    power = np.mean(np.square(clip), dtype=np.float64) if len(clip) else 0.0
    yield (f'{name}: {len(clip) / example.rate:g} s, peak {np.abs(clip).max(initial=0):.3f}, '
           f'{10 * np.log10(max(power, 1e-12)):.1f} dB')
  if example.sentence is not None:
    yield f'text: {text.readable(example.sentence)!r}'


def _some(array: np.ndarray) -> str:
  values = array.reshape(-1)
  form = 'd' if np.issubdtype(array.dtype, np.integer) else '.4g'
  shown = ' '.join(format(value, form) for value in values[:_SHOWN].tolist())
  return shown + (' ..' if len(values) > _SHOWN else '')
