"""L5. What long pieces, stories and continuations must keep: no clicks, their texts, their beginning."""

import dataclasses
import time

import numpy as np

from musiclm_jax import generate, music_tokens

EDGE_SECONDS = 0.005  # a click is shorter


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
