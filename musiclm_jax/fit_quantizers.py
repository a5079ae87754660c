"""L4. Fits quantizers that are not trained by gradient, on features of trained models.

  semantic_quantizer: w2v-BERT features -> per-dimension normalisation -> k-means
  mulan_quantizer: MuLan embeddings of 10 s windows -> k-means on the residuals, level by level
  soundstream: further levels of a codec, likewise, on what its own levels leave over

Axes: N points, D dim, B windows, S samples, K codes, Q levels.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from musiclm_jax import audio, checkpoints, errors
from musiclm_jax.models import quantizers

_log = logging.getLogger(__name__)
_NEAREST_CHUNK = 16_384  # points compared with a codebook at a time


@dataclasses.dataclass(frozen=True)
class FitReport:
  """How well the codes describe points they were not fitted to, if there is a held-out split.

  error: mean squared error per level, as a fraction of the points' variance: 0 exact, 1 no better
    than their mean. codes_used and perplexity (exp of the entropy of use): per level.
  """
  num_points: int
  held_out: bool
  error: tuple[float, ...]
  codes_used: tuple[int, ...]
  perplexity: tuple[float, ...]


class PointSample:
  """A uniform sample of at most `size` points of a stream, and the moments of all of them.

  Every point draws a random key; the `size` smallest keys stay.
  """

  def __init__(self, size: int, seed: int):
    self._size, self._rng = size, np.random.default_rng(seed)
    self._keys, self._points = [], []
    self._waiting = self.count = 0
    self._sum = self._squares = 0.0

  def add(self, points: np.ndarray) -> None:
    """Takes f32[N, D]."""
    self.count += len(points)
    self._sum = self._sum + points.sum(0, dtype=np.float64)
    self._squares = self._squares + np.square(points, dtype=np.float64).sum(0)
    self._keys.append(self._rng.random(len(points)))
    self._points.append(np.array(points, np.float32))
    self._waiting += len(points)
    if self._waiting > 2 * self._size:
      self._shrink()

  def _shrink(self):
    keys, points = np.concatenate(self._keys), np.concatenate(self._points)
    if len(keys) > self._size:
      kept = np.sort(np.argpartition(keys, self._size)[:self._size])
      keys, points = keys[kept], points[kept]
    self._keys, self._points, self._waiting = [keys], [points], len(keys)

  def points(self) -> np.ndarray:
    """Returns f32[min(size, count), D]."""
    self._shrink()
    return self._points[0]

  def moments(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns (mean, standard deviation) f32[D] of every point added."""
    mean = self._sum / self.count
    variance = np.maximum(self._squares / self.count - mean ** 2, 0.0)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def fit_semantic_quantizer(
    model: str, waveforms: str, output: str, *, num_clusters: int = 1024,
    num_iterations: int = 30, layer: int | None = None, max_points: int = 200_000,
    max_clips: int | None = None, batch_size: int = 8, seed: int = 0, dtype: str = 'float32',
) -> FitReport:
  """Writes an exported 'semantic_quantizer' to `output`; returns its report.

  Args:
    model: directory of an exported w2v_bert.
    waveforms: directory of waveform records; fits on 'train', reports on 'test' if it is there.
    output: directory to write.
    num_clusters: K, codes of the tokenizer.
    num_iterations: Lloyd's steps after the k-means++ start.
    layer: of the masked-prediction module; the model's own `feature_layer` by default.
    max_points: frames k-means looks at, a uniform sample; mean and deviation see every frame.
    max_clips: clips read of each split; all by default.
    batch_size: clips a forward pass.
    seed: of the sample and of the k-means++ start.
    dtype: how the centroids are stored.
  """
  exported = checkpoints.load_model(model, 'w2v_bert')
  layer = exported.config.feature_layer if layer is None else layer

  def points(waveform: np.ndarray) -> np.ndarray:
    features = np.asarray(exported.apply('features', waveform, layer=layer))
    return features.reshape(-1, features.shape[-1])

  hop = exported.config.input_hop_length
  train, held_out = _collect(
      waveforms, lambda clip: _whole_seconds(clip, hop), points, batch_size, max_points, max_clips,
      seed)
  _check_enough(train, num_clusters, 'frames', waveforms)
  mean, std = train.moments()
  std = np.maximum(std, 1e-5)
  codebooks = jax.jit(quantizers.kmeans, static_argnums=(2, 3))(
      jax.random.key(seed), (train.points() - mean) / std, num_clusters, num_iterations)
  sample = held_out or train
  report = _report((sample.points() - mean) / std, np.asarray(codebooks)[None], bool(held_out))
  config = quantizers.KMeansConfig(dim=len(mean), num_centroids=num_clusters)
  checkpoints.export_model(
      output, 'semantic_quantizer', config,
      {'codebooks': {'mean': mean, 'std': std, 'centroids': np.asarray(codebooks)}},
      extra={'fitted_to': exported.fingerprint, 'layer': layer, 'frames': train.count,
             'report': dataclasses.asdict(report)}, dtype=dtype)
  _log_report(report)
  return report


def fit_mulan_quantizer(
    model: str, waveforms: str, output: str, *, num_quantizers: int = 12,
    codebook_size: int = 1024, num_iterations: int = 50, window_seconds: float = 10.0,
    hop_seconds: float = 1.0, max_points: int = 200_000, max_clips: int | None = None,
    batch_size: int = 16, seed: int = 0, dtype: str = 'float32',
) -> FitReport:
  """Writes an exported 'mulan_quantizer' to `output`; returns its report.

  Arguments as for `fit_semantic_quantizer`; `model` is an exported mulan. Each level is k-means
  on what the levels before leave over, run to rest: moving averages would end there too.
  """
  exported = checkpoints.load_model(model, 'mulan')
  window, hop = (round(s * audio.SAMPLE_RATE) for s in (window_seconds, hop_seconds))
  train, held_out = _collect(
      waveforms, lambda clip: _windows(clip, window, hop),
      lambda waveform: np.asarray(exported.apply('embed_audio', waveform)),
      batch_size, max_points, max_clips, seed)
  _check_enough(train, codebook_size, 'windows', waveforms)
  codebooks = jax.jit(quantizers.fit_residual_codebooks, static_argnums=(2, 3, 4))(
      jax.random.key(seed), train.points(), num_quantizers, codebook_size, num_iterations)
  report = _report((held_out or train).points(), np.asarray(codebooks), bool(held_out))
  config = quantizers.ResidualVectorQuantizerConfig(
      dim=codebooks.shape[-1], num_quantizers=num_quantizers, codebook_size=codebook_size)
  checkpoints.export_model(
      output, 'mulan_quantizer', config,
      {'codebooks': quantizers.codebook_variables(codebooks)},
      extra={'fitted_to': exported.fingerprint, 'window_seconds': window_seconds,
             'hop_seconds': hop_seconds, 'windows': train.count,
             'report': dataclasses.asdict(report)}, dtype=dtype)
  _log_report(report)
  return report


def fit_codec_levels(
    model: str, waveforms: str, output: str, *, num_quantizers: int, num_iterations: int = 20,
    max_points: int = 200_000, max_clips: int | None = None, batch_size: int = 8, seed: int = 0,
    dtype: str = 'float32',
) -> FitReport:
  """Writes the exported soundstream `model` with more levels to `output`; returns their report.

  Arguments as for `fit_semantic_quantizer`.  The levels there are stay, and so do their tokens; the
  decoder has not heard the new ones yet: train it on (gin/runs/soundstream_tiny_adversarial.gin).
  """
  codec = checkpoints.load_model(model, 'soundstream')
  known = codec.variables['codebooks']['quantizer']
  more = num_quantizers - codec.config.num_quantizers
  if more < 1:
    raise errors.UserError(f'{model} has {codec.config.num_quantizers} levels, wanted more than'
                           f' that, not {num_quantizers}')
  quantize = quantizers.ResidualVectorQuantizer(codec.config.quantizer).bind({'codebooks': known})

  @jax.jit
  def left_over(vectors: jax.Array) -> jax.Array:
    left = vectors - quantize.decode(quantize.encode(vectors))
    return left.reshape(-1, codec.config.dim)

  train, held_out = _collect(
      waveforms, lambda clip: _whole_seconds(clip, codec.config.hop_length),
      lambda waveform: np.asarray(left_over(codec.apply('embed', waveform))),
      batch_size, max_points, max_clips, seed)
  _check_enough(train, codec.config.codebook_size, 'frames', waveforms)
  codebooks = jax.jit(quantizers.fit_residual_codebooks, static_argnums=(2, 3, 4))(
      jax.random.key(seed), train.points(), more, codec.config.codebook_size, num_iterations)
  report = _report((held_out or train).points(), np.asarray(codebooks), bool(held_out))
  new = quantizers.codebook_variables(codebooks)
  joined = {name: jnp.concatenate([known[name], new[name]]) for name in ('embeddings', 'counts')}
  checkpoints.export_model(
      output, 'soundstream', dataclasses.replace(codec.config, num_quantizers=num_quantizers),
      codec.variables | {'codebooks': {'quantizer': known | joined}},
      extra=codec.extra | {'levels_added': more, 'report': dataclasses.asdict(report)}, dtype=dtype)
  _log_report(report)
  return report


def _whole_seconds(clip: np.ndarray, hop: int) -> np.ndarray:
  """Returns f32[1, S]: the clip without its last fraction of a second, so that few shapes occur."""
  samples = len(clip) // audio.SAMPLE_RATE * audio.SAMPLE_RATE
  return clip[None, :samples] if samples >= hop else clip[None, :0]


def _windows(clip: np.ndarray, window: int, hop: int) -> np.ndarray:
  """Returns f32[B, S], every window that fits; a clip shorter than one is followed by silence."""
  if len(clip) < window:
    return np.pad(clip, (0, window - len(clip)))[None]
  starts = range(0, len(clip) - window + 1, hop)
  return np.stack([clip[start:start + window] for start in starts])


def _collect(
    waveforms: str, cut: Callable[[np.ndarray], np.ndarray],
    points: Callable[[np.ndarray], np.ndarray], batch_size: int, max_points: int,
    max_clips: int | None, seed: int) -> tuple[PointSample, PointSample | None]:
  """Returns the points of the train split, and of the test split or None when there is none."""
  from musiclm_jax.data import records  # TensorFlow: not for a look at the report
  records.read_info(waveforms, 'waveforms')
  samples = {}
  for split in ('train', 'test'):
    if split == 'test' and split not in records.splits(waveforms):
      continue
    sample = PointSample(max_points, seed)
    with tqdm.tqdm(desc=f'features of {split}', unit=' clips') as progress:
      clips = _clips(records, waveforms, split, max_clips, progress)
      for batch in _batches(clips, cut, batch_size):
        sample.add(points(batch))
    samples[split] = sample
  held_out = samples.get('test')
  return samples['train'], held_out if held_out and held_out.count else None


def _clips(records: Any, waveforms: str, split: str, max_clips: int | None, progress):
  for index, record in enumerate(records.read_waveforms(waveforms, split)):
    if max_clips is not None and index >= max_clips:
      return
    yield record['waveform']
    progress.update()


def _batches(clips: Iterator[np.ndarray], cut, batch_size: int) -> Iterator[np.ndarray]:
  """Yields f32[batch_size, S] rows of equal length; the last of each length may be fewer."""
  waiting = {}
  for clip in clips:
    rows = cut(clip)
    if not rows.shape[1]:
      continue
    queue = waiting.setdefault(rows.shape[1], [])
    queue.extend(rows)
    while len(queue) >= batch_size:
      yield np.stack(queue[:batch_size])
      del queue[:batch_size]
  for queue in waiting.values():
    if queue:
      yield np.stack(queue)


def _check_enough(sample: PointSample, num_codes: int, unit: str, waveforms: str) -> None:
  if sample.count < num_codes:
    raise errors.UserError(
        f'{waveforms} gives {sample.count} {unit} to fit, wanted at least one for each of the '
        f'{num_codes} codes')


def _report(points: np.ndarray, codebooks: np.ndarray, held_out: bool) -> FitReport:
  """Returns the report of f32[N, D] points under f32[Q, K, D] codebooks."""
  nearest = jax.jit(quantizers.nearest)
  residual = np.array(points, np.float32)
  total = max(float(residual.var(0).sum()), 1e-12)
  error, used, perplexity = [], [], []
  for codebook in codebooks:
    codes = np.concatenate([
        np.asarray(nearest(residual[i:i + _NEAREST_CHUNK], codebook))
        for i in range(0, len(residual), _NEAREST_CHUNK)])
    residual -= codebook[codes]
    counts = np.bincount(codes, minlength=len(codebook)).astype(np.float32)
    error.append(float(np.square(residual).sum(1).mean() / total))
    used.append(int((counts > 0).sum()))
    perplexity.append(float(quantizers.perplexity(jnp.asarray(counts))))
  return FitReport(len(points), held_out, tuple(error), tuple(used), tuple(perplexity))


def _log_report(report: FitReport) -> None:
  where = 'held-out' if report.held_out else 'fitted'
  for level, (error, used, perplexity) in enumerate(
      zip(report.error, report.codes_used, report.perplexity, strict=True)):
    _log.info('level %d: error %.1f%% of the variance, %d codes used, perplexity %.0f '
              '(%d %s points)', level, 100 * error, used, perplexity, report.num_points, where)
