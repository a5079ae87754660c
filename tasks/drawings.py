"""L5. Pictures of examples: token streams over time, waveforms with their log-mel spectrograms."""

from collections.abc import Mapping

import numpy as np

from musiclm_jax import token_layout

_NUM_MELS = 96


def save(path: str, streams: Mapping[token_layout.TokenStream, np.ndarray],
         clips: Mapping[str, np.ndarray], rate: int, title: str) -> None:
  """Writes a png with a row for each stream of codes int[T, Q], two for each clip f32[S] at `rate`."""
  import matplotlib.figure

  heights = [1.0 + 0.12 * stream.num_levels for stream in streams] + [1.0, 2.0] * len(clips)
  figure = matplotlib.figure.Figure(figsize=(10, 1 + sum(heights)), layout='constrained')
  rows = iter(figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
  figure.suptitle(title, parse_math=False)
  for stream, codes in streams.items():
    _draw_codes(next(rows), stream, codes)
  for name, clip in clips.items():
    _draw_clip(next(rows), next(rows), name, clip, rate)
  figure.savefig(path, format='png', dpi=100)


def _draw_codes(axes, stream: token_layout.TokenStream, codes: np.ndarray) -> None:
  """Draws a code as a colour, levels downwards, time to the right."""
  seconds = len(codes) * stream.hop_seconds / stream.frame_rate if stream.frame_rate else 1
  axes.imshow(codes.T, aspect='auto', interpolation='nearest', cmap='viridis', vmin=0,
              vmax=stream.codebook_size - 1, extent=(0, seconds, stream.num_levels - 0.5, -0.5))
  axes.set(ylabel=f'{stream.name}\nlevel', yticks=sorted({0, stream.num_levels - 1}),
           xlabel=_time_label(stream))
  if not stream.frame_rate:
    axes.set_xticks([])


def _time_label(stream: token_layout.TokenStream) -> str:
  if not stream.frame_rate:
    return 'of the whole crop'
  windows = f', where windows of {stream.window_seconds} s begin' if stream.window_seconds else ''
  return f'seconds{windows}'


def _draw_clip(above, below, name: str, clip: np.ndarray, rate: int) -> None:
  """Draws the waveform, and below it the log-mel spectrogram."""
  from musiclm_jax.models import spectrogram

  seconds = len(clip) / rate
  above.plot(np.arange(len(clip)) / rate, clip, linewidth=0.3)
  above.set(xlim=(0, max(seconds, 1e-3)), ylim=(-1, 1), ylabel=name)
  config = spectrogram.MelConfig(sample_rate=rate, num_mels=_NUM_MELS)
  padded = np.pad(clip, (0, max(0, config.n_fft - len(clip))))
  mel = np.asarray(spectrogram.log_mel(padded[None], config))[0]
  below.imshow(mel.T, origin='lower', aspect='auto', cmap='magma',
               extent=(0, max(seconds, 1e-3), 0, _NUM_MELS))
  below.set(ylabel='mel band', xlabel='seconds')
