"""L3. What a run says while it trains: metrics.csv, TensorBoard and a progress line.

Axes: N clips, S samples, F frequencies, T frames.
"""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorboardX
from etils import epath

CSV_HEADER = 'step,name,value'
_FFT = 1024  # of the pictures: 24 kHz gives 23 Hz bins
# Dark to bright through purple and orange, as RGB in 0..1.
_COLOURS = np.array([[0, 0, 0.02], [0.32, 0.07, 0.48], [0.71, 0.21, 0.47], [0.98, 0.53, 0.38],
                     [0.99, 0.99, 0.75]])  # fmt: skip


class MetricWriter:
  """Scalars to WORKDIR/metrics.csv and TensorBoard, sound to TensorBoard; host 0 only.

  metrics.csv has one line per value: '100,train/loss,2.3026'.  A run resumed from step `start`
  first forgets what an earlier run wrote after it.
  """

  def __init__(self, workdir: str | os.PathLike, start: int = 0):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    self._csv = epath.Path(workdir) / 'metrics.csv'
    self._lines = [CSV_HEADER]
    if self._csv.exists():
      lines = self._csv.read_text().splitlines()[1:]
      self._lines += [line for line in lines if _step_of(line) <= start]
    self._board = tensorboardX.SummaryWriter(
        os.fspath(epath.Path(workdir) / 'tensorboard'), purge_step=start + 1
    )

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    if not self._active:
      return
    for name, value in values.items():
      self._board.add_scalar(name, float(value), step)
      self._lines.append(f'{step},{name},{float(value)!r}')
    self._csv.write_text('\n'.join(self._lines) + '\n')
    self._board.flush()

  def speed(self, step: int, steps_per_second: float) -> None:
    """TensorBoard only: metrics.csv stays the same for the same run."""
    if self._active and steps_per_second:
      self._board.add_scalar('timing/steps_per_second', steps_per_second, step)

  def media(self, step: int, media: Mapping[str, tuple[str, Any, int]]) -> None:
    """Writes {'name': ('audio', f32[N, S], sample rate)} as sound and as pictures."""
    if not self._active:
      return
    for name, (kind, clips, rate) in media.items():
      if kind != 'audio':
        raise ValueError(f'media {name!r} is {kind!r}, wanted "audio"')
      for n, clip in enumerate(np.asarray(clips, np.float32)):
        tag = f'{name}/{n}'
        self._board.add_audio(tag, np.clip(clip, -1, 1)[:, None], step, sample_rate=rate)
        self._board.add_image(tag, spectrogram_picture(clip), step, dataformats='HWC')
    self._board.flush()

  def close(self) -> None:
    if self._active:
      self._board.close()


def spectrogram_picture(clip: np.ndarray) -> np.ndarray:
  """Returns uint8[F, T, 3]: time to the right, low frequencies at the bottom, 80 dB deep."""
  clip = np.pad(clip, (0, max(0, _FFT - len(clip))))
  hop = max(_FFT // 4, len(clip) // 800)  # at most about 800 pixels wide
  frames = np.lib.stride_tricks.sliding_window_view(clip, _FFT)[::hop]
  power = np.abs(np.fft.rfft(frames * np.hanning(_FFT), axis=-1)) ** 2
  decibels = 10 * np.log10(np.maximum(power, 1e-10) / max(power.max(), 1e-10))
  level = np.clip(1 + decibels / 80, 0, 1).T[::-1]
  stops = np.linspace(0, 1, len(_COLOURS))
  channels = [np.interp(level, stops, _COLOURS[:, channel]) for channel in range(3)]
  return (255 * np.stack(channels, axis=-1)).astype(np.uint8)


class ProgressLine:
  """'step 1200/20000  loss 2.31  3.42 steps/s  1:31:42 left' on stderr.

  On a terminal one line is rewritten, elsewhere each report is a line.  The first step, which
  compiles, is not part of the speed.
  """

  def __init__(self, start: int, total: int, stream: Any = None):
    self._stream = stream or sys.stderr
    self._tty = self._stream.isatty()
    self._active = jax.process_index() == 0
    self._total = total
    self._last = (start, None)  # step and time of the last report
    self.steps_per_second = 0.0

  def started(self, step: int) -> None:
    """Marks the end of a step after which the speed counts."""
    self._last = (step, time.monotonic())

  def report(self, step: int, loss: float) -> None:
    last_step, last_time = self._last
    if last_time is not None and step > last_step:
      speed = (step - last_step) / max(1e-9, time.monotonic() - last_time)
      # Half the old value: the time left does not jump with every hiccup.
      old = self.steps_per_second or speed
      self.steps_per_second = 0.5 * (old + speed)
    self.started(step)
    text = f'step {step}/{self._total}  loss {loss:.4g}'
    if self.steps_per_second:
      left = (self._total - step) / self.steps_per_second
      text += f'  {self.steps_per_second:.3g} steps/s  {_clock(left)} left'
    self._write(f'\r\x1b[K{text}' if self._tty else f'{text}\n')

  def end(self) -> None:
    if self._tty:
      self._write('\n')

  def _write(self, text):
    if self._active:
      self._stream.write(text)
      self._stream.flush()


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


def _step_of(line: str) -> int:
  step = line.split(',', 1)[0]
  return int(step) if step.isdigit() else sys.maxsize
