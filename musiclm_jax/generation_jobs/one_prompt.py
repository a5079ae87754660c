"""L5. One prompt, or one story, as wav files with what was asked for beside them."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import sys
import time
import wave
from collections.abc import Iterator

import numpy as np

from musiclm_jax import audio, errors, generate, text

log = logging.getLogger(__name__)

PIPE = '-'


@dataclasses.dataclass(frozen=True)
class Request:
  """What one command line asks for.

  prompt: a description, or a story; '' with music to take the style of, or to go on from.
  style_audio, continue_from, melody: names of sound files, or None.
  """

  prompt: str | generate.Story
  seconds: float = 10.0
  seed: int = 0
  how: generate.Sampling = generate.Sampling()
  style_audio: str | None = None
  style_weight: float = 0.5
  continue_from: str | None = None
  melody: str | None = None

  def music(self) -> dict:
    """Returns the arguments of MusicLM.generate beside prompts; reads the sound files."""
    given = audio.read(self.continue_from) if self.continue_from else None
    style = audio.read(self.style_audio) if self.style_audio else None
    if style is None and not self.prompt:
      style = given  # goes on in its own style
    return {'seconds': self.seconds, 'how': self.how, 'style': style,
            'style_weight': self.style_weight, 'continue_from': given,
            'melody': audio.read(self.melody) if self.melody else None}

  def check(self) -> None:
    """Raises an error for what can be seen to be wrong before models are read."""
    if isinstance(self.prompt, generate.Story):
      generate.check_request(self.prompt.texts, self.seconds)
    elif self.prompt or not (self.style_audio or self.continue_from):
      generate.check_request([self.prompt], self.seconds)
    if not 0 <= self.style_weight <= 1:
      raise errors.UserError(f'style_weight is {self.style_weight}, wanted 0 to 1')


def generate_files(
    request: Request,
    output: str,
    *,
    num_samples: int = 1,
    keep_best: int | None = None,
    model: str | None = None,
    text_mapper: bool = False,
    weights_dtype: str = '',
    plot: bool = False,
    metadata: bool = False,
) -> list[str]:
  """Writes wav files for one request and returns their names.

  With `keep_best` the most similar to the prompt of `num_samples`, best first. With `metadata`, or
  `keep_best`, a json beside each wav says what it was made of and how similar it is.
  """
  request.check()
  kept = num_samples if keep_best is None else keep_best
  if not 1 <= kept <= num_samples:
    raise errors.UserError(f'keep_best is {keep_best}, num_samples is {num_samples}: wanted 1 or '
                           'more, and no more kept than made')
  if keep_best and not request.prompt:
    raise errors.UserError('keep_best compares with the prompt, and there is none')
  outputs = output_names(output, kept)
  for name in outputs:
    audio.check_writable(name, overwrite=True)
  musiclm = _loaded(request, model, text_mapper, weights_dtype)
  prompts = [request.prompt] * num_samples
  waveforms = musiclm.generate(prompts, seed=request.seed, progress=True, **request.music())
  described = metadata or bool(keep_best)
  scores = musiclm.similarity(prompts, waveforms) if described and request.prompt else None
  order = np.argsort(-scores, kind='stable')[:kept] if keep_best else np.arange(num_samples)
  for name, i in zip(outputs, order, strict=True):
    audio.write(name, waveforms[i], musiclm.sample_rate, overwrite=True)
    log.info('wrote %s%s', name, f', similarity {scores[i]:.3f}' if keep_best else '')
    if plot:
      _write_plot(name, waveforms[i], musiclm.sample_rate, request.prompt)
    if described:
      about = _about(request, musiclm) | {'sample': int(i)}
      about |= {} if scores is None else {'similarity': round(float(scores[i]), 4)}
      _write_json(name, about)
  return outputs


def stream_file(request: Request, output: str, *, model: str | None = None,
                text_mapper: bool = False, weights_dtype: str = '') -> float:
  """Writes a wav as the music is made, to a file or (output '-') to standard output.

  Returns the seconds from when the models were there to the first audio.  A file that is being
  written can be played; one whose making was broken off is shorter than its header says.
  """
  request.check()
  if output != PIPE:
    output_names(output, 1)
    audio.check_writable(output, overwrite=True)
  elif sys.stdout.isatty():
    raise errors.UserError('the output is a terminal, wanted a pipe: generate.py --stream --output=- '
                           '… | ffplay -')
  musiclm = _loaded(request, model, text_mapper, weights_dtype)
  start, first, done = time.monotonic(), 0.0, 0
  arguments = request.music()
  given = len(arguments['continue_from']) // musiclm.sample_rate if request.continue_from else 0
  total = round((given + request.seconds) * musiclm.sample_rate)
  with _wave_writer(output, musiclm.sample_rate, total) as write:
    for part in musiclm.stream([request.prompt], seed=request.seed, **arguments):
      write(audio.to_pcm16(part[0]).astype('<i2').tobytes())
      if not done:
        first = time.monotonic() - start
        log.info('first audio after %.1f s', first)
      done += part.shape[1]
  seconds = time.monotonic() - start
  log.info('%.1f s of music in %.1f s', done / musiclm.sample_rate, seconds)
  return first


def output_names(output: str, num_samples: int) -> list[str]:
  """Returns [output], or OUTPUT-1.wav, OUTPUT-2.wav, … for several samples."""
  path = pathlib.Path(output)
  if path.suffix.lower() != '.wav':
    raise errors.UserError(f'output is {output!r}, wanted a name that ends with .wav')
  if num_samples == 1:
    return [str(path)]
  return [str(path.with_name(f'{path.stem}-{i + 1}{path.suffix}')) for i in range(num_samples)]


def _loaded(request, model, text_mapper, weights_dtype) -> generate.MusicLM:
  musiclm = generate.MusicLM.from_pretrained(
      model, text_mapper=text_mapper, weights_dtype=weights_dtype)
  story = request.prompt
  for each in story.texts if isinstance(story, generate.Story) else [story] if story else []:
    for warning in musiclm.unheard(each):
      log.warning('warning: %s', warning)
  return musiclm


@contextlib.contextmanager
def _wave_writer(output: str, rate: int, num_samples: int) -> Iterator:
  """Yields write(bytes of 16-bit mono samples); the header tells their number from the start."""
  with contextlib.ExitStack() as stack:
    file = sys.stdout.buffer if output == PIPE else stack.enter_context(open(output, 'wb'))
    writer = stack.enter_context(contextlib.closing(wave.open(file, 'wb')))
    writer.setparams((1, 2, rate, num_samples, 'NONE', ''))

    def write(content: bytes) -> None:
      writer.writeframesraw(content)
      file.flush()

    yield write


def _about(request: Request, musiclm: generate.MusicLM) -> dict:
  """Returns what a piece was made of, as JSON values."""
  prompt = request.prompt
  return dataclasses.asdict(request) | {
      'prompt': list(prompt.sections) if isinstance(prompt, generate.Story) else prompt,
      'sample_rate': musiclm.sample_rate, 'model': musiclm.fingerprint}


def _write_json(wav: str, about: dict) -> None:
  path = pathlib.Path(wav).with_suffix('.json')
  with audio.atomic_path(path, overwrite=True) as temporary:
    pathlib.Path(temporary).write_text(json.dumps(about, indent=2) + '\n', encoding='utf-8')
  log.info('wrote %s', path)


def _write_plot(wav: str, waveform: np.ndarray, sample_rate: int, prompt) -> None:
  """Writes a picture of the log-mel spectrogram beside the wav."""
  import matplotlib

  matplotlib.use('Agg')
  import jax.numpy as jnp
  from matplotlib import pyplot

  from musiclm_jax.models import spectrogram

  config = spectrogram.MelConfig(sample_rate=sample_rate, num_mels=96)
  mel = np.asarray(spectrogram.log_mel(jnp.asarray(waveform)[None], config))[0]
  figure, axes = pyplot.subplots(figsize=(10, 3.5), layout='constrained')
  extent = (0, len(waveform) / sample_rate, 0, mel.shape[1])
  axes.imshow(mel.T, origin='lower', aspect='auto', extent=extent, cmap='magma')
  axes.set(xlabel='seconds', ylabel='mel band')
  story = isinstance(prompt, generate.Story)
  for start, _ in prompt.sections[1:] if story else ():
    axes.axvline(start, color='white', linewidth=0.8)
  title = ' / '.join(prompt.texts) if story else prompt
  title = text.one_line(title)  # a prompt may hold anything; it is no formula
  axes.set_title(title if len(title) < 90 else title[:89] + '…', parse_math=False)
  picture = os.fspath(pathlib.Path(wav).with_suffix('.png'))
  figure.savefig(picture, dpi=110)
  pyplot.close(figure)
  log.info('wrote %s', picture)
