"""L5. KLD: how far what a classifier hears in generated audio is from what it hears in the reference.

Axes: S samples, W windows of a clip, C classes.

MusicLM section 4.4 compares a clip with the recording of the same caption. The paper's classifier
(LEAF, AudioSet) is not public, and it does not say which way round, or how many labels at once:
here these are fields, whose defaults are those of AudioCraft's PaSST metric.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable

import numpy as np

from musiclm_jax import errors
from musiclm_jax.evaluation import saved_models

CLASSIFIERS = ('yamnet', 'passt')
DIRECTIONS = ('reference_generated', 'generated_reference', 'mean')
ACTIVATIONS = ('softmax', 'sigmoid')
AGGREGATIONS = ('probabilities', 'logits')
YAMNET_RATE, PASST_RATE = 16_000, 32_000
PASST_SECONDS = 10  # it hears at most that much at a time


@dataclasses.dataclass(frozen=True)
class KldConfig:
  """What the paper leaves open.

  direction: 'reference_generated' is KL(reference || generated), large where the generated clip
    lacks what the reference has; 'mean' is the mean of both ways.
  activation: 'softmax' over the classes, or 'sigmoid', each class a yes or no by itself: then the
    divergences of the classes are added.
  aggregation: over the windows of a clip, the mean of the 'probabilities' or of the 'logits'.
  epsilon: added to every probability.
  """

  direction: str = 'reference_generated'
  activation: str = 'softmax'
  aggregation: str = 'probabilities'
  epsilon: float = 1e-6

  def __post_init__(self):
    for name, choices in (('direction', DIRECTIONS), ('activation', ACTIVATIONS),
                          ('aggregation', AGGREGATIONS)):
      if getattr(self, name) not in choices:
        raise errors.UserError(
            f'KLD: {name} is {getattr(self, name)!r}, wanted one of {", ".join(choices)}')
    if not 0 < self.epsilon < 0.1:
      raise errors.UserError(f'KLD: epsilon is {self.epsilon}, wanted more than 0 and below 0.1')


@dataclasses.dataclass(frozen=True)
class Classifier:
  """`logits` gives f32[W, C] of f32[S] at `sample_rate`."""

  name: str
  fingerprint: str
  sample_rate: int
  logits: Callable[[np.ndarray], np.ndarray]

  def probabilities(self, waveform: np.ndarray, config: KldConfig) -> np.ndarray:
    """Returns f64[C] of a clip."""
    found = np.asarray(self.logits(waveform), np.float64)
    if found.ndim != 2 or not found.size or not np.isfinite(found).all():
      raise errors.UserError(f'{self.name} gives {list(found.shape)} for {len(waveform)} samples, '
                             'or values that are not finite; wanted logits [W, C]')
    return probabilities(found, config)


def probabilities(logits: np.ndarray, config: KldConfig) -> np.ndarray:
  """Returns f64[C] of the windows' f[W, C]."""
  logits = np.asarray(logits, np.float64)
  if config.aggregation == 'logits':
    logits = logits.mean(axis=0, keepdims=True)
  if config.activation == 'softmax':
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (exponents / exponents.sum(axis=1, keepdims=True)).mean(axis=0)
  return np.exp(-np.logaddexp(0.0, -logits)).mean(axis=0)


def divergence(
    reference: np.ndarray, generated: np.ndarray, config: KldConfig) -> float:
  """Returns the divergence in nats of two clips' probabilities f64[C]."""
  if reference.shape != generated.shape:
    raise errors.UserError(
        f'KLD: {len(reference)} and {len(generated)} classes, wanted those of one classifier')
  if config.direction == 'mean':
    return (_one_way(reference, generated, config) + _one_way(generated, reference, config)) / 2
  if config.direction == 'generated_reference':
    return _one_way(generated, reference, config)
  return _one_way(reference, generated, config)


def _one_way(p: np.ndarray, q: np.ndarray, config: KldConfig) -> float:
  relative = lambda p, q: p * np.log((p + config.epsilon) / (q + config.epsilon))
  terms = relative(p, q)
  if config.activation == 'sigmoid':
    terms = terms + relative(1.0 - p, 1.0 - q)
  return float(terms.sum())


def yamnet(directory: str) -> Classifier:
  """Returns TF-Hub's yamnet/1, a SavedModel: f32[S] at 16 kHz -> (scores f32[W, 521], ...).

  Its scores are sigmoids already; their logits are taken back.
  """
  model = saved_models.SavedModel(directory)

  def logits(waveform: np.ndarray) -> np.ndarray:
    found = model(waveform)
    scores = found[0] if isinstance(found, tuple | list) else found
    scores = model.array(scores, 'its first output').astype(np.float64)
    if scores.min() < 0 or scores.max() > 1:
      raise errors.UserError(f'{directory}: scores are {scores.min():.3g} to {scores.max():.3g}, '
                             'wanted probabilities')
    scores = np.clip(scores, 1e-12, 1 - 1e-12)
    return np.log(scores) - np.log1p(-scores)

  return Classifier('yamnet', model.fingerprint, YAMNET_RATE, logits)


def passt() -> Classifier:
  """Returns PaSST by the package hear21passt, which downloads its weights and unpickles them.

  It hears 10 s at a time; of a last piece below 1 s nothing.
  """
  try:
    import torch
    from hear21passt import base
    version = importlib.metadata.version('hear21passt')
  except ImportError as error:
    raise errors.UserError(f'PaSST needs the packages hear21passt and torch ({error}): install '
                           'them, or use --classifier=yamnet') from error
  model = base.get_basic_model(mode='logits').eval()
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = model.to(device)
  window = PASST_SECONDS * PASST_RATE

  def logits(waveform: np.ndarray) -> np.ndarray:
    parts = [waveform[start:start + window] for start in range(0, len(waveform), window)]
    whole = [part for part in parts if len(part) >= PASST_RATE] or parts[:1]
    try:
      with torch.no_grad():
        return np.concatenate([
            model(torch.from_numpy(np.ascontiguousarray(part))[None].to(device)).cpu().numpy()
            for part in whole])
    except RuntimeError as error:
      raise errors.UserError(f'PaSST does not take this: {error}'[:300]) from error

  return Classifier('passt', f'hear21passt {version}', PASST_RATE, logits)
