"""L5. Riffusion: Stable Diffusion draws the spectrogram, Griffin and Lim find the phases.

Axes: M mels, T frames, F frequencies, S samples.

The picture is 512 mels high and has a column for each 10 ms; loud is dark, by the fourth root of
the magnitude.
"""

import dataclasses
import functools
import os
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from musiclm_jax import errors
from musiclm_jax.evaluation.systems import filling


@dataclasses.dataclass(frozen=True)
class PictureConfig:
  """How Riffusion's pictures were made; published with its weights."""

  sample_rate: int = 44_100
  hop_seconds: float = 0.01
  window_seconds: float = 0.1
  padded_seconds: float = 0.4  # of the Fourier transform
  num_mels: int = 512
  max_frequency: float = 10_000.0
  power: float = 0.25
  iterations: int = 32

  @property
  def n_fft(self) -> int:
    return round(self.padded_seconds * self.sample_rate)

  @property
  def hop(self) -> int:
    return round(self.hop_seconds * self.sample_rate)


def magnitudes(picture: np.ndarray, config: PictureConfig) -> np.ndarray:
  """Returns f32[M, T] in [0, 1] of a picture uint8[M, T] or uint8[M, T, C], low mels first."""
  grey = picture if picture.ndim == 2 else picture[:, :, 0]
  loud = (255.0 - grey[::-1].astype(np.float32)) / 255.0
  return loud ** (1.0 / config.power)


def to_waveform(picture: np.ndarray, config: PictureConfig = PictureConfig()) -> np.ndarray:
  """Returns f32[S] of a picture, at config.sample_rate, as loud as fits."""
  if len(picture) != config.num_mels:
    raise errors.UserError(f'a picture of {len(picture)} rows, wanted {config.num_mels} mels')
  linear = np.maximum(_inverse_filters(config) @ magnitudes(picture, config), 0.0)
  waveform = griffin_lim(linear.T, config)
  return waveform / max(float(np.abs(waveform).max()), 1e-9)


def griffin_lim(target: np.ndarray, config: PictureConfig, momentum: float = 0.99) -> np.ndarray:
  """Returns f32[S] whose spectrum has about the magnitudes f32[T, F] (Perraudin et al. 2013)."""
  window = np.zeros(config.n_fft, np.float32)
  length = round(config.window_seconds * config.sample_rate)
  start = (config.n_fft - length) // 2
  window[start:start + length] = np.hanning(length + 1)[:-1]
  random = np.random.default_rng(0)
  phases = np.exp(2j * np.pi * random.random(target.shape)).astype(np.complex64)
  before = np.zeros_like(phases)
  for _ in range(config.iterations):
    spectrum = _spectrum(_overlapped(target * phases, window, config.hop), window, config.hop)
    phases = spectrum - momentum / (1 + momentum) * before
    phases /= np.maximum(np.abs(phases), 1e-12)
    before = spectrum
  waveform = _overlapped(target * phases, window, config.hop)
  return waveform[config.n_fft // 2:-(config.n_fft // 2) or None]


def _spectrum(waveform: np.ndarray, window: np.ndarray, hop: int) -> np.ndarray:
  """Returns c64[T, F] of f32[S]."""
  frames = np.lib.stride_tricks.sliding_window_view(waveform, len(window))[::hop]
  return np.fft.rfft(frames * window).astype(np.complex64)


def _overlapped(spectrum: np.ndarray, window: np.ndarray, hop: int) -> np.ndarray:
  """Returns f32[S], whose frames are nearest to those of c64[T, F]."""
  size = len(window)
  frames = np.fft.irfft(spectrum, size).astype(np.float32) * window
  waveform = np.zeros(size + hop * (len(frames) - 1), np.float32)
  weight = np.zeros_like(waveform)
  for index, frame in enumerate(frames):
    place = slice(index * hop, index * hop + size)
    waveform[place] += frame
    weight[place] += np.square(window)
  return waveform / np.maximum(weight, 1e-3)


def _filters(config: PictureConfig) -> np.ndarray:
  """Returns f32[M, F]: HTK mels, not normalized."""
  import librosa
  return librosa.filters.mel(
      sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.num_mels, fmin=0.0,
      fmax=config.max_frequency, htk=True, norm=None)


@functools.lru_cache(maxsize=1)
def _inverse_filters(config: PictureConfig) -> np.ndarray:
  """Returns f32[F, M]: of all spectra with these mels, the one with the least energy."""
  return np.linalg.pinv(_filters(config).astype(np.float64)).astype(np.float32)


class Riffusion:
  """A diffusers pipeline from a local directory with safetensors; nothing is downloaded."""

  batch_size = 1

  def __init__(self, directory: str | os.PathLike, steps: int = 50, guidance: float = 7.0,
               device: str | None = None):
    if not (pathlib.Path(directory) / 'model_index.json').is_file():
      raise errors.UserError(f'{os.fspath(directory)} has no model_index.json, wanted the directory '
                             'of a diffusers pipeline')
    try:
      import diffusers
      import torch
    except ImportError as error:
      raise errors.UserError(f'Riffusion needs the packages diffusers, transformers and torch '
                             f'({error}): install them') from error
    self._torch, self._steps, self._guidance = torch, steps, guidance
    self._device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
      pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
          os.fspath(directory), local_files_only=True, use_safetensors=True, safety_checker=None,
          feature_extractor=None, requires_safety_checker=False)
    except (OSError, ValueError, RuntimeError) as error:
      raise errors.UserError(f'{os.fspath(directory)} cannot be loaded: {error} (weights must be '
                             'safetensors: pickles are not opened)') from error
    self._pipeline = pipeline.to(self._device)
    self._pipeline.set_progress_bar_config(disable=True)

  def generate(self, ids: Sequence[str], captions: Sequence[str], seconds: float,
               seed: int) -> list[filling.Sound]:
    """Returns clips drawn in one picture each, at least `seconds` long."""
    config = PictureConfig()
    frames = seconds / config.hop_seconds
    generators = [self._torch.Generator(self._device).manual_seed(zlib.crc32(f'{seed} {name}'.encode()))
                  for name in ids]
    pictures = self._pipeline(
        list(captions), height=config.num_mels, width=int(-(-frames // 8) * 8),
        num_inference_steps=self._steps, guidance_scale=self._guidance, generator=generators,
        output_type='np').images
    samples = round(seconds * config.sample_rate)
    return [filling.Sound(
        to_waveform(np.round(255 * picture).astype(np.uint8), config)[:samples], config.sample_rate)
            for picture in pictures]
