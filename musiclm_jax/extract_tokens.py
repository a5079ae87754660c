"""L4. Waveform records -> token records, by the exported tokenizers.

One clip of 12.7 s becomes, after cutting it to 12 whole seconds:

  mulan_embeddings  float16[3, 128]   10 s windows starting at 0, 1, 2 s
  mulan_tokens      int32[3, Q]       each window's embedding through the residual quantizer
  semantic_tokens   int32[300]        25 Hz
  acoustic_tokens   int32[600, Q]     50 Hz

A clip shorter than 10 s has one window, filled up with silence; a clip shorter than 1 s has no
whole second and is left out. Silent clips are kept: they are music's pauses.
"""

import itertools
import logging
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from musiclm_jax import audio, checkpoints, errors, music_tokens, token_layout

log = logging.getLogger(__name__)


class Tokenizer:
  """The five frozen models as one function from waveforms to tokens.

  Every model runs on arrays of one fixed shape, so each compiles once:
    codec     [batch_size, clip_seconds]; it is causal, so silence after a short clip changes nothing
    w2v-BERT  windows of `semantic_window_seconds`, of which the outer second is context (its
              attention sees everything, so it hears as much at a time as when it was trained)
    MuLan     windows of 10 s, one starting at each second
  """

  def __init__(self, models: Mapping[str, checkpoints.ExportedModel], *, clip_seconds: int = 30,
               batch_size: int = 4, semantic_window_seconds: int = 10,
               acoustic_levels: int | None = None):
    self.models, self.batch_size = models, batch_size
    self.clip_seconds = clip_seconds
    self.semantic_window_seconds = semantic_window_seconds
    _check_fit(models)
    self._acoustic_levels = _levels(models['soundstream'], acoustic_levels)
    self._acoustic_rate = models['soundstream'].config.frame_rate
    self._semantic_rate = models['w2v_bert'].config.frame_rate
    self._semantic_layer = semantic_layer(models['w2v_bert'], models['semantic_quantizer'])

  @classmethod
  def load(cls, models_dir: str, **options) -> 'Tokenizer':
    """Returns the tokenizer of MODELS_DIR/{soundstream,w2v_bert,semantic_quantizer,...}."""
    directory = pathlib.Path(models_dir)
    models = {name: checkpoints.load_model(directory / name, name)
              for name in token_layout.TOKENIZERS}
    return cls(models, **options)

  def layout(self, coarse_levels: int = 4,
             fine_uses_mulan: bool = False) -> token_layout.SavedLayout:
    """Returns the layout these models write, with their fingerprints."""
    configs = {name: model.config for name, model in self.models.items()}
    mulan, semantic = configs['mulan_quantizer'], configs['semantic_quantizer']
    codec = configs['soundstream']
    return token_layout.SavedLayout(
        token_layout.TokenLayout(
            mulan=token_layout.TokenStream('mulan', mulan.num_quantizers, mulan.codebook_size, 0),
            semantic=token_layout.TokenStream(
                'semantic', 1, semantic.num_centroids, self._semantic_rate),
            acoustic=token_layout.TokenStream(
                'acoustic', self._acoustic_levels, codec.codebook_size, self._acoustic_rate),
            coarse_levels=coarse_levels, fine_uses_mulan=fine_uses_mulan),
        {name: checkpoints.token_fingerprint(self.models[name], self._acoustic_levels)
         for name in token_layout.TOKENIZERS})

  def mulan_codebooks(self) -> np.ndarray:
    """Returns float32[Q, K, D] of the MuLan quantizer."""
    return np.asarray(self.models['mulan_quantizer'].variables['codebooks']['embeddings'])

  def tokenize(self, waveforms: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns the arrays of a token record for each of float32[S_i] (or the rows of [B, S]).

    Samples after the last whole second are left out, so all streams of a clip end together.
    """
    lengths = [len(waveform) // audio.SAMPLE_RATE for waveform in waveforms]
    if min(lengths) < 1 or max(lengths) > self.clip_seconds:
      raise errors.UserError(f'clips last {min(lengths)} to {max(lengths)} whole seconds, wanted 1 '
                             f'to {self.clip_seconds}')
    waveforms = [_fitted(waveform, seconds)
                 for waveform, seconds in zip(waveforms, lengths, strict=True)]
    acoustic = self._acoustic_tokens(waveforms, lengths)
    semantic = self._semantic_tokens(waveforms, lengths)
    mulan = self._mulan_windows(waveforms)
    return [{'acoustic_tokens': a, 'semantic_tokens': s, **m}
            for a, s, m in zip(acoustic, semantic, mulan, strict=True)]

  def _acoustic_tokens(self, waveforms, lengths) -> list[np.ndarray]:
    padded = (_fitted(waveform, self.clip_seconds) for waveform in waveforms)
    codes = self._run('soundstream', 'encode', padded, len(waveforms), self.batch_size,
                      num_quantizers=self._acoustic_levels)
    return [code[:seconds * self._acoustic_rate]
            for code, seconds in zip(codes, lengths, strict=True)]

  def _semantic_tokens(self, waveforms, lengths) -> list[np.ndarray]:
    window, rate = self.semantic_window_seconds, self._semantic_rate
    plans = [semantic_windows(seconds, window) for seconds in lengths]
    windows = [_fitted(waveform[start * audio.SAMPLE_RATE:], window)
               for waveform, (starts, _) in zip(waveforms, plans, strict=True) for start in starts]

    size = _windows_a_batch(self.batch_size, window)
    features = self._run(
        'w2v_bert', 'features', windows, len(windows), size, layer=self._semantic_layer)
    codes = self._run('semantic_quantizer', 'encode', features, len(windows), size)
    tokens, first = [], 0
    for starts, owner in plans:
      own = codes[first:first + len(starts)].reshape(len(starts), window, rate)
      first += len(starts)
      tokens.append(np.concatenate(
          [own[index, second - starts[index]] for second, index in enumerate(owner)]))
    return tokens

  def _mulan_windows(self, waveforms) -> list[dict[str, np.ndarray]]:
    window = music_tokens.WINDOW_SECONDS
    cut = [music_tokens.windows(waveform, window * audio.SAMPLE_RATE, audio.SAMPLE_RATE)
           for waveform in waveforms]
    counts = [len(rows) for rows in cut]
    size = _windows_a_batch(self.batch_size, window)
    embeddings = self._run(
        'mulan', 'embed_audio', itertools.chain(*cut), sum(counts), size)
    # Codes of what the record will hold, rounded to float16, so that they can be made again.
    embeddings = embeddings.astype(np.float16)
    rows = (row[None].astype(np.float32) for row in embeddings)
    tokens = self._run('mulan_quantizer', 'encode', rows, len(embeddings), size)[:, 0]
    cuts = np.cumsum(counts)[:-1]
    return [{'mulan_embeddings': e, 'mulan_tokens': t}
            for e, t in zip(np.split(embeddings, cuts), np.split(tokens, cuts), strict=True)]

  def _run(self, name: str, method: str, rows: Iterable[np.ndarray], count: int,
           batch_size: int, **options) -> np.ndarray:
    """Returns a model's outputs for `count` rows, in batches of one size, the last one padded."""
    rows, outputs = iter(rows), []
    for start in range(0, count, batch_size):
      batch = np.stack([next(rows) for _ in range(min(batch_size, count - start))])
      padding = [(0, batch_size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
      batch_outputs = self.models[name].apply(method, np.pad(batch, padding), **options)
      outputs.append(np.asarray(batch_outputs)[:len(batch)])
    return np.concatenate(outputs)


def semantic_layer(w2v_bert: checkpoints.ExportedModel,
                   quantizer: checkpoints.ExportedModel) -> int:
  """Returns the block of the masked-prediction module that a semantic quantizer was fitted to."""
  layer = quantizer.extra.get('layer', w2v_bert.config.feature_layer)
  most = w2v_bert.config.prediction_layers
  if type(layer) is not int or not 0 <= layer <= most:
    raise errors.UserError(f'{quantizer.directory} was fitted to layer {layer!r}, '
                           f'{w2v_bert.directory} has 0 to {most}')
  return layer


def semantic_windows(seconds: int, window: int) -> tuple[list[int], list[int]]:
  """Returns (start second of each window, index of the window that gives each second).

  A second comes from the window in whose middle it is most, so a window's edges serve as context:

    30 s, window 10:  starts 0 8 16 20;  0 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1 2 2 2 2 2 2 2 3 3 ..
    6 s, window 10:   starts 0;          0 0 0 0 0 0    (followed by silence)
  """
  step = max(window - 2, 1)
  starts = [*range(0, max(seconds - window, 0), step), max(seconds - window, 0)]
  owner = [min(range(len(starts)), key=lambda i, s=second: abs(2 * (s - starts[i]) + 1 - window))
           for second in range(seconds)]
  return starts, owner


def extract_tokens(
    *,
    waveforms_dir: str,
    models_dir: str,
    output_dir: str,
    splits: Sequence[str] | None = None,
    batch_size: int = 4,
    semantic_window_seconds: int = 10,
    acoustic_levels: int | None = None,
    coarse_levels: int = 4,
    fine_uses_mulan: bool = False,
    progress: bool = True,
) -> dict[str, int]:
  """Writes token records shard by shard and returns {split: number of records}.

  A second call with the same arguments goes on where an interrupted one stopped.

  Args:
    waveforms_dir: waveform records, see data/records.py.
    models_dir: exported soundstream, w2v_bert, semantic_quantizer, mulan and mulan_quantizer.
    output_dir: token records, layout.json and the MuLan codebooks.
    splits: which splits; all of them by default.
    batch_size: clips that pass through the codec at a time; memory grows with it.
    semantic_window_seconds: what w2v-BERT hears at a time.
    acoustic_levels: levels of the codec, its first ones; all by default.
    coarse_levels: levels of the codec modelled by the coarse stage, written to layout.json.
    fine_uses_mulan: whether the fine stage sees M, written to layout.json.
    progress: show a bar.
  """
  from musiclm_jax.data import records
  info = records.read_info(waveforms_dir, 'waveforms')
  splits = list(splits or records.splits(waveforms_dir))
  shards = [(split, path) for split in splits for path in records.list_shards(waveforms_dir, split)]
  tokenizer = Tokenizer.load(
      models_dir, clip_seconds=max(1, int(info['longest_seconds'])), batch_size=batch_size,
      semantic_window_seconds=semantic_window_seconds, acoustic_levels=acoustic_levels)
  output = pathlib.Path(output_dir)
  saved = tokenizer.layout(coarse_levels, fine_uses_mulan)
  _open_output(output, saved, tokenizer, models_dir)
  counts = dict.fromkeys(splits, 0)
  seconds = sum(info['seconds'].get(split, 0.0) for split in splits)
  with _Progress(seconds, progress) as report:
    for split, path in shards:
      target = output / pathlib.Path(path).name
      if target.exists():
        counts[split] += report.skip(records.read_waveform_shard(path))
        continue
      counts[split] += records.write_shard(target, _shard_records(path, tokenizer, report))
  records.write_info(output, {
      'kind': 'tokens', 'records': counts, 'window_seconds': music_tokens.WINDOW_SECONDS,
      'mulan_levels': saved.layout.mulan.num_levels,
      'acoustic_levels': saved.layout.acoustic.num_levels,
      'semantic_window_seconds': semantic_window_seconds})
  log.info('%s: %s', output_dir, ', '.join(f'{n} {split} records' for split, n in counts.items()))
  return counts


def _shard_records(path, tokenizer: Tokenizer, report: '_Progress') -> Iterator[bytes]:
  """Yields the token records of one shard, in its order."""
  from musiclm_jax.data import records
  for clips in _grouped(records.read_waveform_shard(path), 4 * tokenizer.batch_size):
    long = [clip for clip in clips if len(clip['waveform']) >= audio.SAMPLE_RATE]
    if long:
      for clip, tokens in zip(long, tokenizer.tokenize([c['waveform'] for c in long]), strict=True):
        yield records.token_record(clip['id'], tokens)
    for clip in clips:
      report.add(len(clip['waveform']) / audio.SAMPLE_RATE)


def _open_output(output: pathlib.Path, saved, tokenizer, models_dir) -> None:
  """Makes the directory and its layout, or checks that an interrupted one is of the same kind."""
  from musiclm_jax.data import records
  if (output / 'info.json').exists():
    raise errors.UserError(f'{output} already holds token records: choose another directory')
  output.mkdir(parents=True, exist_ok=True)
  if (output / token_layout.LAYOUT_FILE).exists():
    token_layout.check_same(token_layout.read_layout(output), saved,
                            f'{output}/{token_layout.LAYOUT_FILE}', models_dir)
    log.info('%s: going on with an interrupted extraction', output)
  elif any(output.iterdir()):
    raise errors.UserError(f'{output} is not empty and holds no {token_layout.LAYOUT_FILE}')
  else:
    token_layout.write_layout(output, saved.layout, saved.tokenizers)
  if not (output / records.CODEBOOKS_FILE).exists():
    with audio.atomic_path(output / records.CODEBOOKS_FILE) as temporary, \
        open(temporary, 'wb') as file:
      np.save(file, tokenizer.mulan_codebooks())


class _Progress:
  """A bar over seconds of audio that says how many hours are done in an hour."""

  def __init__(self, seconds: float, show: bool):
    import tqdm
    self._bar = tqdm.tqdm(
        total=round(seconds), unit='s', disable=not show, desc='tokens',
        bar_format='{desc}: {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s '
                   '[{elapsed}<{remaining}{postfix}]')
    self._start, self._done = time.monotonic(), 0.0

  def __enter__(self):
    return self

  def __exit__(self, *unused) -> None:
    self._bar.close()

  def add(self, seconds: float) -> None:
    self._done += seconds
    speed = self._done / max(time.monotonic() - self._start, 1e-9)
    self._bar.set_postfix_str(f'{speed:.1f} hours/hour', refresh=False)
    self._bar.update(seconds)

  def skip(self, clips: Iterable[dict]) -> int:
    """Returns how many records a finished shard of these clips has."""
    count = 0
    for clip in clips:
      self._bar.update(len(clip['waveform']) / audio.SAMPLE_RATE)
      count += len(clip['waveform']) >= audio.SAMPLE_RATE
    return count


def _check_fit(models: Mapping[str, checkpoints.ExportedModel]) -> None:
  """Raises an error when two models do not fit together, or do not hear 24 kHz."""
  config = {name: model.config for name, model in models.items()}
  for name, rate in (('soundstream', config['soundstream'].sample_rate),
                     ('w2v_bert', config['w2v_bert'].input_sample_rate),
                     ('mulan', config['mulan'].sample_rate)):
    if rate != audio.SAMPLE_RATE:
      raise errors.UserError(f'{name} hears {rate} Hz, wanted {audio.SAMPLE_RATE}')
  for quantizer, name in (('semantic_quantizer', 'w2v_bert'), ('mulan_quantizer', 'mulan')):
    music_tokens.check_fitted_to(models[quantizer], models[name])
  for name in ('soundstream', 'w2v_bert'):
    if int(config[name].frame_rate) != config[name].frame_rate:
      raise errors.UserError(f'{name} has {config[name].frame_rate} frames a second, wanted a whole '
                             'number: crops start on whole seconds')


def _levels(codec: checkpoints.ExportedModel, wanted: int | None) -> int:
  """Returns how many levels of a codec are extracted; None asks for all."""
  most = codec.config.num_quantizers
  if wanted is not None and not 1 <= wanted <= most:
    raise errors.UserError(f'acoustic_levels is {wanted}, {codec.directory} has {most}')
  return wanted or most


def _fitted(waveform: np.ndarray, seconds: int) -> np.ndarray:
  """Returns float32[seconds], cut, or followed by silence."""
  waveform = np.asarray(waveform[:seconds * audio.SAMPLE_RATE], np.float32)
  return np.pad(waveform, (0, seconds * audio.SAMPLE_RATE - len(waveform)))


def _windows_a_batch(batch_size: int, window_seconds: int) -> int:
  """Returns how many windows last as long as a batch of 30 s clips."""
  return max(1, batch_size * 30 // window_seconds)


def _grouped(items: Iterable, size: int) -> Iterator[list]:
  group = []
  for item in items:
    group.append(item)
    if len(group) == size:
      yield group
      group = []
  if group:
    yield group
