"""L5. What semantic tokens say of timbre and harmony, by linear probes on clips held out.

Beside them: the same tokens dealt out anew, which say nothing; tokens of plain mel-frequency
cepstral coefficients, as many and as often, which a trained model should beat; and the vectors the
tokens were made from.  Axes: T frames, D dims, K codes, S samples.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from musiclm_jax import (
  audio,
  audio_tokenizer,
  checkpoints,
  errors,
  feature_stream,
  music_tokens,
  token_layout,
)
from musiclm_jax.evaluation import corpus_clips, probes
from musiclm_jax.models import quantizers

NUM_COEFFICIENTS = 20
WINDOW_SECONDS = 10  # of w2v-BERT, as when tokens are extracted
_KMEANS_FRAMES = 50_000
_KMEANS_ITERATIONS = 30
_LABELS = {  # task -> spans of a clip
    'family of the lead': probes.lead_families,
    'root of the chord': probes.chord_roots,
}


@dataclasses.dataclass(frozen=True)
class Probe:
  """How well one label is read off one representation."""

  task: str
  representation: str
  accuracy: probes.Accuracy


class ModelTokens:
  """Tokens made by an exported w2v_bert and semantic_quantizer, in windows of 10 s."""

  def __init__(self, model_dir: str | os.PathLike):
    directory = pathlib.Path(model_dir)
    self._model = checkpoints.load_model(directory / 'w2v_bert', 'w2v_bert')
    self._quantizer = checkpoints.load_model(directory / 'semantic_quantizer', 'semantic_quantizer')
    music_tokens.check_fitted_to(self._quantizer, self._model)
    self._layer = audio_tokenizer.semantic_layer(self._model, self._quantizer)
    config = self._model.config
    if config.input_sample_rate != audio.SAMPLE_RATE or config.frame_rate % 1:
      raise errors.UserError(
          f'{directory / "w2v_bert"} hears {config.input_sample_rate} Hz and has '
          f'{config.frame_rate:g} frames a second, wanted {audio.SAMPLE_RATE} Hz and a whole number')
    self.num_codes, self.frame_rate = self._quantizer.config.num_centroids, int(config.frame_rate)

  def hear(self, name: str, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (int32[T], float16[T, D]): tokens, and the vectors they were made from."""
    del name
    window, rate = WINDOW_SECONDS, self.frame_rate
    starts, owner = audio_tokenizer.semantic_windows(len(waveform) // audio.SAMPLE_RATE, window)
    samples = window * audio.SAMPLE_RATE
    rows = np.zeros((max(4, len(starts)), samples), np.float32)  # 4 in 30 s: one shape to compile
    for row, start in zip(rows, starts, strict=False):
      part = waveform[start * audio.SAMPLE_RATE:][:samples]
      row[:len(part)] = part
    features = self._model.apply('features', rows, layer=self._layer)
    codes = self._quantizer.apply('encode', features)
    features, codes = (
        np.asarray(x)[:, :window * rate].reshape(len(rows), window, rate, *x.shape[2:])
        for x in (features, codes))
    seconds = [(index, second - starts[index]) for second, index in enumerate(owner)]
    codes, features = (np.concatenate([x[place] for place in seconds]) for x in (codes, features))
    return codes, features.astype(np.float16)


class RecordedTokens:
  """Tokens of token records; those of another model than MODEL_DIR's, where it has one, are refused."""

  def __init__(self, tokens_dir: str | os.PathLike, model_dir: str | os.PathLike):
    from musiclm_jax.data import records
    self._where = tokens_dir
    saved = token_layout.read_layout(tokens_dir)
    quantizer = pathlib.Path(model_dir) / 'semantic_quantizer'
    if quantizer.exists():
      found = checkpoints.load_model(quantizer, 'semantic_quantizer').fingerprint
      made_by = saved.tokenizers['semantic_quantizer']
      if found != made_by:
        raise errors.UserError(f'{tokens_dir} was made by a semantic_quantizer with sha256 '
                               f'{made_by}, {quantizer} has {found}')
    self.num_codes = saved.layout.semantic.codebook_size
    self.frame_rate = saved.layout.semantic.frame_rate
    self._tokens = {record['id']: record['semantic_tokens'] for split in records.splits(tokens_dir)
                    for record in records.read_tokens(tokens_dir, split)}

  def hear(self, name: str, waveform: np.ndarray) -> tuple[np.ndarray, None]:
    """Returns (int32[T], None); a clip without tokens is an error."""
    del waveform
    if name not in self._tokens:
      raise errors.UserError(f'{self._where} holds no tokens of {name}, wanted those of all clips')
    return self._tokens[name], None


def measure(
    rows: Mapping[str, dict], waveforms_dir: str, source: ModelTokens | RecordedTokens, *,
    max_clips: int | None = None, seed: int = 0, progress: bool = True,
) -> tuple[list[Probe], list[str]]:
  """Returns the probes, fitted on clips of 'train' and scored on those of 'test', and left out ones.

  Args:
    rows: of corpus.jsonl, by id.
    waveforms_dir: waveform records made from that corpus.
    source: of the tokens.
    max_clips: of each split.
    seed: of the shuffling, of k-means and of the probes.
    progress: show bars.
  """
  import tqdm

  codes, vectors, coefficients, pieces = {}, {}, {}, {}
  spans = {task: {'train': [], 'test': []} for task in _LABELS}
  for split in ('train', 'test'):
    for row, piece, waveform in corpus_clips.clips(
        rows, waveforms_dir, split, max_clips, progress):
      name, seconds = row['id'], len(waveform) / audio.SAMPLE_RATE
      pieces[name] = piece or name
      codes[name], vectors[name] = source.hear(name, waveform)
      coefficients[name] = _cepstral_coefficients(waveform, source.frame_rate)
      for task, label in _LABELS.items():
        spans[task][split] += label(row, seconds)
    if split == 'train':
      cepstral_codes = _cepstral_codes(coefficients, source.num_codes, seed)
  representations = {
      'semantic tokens': (codes, source.num_codes),
      'the same, shuffled': (probes.shuffled(codes, seed), source.num_codes),
      'cepstral tokens': ({name: cepstral_codes(x) for name, x in coefficients.items()},
                          source.num_codes),
  }
  if isinstance(source, ModelTokens):
    representations['vectors of the tokens'] = vectors, None
  kept = [task for task in _LABELS if all(spans[task].values())]
  left_out = [f'{task}: the corpus names none for the clips of '
              f'{" and ".join(split for split, found in spans[task].items() if not found)}'
              for task in _LABELS if task not in kept]
  plan = [(task, name, *found) for task in kept for name, found in representations.items()]
  found = []
  for task, name, features, num_codes in tqdm.tqdm(plan, 'probes', disable=not progress):
    found.append(Probe(task, name, probes.probe_features(
        features, spans[task]['train'], spans[task]['test'], frame_rate=source.frame_rate,
        num_codes=num_codes, pieces=pieces, seed=seed)))
  return found, left_out


def _cepstral_coefficients(waveform: np.ndarray, frame_rate: int) -> np.ndarray:
  """Returns f32[T, 20] of f32[S] in whole seconds."""
  import librosa
  frames = len(waveform) // audio.SAMPLE_RATE * frame_rate
  found = librosa.feature.mfcc(
      y=waveform, sr=audio.SAMPLE_RATE, n_mfcc=NUM_COEFFICIENTS,
      hop_length=audio.SAMPLE_RATE // frame_rate)
  return found.T[:frames].astype(np.float32)


def _cepstral_codes(coefficients: Mapping[str, np.ndarray], num_codes: int, seed: int):
  """Returns a function from f32[T, 20] to int32[T]: each dimension normalised, then k-means."""
  sample = feature_stream.PointSample(_KMEANS_FRAMES, seed)
  for frames in coefficients.values():
    sample.add(frames)
  mean, std = sample.moments()
  std = np.maximum(std, 1e-5)
  centroids = jax.jit(quantizers.kmeans, static_argnums=(2, 3))(
      jax.random.key(seed), (sample.points() - mean) / std, num_codes, _KMEANS_ITERATIONS)
  nearest = jax.jit(functools.partial(quantizers.nearest, centroids=centroids))
  return lambda frames: np.asarray(nearest((frames - mean) / std))
