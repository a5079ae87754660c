"""L5. The paper's table for any systems: FAD, KLD and MCC of folders of audio, clip by clip.

Every clip is read once for each rate that a model wants, straight from its file, cut to the same
seconds.  Of a clip nothing is kept but moments and scores, so memory does not grow with their
number (a caption and a MuLan vector aside).  A clip that one system lacks, or that cannot be read,
is left out for all.  MusicLM section 4.4; axes: S samples, N embeddings, D dims.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from musiclm_jax import audio, checkpoints, errors, music_tokens, text
from musiclm_jax.evaluation import clip_folders, codec_quality, embeddings, frechet, kld, mcc

METRICS = ('fad', 'kld', 'mcc')
REFERENCE = clip_folders.REFERENCE
MAX_SECONDS = codec_quality.MAX_SECONDS


@dataclasses.dataclass(frozen=True)
class Frechet:
  """FAD of one system by one embedding.

  distance: by all embeddings; NaN for a single one. extrapolated: without the bias by their number
    (frechet.extrapolate), None for few clips.
  """

  distance: float
  extrapolated: frechet.Extrapolation | None
  num_embeddings: int
  num_dims: int


@dataclasses.dataclass(frozen=True)
class SystemScores:
  """The scores of one system; what was not measured is {} or None."""

  name: str
  fad: Mapping[str, Frechet]  # by embedding
  kld: float | None
  kld_error: float | None  # standard error, over clips
  mcc: mcc.Agreement | None
  seconds: float  # of audio heard


@dataclasses.dataclass(frozen=True)
class Clip:
  """One clip; kld and mcc of each system, files as they were given."""

  id: str
  caption: str
  files: Mapping[str, str]
  kld: Mapping[str, float]
  mcc: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything measured; left_out: {id: reason}, missing: {system: ids}."""

  systems: Sequence[SystemScores]
  clips: Sequence[Clip]
  left_out: Mapping[str, str]
  missing: Mapping[str, Sequence[str]]
  warnings: Sequence[str]
  settings: Mapping[str, object]


class Models:
  """What listens: embeddings for FAD, a classifier for KLD, MuLan with its tokenizer for MCC."""

  def __init__(self, found: Sequence[embeddings.Embedding] = (),
               classifier: kld.Classifier | None = None,
               mulan: checkpoints.ExportedModel | None = None):
    self.fad = {embedding.name: embedding for embedding in found}
    self.classifier, self.mulan = classifier, mulan
    if mulan is not None:
      tokenizer = text.WordPieceTokenizer(mulan.directory / 'vocab.txt')
      mulan.config.text.check_vocabulary(tokenizer.vocab_size, tokenizer.vocab_file)
      self.tokenizer, self.windows = tokenizer, embeddings.of_mulan(mulan)

  @property
  def fingerprints(self) -> dict[str, str]:
    """Returns {model: which weights}."""
    found = {f'fad {name}': embedding.fingerprint for name, embedding in self.fad.items()}
    if self.classifier:
      found[f'kld {self.classifier.name}'] = self.classifier.fingerprint
    if self.mulan is not None:
      found['mcc mulan'] = self.mulan.fingerprint
    return found

  def embed_caption(self, caption: str) -> np.ndarray:
    """Returns f32[E]."""
    return music_tokens.embed_text(self.mulan, self.tokenizer, [caption])[0]


def load_models(metrics: Sequence[str], model_dir: str | os.PathLike, *,
                names: Sequence[str] = ('mulan', 'w2v_bert'),
                directories: Mapping[str, str | None] | None = None,
                classifier: str = 'yamnet') -> Models:
  """Returns the models of these metrics.

  Args:
    metrics: of METRICS.
    model_dir: exported models; mulan there is that of MCC, too.
    names: of embeddings.NAMES, for FAD.
    directories: {'vggish', 'trill', 'yamnet'}: where their SavedModels are.
    classifier: of kld.CLASSIFIERS.
  """
  directories = dict(directories or {})
  if unknown := sorted(set(metrics) - set(METRICS)):
    raise errors.UserError(f'there is no metric {unknown[0]!r}, wanted some of {", ".join(METRICS)}')
  if not metrics or ('fad' in metrics and not names):
    raise errors.UserError(f'nothing to measure: metrics {list(metrics)}, embeddings {list(names)}')
  found, listener, mulan = [], None, None
  if 'fad' in metrics:
    found = [embeddings.load(name, embeddings.directory(name, model_dir, directories))
             for name in dict.fromkeys(names)]
  if 'kld' in metrics:
    if classifier == 'yamnet' and not directories.get('yamnet'):
      raise errors.UserError('KLD needs a classifier: give --yamnet=DIR, the SavedModel downloaded '
                             'from TF-Hub, or --classifier=passt')
    listener = kld.passt() if classifier == 'passt' else kld.yamnet(directories['yamnet'])
  if 'mcc' in metrics:
    mulan = checkpoints.load_model(pathlib.PurePath(model_dir) / 'mulan', 'mulan')
  return Models(found, listener, mulan)


@dataclasses.dataclass
class _Heard:
  """What the models say of one clip of one system."""

  seconds: float
  fad: dict[str, frechet.Moments]
  probabilities: np.ndarray | None
  mulan: np.ndarray | None


class _Totals:
  """What is kept of one system."""

  def __init__(self, seed: int):
    self._seed, self.seconds = seed, 0.0
    self.folds: dict[str, frechet.Folds] = {}
    self.mulan, self.kld = [], []

  def add(self, heard: _Heard, divergence: float | None) -> None:
    for name, moments in heard.fad.items():
      self.folds.setdefault(name, frechet.Folds(self._seed)).add(moments)
    if heard.mulan is not None:
      self.mulan.append(heard.mulan)
    if divergence is not None:
      self.kld.append(divergence)
    self.seconds += heard.seconds


def compare(
    match: clip_folders.Match,
    models: Models,
    *,
    seconds: float = 10.0,
    kld_config: kld.KldConfig | None = None,
    statistics_dir: str | os.PathLike | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Report:
  """Returns the scores of all systems of `match.files`, against the one called 'reference'.

  Args:
    match: the clips, of clip_folders.match.
    models: what is measured: FAD by each embedding, KLD with a classifier, MCC with a MuLan.
    seconds: of each clip its beginning is heard.
    kld_config: what the paper leaves open of KLD; by default KldConfig().
    statistics_dir: holds the reference's moments as EMBEDDING.npz: read where there, else written.
    seed: of the clips' order in the extrapolation of FAD.
    progress: show a bar.
  """
  import tqdm

  if not 0 < seconds <= MAX_SECONDS:
    raise errors.UserError(f'seconds is {seconds:g}, wanted more than 0, at most {MAX_SECONDS:g}')
  kld_config = kld_config or kld.KldConfig()
  saved = _read_statistics(models, statistics_dir, seconds)
  if REFERENCE not in match.files and (models.classifier or set(models.fad) - set(saved)):
    raise errors.UserError('FAD without saved statistics, and KLD, need the folder of the reference')
  totals = {name: _Totals(seed) for name in match.files}
  texts, clips, left_out = [], [], {}
  for name in tqdm.tqdm(match.ids, 'clips', unit=' clips', disable=not progress):
    files = {system: paths[name] for system, paths in match.files.items()}
    try:
      heard = {system: _hear(path, models, seconds, kld_config,
                             skipped=saved if system == REFERENCE else ())
               for system, path in files.items()}
      clip, text_vector = _score(name, match.captions[name], files, heard, models, kld_config)
    except (errors.UserError, OSError) as error:
      left_out[name] = ' '.join(str(error).split())
      tqdm.tqdm.write(f'left out: {name}: {left_out[name]}', file=sys.stderr)
      continue
    clips.append(clip)
    texts.append(text_vector)
    for system, found in heard.items():
      totals[system].add(found, clip.kld.get(system))
  if not clips:
    reason = next(iter(left_out.values()))
    raise errors.UserError(f'none of {len(match.ids)} clips could be measured; the first: {reason}')
  used = [clip.id for clip in clips]
  references = _references(models, totals, saved, statistics_dir, seconds, used)
  warnings = _warnings(models, totals, references, saved, used)
  moments = {name: found for name, (found, _) in references.items()}
  systems = [_summary(name, found, moments, texts) for name, found in totals.items()]
  missing = {name: ids for name, ids in match.missing.items() if ids}
  settings = _settings(models, seconds, seed, kld_config, references)
  return Report(systems, clips, left_out, missing, warnings, settings)


def _hear(path: str, models: Models, seconds: float, config: kld.KldConfig, skipped) -> _Heard:
  """Returns what the models say of one file; embeddings in `skipped` are not asked."""
  waveforms = {}

  def at(rate: int) -> np.ndarray:
    if rate not in waveforms:
      waveforms[rate] = audio.read_beginning(path, seconds, rate)
    return waveforms[rate]

  fad, windows = {}, None
  for name, embedding in models.fad.items():
    if name not in skipped:
      found = embedding(at(embedding.sample_rate))
      fad[name] = frechet.Moments.of(found)
      if models.mulan is not None and embedding.fingerprint == models.mulan.fingerprint:
        windows = found  # heard once for FAD and MCC
  if models.mulan is not None and windows is None:
    windows = models.windows(at(models.windows.sample_rate))
  listener = models.classifier
  probabilities = (listener.probabilities(at(listener.sample_rate), config) if listener else None)
  rate, waveform = next(iter(waveforms.items()), (1, ()))
  return _Heard(len(waveform) / rate, fad, probabilities,
                None if windows is None else music_tokens.unit_mean(windows))


def _score(name, caption, files, heard, models, config) -> tuple[Clip, np.ndarray | None]:
  """Returns the scores of one clip, and MuLan's f32[E] of its caption."""
  vector = models.embed_caption(caption) if models.mulan is not None else None
  divergences, cosines = {}, {}
  for system, found in heard.items():
    if found.probabilities is not None and system != REFERENCE:
      divergences[system] = kld.divergence(
          heard[REFERENCE].probabilities, found.probabilities, config)
    if vector is not None:
      cosines[system] = float(vector @ found.mulan)
  return Clip(name, caption, files, divergences, cosines), vector


# --- The reference ----------------------------------------------------------------------------


def _statistics_path(directory: str | os.PathLike, name: str) -> pathlib.Path:
  return pathlib.Path(directory) / f'{name.replace(" ", "_")}.npz'


def _read_statistics(models, directory, seconds) -> dict[str, tuple[frechet.Moments, tuple]]:
  """Returns {embedding: (moments, ids)} of those that are saved."""
  found = {}
  for name, embedding in models.fad.items() if directory else ():
    path = _statistics_path(directory, name)
    if path.exists():
      moments, origin = frechet.load(path)
      frechet.check_reusable(
          path, origin, frechet.Origin(name, embedding.fingerprint, seconds, ()))
      found[name] = moments, origin.clips
  return found


def _references(models, totals, saved, directory, seconds, used) -> dict:
  """Returns {embedding: (moments, ids)}; those that are new are saved, too."""
  found = dict(saved)
  for name, embedding in models.fad.items():
    if name not in found:
      moments = totals[REFERENCE].folds[name].total()
      found[name] = moments, tuple(used)
      if directory:
        frechet.save(_statistics_path(directory, name), moments,
                     frechet.Origin(name, embedding.fingerprint, seconds, used))
  return found


def _warnings(models, totals, references, saved, used) -> list[str]:
  """Returns what should be known before FAD is believed."""
  found = []
  for name in models.fad:
    by_reason = {}
    for system, total in totals.items():
      moments = references[name][0] if system == REFERENCE else total.folds[name].total()
      by_reason.setdefault(frechet.warning(moments), []).append(system)
    found += [f'{name} of {", ".join(systems)}: {reason}'
              for reason, systems in by_reason.items() if reason]
    if name in saved and set(saved[name][1]) != set(used):
      found.append(f'{name}: the saved statistics are of {len(saved[name][1])} clips, other ones '
                   f'than the {len(used)} compared')
  return found


# --- Results ----------------------------------------------------------------------------------


def _summary(name: str, total: _Totals, references: Mapping, texts: Sequence) -> SystemScores:
  fad = {}
  for embedding, folds in total.folds.items() if name != REFERENCE else ():
    moments, reference = folds.total(), references[embedding]
    enough = min(moments.count, reference.count) > 1
    fad[embedding] = Frechet(
        frechet.distance(moments, reference) if enough else float('nan'),
        frechet.extrapolate(folds, reference) if enough else None,
        moments.count, len(moments.mean))
  values = np.array(total.kld)
  error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
  agreement = mcc.agreement(np.stack(texts), np.stack(total.mulan)) if total.mulan else None
  return SystemScores(name, fad, float(values.mean()) if len(values) else None, error, agreement,
                      total.seconds)


def _settings(models, seconds, seed, config, references) -> dict[str, object]:
  used = zip(METRICS, (models.fad, models.classifier, models.mulan), strict=True)
  return {
      'metrics': [metric for metric, model in used if model], 'seconds': seconds, 'seed': seed,
      'kld': dataclasses.asdict(config) if models.classifier else None,
      'models': models.fingerprints,
      'reference': {name: {'embeddings': moments.count, 'clips': len(ids)}
                    for name, (moments, ids) in references.items()}}
