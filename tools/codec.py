"""Audio to a compact file of codes and back, at a bitrate of choice; - is stdin or stdout."""

import contextlib
import itertools
import os
import shutil
import sys
import tempfile

from musiclm_jax import cli

_EXAMPLES = """
tools/codec.py encode song.mp3 song.codes --kbps=3
tools/codec.py decode song.codes song.wav
tools/codec.py adaptive song.flac song.codes --target_bytes=100000
tools/codec.py adaptive song.flac song.codes --kbps_file=rates.txt
tools/codec.py info song.codes
cat song.ogg | tools/codec.py encode - - | tools/codec.py decode - - > song.wav
"""
_RATES_HELP = (
    'text file with a bitrate in kbps on each line, one for each second; the last one goes on'
)


def _parse(argv):
  parser = cli.parser(__doc__, _EXAMPLES)
  modes = parser.add_subparsers(dest='mode', required=True)
  helps = {
      'encode': 'audio to codes', 'decode': 'codes to wav or flac',
      'adaptive': 'audio or codes to codes whose bitrate changes from second to second',
      'info': 'what a file of codes holds',
  }  # fmt: skip
  for mode, text in helps.items():
    sub = modes.add_parser(mode, help=text, description=text, allow_abbrev=False)
    sub.add_argument('input', help='file to read, or -')
    if mode == 'info':
      continue
    sub.add_argument('output', help='file to write, or -; an existing file is replaced')
    sub.add_argument('--model', help='directory of an exported soundstream '
                                     '(default: the small one in the package)')
    if mode == 'encode':
      sub.add_argument('--kbps', type=float, help='bitrate (default: all the model has)')
    if mode == 'adaptive':
      how = sub.add_mutually_exclusive_group(required=True)
      how.add_argument('--target_bytes', type=cli.positive,
                       help='the size of the file: bits go where they help most')
      how.add_argument('--kbps_file', help=_RATES_HELP)
    else:
      sub.add_argument('--denoise', action='store_true',
                       help='take background noise out, with a model that was trained to')
  return parser.parse_args(argv)


@contextlib.contextmanager
def _source(name: str):
  """Yields a path: of stdin, a copy on disk, for decoders want to go back and forth in a file."""
  if name != '-':
    yield name
    return
  with tempfile.NamedTemporaryFile(prefix='stdin.') as copy:
    shutil.copyfileobj(sys.stdin.buffer, copy)
    copy.flush()
    yield copy.name


@contextlib.contextmanager
def _codes(name: str):
  """Yields the reader of a file of codes, which may be a pipe that is still being written."""
  from musiclm_jax import bitstream, errors

  if name == '-':
    yield bitstream.Reader(sys.stdin.buffer, 'stdin')
    return
  if not os.path.isfile(name):
    raise errors.UserError(f'{name} is not a file, wanted one that tools/codec.py wrote')
  with open(name, 'rb') as stream:
    yield bitstream.Reader(stream, name)


@contextlib.contextmanager
def _target(name: str):
  """Yields a binary file that appears under its name when whole; of stdout, stdout itself."""
  from musiclm_jax import audio, errors

  if name == '-':
    yield sys.stdout.buffer
    return
  if os.path.isdir(name):
    raise errors.UserError(f'{name} is a directory, wanted the name of a file to write')
  with audio.atomic_path(name, overwrite=True) as temporary, open(temporary, 'wb') as stream:
    yield stream


def _encode(args) -> None:
  from musiclm_jax import audio, codec

  model = codec.Codec.load(args.model)
  levels = model.levels(args.kbps)
  if args.denoise:
    model.check_denoising('encoder')
  with _source(args.input) as path:
    blocks = audio.blocks(path, model.config.sample_rate)
    first = next(blocks)  # what cannot be read is refused before a folder is made for the output
    with _target(args.output) as stream:
      blocks = itertools.chain([first], blocks)
      samples = codec.write(stream, model, blocks, levels, args.denoise)
  seconds = samples / model.config.sample_rate
  print(f'{args.output}: {seconds:.2f} s at {model.config.kbps(levels):g} kbps', file=sys.stderr)


def _decode(args) -> None:
  from musiclm_jax import audio, codec

  model = codec.Codec.load(args.model)
  rate = model.config.sample_rate
  with _codes(args.input) as reader:
    waveform = codec.read(reader, model, args.denoise)
    if args.output != '-':
      audio.write_blocks(args.output, waveform, rate, overwrite=True)
      return
    with tempfile.TemporaryDirectory() as folder:  # a wav begins with its length
      audio.write_blocks(f'{folder}/stdout.wav', waveform, rate)
      with open(f'{folder}/stdout.wav', 'rb') as whole:
        shutil.copyfileobj(whole, sys.stdout.buffer)


def _adaptive(args) -> None:
  from musiclm_jax import codec

  model = codec.Codec.load(args.model)
  rates = codec.read_rates(args.kbps_file, model) if args.kbps_file else []
  with _source(args.input) as path, tempfile.NamedTemporaryFile(prefix='codes.') as full:
    codec.write_full(path, full, model)
    with _codes(full.name) as reader:
      levels = (codec.levels_for_rates(reader, rates) if rates
                else codec.levels_for_size(reader, model, args.target_bytes))
    with _codes(full.name) as reader, _target(args.output) as stream:
      used = codec.reduce(reader, stream, levels)
  least, most = (model.config.kbps(levels) for levels in (min(used), max(used)))
  print(f'{args.output}: {least:g} to {most:g} kbps', file=sys.stderr)


def _info(args) -> None:
  from musiclm_jax import codec

  with _codes(args.input) as reader:
    print(codec.describe(reader))


def main() -> None:
  args = _parse(sys.argv[1:])
  {'encode': _encode, 'decode': _decode, 'adaptive': _adaptive, 'info': _info}[args.mode](args)


if __name__ == '__main__':
  cli.run(main)
