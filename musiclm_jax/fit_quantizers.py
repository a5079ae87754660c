"""L4. Fits quantizers that are not trained by gradient, on features of trained models.

  semantic_quantizer: w2v-BERT features -> per-dimension normalisation -> k-means, on a sample and
    then, batch by batch, on the whole stream
  mulan_quantizer: MuLan embeddings of 10 s windows -> k-means on the residuals, level by level
  melody_quantizer: melody embeddings of 4 s windows, likewise
  soundstream: further levels of a codec, likewise, on what its own levels leave over

Axes: N points, D dim, B windows, S samples, K codes, Q levels.
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import audio, checkpoints, errors, feature_stream, music_tokens
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


def fit_semantic_quantizer(
    model: str, waveforms: str, output: str, *, num_clusters: int = 1024,
    num_iterations: int = 30, num_passes: int | None = None, layer: int | None = None,
    max_points: int = 200_000, max_clips: int | None = None, batch_size: int = 8, seed: int = 0,
    dtype: str = 'float32',
) -> FitReport:
  """Writes an exported 'semantic_quantizer' to `output`; returns its report.

  AudioLM section III-B: per-dimension normalisation, then k-means.  Lloyd's steps from a k-means++
  start look at a sample; minibatch passes then move each centroid to the mean of all points that
  were ever nearest to it (Sculley 2010).

  Args:
    model: directory of an exported w2v_bert.
    waveforms: directory of waveform records; fits on 'train', reports on 'test' if it is there.
    output: directory to write.
    num_clusters: K, codes of the tokenizer.
    num_iterations: Lloyd's steps after the k-means++ start.
    num_passes: minibatch passes over all frames; by default one when the sample left frames out,
      else none.
    layer: of the masked-prediction module; the model's own `feature_layer` by default.
    max_points: frames of the sample; mean and deviation see every frame.
    max_clips: clips read of each split; all by default.
    batch_size: clips a forward pass, over all devices.
    seed: of the sample and of the k-means++ start.
    dtype: how the centroids are stored.
  """
  exported = checkpoints.load_model(model, 'w2v_bert')
  layer = exported.config.feature_layer if layer is None else layer
  hop = exported.config.input_hop_length
  train, test = _streams(
      waveforms, lambda clip: feature_stream.whole_seconds(clip, hop),
      lambda waveform: exported.apply('features', waveform, layer=layer), batch_size, max_clips)
  sample = train.sample(max_points, seed)
  _check_enough(sample, num_clusters, 'frames', waveforms)
  mean, std = sample.moments()
  std = np.maximum(std, 1e-5)
  points = (sample.points() - mean) / std
  centroids = jax.jit(quantizers.kmeans, static_argnums=(2, 3))(
      jax.random.key(seed), points, num_clusters, num_iterations)
  if num_passes is None:
    num_passes = int(sample.count > len(points))
  centroids = _minibatch_passes(train, num_passes, centroids, points, mean, std)
  held_out = _held_out(test, max_points, seed)
  report = _report(
      (held_out.points() - mean) / std if held_out else points, centroids[None], bool(held_out))
  config = quantizers.KMeansConfig(dim=len(mean), num_centroids=num_clusters)
  checkpoints.export_model(
      output, 'semantic_quantizer', config,
      {'codebooks': {'mean': mean, 'std': std, 'centroids': centroids}},
      extra={'fitted_to': exported.fingerprint, 'layer': layer, 'frames': sample.count,
             'passes': num_passes, 'report': dataclasses.asdict(report)}, dtype=dtype)
  _log_report(report)
  return report


def _minibatch_passes(stream, num_passes: int, centroids, points, mean, std) -> np.ndarray:
  """Returns f32[K, D] centroids after passes over the whole stream; they start as heavy as the
  points [N, D] of the sample made them."""
  update = jax.jit(lambda centroids, counts, values, weights: quantizers.minibatch_kmeans_step(
      centroids, counts, (values - mean) / std, weights))
  nearest = jax.jit(quantizers.nearest)(jnp.asarray(points), centroids)
  counts = jnp.bincount(nearest, length=len(centroids)).astype(jnp.float32)
  for _ in range(num_passes):
    for values, weights in stream:
      centroids, counts = update(centroids, counts, values, weights)
  return np.asarray(centroids)


def fit_mulan_quantizer(
    model: str, waveforms: str, output: str, *, num_quantizers: int = 12,
    codebook_size: int = 1024, num_iterations: int = 50, window_seconds: float = 10.0,
    hop_seconds: float = 1.0, max_points: int = 200_000, max_clips: int | None = None,
    batch_size: int = 16, seed: int = 0, dtype: str = 'float32',
) -> FitReport:
  """Writes an exported 'mulan_quantizer' to `output`; returns its report.

  Arguments as for `fit_semantic_quantizer`; `model` is an exported mulan. Each level is k-means
  on what the levels before leave over, run to rest: moving averages would end there too.  Logs how
  far captions lie from their clips, of the held-out split if there is one.
  """
  exported = checkpoints.load_model(model, 'mulan')

  def gap(codebooks, split):
    return _text_audio_gap(exported, waveforms, codebooks, split, hop_seconds, max_clips)

  return _fit_windows(
      exported, 'embed_audio', waveforms, ('waveforms',), output, 'mulan_quantizer', window_seconds,
      hop_seconds, num_quantizers, codebook_size, num_iterations, max_points, max_clips, batch_size,
      seed, dtype, gap)


def _text_audio_gap(mulan, waveforms, codebooks, split, hop_seconds, max_clips) -> dict:
  """Logs how far the captions of a split lie from their clips; returns it for config.json."""
  pairs = music_tokens.embed_pairs(mulan, waveforms, split, hop_seconds, max_clips)
  if pairs is None:
    _log.info('%s: no captions in its %s split, so text is not compared', waveforms, split)
    return {}
  captions, audio_rows = pairs.of()
  gap = music_tokens.text_audio_gap(audio_rows, captions, codebooks)
  for line in gap.describe().splitlines():
    _log.info('%s split: %s', split, line)
  return {'text_audio_gap': {'split': split, **dataclasses.asdict(gap)}}


def fit_melody_quantizer(
    model: str, waveforms: str, output: str, *, num_quantizers: int = 24,
    codebook_size: int = 512, num_iterations: int = 50, hop_seconds: float | None = None,
    max_points: int = 200_000, max_clips: int | None = None, batch_size: int = 16, seed: int = 0,
    dtype: str = 'float32',
) -> FitReport:
  """Writes an exported 'melody_quantizer' to `output`; returns its report.

  Arguments as for `fit_mulan_quantizer`; `model` is an exported melody, whose `window_seconds` are
  heard, `hop_seconds` apart (the model's by default: 4 s every 3 s). `waveforms` are records of
  melodies, of which every version counts, or of any music.
  """
  exported = checkpoints.load_model(model, 'melody')
  config = exported.config
  if config.sample_rate != audio.SAMPLE_RATE:
    raise errors.UserError(f'{model} hears {config.sample_rate} Hz, wanted {audio.SAMPLE_RATE}')
  hop_seconds = config.hop_seconds if hop_seconds is None else hop_seconds
  return _fit_windows(
      exported, 'embed', waveforms, ('waveforms', 'melodies'), output, 'melody_quantizer',
      config.window_seconds, hop_seconds, num_quantizers, codebook_size, num_iterations, max_points,
      max_clips, batch_size, seed, dtype)


def _fit_windows(
    exported, method, waveforms, kinds, output, name, window_seconds, hop_seconds, num_quantizers,
    codebook_size, num_iterations, max_points, max_clips, batch_size, seed, dtype,
    more=lambda codebooks, split: {},
) -> FitReport:
  """Writes the quantizer `name` of the embeddings of windows, exported.METHOD; returns its report.

  more(codebooks, the split reported on): what else config.json is to hold.
  """
  window, hop = (round(s * audio.SAMPLE_RATE) for s in (window_seconds, hop_seconds))
  train, test = _streams(
      waveforms, lambda clip: music_tokens.windows(clip, window, hop),
      lambda waveform: exported.apply(method, waveform), batch_size, max_clips, kinds)
  sample = train.sample(max_points, seed)
  _check_enough(sample, codebook_size, 'windows', waveforms)
  codebooks, report = _fit_residual(
      sample, test, num_quantizers, codebook_size, num_iterations, max_points, seed)
  _log_report(report)
  config = quantizers.ResidualVectorQuantizerConfig(
      dim=codebooks.shape[-1], num_quantizers=num_quantizers, codebook_size=codebook_size)
  checkpoints.export_model(
      output, name, config, {'codebooks': quantizers.codebook_variables(codebooks)},
      extra={'fitted_to': exported.fingerprint, 'window_seconds': window_seconds,
             'hop_seconds': hop_seconds, 'windows': sample.count,
             'report': dataclasses.asdict(report), **more(codebooks, 'test' if test else 'train')},
      dtype=dtype)
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
    return vectors - quantize.decode(quantize.encode(vectors))

  train, test = _streams(
      waveforms, lambda clip: feature_stream.whole_seconds(clip, codec.config.hop_length),
      lambda waveform: left_over(codec.apply('embed', waveform)), batch_size, max_clips)
  sample = train.sample(max_points, seed)
  _check_enough(sample, codec.config.codebook_size, 'frames', waveforms)
  codebooks, report = _fit_residual(
      sample, test, more, codec.config.codebook_size, num_iterations, max_points, seed)
  new = quantizers.codebook_variables(codebooks)
  joined = {name: jnp.concatenate([known[name], new[name]]) for name in ('embeddings', 'counts')}
  checkpoints.export_model(
      output, 'soundstream', dataclasses.replace(codec.config, num_quantizers=num_quantizers),
      codec.variables | {'codebooks': {'quantizer': known | joined}},
      extra=codec.extra | {'levels_added': more, 'report': dataclasses.asdict(report)}, dtype=dtype)
  _log_report(report)
  return report


def _streams(
    waveforms: str, cut, features, batch_size: int, max_clips: int | None,
    kinds: tuple[str, ...] = ('waveforms',),
) -> tuple[feature_stream.FeatureStream, feature_stream.FeatureStream | None]:
  """Returns the points of the train split, and of the test split or None when there is none.

  `waveforms` holds records of one of `kinds`.
  """
  from musiclm_jax.data import records  # TensorFlow: not for a look at the report
  kind = records.read_info(waveforms, *kinds)['kind']
  train, test = (
      feature_stream.FeatureStream(waveforms, split, cut, features, batch_size, max_clips, kind)
      if split == 'train' or split in records.splits(waveforms) else None
      for split in ('train', 'test'))
  return train, test


def _held_out(stream: feature_stream.FeatureStream | None, size: int, seed: int):
  """Returns a sample of the held-out points, or None when there are none."""
  sample = stream.sample(size, seed) if stream else None
  return sample if sample and sample.count else None


def _fit_residual(sample, test, num_quantizers, codebook_size, num_iterations, max_points, seed):
  """Returns (codebooks f32[Q, K, D], their report on the held-out stream `test` if there is one)."""
  codebooks = jax.jit(quantizers.fit_residual_codebooks, static_argnums=(2, 3, 4))(
      jax.random.key(seed), sample.points(), num_quantizers, codebook_size, num_iterations)
  held_out = _held_out(test, max_points, seed)
  report = _report((held_out or sample).points(), np.asarray(codebooks), bool(held_out))
  return codebooks, report


def _check_enough(sample: feature_stream.PointSample, num_codes: int, unit: str, waveforms: str) -> None:
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
