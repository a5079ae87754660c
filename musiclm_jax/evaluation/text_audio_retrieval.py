"""L5. Which of the held-out clips a caption means, and which caption a clip: MuLan's recall.

Axes: N clips, E embedding.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from musiclm_jax import audio, checkpoints, errors, music_tokens, text
from musiclm_jax.evaluation import corpus_clips
from musiclm_jax.objectives import mulan as mulan_objective

RECALL_AT = (1, 5, 10)
_FROM_SECOND = 10  # of the one window


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """How often the right one of `num_clips` is among the first 1, 5 and 10."""

  direction: str
  audio: str
  recall: tuple[float, ...]
  chance: tuple[float, ...]
  num_clips: int


def measure(
    rows: Mapping[str, dict], waveforms_dir: str, model_dir: str | os.PathLike, *,
    max_clips: int | None = None, progress: bool = True,
) -> tuple[list[Retrieval], music_tokens.TextAudioGap | None]:
  """Returns recall both ways on clips of 'test' with their longest captions, and the gap.

  A clip is heard by its seconds 10 to 20 (of a shorter one, the last 10), and as a whole, by the
  mean over windows of 10 s (music_tokens.embed_music). The gap is that of the whole clips under
  MODEL_DIR/mulan_quantizer; None without one.
  """
  directory = pathlib.Path(model_dir)
  mulan = checkpoints.load_model(directory / 'mulan', 'mulan')
  if mulan.config.sample_rate != audio.SAMPLE_RATE:
    raise errors.UserError(f'{mulan.directory} hears {mulan.config.sample_rate} Hz, wanted '
                           f'{audio.SAMPLE_RATE}')
  tokenizer = text.WordPieceTokenizer(directory / 'mulan' / 'vocab.txt')
  mulan.config.text.check_vocabulary(tokenizer.vocab_size, tokenizer.vocab_file)
  quantizer = directory / 'mulan_quantizer'
  codebooks = music_tokens.codebooks(quantizer, mulan) if quantizer.exists() else None
  captions, one, whole = [], [], []
  for row, _, waveform in corpus_clips.clips(rows, waveforms_dir, 'test', max_clips, progress):
    if row['captions']:
      captions.append(max(row['captions'], key=len))
      one.append(music_tokens.embed_music(mulan, window(waveform)))
      whole.append(music_tokens.embed_music(mulan, waveform))
  if not captions:
    raise errors.UserError('no held-out clip of the corpus has a caption, wanted at least one')
  texts = music_tokens.embed_text(mulan, tokenizer, captions)
  found = [
      recalls(direction, name, *pair)
      for name, heard in (('10 s', np.stack(one)), ('whole clip', np.stack(whole)))
      for direction, pair in (('text to audio', (texts, heard)), ('audio to text', (heard, texts)))]
  gap = None
  if codebooks is not None:
    gap = music_tokens.text_audio_gap(np.stack(whole), texts, codebooks)
  return found, gap


def window(waveform: np.ndarray) -> np.ndarray:
  """Returns the seconds 10 to 20 of f32[S], or of a shorter clip the last 10, or all there is."""
  size = music_tokens.WINDOW_SECONDS * audio.SAMPLE_RATE
  start = min(_FROM_SECOND * audio.SAMPLE_RATE, max(len(waveform) - size, 0))
  return waveform[start:start + size]


def recalls(direction: str, name: str, queries: np.ndarray, answers: np.ndarray) -> Retrieval:
  """Returns the recall of unit vectors f32[N, E] among f32[N, E], of which the i-th is right."""
  count = len(queries)
  similarity = jnp.asarray(queries @ answers.T)
  above = mulan_objective.rivals_above(similarity, jnp.diagonal(similarity), ~jnp.eye(count, dtype=bool))
  return Retrieval(
      direction, name,
      tuple(float(mulan_objective.recall(above, k)) for k in RECALL_AT),
      tuple(min(k / count, 1.0) for k in RECALL_AT), count)
