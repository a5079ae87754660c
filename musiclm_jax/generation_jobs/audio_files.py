"""Waveforms as the bytes of audio files: the same samples, the same bytes.

libsndfile writes the time of day into wav files of floats (the PEAK chunk), so wav is written here.
"""

import io
import struct

import numpy as np

from musiclm_jax import audio, errors

SUFFIXES = {'wav': '.wav', 'wav_float': '.wav', 'flac': '.flac'}
_PCM, _FLOAT = 1, 3  # WAVE format tags


def encode(waveform: np.ndarray, rate: int, file_format: str) -> bytes:
  """Returns a mono file of float32[S]: 16-bit 'wav' or 'flac', or 'wav_float', exact in 32 bits."""
  if not np.isfinite(waveform).all():
    raise errors.UserError('the music holds NaN or infinite samples')
  if file_format == 'wav':
    samples = audio.to_pcm16(waveform).astype('<i2').tobytes()
    return _riff(_chunk(b'fmt ', _format(_PCM, rate, 2)), _chunk(b'data', samples))
  if file_format == 'wav_float':
    samples = np.asarray(waveform, '<f4').tobytes()
    return _riff(_chunk(b'fmt ', _format(_FLOAT, rate, 4) + struct.pack('<H', 0)),
                 _chunk(b'fact', struct.pack('<I', len(waveform))), _chunk(b'data', samples))
  import soundfile
  content = io.BytesIO()
  soundfile.write(content, audio.to_pcm16(waveform), rate, format='FLAC', subtype='PCM_16')
  return content.getvalue()


def size(num_samples: int, file_format: str) -> int | None:
  """Returns how long the file is, in bytes; None where that depends on the music."""
  found = {'wav': 44 + 2 * num_samples, 'wav_float': 58 + 4 * num_samples}.get(file_format)
  if found is not None and found >= 2**32:
    raise errors.UserError(f'{num_samples} samples are more than a {file_format} file can hold, '
                           'wanted shorter music or flac')
  return found


def _format(tag: int, rate: int, width: int) -> bytes:
  return struct.pack('<HHIIHH', tag, 1, rate, rate * width, width, 8 * width)


def _riff(*chunks: bytes) -> bytes:
  return _chunk(b'RIFF', b'WAVE' + b''.join(chunks))


def _chunk(name: bytes, content: bytes) -> bytes:
  return name + struct.pack('<I', len(content)) + content
