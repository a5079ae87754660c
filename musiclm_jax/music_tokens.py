"""L3. What a piece, a text or a melody is called: embeddings of the frozen towers, and their codes.

Axes: S samples, W windows, N embeddings, E embedding, Q levels, K codes.

MusicLM sections 2.5 and 3.1: windows of 10 s, one starting each second, their embeddings averaged
and quantized: 12 tokens a piece. A text goes through the same quantizer. The mean of unit vectors
is shorter than one, a text's embedding is not, so the mean is made a unit vector again.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from musiclm_jax import checkpoints, errors, text
from musiclm_jax.models import quantizers

WINDOW_SECONDS = 10  # of MuLan
_AT_ONCE = 16  # rows a forward pass; a longer batch is cut, so that few shapes are compiled


def windows(waveform: np.ndarray, window: int, hop: int) -> np.ndarray:
  """Returns f32[W, window], every window that fits; a clip shorter than one is followed by silence.

    windows([1 2 3 4 5], 3, 1) = [[1 2 3] [2 3 4] [3 4 5]]      windows([1 2], 3, 1) = [[1 2 0]]
  """
  if len(waveform) < window:
    return np.pad(waveform, (0, window - len(waveform)))[None]
  return np.lib.stride_tricks.sliding_window_view(waveform, window)[::hop]


def unit_mean(embeddings: np.ndarray) -> np.ndarray:
  """Returns f32[E], the direction of the mean of f32[W, E]."""
  mean = np.asarray(embeddings, np.float32).mean(0)
  return mean / max(float(np.linalg.norm(mean)), 1e-6)


def embed_music(
    mulan: checkpoints.ExportedModel, waveform: np.ndarray, hop_seconds: float = 1.0) -> np.ndarray:
  """Returns f32[E], a unit vector, of f32[S] at the model's rate."""
  window, hop = (_samples(s, mulan.config.sample_rate) for s in (WINDOW_SECONDS, hop_seconds))
  rows = windows(np.asarray(waveform, np.float32), window, hop)
  return unit_mean(_in_batches(lambda part: mulan.apply('embed_audio', part), rows))


def embed_text(
    mulan: checkpoints.ExportedModel, tokenizer: text.WordPieceTokenizer, texts: Sequence[str]
) -> np.ndarray:
  """Returns f32[N, E], unit vectors."""
  ids = tokenizer.encode(list(texts), mulan.config.text.max_length)
  return _in_batches(lambda part: mulan.apply('embed_text', part), ids)


class Pairs(NamedTuple):
  """Clips and their captions: captions f32[N, E] of clip int[N], of audio f32[C, E] and pieces [C]."""
  audio: np.ndarray
  captions: np.ndarray
  clip: np.ndarray
  pieces: np.ndarray

  def of(self, chosen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns (captions, audio) f32[n, E] of the clips where bool[C] is True, or of all."""
    rows = slice(None) if chosen is None else chosen[self.clip]
    return self.captions[rows], self.audio[self.clip[rows]]


def embed_pairs(mulan: checkpoints.ExportedModel, waveforms: str, split: str,
                hop_seconds: float = 1.0, max_clips: int | None = None) -> Pairs | None:
  """Returns the vectors of the records of a split that have captions, None when none has."""
  import tqdm

  from musiclm_jax.data import records  # TensorFlow: not for generation
  audio, captions, clip, pieces = [], [], [], []
  with tqdm.tqdm(desc=f'clips and captions of {split}', unit=' clips') as progress:
    for index, record in enumerate(records.read_waveforms(waveforms, split)):
      if max_clips is not None and index >= max_clips:
        break
      if record['captions']:
        clip += [len(audio)] * len(record['captions'])
        captions += record['captions']
        audio.append(embed_music(mulan, record['waveform'], hop_seconds))
        pieces.append(record['piece'] or record['id'])
      progress.update()
  if not captions:
    return None
  tokenizer = text.WordPieceTokenizer(mulan.directory / 'vocab.txt')
  return Pairs(
      np.stack(audio), embed_text(mulan, tokenizer, captions), np.array(clip), np.array(pieces))


def map_text(mapper: checkpoints.ExportedModel, embeddings: np.ndarray) -> np.ndarray:
  """Returns f32[N, E], unit vectors of texts f32[N, E] moved towards those of music."""
  return _in_batches(lambda part: mapper.apply('__call__', part), embeddings)


def tokens(embeddings: np.ndarray, quantizer: checkpoints.ExportedModel,
           num_levels: int | None = None) -> np.ndarray:
  """Returns int32[N, Q] of f32[N, E]; Q is `num_levels`, the first ones, or all.

  Late levels of a quantizer of audio say little of a text: how many are used is a choice.
  """
  levels = quantizer.config.num_quantizers
  if num_levels is not None and not 1 <= num_levels <= levels:
    raise errors.UserError(
        f'{num_levels} levels are asked of {quantizer.directory}, wanted 1 to {levels}')
  embeddings = np.asarray(embeddings, np.float32)
  if embeddings.shape[-1] != quantizer.config.dim:
    raise errors.UserError(f'{quantizer.directory} quantizes vectors of {quantizer.config.dim}, '
                           f'got {embeddings.shape[-1]}')
  return _in_batches(
      lambda part: quantizer.apply('encode', part[:, None]), embeddings)[:, 0, :num_levels]


def check_fitted_to(fitted: checkpoints.ExportedModel, model: checkpoints.ExportedModel) -> None:
  """Raises an error when `fitted`, a quantizer or a mapper, is of another model's vectors."""
  dim = getattr(model.config, 'embedding_dim', None) or model.config.emb_dim
  if fitted.config.dim != dim:
    raise errors.UserError(f'{model.name} gives vectors of {dim}, {fitted.name} wants '
                           f'{fitted.config.dim}')
  wanted = fitted.extra.get('fitted_to', model.fingerprint)
  if wanted != model.fingerprint:
    raise errors.UserError(
        f'{fitted.name} was fitted to a {model.name} with sha256 {wanted}, the one given has '
        f'{model.fingerprint}: fit it again')


def codebooks(directory: str | os.PathLike, mulan: checkpoints.ExportedModel) -> np.ndarray:
  """Returns f32[Q, K, E] of an exported mulan_quantizer, which must be fitted to `mulan`."""
  quantizer = checkpoints.load_model(directory, 'mulan_quantizer')
  check_fitted_to(quantizer, mulan)
  return np.asarray(quantizer.variables['codebooks']['embeddings'], np.float32)


def melody_tokens(melody: checkpoints.ExportedModel, quantizer: checkpoints.ExportedModel,
                  waveform: np.ndarray, num_levels: int | None = None,
                  hop_seconds: float | None = None) -> np.ndarray:
  """Returns int32[W, Q], the melody of f32[S] at the model's rate; Q is `num_levels`, or all.

  `hop_seconds`: from one window to the next, by default the model's.

  MusicLM appendix C: 10 s in windows of 4 s every 3 s, 24 levels: [3, 24], 72 tokens, window by
  window.  A clip shorter than a window is followed by silence.
  """
  config = melody.config
  window, hop = (_samples(s, config.sample_rate)
                 for s in (config.window_seconds, hop_seconds or config.hop_seconds))
  rows = windows(np.asarray(waveform, np.float32), window, hop)
  return tokens(_in_batches(lambda part: melody.apply('embed', part), rows), quantizer, num_levels)


@dataclasses.dataclass(frozen=True)
class TextAudioGap:
  """How far the text tower's vectors are from the audio the quantizer was fitted to.

  pairs: clips and their captions. matched, mismatched: mean cosine of a clip with its own captions
    and with those of others. audio_residual, text_residual: mean length of what is left of the
    unit vectors after each level. agreement: share of pairs whose codes are the same, per level.
  """
  pairs: int
  matched: float
  mismatched: float
  audio_residual: tuple[float, ...]
  text_residual: tuple[float, ...]
  agreement: tuple[float, ...]

  def describe(self) -> str:
    """Returns the gap in one line a level, after one for the cosines."""
    lines = [f'text and audio: cosine {self.matched:.3f} of {self.pairs} matched pairs, '
             f'{self.mismatched:.3f} of mismatched ones']
    for level, (audio, caption, same) in enumerate(
        zip(self.audio_residual, self.text_residual, self.agreement, strict=True)):
      lines.append(f'level {level}: audio leaves {audio:.3f}, text {caption:.3f}; '
                   f'the same code for {100 * same:.1f}%')
    return '\n'.join(lines)


def text_audio_gap(
    audio: np.ndarray, captions: np.ndarray, codebooks: np.ndarray) -> TextAudioGap:
  """Returns the gap of pairs of unit vectors f32[N, E] under codebooks f32[Q, K, E].

  A clip with several captions is in `audio` once for each, as the same vector.
  """
  audio, captions = (np.asarray(x, np.float32) for x in (audio, captions))
  if audio.shape != captions.shape or not len(audio):
    raise errors.UserError(
        f'the gap of {list(audio.shape)} audio and {list(captions.shape)} text vectors: wanted '
        'as many, at least one')
  _, clip = np.unique(audio, axis=0, return_inverse=True)
  clip = clip.reshape(-1)
  size = np.bincount(clip)
  sums = [np.zeros((len(size), audio.shape[1])) for _ in range(2)]
  for total, vectors in zip(sums, (audio, captions), strict=True):
    np.add.at(total, clip, vectors)
  own = np.einsum('ce,ce->', *sums)  # every clip with its own captions
  others = len(clip) ** 2 - np.square(size).sum()
  mismatched = (sums[0].sum(0) @ sums[1].sum(0) - own) / max(others, 1)
  left, norms, same = [audio, captions], ([], []), []
  for codebook in np.asarray(codebooks, np.float32):
    codes = [np.asarray(quantizers.nearest(jnp.asarray(x), codebook)) for x in left]
    left = [x - codebook[code] for x, code in zip(left, codes, strict=True)]
    for norm, x in zip(norms, left, strict=True):
      norm.append(float(np.linalg.norm(x, axis=1).mean()))
    same.append(float(np.mean(codes[0] == codes[1])))
  return TextAudioGap(len(audio), float(np.einsum('ne,ne->n', audio, captions).mean()),
                      float(mismatched), tuple(norms[0]), tuple(norms[1]), tuple(same))


def _samples(seconds: float, rate: int) -> int:
  samples = round(seconds * rate)
  if samples < 1:
    raise errors.UserError(f'{seconds} s are {samples} samples at {rate} Hz, wanted at least one')
  return samples


def _in_batches(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
  """Returns function(rows), computed `_AT_ONCE` rows at a time; the last batch is filled up."""
  if len(rows) <= _AT_ONCE:
    return np.asarray(function(rows))
  outputs = []
  for start in range(0, len(rows), _AT_ONCE):
    part = rows[start:start + _AT_ONCE]
    padding = [(0, _AT_ONCE - len(part))] + [(0, 0)] * (rows.ndim - 1)
    outputs.append(np.asarray(function(np.pad(part, padding)))[:len(part)])
  return np.concatenate(outputs)
