"""Times a codec: seconds of audio that it encodes and decodes in a second, whole and in blocks."""

import os
import statistics
import time

from musiclm_jax import cli

_EXAMPLES = """
python tools/benchmark_codec.py
python tools/benchmark_codec.py --models=tiny --seconds=30 --repeats=9
"""
_BATCH_SIZES = (1, 8)


def models(text: str) -> list[str]:
  """Returns the names of 'tiny,base', each once."""
  names = list(dict.fromkeys(text.split(',')))
  if not set(names) <= {'tiny', 'base'}:
    raise ValueError(f'{text!r} names a model that is neither tiny nor base')
  return names


def _seconds(text: str) -> float:
  value = float(text)
  if not 0.02 <= value <= 600:  # nor for NaN
    raise ValueError(f'{value} is not within 0.02 to 600')
  return value


def _parse():
  parser = cli.parser(__doc__, _EXAMPLES)
  parser.add_argument('--models', type=models, default=['tiny', 'base'],
                      help="tiny: the package's, base: MusicLM's size, with random weights "
                           '(default: tiny,base)')
  parser.add_argument('--seconds', type=_seconds, default=10.0, metavar='SECONDS',
                      help='length of a clip, 0.02 to 600 (default: %(default)g)')
  parser.add_argument('--repeats', type=cli.positive, default=5,
                      help='runs, after one that compiles; medians are printed '
                           '(default: %(default)s)')
  return parser.parse_args()


def _base():
  """Returns a codec of the default config with random weights and random codebooks."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  from etils import epath

  from musiclm_jax import checkpoints, codec
  from musiclm_jax.models import soundstream

  config = soundstream.SoundStreamConfig()
  module = soundstream.SoundStream(config)
  rng = jax.random.key(0)
  variables = nn.unbox(jax.jit(module.init)(rng, jnp.zeros((1, config.hop_length))))
  books = variables['codebooks']['quantizer']
  books['embeddings'] = 0.1 * jax.random.normal(rng, books['embeddings'].shape)
  return codec.Codec(checkpoints.ExportedModel(
      'soundstream', config, module, variables, extra={}, directory=epath.Path('base'),
      fingerprint=''))


def _speed(seconds: float, repeats: int, function, *inputs) -> str:
  """Returns 'median (least to most)' of seconds of audio in a second."""
  function(*inputs)  # compiles
  found = []
  for _ in range(repeats):
    start = time.perf_counter()
    function(*inputs)
    found.append(seconds / (time.perf_counter() - start))
  return f'{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})'


def _rows(codec, seconds: float, repeats: int):
  """Yields (mode, batch size, speed of encoding, speed of decoding) of one codec."""
  import jax
  import numpy as np

  model, config = codec.model, codec.config
  noise = np.random.RandomState(0).randn(max(_BATCH_SIZES), round(seconds * config.sample_rate))
  waveforms = np.clip(0.1 * noise, -1, 1).astype(np.float32)
  whole = lambda method, batch: jax.block_until_ready(model.apply(method, batch))
  for size in _BATCH_SIZES:
    batch = jax.device_put(waveforms[:size])
    encode = _speed(size * seconds, repeats, whole, 'encode', batch)
    decode = _speed(size * seconds, repeats, whole, 'decode', model.apply('encode', batch))
    yield 'whole', size, encode, decode
  stream = lambda method, chunks: list(method(chunks))
  for block in (max(1, round(config.frame_rate)), 1):  # about a second, and the least latency
    streaming = type(codec)(model, block)
    encode = _speed(seconds, repeats, stream, streaming.encode, waveforms[:1])
    codes = stream(streaming.encode, waveforms[:1])
    decode = _speed(seconds, repeats, stream, streaming.decode, codes)
    milliseconds = 1000 * block * config.hop_length / config.sample_rate
    yield f'blocks of {milliseconds:g} ms', 1, encode, decode


def main() -> None:
  args = _parse()
  import jax

  from musiclm_jax import codec

  device = jax.devices()[0]
  print(f'{len(os.sched_getaffinity(0))} CPU cores, {len(jax.devices())} x {device.platform}'
        f' ({device.device_kind}); clips of {args.seconds:g} s, all levels;'
        f' seconds of audio in a second: median (least to most) of {args.repeats} runs\n')
  print('| model | mode | batch | encode | decode |\n|---|---|---:|---:|---:|')
  for name in args.models:
    found = codec.Codec.load() if name == 'tiny' else _base()
    for mode, size, encode, decode in _rows(found, args.seconds, args.repeats):
      print(f'| {name} | {mode} | {size} | {encode} | {decode} |', flush=True)


if __name__ == '__main__':
  cli.run(main)
