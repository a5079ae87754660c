"""L4. Text to music: prompts -> MuLan tokens -> semantic -> coarse -> fine tokens -> 24 kHz waveform.

  musiclm = MusicLM.from_pretrained()  # or a directory of exported models
  waveforms = musiclm.generate(['A calm solo piano piece'], seconds=10, seed=0)  # f32[1, 240000]
  for part in musiclm.stream(['A calm solo piano piece'], seconds=600):  # f32[1, S], bit by bit
    ...

Axes: B prompts, T frames, Q levels, S samples.  The stages run on whole batches, on the device, in
windows (generation/stages.py); the codec decodes the whole token stream, carrying along what its
convolutions need, so that windows leave no seams and memory does not grow with the length.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm
from etils import epath

from musiclm_jax import (
    audio_tokenizer,
    checkpoints,
    codec,
    errors,
    music_tokens,
    sampling,
    text,
    token_layout,
)
from musiclm_jax.generation import stages, stories

Sampling, StageSampling = stages.Sampling, stages.StageSampling
Story = stories.Story
PUBLISHED = Sampling()

MODELS = ('soundstream', 'mulan', 'mulan_quantizer', *token_layout.STAGES)
HEARING = ('w2v_bert', 'semantic_quantizer')  # beside MODELS, to go on from music
TEXT_MAPPER = 'mulan_mapper'  # an option: tools/fit_mapper.py
TINY = epath.Path(__file__).parent / 'pretrained' / 'tiny'
MAX_PROMPT_CHARACTERS = 2000
MAX_SECONDS = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class MusicLM:
  """The exported models of one directory, checked to fit each other."""

  models: dict[str, checkpoints.ExportedModel]
  layout: token_layout.TokenLayout
  tokenizer: text.WordPieceTokenizer
  weights_dtype: str = ''  # of the stages, see sampling.Sampler

  @classmethod
  def from_pretrained(cls, directory: str | os.PathLike | None = None, *, text_mapper: bool = False,
                      weights_dtype: str = '') -> 'MusicLM':
    """Returns the models of `directory` (default: the tiny set of the package).

    `text_mapper`: prompts go through its mulan_mapper, too. `weights_dtype`: see sampling.Sampler.
    """
    directory = epath.Path(directory or TINY)
    if not directory.exists():
      raise errors.UserError(f'model directory {directory} does not exist')
    names = (*MODELS, TEXT_MAPPER) if text_mapper else MODELS
    models = {name: checkpoints.load_model(directory / name, name) for name in names}
    layouts = {name: token_layout.read_layout(directory / name) for name in token_layout.STAGES}
    _check_tokenizers(models, layouts, directory)
    tokenizer = text.WordPieceTokenizer(directory / 'mulan' / 'vocab.txt')
    for name in token_layout.STAGES:
      _check_stage(models[name], layouts[name].layout)
    models['mulan'].config.text.check_vocabulary(tokenizer.vocab_size, tokenizer.vocab_file)
    if text_mapper:
      music_tokens.check_fitted_to(models[TEXT_MAPPER], models['mulan'])
    return cls(models, layouts['semantic'].layout, tokenizer, weights_dtype)

  @property
  def sample_rate(self) -> int:
    return self.models['soundstream'].config.sample_rate

  @functools.cached_property
  def fingerprint(self) -> str:
    """Returns a sha256 of the weights of all models: which music a seed gives."""
    parts = sorted((name, model.fingerprint) for name, model in self.models.items())
    return hashlib.sha256(repr((parts, self.weights_dtype)).encode()).hexdigest()

  @functools.cached_property
  def samplers(self) -> dict[str, sampling.Sampler]:
    """Returns the language models of the stages, ready to sample from."""
    models = {name: self.models[name] for name in token_layout.STAGES}
    return {name: sampling.Sampler(model.config, model.variables['params'], self.stage(name), self.weights_dtype)
            for name, model in models.items()}

  @functools.cached_property
  def _listener(self) -> dict[str, checkpoints.ExportedModel]:
    """Returns the models that hear music, and those of the set."""
    return self.models | self._beside(HEARING)

  @functools.cached_property
  def _melody(self) -> dict[str, checkpoints.ExportedModel]:
    """Returns the models that hear a tune."""
    if self.layout.melody is None:
      raise errors.UserError(f'a melody is given, but the stages of {self._directory} hear none: '
                             'their layout.json has no melody stream')
    models = self._beside(token_layout.MELODY_TOKENIZERS)
    music_tokens.check_fitted_to(models['melody_quantizer'], models['melody'])
    return models

  @property
  def _directory(self) -> epath.Path:
    return self.models['mulan'].directory.parent

  def _beside(self, names: Sequence[str]) -> dict[str, checkpoints.ExportedModel]:
    """Returns more models of the directory, checked to be those that made the stages' tokens."""
    models = {name: checkpoints.load_model(self._directory / name, name) for name in names}
    layouts = {'semantic': token_layout.read_layout(self._directory / 'semantic')}
    _check_tokenizers(self.models | models, layouts, self._directory)
    return models

  def stage(self, name: str) -> token_layout.StageLayout:
    """Returns the stage layout that the language model called `name` was trained with."""
    return self.layout.stage(name, self.models[name].extra['seconds'])

  def check_sampling(self, how: Sampling) -> None:
    """Raises an error for guidance of a stage that was not trained to be guided."""
    stages.check_sampling(how, {name: self.stage(name) for name in token_layout.STAGES}, {
        name: self.models[name].extra.get('condition_dropout', 0) for name in token_layout.STAGES})

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

  def embed_text(self, prompts: Sequence[str]) -> np.ndarray:
    """Returns f32[B, E], unit vectors, as the music tokens of prompts are made from."""
    embeddings = music_tokens.embed_text(self.models['mulan'], self.tokenizer, prompts)
    if mapper := self.models.get(TEXT_MAPPER):
      embeddings = music_tokens.map_text(mapper, embeddings)
    return embeddings

  def mulan_codes(self, prompts: Sequence[str], style: np.ndarray | None = None,
                  style_weight: float = 0.5) -> np.ndarray:
    """Returns M_T int32[B, 1, Q]: the text embeddings through the RVQ of the audio embeddings.

    Q is what the stages were trained with, which may be fewer levels than the quantizer has.
    With `style`, a unit vector f32[E] of music, embeddings are text and style in the shares
    1 - style_weight and style_weight; a prompt that is '' is style alone.
    """
    embeddings = self.embed_text(prompts)
    if style is not None:
      if not 0 <= style_weight <= 1:
        raise errors.UserError(f'style_weight is {style_weight}, wanted 0 to 1')
      shares = np.array([style_weight if prompt.strip() else 1.0 for prompt in prompts])[:, None]
      embeddings = (1 - shares) * embeddings + shares * style
      embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-6)
    levels = self.layout.mulan.num_levels
    return music_tokens.tokens(embeddings, self.models['mulan_quantizer'], levels)[:, None]

  def melody_codes(self, tune: np.ndarray) -> np.ndarray:
    """Returns int32[R, Q] of float32[S]: its windows of 4 s, one starting at each second.

    Q is what the stages were trained with. A tune shorter than a window is followed by silence.
    """
    return music_tokens.melody_tokens(
        self._melody['melody'], self._melody['melody_quantizer'], tune,
        self.layout.melody.num_levels, hop_seconds=1)

  def similarity(self, prompts: Sequence[str | Story], waveforms: np.ndarray) -> np.ndarray:
    """Returns f32[B]: the cosine of the MuLan embeddings of each prompt and its f32[S].

    Of a story, the mean over its sections, each with its own music.
    """
    scores = []
    for prompt, waveform in zip(prompts, waveforms, strict=True):
      story = _story(prompt)
      texts = music_tokens.embed_text(self.models['mulan'], self.tokenizer, story.texts)
      cuts = [start * self.sample_rate for start in story.starts] + [len(waveform)]
      pairs = [float(one @ music_tokens.embed_music(self.models['mulan'], waveform[start:end]))
               for one, start, end in zip(texts, cuts, cuts[1:], strict=False) if start < end]
      scores.append(np.mean(pairs))
    return np.asarray(scores, np.float32)

  def generate(
      self,
      prompts: Sequence[str | Story],
      *,
      seconds: float = 10.0,
      seed: int | Sequence[int] = 0,
      how: Sampling = PUBLISHED,
      style: np.ndarray | None = None,
      style_weight: float = 0.5,
      continue_from: np.ndarray | None = None,
      melody: np.ndarray | None = None,
      progress: bool = False,
  ) -> np.ndarray:
    """Returns float32[B, S] in [-1, 1], S = seconds * sample_rate.

    An example's music does not depend on how many others are in the batch.

    Args:
      prompts: descriptions, or stories, whose descriptions change over time.
      seconds: of the music; with `continue_from`, of what is new.
      seed: example i draws from random numbers made of `seed` and i; or one seed an example, whose
        number i then plays no part.
      how: how the stages draw: temperatures, top-k, top-p, guidance.
      style: float32[S], music whose style is blended into that of the prompts, or, where a prompt is
        '', makes it up.
      style_weight: share of the style in the blend.
      continue_from: float32[S], music to go on from. The result begins with its whole seconds (what
        is over is cut from its start), as the codec renders them.
      melody: float32[S], a tune for the new music to follow, hummed, sung or played, from its start
        to its end; after it the music goes on by itself.
      progress: shows a progress bar for each stage.
    """
    with _bars(progress) as tick:
      run, given = self._run(
          prompts, seconds, seed, how, style, style_weight, continue_from, melody, tick)
      parts = [run.at_once()]
      waveforms = np.concatenate(list(self._decode(parts)), axis=1)
      return waveforms[:, :round((given + seconds) * self.sample_rate)]

  def stream(self, prompts: Sequence[str | Story], *, seconds: float = 10.0,
             seed: int | Sequence[int] = 0, how: Sampling = PUBLISHED,
             style: np.ndarray | None = None, style_weight: float = 0.5,
             continue_from: np.ndarray | None = None,
             melody: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yields what `generate` returns in parts float32[B, S_i], each as soon as it is made."""
    run, given = self._run(
        prompts, seconds, seed, how, style, style_weight, continue_from, melody)
    left = round((given + seconds) * self.sample_rate)
    for part in self._decode(run.bit_by_bit()):
      if left:
        yield part[:, :left]
        left -= min(left, part.shape[1])

  def _run(self, prompts, seconds, seed, how, style, style_weight, continue_from, melody,
           tick=lambda stage, share: None) -> tuple[stages.Run, int]:
    """Returns the stages, ready to run, and how many seconds are given."""
    told = [_story(prompt) for prompt in prompts]
    styled = style is not None
    for story in told:
      check_request([t for t in story.texts if not (styled and not t.strip())], seconds)
    self.check_sampling(how)
    given = None if continue_from is None else self._hear(continue_from)
    before = 0 if given is None else len(given['semantic']) // self.layout.semantic.frame_rate
    starts = sorted({start for story in told for start in story.starts})
    vector = music_tokens.embed_music(self.models['mulan'], style) if styled else None
    codes = [self.mulan_codes([story.text_at(start) for story in told], vector, style_weight)
             for start in starts]
    overlaps = {story.overlap for story in told}
    if len(overlaps) > 1:
      raise errors.UserError(f'stories of one batch have overlaps {overlaps}, wanted the same')
    conditions = stages.Conditions(
        np.concatenate(codes, axis=1), (0, *(before + start for start in starts[1:])),
        overlaps.pop(), given, None if melody is None else self.melody_codes(melody))
    keys = stages.example_keys(seed, len(prompts))
    run = stages.Run(
        self.samplers, conditions, before + int(np.ceil(seconds)), keys, how, tick)
    return run, before

  def _hear(self, waveform: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the codes int32[T, Q] of the last whole seconds of f32[S]."""
    seconds = len(waveform) // self.sample_rate
    if not seconds:
      raise errors.UserError(f'the music to go on from lasts {len(waveform) / self.sample_rate:.2f} s,'
                             ' wanted at least 1')
    listener = audio_tokenizer.Tokenizer(
        self._listener, clip_seconds=seconds, batch_size=1,
        acoustic_levels=self.layout.acoustic.num_levels)
    tokens, = listener.framed_tokens([waveform[-seconds * self.sample_rate:]])
    return {'semantic': tokens['semantic_tokens'].reshape(-1, 1),
            'acoustic': tokens['acoustic_tokens']}

  def decode(self, acoustic: np.ndarray) -> np.ndarray:
    """Returns float32[B, S] of acoustic codes int32[B, T, Q]."""
    return np.concatenate(list(self._decode([acoustic])), axis=1)

  def _decode(self, parts) -> Iterator[np.ndarray]:
    return codec.Codec(self.models['soundstream']).decode_batch(parts)


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


def _story(prompt: str | Story) -> Story:
  return prompt if isinstance(prompt, Story) else Story(((0, prompt),))


def _check_tokenizers(models, layouts, directory) -> None:
  """Raises an error when the stages were trained on tokens of other models, or on different ones."""
  saved = layouts['semantic']
  beside = {
      name: checkpoints.token_fingerprint(models[name], saved.layout.acoustic.num_levels)
      for name in saved.layout.tokenizers if name in models
  }
  here = token_layout.SavedLayout(saved.layout, {**saved.tokenizers, **beside})
  token_layout.check_same(saved, here, str(directory / 'semantic'), 'the tokenizers beside it')
  for name, layout in layouts.items():
    token_layout.check_same(saved, layout, str(directory / 'semantic'), str(directory / name))


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


@contextlib.contextmanager
def _bars(show: bool):
  """Yields tick(stage, share): moves the progress bar of a stage on stderr."""
  with contextlib.ExitStack() as stack:
    bars = {}

    def tick(stage: str, share: float) -> None:
      if stage not in bars:
        bars[stage] = stack.enter_context(tqdm.tqdm(
            total=100, desc=f'{stage:8}', disable=not show, position=len(bars),
            bar_format='{desc} {bar:32} {percentage:3.0f}% {elapsed}<{remaining}'))
      bars[stage].update(round(100 * share) - bars[stage].n)

    yield tick
