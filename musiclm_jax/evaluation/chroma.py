"""L5. Does music follow a tune?  Chroma similarity, nearly as MusicGen is measured by it.

Axes: N tunes, B pieces of music a tune, S samples, T frames.

Chroma, how strong each of the twelve pitch classes is, knows nothing of octaves and little of
timbre.  It is librosa's of the short-time Fourier transform, faster than of the constant-Q one.  A of
440 Hz is assumed: music out of tune or in another key is not similar.

Departure: MusicGen's counts the frames whose strongest pitch class is the tune's.  Here each frame's
mean over the classes is taken off before the cosine, which hears a melody below louder notes.  By
the plain cosine white noise is similar to every tune.

Tunes of one key look alike, and so does any music in it: what a similarity is worth shows beside
that to the music made for other tunes.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from musiclm_jax import errors

WINDOW_SECONDS = 0.17  # 4096 samples of 24 kHz: keeps semitones apart from about C3 on
SMOOTH_SECONDS = 0.2  # before and after: music may be a little early or late
SILENT = 1e-3  # RMS, -60 dB
QUIET = 0.05  # of the loudest frame's RMS, -26 dB
_RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Report:
  """How similar music is to tunes.

  own: float[N, B] of the music made for each tune.
  others: float[N], the mean over the music made for the other tunes; NaN of a single tune.
  unconditioned: float[N, B] of music of the same prompts and seeds, made without a melody.
  """

  own: np.ndarray
  others: np.ndarray
  unconditioned: np.ndarray

  def describe(self) -> str:
    count, pieces = self.own.shape
    own, without = self.own.mean(axis=1), self.unconditioned.mean(axis=1)
    lines = [f'chroma similarity of {count} tunes, {pieces} pieces of music each:',
             f'  {own.mean():.3f} music made for the tune']
    if count > 1:
      lines += [f'  {self.others.mean():.3f} music made for the other tunes: '
                f'{_difference(own - self.others)}']
    return '\n'.join(lines + [
        f'  {without.mean():.3f} music without a melody: {_difference(own - without)}'])


def measure(tunes: Sequence[np.ndarray], made: Sequence[np.ndarray],
            unconditioned: Sequence[np.ndarray], rate: int) -> Report:
  """Returns the report of N tunes f32[S], the music f32[B, S] made for each, and that without one."""
  heard = [chromagram(tune, rate) for tune in tunes]
  music = [[chromagram(piece, rate) for piece in pieces] for pieces in made]
  without = [[chromagram(piece, rate) for piece in pieces] for pieces in unconditioned]
  every = np.array([[[compare(tune, piece) for piece in pieces] for pieces in music]
                    for tune in heard])  # [N tunes, N for whom, B]
  own = np.array([every[i, i] for i in range(len(heard))])
  others = np.full(len(heard), np.nan)
  if len(heard) > 1:
    others = (every.sum(axis=1) - own).mean(axis=1) / (len(heard) - 1)
  return Report(own, others, np.array([
      [compare(tune, piece) for piece in pieces]
      for tune, pieces in zip(heard, without, strict=True)]))


def similarity(tune: np.ndarray, music: np.ndarray, rate: int) -> float:
  """Returns the similarity of float32[S] and float32[S']: 1 of a tune and itself, 0 by chance."""
  return compare(chromagram(tune, rate), chromagram(music, rate))


def chromagram(waveform: np.ndarray, rate: int) -> np.ndarray:
  """Returns float32[T, 12], from C to B: unit vectors of mean 0, and zeros where f32[S] is silent.

  Smoothed over time.  A frame is silent that is below -60 dB or 26 dB below the loudest one.
  """
  import librosa
  from scipy import ndimage
  window = 2 ** round(math.log2(WINDOW_SECONDS * rate))
  hop = window // 2
  waveform = np.pad(waveform, (0, max(0, window - len(waveform))))
  chroma = librosa.feature.chroma_stft(
      y=waveform, sr=rate, n_fft=window, hop_length=hop, tuning=0.0).T
  loudness = librosa.feature.rms(y=waveform, frame_length=window, hop_length=hop)[0]
  sounds = loudness > max(SILENT, QUIET * loudness.max())
  chroma = np.where(sounds[:, None], _unit(chroma), 0)
  span = 2 * round(SMOOTH_SECONDS * rate / hop) + 1
  chroma = ndimage.uniform_filter1d(chroma, span, axis=0, mode='constant')
  return _unit(chroma - chroma.mean(axis=1, keepdims=True)).astype(np.float32)


def compare(tune: np.ndarray, music: np.ndarray) -> float:
  """Returns the mean cosine of chromagrams f32[T, 12] and f32[T', 12] where the tune sounds.

  Only the frames that both have count; where the music is silent the cosine is 0.
  """
  shared = min(len(tune), len(music))
  sounds = tune[:shared].any(axis=1)
  if not sounds.any():
    raise errors.UserError('the tune is silent as long as the music lasts, wanted one that sounds')
  return float((tune[:shared] * music[:shared]).sum(axis=1)[sounds].mean())


def _unit(vectors: np.ndarray) -> np.ndarray:
  norms = np.linalg.norm(vectors, axis=1, keepdims=True)
  return np.where(norms > 1e-6, vectors / np.maximum(norms, 1e-6), 0)


def _difference(differences: np.ndarray) -> str:
  """Returns in words what float[N], one a tune, show: their mean, how sure it is, how many are > 0."""
  from scipy import stats
  found = f'own - this = {differences.mean():.3f}'
  if len(differences) < 2:
    return found
  random = np.random.default_rng(0)
  drawn = random.choice(differences, (_RESAMPLES, len(differences))).mean(axis=1)
  low, high = np.percentile(drawn, [2.5, 97.5])
  above, unequal = int((differences > 0).sum()), int((differences != 0).sum())
  chance = stats.binomtest(above, unequal).pvalue if unequal else 1.0
  return (f'{found} ({low:.3f} to {high:.3f} in 95% of resamplings of the tunes), above 0 for {above} '
          f'of {len(differences)} tunes (sign test: p = {chance:.2g})')
