"""L5. MuLan cycle consistency: does the audio sound like its caption?  Axes: N clips, E embedding.

MusicLM section 4.4: the mean cosine of MuLan's embeddings of a caption and of the audio made from
it. Models conditioned on the same MuLan are favoured (section 7).
"""

import dataclasses

import numpy as np

from musiclm_jax import errors


@dataclasses.dataclass(frozen=True)
class Agreement:
  """cosine: of clips with their own captions; permuted: with those of all other clips.

  error, permuted_error: standard errors of the two means, over clips.
  """

  cosine: float
  error: float
  permuted: float
  permuted_error: float
  num_clips: int


def agreement(texts: np.ndarray, audio: np.ndarray) -> Agreement:
  """Returns the agreement of unit vectors f32[N, E] of captions and of their clips.

  `permuted` is exact: the mean over all N (N - 1) wrong pairs, NaN for a single clip.
  """
  texts, audio = (np.asarray(x, np.float64) for x in (texts, audio))
  if texts.shape != audio.shape or texts.ndim != 2 or not len(texts):
    raise errors.UserError(f'MCC of {list(texts.shape)} text and {list(audio.shape)} audio vectors, '
                           'wanted as many, at least one')
  count = len(texts)
  own = np.einsum('ne,ne->n', texts, audio)
  if count == 1:
    return Agreement(float(own[0]), float('nan'), float('nan'), float('nan'), 1)
  others = (audio @ texts.sum(axis=0) - own) / (count - 1)
  return Agreement(float(own.mean()), _error(own), float(others.mean()), _error(others), count)


def _error(values: np.ndarray) -> float:
  return float(values.std(ddof=1) / len(values) ** 0.5)
