"""L5. What the modes of generation must keep.

Long pieces have no clicks, stories follow their texts, continuations keep their beginning, and music
for a tune follows the tune.
"""

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping

import numpy as np

from musiclm_jax import audio, errors, generate, music_tokens
from musiclm_jax.evaluation import chroma, codec_quality

EDGE_SECONDS = 0.005  # a click is shorter
TUNE_SECONDS = 10  # of a tune, at most


@dataclasses.dataclass(frozen=True)
class Seams:
  """How rough the waveform is where windows meet, beside where they do not.

  Roughness is the largest second difference within 5 ms, over the RMS of the second around it.
  rank: share of the other places that are smoother than a seam, on average; 0.5 is no difference.
  largest: the roughest seam over the roughest other place.
  """

  seams: int
  rank: float
  largest: float

  def describe(self) -> str:
    return (f'{self.seams} seams: rougher than {100 * self.rank:.0f}% of the other places (50% would '
            f'be as rough), the roughest is {self.largest:.2f} times the roughest other place')


def seams(waveform: np.ndarray, rate: int, seconds: list[int]) -> Seams:
  """Returns how rough float32[S] is at `seconds`, beside every place 50 ms apart from the others."""
  marks = np.asarray(seconds) * rate
  step = rate // 20
  others = np.arange(rate, len(waveform) - rate, step)
  others = others[np.abs(others[:, None] - marks[None]).min(axis=1) >= step]
  rough, around = _roughness(waveform, rate, marks), _roughness(waveform, rate, others)
  rank = (rough[:, None] > around[None]).mean() + 0.5 * (rough[:, None] == around[None]).mean()
  return Seams(len(marks), float(rank), float(rough.max() / around.max()))


def _roughness(waveform, rate, places) -> np.ndarray:
  edge = round(EDGE_SECONDS * rate)
  bend = np.abs(np.diff(waveform, 2))
  found = []
  for place in places:
    around = waveform[max(place - rate // 2, 0):place + rate // 2]
    loudness = max(float(np.sqrt(np.mean(np.square(around, dtype=np.float64)))), 1e-4)
    found.append(bend[max(place - edge, 0):place + edge].max() / loudness)
  return np.array(found)


def lengths(musiclm: generate.MusicLM, prompt: str, seconds: list[int]) -> dict[int, float]:
  """Returns {seconds of music: seconds it took}, each after a first run that compiles."""
  taken = {}
  for length in seconds:
    musiclm.generate([prompt], seconds=length)
    start = time.perf_counter()
    musiclm.generate([prompt], seconds=length, seed=1)
    taken[length] = time.perf_counter() - start
  return taken


def story_similarities(musiclm: generate.MusicLM, story: generate.Story, waveforms: np.ndarray
                       ) -> np.ndarray:
  """Returns float[sections, texts]: the mean cosine of each section of f32[B, S] and each text."""
  texts = musiclm.embed_text(story.texts)
  cuts = [*(start * musiclm.sample_rate for start in story.starts), waveforms.shape[1]]
  sections = [[music_tokens.embed_music(musiclm.models['mulan'], waveform[start:end])
               for waveform in waveforms] for start, end in zip(cuts, cuts[1:], strict=False)]
  return np.einsum('cbe,te->ct', sections, texts) / len(waveforms)


def hummed_tunes(count: int) -> dict[str, np.ndarray]:
  """Returns {name: float32[S] at 24 kHz}: hums of melodies composed for this, in no corpus."""
  try:
    from musiclm_jax.corpus import melody_excerpts, melody_versions
  except ModuleNotFoundError as error:
    raise errors.UserError(f'composing tunes needs pip install \'.[corpus]\' ({error}); --melodies '
                           'takes recordings instead') from error
  found = {}
  for i in range(count):
    random = np.random.default_rng([0, 7, i])  # the corpora draw from [seed, 1] to [seed, 6]
    excerpt = melody_excerpts.from_composition(random)
    found[f'tune-{i + 1}'] = melody_versions.make_version(excerpt, 'hum', None, None, random)
  return found


def read_tunes(names: Iterable[str]) -> dict[str, np.ndarray]:
  """Returns {name: float32[S] at 24 kHz}: the beginnings of sound files and of those of folders."""
  found = {}
  for i, path in enumerate(codec_quality.audio_files(name for name in names if name.strip())):
    tune = audio.read_beginning(path, TUNE_SECONDS)
    if not chroma.chromagram(tune, audio.SAMPLE_RATE).any():
      raise errors.UserError(f'{path} is silent in its first {TUNE_SECONDS} s, wanted a tune')
    found[f'tune-{i + 1}-{path.stem}'] = tune
  return found


@dataclasses.dataclass(frozen=True)
class Followed:
  """Music float32[B, S] of each name of a tune: made for the tune, and the same without a melody."""

  made: Mapping[str, np.ndarray]
  unconditioned: Mapping[str, np.ndarray]
  similarity: chroma.Report


def follow(musiclm: generate.MusicLM, tunes: Mapping[str, np.ndarray], prompt: str, num_samples: int,
           how: generate.Sampling = generate.PUBLISHED) -> Followed:
  """Returns `num_samples` pieces for each tune, as long as the longest, with seeds of their own."""
  rate = musiclm.sample_rate
  seconds = min(TUNE_SECONDS, math.ceil(max(map(len, tunes.values())) / rate))
  music = {}
  for melodic in (True, False):
    music[melodic] = {
        name: musiclm.generate([prompt] * num_samples, seconds=seconds, seed=200 + i, how=how,
                               melody=tune if melodic else None)
        for i, (name, tune) in enumerate(tunes.items())}
  report = chroma.measure(
      list(tunes.values()), list(music[True].values()), list(music[False].values()), rate)
  return Followed(music[True], music[False], report)
