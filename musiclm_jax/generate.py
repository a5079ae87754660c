"""L4. Text to music: prompts -> MuLan tokens -> semantic -> coarse -> fine tokens -> 24 kHz waveform.

Axes: B prompts, T frames, Q levels, S samples.  Generation runs on whole batches, on the device;
the host only cuts windows:

  semantic  sliding windows of the trained length, the second half of one is the start of the next
  coarse    likewise, in windows of its own length, each with the semantic tokens of its moment
  fine      independent windows, all of them in one batch
  codec     decodes the whole token stream, so that windows leave no seams

MusicLM sections 2.5, 3.2 and 6.  The paper gives windows for long semantic sequences only (15 s
kept, 15 s new); the acoustic ones follow the same rule here.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from etils import epath

from musiclm_jax import audio, checkpoints, errors, music_tokens, sampling, text, token_layout

log = logging.getLogger(__name__)

MODELS = ('soundstream', 'mulan', 'mulan_quantizer', *token_layout.STAGES)
TEXT_MAPPER = 'mulan_mapper'  # an option: tools/fit_mapper.py
TINY = epath.Path(__file__).parent / 'pretrained' / 'tiny'
MAX_PROMPT_CHARACTERS = 2000
MAX_SECONDS = 600.0
MAX_WINDOWS_AT_ONCE = 64  # of the fine stage: bounds memory, changes nothing else


@dataclasses.dataclass(frozen=True)
class Temperatures:
  """Sampling temperatures of the stages; MusicLM section 4.2.  0 takes the likeliest token."""

  semantic: float = 1.0
  coarse: float = 0.95
  fine: float = 0.4


@dataclasses.dataclass(frozen=True)
class MusicLM:
  """The exported models of one directory, checked to fit each other.

    musiclm = load('musiclm_jax/pretrained/tiny')
    waveforms = musiclm.generate(['A calm solo piano piece'], seconds=10, seed=0)  # f32[1, 240000]
  """

  models: dict[str, checkpoints.ExportedModel]
  layout: token_layout.TokenLayout
  tokenizer: text.WordPieceTokenizer
  weights_dtype: str = ''  # of the stages, see sampling.Sampler

  @property
  def sample_rate(self) -> int:
    return self.models['soundstream'].config.sample_rate

  @functools.cached_property
  def samplers(self) -> dict[str, sampling.Sampler]:
    """Returns the language models of the stages, ready to sample from."""
    models = {name: self.models[name] for name in token_layout.STAGES}
    return {name: sampling.Sampler(model.config, model.variables['params'], self.stage(name), self.weights_dtype)
            for name, model in models.items()}

  def stage(self, name: str) -> token_layout.StageLayout:
    """Returns the stage layout that the language model called `name` was trained with."""
    return self.layout.stage(name, self.models[name].extra['seconds'])

  def unheard(self, prompt: str) -> list[str]:
    """Returns what of the prompt does not reach the music, in sentences; [] when all of it does."""
    ids = self.tokenizer.tokenize(prompt)
    room = self.models['mulan'].config.text.max_length - 2  # [CLS] and [SEP]
    found = []
    if len(ids) > room:
      found.append(f'the prompt has {len(ids)} wordpieces, the model reads the first {room} only')
    if unknown := ids.count(self.tokenizer.unk_id):
      found.append(f'{unknown} of {len(ids)} wordpieces of the prompt are unknown to the model')
    return found

  def mulan_codes(self, prompts: Sequence[str]) -> np.ndarray:
    """Returns M_T int32[B, 1, Q]: the text embeddings through the RVQ of the audio embeddings.

    Q is what the stages were trained with, which may be fewer levels than the quantizer has.
    """
    embeddings = music_tokens.embed_text(self.models['mulan'], self.tokenizer, prompts)
    if mapper := self.models.get(TEXT_MAPPER):
      embeddings = music_tokens.map_text(mapper, embeddings)
    levels = self.layout.mulan.num_levels
    return music_tokens.tokens(embeddings, self.models['mulan_quantizer'], levels)[:, None]

  def generate(
      self,
      prompts: Sequence[str],
      *,
      seconds: float = 10.0,
      seed: int = 0,
      temperatures: Temperatures = Temperatures(),
      progress: bool = False,
  ) -> np.ndarray:
    """Returns float32[B, S] in [-1, 1], S = seconds * sample_rate.

    Example i draws from its own random numbers, made of `seed` and i: it does not depend on
    how many others are in the batch.
    """
    check_request(prompts, seconds)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(prompts)))
    codes = self.generate_codes(self.mulan_codes(prompts), seconds, keys, temperatures, progress)
    acoustic = np.concatenate([codes['coarse'], codes['fine']], axis=-1)
    with _bar('codec', progress) as tick:
      waveforms = self.decode(acoustic)
      tick(1, 1)
    return waveforms[:, : round(seconds * self.sample_rate)]

  def generate_codes(self, mulan_codes: np.ndarray, seconds: float, keys: jax.Array,
                     temperatures: Temperatures, progress: bool = False) -> dict[str, np.ndarray]:
    """Returns {'semantic', 'coarse', 'fine'}: codes int32[B, T, Q] for `seconds` or a little more.

    `mulan_codes` int32[B, 1, Q] and one key an example, [B].
    """
    stages = {name: self.stage(name) for name in token_layout.STAGES}
    # A window of the acoustic stages is never cut short: their prefix has its trained length.
    whole = max(int(np.ceil(seconds)), *(int(stages[name].seconds) for name in ('coarse', 'fine')))
    codes = {'mulan': mulan_codes}
    for i, name in enumerate(token_layout.STAGES):
      run = self._independent_windows if name == 'fine' else self._sliding_windows
      temperature = getattr(temperatures, name)
      with _bar(name, progress) as tick:
        codes[name] = run(stages[name], codes, whole, _folded(keys, i), temperature, tick)
    return codes

  def decode(self, acoustic: np.ndarray) -> np.ndarray:
    """Returns float32[B, S] of acoustic codes int32[B, T, Q]."""
    waveforms = self.models['soundstream'].apply('decode', acoustic)
    return np.clip(np.asarray(waveforms), -1.0, 1.0)

  def _sliding_windows(self, stage, codes, whole, keys, temperature, tick) -> np.ndarray:
    """Returns the target stream's codes int32[B, T, Q] for `whole` seconds."""
    window = int(stage.seconds)
    target = stage.target
    made = np.zeros((len(keys), 0, target.num_levels), np.int32)
    starts = window_starts(whole, window, max(window // 2, 1))
    for i, start in enumerate(starts):
      given = made[:, target.num_frames(start) if start else 0 :]
      prefix = stage.flatten_prefix(_crop(stage.prefix, codes, start, window))
      new = self._sample(
          stage, min(window, whole), prefix, _folded(keys, i), temperature,
          stage.flatten_stream(target, given), lambda done, i=i: tick(i + done, len(starts)))
      made = np.concatenate([made, new[:, given.shape[1] :]], axis=1)
    return made

  def _independent_windows(self, stage, codes, whole, keys, temperature, tick) -> np.ndarray:
    """Returns the target stream's codes int32[B, T, Q]: windows of all prompts together."""
    window = int(stage.seconds)
    starts = window_starts(whole, window, window)
    crops = [stage.flatten_prefix(_crop(stage.prefix, codes, start, window)) for start in starts]
    window_keys = [_folded(keys, i) for i in range(len(starts))]
    prefix, prefix_keys = np.concatenate(crops), jnp.concatenate(window_keys)
    parts = range(0, len(prefix), MAX_WINDOWS_AT_ONCE)
    ids = np.concatenate([
        self._sample(stage, window, prefix[rows], prefix_keys[rows], temperature, None,
                     lambda done, i=i: tick(i + done, len(parts)))
        for i, rows in enumerate(slice(part, part + MAX_WINDOWS_AT_ONCE) for part in parts)])
    made = np.zeros((len(keys), 0, stage.target.num_levels), np.int32)
    for start, new in zip(starts, np.split(ids, len(starts)), strict=True):
      overlap = made.shape[1] - start * stage.target.frame_rate
      made = np.concatenate([made, new[:, overlap:]], axis=1)
    return made

  def _sample(self, stage, seconds, prefix, keys, temperature, given, tick) -> np.ndarray:
    ids = self.samplers[stage.name].sample(
        prefix, keys, temperature=temperature, num_frames=stage.target.num_frames(seconds),
        given=given, on_progress=lambda done, total: tick(done / total))
    return stage.unflatten(np.asarray(ids))


def load(directory: str | os.PathLike | None = None, text_mapper: bool = False,
         weights_dtype: str = '') -> MusicLM:
  """Returns the models of `directory` (default: the tiny set of the package).

  `text_mapper`: prompts go through its mulan_mapper, too. `weights_dtype`: see sampling.Sampler.
  """
  directory = epath.Path(directory or TINY)
  if not directory.exists():
    raise errors.UserError(f'model directory {directory} does not exist')
  names = (*MODELS, TEXT_MAPPER) if text_mapper else MODELS
  models = {name: checkpoints.load_model(directory / name, name) for name in names}
  layouts = {name: token_layout.read_layout(directory / name) for name in token_layout.STAGES}
  saved = layouts['semantic']
  beside = {
      name: checkpoints.token_fingerprint(models[name], saved.layout.acoustic.num_levels)
      for name in token_layout.TOKENIZERS if name in models
  }
  here = token_layout.SavedLayout(saved.layout, {**saved.tokenizers, **beside})
  token_layout.check_same(saved, here, str(directory / 'semantic'), 'the tokenizers beside it')
  for name, layout in layouts.items():
    token_layout.check_same(saved, layout, str(directory / 'semantic'), str(directory / name))
  tokenizer = text.WordPieceTokenizer(directory / 'mulan' / 'vocab.txt')
  for name in token_layout.STAGES:
    _check_stage(models[name], layouts[name].layout)
  models['mulan'].config.text.check_vocabulary(tokenizer.vocab_size, tokenizer.vocab_file)
  if text_mapper:
    music_tokens.check_fitted_to(models[TEXT_MAPPER], models['mulan'])
  return MusicLM(models, saved.layout, tokenizer, weights_dtype)


def _check_stage(model: checkpoints.ExportedModel, layout: token_layout.TokenLayout) -> None:
  """Raises an error when a stage's config.json does not go with its layout.json."""
  seconds = model.extra.get('seconds')
  if not isinstance(seconds, int | float) or not 1 <= seconds <= MAX_SECONDS or seconds % 1:
    raise errors.UserError(
        f'{model.directory}: seconds is {seconds!r}, wanted a whole number from 1')
  wanted = layout.stage(model.name, seconds).vocab_size
  if model.config.vocab_size != wanted:
    raise errors.UserError(f'{model.directory} has {model.config.vocab_size} ids, its layout.json '
                           f'wants {wanted}')


def check_request(prompts: Sequence[str], seconds: float) -> None:
  """Raises an error for an empty or endless prompt or length."""
  for prompt in prompts:
    if not prompt.strip():
      raise errors.UserError('the prompt is empty, wanted a description of the music')
    if len(prompt) > MAX_PROMPT_CHARACTERS:
      raise errors.UserError(
          f'the prompt has {len(prompt)} characters, wanted at most {MAX_PROMPT_CHARACTERS}')
  if not 0 < seconds <= MAX_SECONDS:
    raise errors.UserError(f'seconds is {seconds}, wanted more than 0 and at most {MAX_SECONDS:g}')


def window_starts(total: int, window: int, step: int) -> list[int]:
  """Returns the start seconds of windows that cover [0, total); the last one ends at `total`.

    window_starts(10, 4, 2) == [0, 2, 4, 6]     window_starts(10, 3, 3) == [0, 3, 6, 7]
  """
  return [*range(0, total - window, step), max(total - window, 0)]


def generate_files(
    *,
    prompt: str,
    output: str,
    seconds: float = 10.0,
    seed: int = 0,
    num_samples: int = 1,
    model: str | None = None,
    text_mapper: bool = False,
    weights_dtype: str = '',
    temperatures: Temperatures = Temperatures(),
    plot: bool = False,
) -> list[str]:
  """Writes `num_samples` wav files for one prompt and returns their names."""
  check_request([prompt], seconds)
  if num_samples < 1:
    raise errors.UserError(f'num_samples is {num_samples}, wanted at least 1')
  if min(dataclasses.astuple(temperatures)) < 0:
    raise errors.UserError(f'temperatures are {temperatures}, wanted none below 0')
  outputs = output_names(output, num_samples)
  for name in outputs:
    audio.check_writable(name, overwrite=True)
  musiclm = load(model, text_mapper, weights_dtype)
  for warning in musiclm.unheard(prompt):
    log.warning('warning: %s', warning)
  waveforms = musiclm.generate(
      [prompt] * num_samples, seconds=seconds, seed=seed, temperatures=temperatures, progress=True)
  for name, waveform in zip(outputs, waveforms, strict=True):
    audio.write(name, waveform, musiclm.sample_rate, overwrite=True)
    log.info('wrote %s', name)
    if plot:
      picture = str(pathlib.Path(name).with_suffix('.png'))
      _plot(picture, waveform, musiclm.sample_rate, prompt)
      log.info('wrote %s', picture)
  return outputs


def output_names(output: str, num_samples: int) -> list[str]:
  """Returns [output], or OUTPUT-1.wav, OUTPUT-2.wav, … for several samples."""
  path = pathlib.Path(output)
  if path.suffix.lower() != '.wav':
    raise errors.UserError(f'output is {output!r}, wanted a name that ends with .wav')
  if num_samples == 1:
    return [str(path)]
  return [str(path.with_name(f'{path.stem}-{i + 1}{path.suffix}')) for i in range(num_samples)]


def _folded(keys: jax.Array, number: int) -> jax.Array:
  """Returns another key for each of `keys`, of which there is one an example."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _crop(streams, codes, start: int, window: int) -> dict[str, np.ndarray]:
  """Returns each stream's codes of [start, start + window) seconds; clip-level ones whole."""
  cropped = {}
  for stream in streams:
    frames = slice(start * stream.frame_rate, (start + window) * stream.frame_rate)
    cropped[stream.name] = codes[stream.name][:, frames] if stream.frame_rate else codes[stream.name]
  return cropped


@contextlib.contextmanager
def _bar(name: str, show: bool):
  """Yields tick(done, total): moves a progress bar on stderr to done / total."""
  with tqdm.tqdm(total=100, desc=f'{name:8}', disable=not show,
                 bar_format='{desc} {bar:32} {percentage:3.0f}% {elapsed}<{remaining}') as bar:
    def tick(done: float, total: float) -> None:
      bar.update(round(100 * done / total) - bar.n)
    yield tick


def _plot(path: str, waveform: np.ndarray, sample_rate: int, title: str) -> None:
  """Writes a picture of the log-mel spectrogram."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  from musiclm_jax.models import spectrogram

  config = spectrogram.MelConfig(sample_rate=sample_rate, num_mels=96)
  mel = np.asarray(spectrogram.log_mel(jnp.asarray(waveform)[None], config))[0]
  figure, axes = pyplot.subplots(figsize=(10, 3.5), layout='constrained')
  extent = (0, len(waveform) / sample_rate, 0, mel.shape[1])
  axes.imshow(mel.T, origin='lower', aspect='auto', extent=extent, cmap='magma')
  axes.set(xlabel='seconds', ylabel='mel band')
  title = text.readable(' '.join(title.split()))  # a prompt may hold anything; it is no formula
  axes.set_title(title if len(title) < 90 else title[:89] + '…', parse_math=False)
  figure.savefig(path, dpi=110)
  pyplot.close(figure)
