"""L3. Clips -> the arrays of token records, by the exported tokenizers.

One clip of 12.7 s becomes, after cutting it to 12 whole seconds:

  mulan_embeddings  float16[3, 128]   10 s windows starting at 0, 1, 2 s
  mulan_tokens      int32[3, Q]       each window's embedding through the residual quantizer
  semantic_tokens   int32[300]        25 Hz
  acoustic_tokens   int32[600, Q]     50 Hz
  melody_tokens     int32[9, Q]       4 s windows starting at 0, 1, .. 8 s; with a melody model only

A clip shorter than 10 s has one window, filled up with silence; a clip shorter than 1 s has no
whole second and is left out. Silent clips are kept: they are music's pauses.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from musiclm_jax import audio, checkpoints, errors, music_tokens, token_layout

_TOKENIZERS = token_layout.TOKENIZERS + token_layout.MELODY_TOKENIZERS


class Tokenizer:
  """The frozen models, five or (with melodies) seven, as one function from waveforms to tokens.

  Every model runs on arrays of one fixed shape, so each compiles once:
    codec     [batch_size, clip_seconds]; it is causal, so silence after a short clip changes nothing
    w2v-BERT  windows of `semantic_window_seconds`, of which the outer second is context (its
              attention sees everything, so it hears as much at a time as when it was trained)
    MuLan     windows of 10 s, one starting at each second; melody likewise, of 4 s
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
  def load(cls, models_dir: str, on_host: bool = False, **options) -> 'Tokenizer':
    """Returns the tokenizer of MODELS_DIR/{soundstream,w2v_bert,semantic_quantizer,...}.

    Clips have melody tokens, too, where MODELS_DIR has a melody model (and then its quantizer).
    """
    directory, names = epath.Path(models_dir), token_layout.TOKENIZERS
    if (directory / token_layout.MELODY).exists():
      names += token_layout.MELODY_TOKENIZERS
    return cls({name: checkpoints.load_model(directory / name, name, on_host) for name in names},
               **options)

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
            coarse_levels=coarse_levels, fine_uses_mulan=fine_uses_mulan,
            melody=self._melody_stream()),
        {name: checkpoints.token_fingerprint(model, self._acoustic_levels)
         for name, model in self.models.items() if name in _TOKENIZERS})

  def _melody_stream(self) -> token_layout.TokenStream | None:
    if token_layout.MELODY not in self.models:
      return None
    config, quantizer = (self.models[name].config for name in token_layout.MELODY_TOKENIZERS)
    return token_layout.TokenStream(
        token_layout.MELODY, quantizer.num_quantizers, quantizer.codebook_size, frame_rate=1,
        window_seconds=int(config.window_seconds), hop_seconds=int(config.hop_seconds))

  def mulan_codebooks(self) -> np.ndarray:
    """Returns float32[Q, K, D] of the MuLan quantizer."""
    return np.asarray(self.models['mulan_quantizer'].variables['codebooks']['embeddings'])

  def tokenize(self, waveforms: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns the arrays of a token record for each of float32[S_i] (or the rows of [B, S]).

    Samples after the last whole second are left out, so all streams of a clip end together.
    """
    waveforms = self._whole_seconds(waveforms)
    return [tokens | mulan | melody for tokens, mulan, melody in zip(
        self._framed_tokens(waveforms), self._mulan_windows(waveforms),
        self._melody_windows(waveforms), strict=True)]

  def framed_tokens(self, waveforms: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Returns 'acoustic_tokens' and 'semantic_tokens' alone, as `tokenize` does."""
    return self._framed_tokens(self._whole_seconds(waveforms))

  def _framed_tokens(self, waveforms) -> list[dict[str, np.ndarray]]:
    lengths = [len(waveform) // audio.SAMPLE_RATE for waveform in waveforms]
    acoustic = self._acoustic_tokens(waveforms, lengths)
    semantic = self._semantic_tokens(waveforms, lengths)
    return [{'acoustic_tokens': a, 'semantic_tokens': s}
            for a, s in zip(acoustic, semantic, strict=True)]

  def _whole_seconds(self, waveforms) -> list[np.ndarray]:
    lengths = [len(waveform) // audio.SAMPLE_RATE for waveform in waveforms]
    if min(lengths) < 1 or max(lengths) > self.clip_seconds:
      raise errors.UserError(f'clips last {min(lengths)} to {max(lengths)} whole seconds, wanted 1 '
                             f'to {self.clip_seconds}')
    return [_fitted(waveform, seconds)
            for waveform, seconds in zip(waveforms, lengths, strict=True)]

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
    embeddings, cuts = self._embedded_windows(
        'mulan', 'embed_audio', waveforms, music_tokens.WINDOW_SECONDS)
    # Codes of what the record will hold, rounded to float16, so that they can be made again.
    embeddings = embeddings.astype(np.float16)
    tokens = self._window_tokens('mulan_quantizer', embeddings, music_tokens.WINDOW_SECONDS)
    return [{'mulan_embeddings': e, 'mulan_tokens': t}
            for e, t in zip(np.split(embeddings, cuts), np.split(tokens, cuts), strict=True)]

  def _melody_windows(self, waveforms) -> list[dict[str, np.ndarray]]:
    if token_layout.MELODY not in self.models:
      return [{} for _ in waveforms]
    window = self._melody_stream().window_seconds
    embeddings, cuts = self._embedded_windows('melody', 'embed', waveforms, window)
    tokens = self._window_tokens('melody_quantizer', embeddings, window)
    return [{'melody_tokens': rows} for rows in np.split(tokens, cuts)]

  def _embedded_windows(self, name: str, method: str, waveforms, seconds: int
                        ) -> tuple[np.ndarray, np.ndarray]:
    """Returns (f32[W, E] of the windows of all clips, one a second, where the next clip's begin)."""
    cut = [music_tokens.windows(waveform, seconds * audio.SAMPLE_RATE, audio.SAMPLE_RATE)
           for waveform in waveforms]
    counts = [len(rows) for rows in cut]
    embeddings = self._run(name, method, itertools.chain(*cut), sum(counts),
                           _windows_a_batch(self.batch_size, seconds))
    return embeddings, np.cumsum(counts)[:-1]

  def _window_tokens(self, quantizer: str, embeddings: np.ndarray, seconds: int) -> np.ndarray:
    """Returns int32[W, Q] of float[W, E]."""
    rows = (row[None].astype(np.float32) for row in embeddings)
    size = _windows_a_batch(self.batch_size, seconds)
    return self._run(quantizer, 'encode', rows, len(embeddings), size)[:, 0]

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


def tokenized(clips: Iterable[dict], tokenizer: Tokenizer) -> Iterator[tuple[dict, dict | None]]:
  """Yields (clip, arrays of its token record) in order; None for a clip without a whole second.

  A clip is {'waveform': float32[S], ..}; groups of them fill the models' batches.
  """
  for group in _grouped(clips, 4 * tokenizer.batch_size):
    waveforms = [clip['waveform'] for clip in group if len(clip['waveform']) >= audio.SAMPLE_RATE]
    tokens = iter(tokenizer.tokenize(waveforms) if waveforms else ())
    for clip in group:
      yield clip, next(tokens) if len(clip['waveform']) >= audio.SAMPLE_RATE else None


def info_of_records(layout: token_layout.TokenLayout, counts: Mapping[str, int],
                    semantic_window_seconds: int) -> dict:
  """Returns what info.json says of token records."""
  return {
      'kind': 'tokens', 'records': dict(counts), 'window_seconds': music_tokens.WINDOW_SECONDS,
      'mulan_levels': layout.mulan.num_levels, 'acoustic_levels': layout.acoustic.num_levels,
      'semantic_window_seconds': semantic_window_seconds,
      **({} if layout.melody is None else {'melody_levels': layout.melody.num_levels})}


def _check_fit(models: Mapping[str, checkpoints.ExportedModel]) -> None:
  """Raises an error when two models do not fit together, or do not hear 24 kHz."""
  config = {name: model.config for name, model in models.items()}
  rates = {'soundstream': config['soundstream'].sample_rate,
           'w2v_bert': config['w2v_bert'].input_sample_rate, 'mulan': config['mulan'].sample_rate}
  fitted = [('semantic_quantizer', 'w2v_bert'), ('mulan_quantizer', 'mulan')]
  if melody := config.get(token_layout.MELODY):
    rates['melody'] = melody.sample_rate
    fitted.append(('melody_quantizer', 'melody'))
    for name in ('window_seconds', 'hop_seconds'):
      if getattr(melody, name) % 1:
        raise errors.UserError(f'melody has {name} {getattr(melody, name)}, wanted a whole number: '
                               'crops start on whole seconds')
  for name, rate in rates.items():
    if rate != audio.SAMPLE_RATE:
      raise errors.UserError(f'{name} hears {rate} Hz, wanted {audio.SAMPLE_RATE}')
  for quantizer, name in fitted:
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
