"""L5. What turns a clip into embeddings, for FAD.  Axes: S samples, N embeddings of a clip, D dims.

  mulan     one for each window of 10 s, the windows a second apart          of exported models
  w2v_bert  one for each frame, 25 a second                                  likewise
  vggish    one for each 0.96 s: FAD_VGG of the paper                        TF-Hub's vggish/1
  trill     one for each 0.17 s or so: FAD_TRILL of the paper                TF-Hub's trill/3

Any other is an `Embedding` with a function of its own.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import numpy as np

from musiclm_jax import checkpoints, errors, music_tokens
from musiclm_jax.evaluation import saved_models

NAMES = ('mulan', 'w2v_bert', 'vggish', 'trill')
VGGISH_RATE = TRILL_RATE = 16_000
VGGISH_DIM = 128
TRILL_OUTPUTS = ('embedding', 'layer19')  # 512 and 12,288 dims; the paper does not say which
_WINDOW_SECONDS = 10  # that w2v-BERT hears at a time


@dataclasses.dataclass(frozen=True)
class Embedding:
  """`embed` gives f32[N, D] of f32[S] at `sample_rate`; `fingerprint` tells two models apart."""

  name: str
  fingerprint: str
  sample_rate: int
  embed: Callable[[np.ndarray], np.ndarray]

  def __call__(self, waveform: np.ndarray) -> np.ndarray:
    """Returns finite f32[N, D]; anything else is an error."""
    found = np.asarray(self.embed(waveform), np.float32)
    if found.ndim != 2 or not found.size or not np.isfinite(found).all():
      raise errors.UserError(
          f'{self.name} gives {list(found.shape)} for {len(waveform)} samples, or values that are '
          'not finite; wanted embeddings [N, D]')
    return found


def load(name: str, directory: str | os.PathLike) -> Embedding:
  """Returns one of `NAMES`, of an exported model or a SavedModel in `directory`."""
  if name == 'mulan':
    return of_mulan(checkpoints.load_model(directory, 'mulan'))
  if name == 'w2v_bert':
    return of_w2v_bert(checkpoints.load_model(directory, 'w2v_bert'))
  if name == 'vggish':
    return vggish(str(directory))
  if name == 'trill':
    return trill(str(directory))
  raise errors.UserError(f'there is no embedding {name!r}, wanted one of {", ".join(NAMES)}')


def directory(name: str, model_dir: str | os.PathLike, given: dict[str, str | None]) -> str:
  """Returns where the model of an embedding is: given for SavedModels, else in MODEL_DIR."""
  if given.get(name):
    return given[name]
  if name in ('vggish', 'trill'):
    raise errors.UserError(f'{name} needs its SavedModel: give --{name}=DIR, downloaded from TF-Hub')
  return os.fspath(pathlib.PurePath(model_dir) / name)


def of_mulan(mulan: checkpoints.ExportedModel) -> Embedding:
  """Returns MuLan's audio tower, window by window as music_tokens hears a piece."""
  rate = mulan.config.sample_rate

  def embed(waveform: np.ndarray) -> np.ndarray:
    rows = music_tokens.windows(waveform, music_tokens.WINDOW_SECONDS * rate, rate)
    return np.concatenate([np.asarray(mulan.apply('embed_audio', row[None])) for row in rows])

  return Embedding('mulan', mulan.fingerprint, rate, embed)


def of_w2v_bert(model: checkpoints.ExportedModel) -> Embedding:
  """Returns the features that semantic tokens are made of, of pieces of 10 s."""
  rate = model.config.input_sample_rate
  window = _WINDOW_SECONDS * rate

  def embed(waveform: np.ndarray) -> np.ndarray:
    found = []
    for start in range(0, len(waveform), window):
      part = waveform[start:start + window]
      row = np.pad(part, (0, window - len(part)))[None]  # one shape to compile
      features = np.asarray(model.apply('features', row))[0]
      found.append(features[:int(len(part) * model.config.frame_rate / rate)])
    return np.concatenate(found)

  return Embedding('w2v_bert', model.fingerprint, rate, embed)


def vggish(directory: str) -> Embedding:
  """Returns TF-Hub's vggish/1: f32[S] at 16 kHz in [-1, 1] -> f32[N, 128], nothing after it."""
  model = saved_models.SavedModel(directory)
  embed = lambda waveform: model.array(model(waveform), 'its output', VGGISH_DIM)
  return Embedding('vggish', model.fingerprint, VGGISH_RATE, embed)


def trill(directory: str, output: str = TRILL_OUTPUTS[0]) -> Embedding:
  """Returns TF-Hub's trill/3: (samples f32[S], sample_rate 16000) -> {'embedding': f32[N, 512]}."""
  model = saved_models.SavedModel(directory)
  return Embedding(f'trill {output}' if output != TRILL_OUTPUTS[0] else 'trill', model.fingerprint,
                   TRILL_RATE, functools.partial(_trill, model, output))


def _trill(model: saved_models.SavedModel, output: str, waveform: np.ndarray) -> np.ndarray:
  found = model(samples=waveform, sample_rate=TRILL_RATE)
  if not hasattr(found, 'keys') or output not in found:
    names = sorted(found.keys()) if hasattr(found, 'keys') else type(found).__name__
    raise errors.UserError(f'{model.directory} gives {names}, wanted {output!r} among its outputs')
  return model.array(found[output], output)
