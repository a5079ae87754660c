"""Times generation: seconds from command to wav in a fresh process, and the warm real-time factor."""

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from musiclm_jax import cli, errors

_EXAMPLES = """
python tools/benchmark_generation.py
python tools/benchmark_generation.py --seconds=30 --repeats=5 --model=models/my_set
"""


def _parse():
  parser = cli.parser(__doc__, _EXAMPLES)
  parser.add_argument('--prompt', default='A calm solo piano piece', help='(default: %(default)s)')
  parser.add_argument('--seconds', type=float, default=10.0,
                      help='length of the music (default: %(default)s)')
  parser.add_argument('--repeats', type=cli.positive, default=3,
                      help='runs of each kind; medians are printed (default: %(default)s)')
  parser.add_argument('--model', default=None,
                      help='directory of exported models (default: the small one in the package)')
  return parser.parse_args()


def cold_seconds(args) -> float:
  """Returns the seconds that tools/generate.py takes, imports and compilation included."""
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, str(pathlib.Path(__file__).with_name('generate.py')),
               f'--prompt={args.prompt}', f'--seconds={args.seconds}', f'--output={folder}/a.wav']
    start = time.perf_counter()
    done = subprocess.run(command + ([f'--model={args.model}'] if args.model else []),
                          capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
  if done.returncode:
    raise errors.UserError(f'tools/generate.py failed: {done.stderr.splitlines()[-1]}')
  return seconds


def main() -> None:
  args = _parse()
  from musiclm_jax import generate

  generate.check_request([args.prompt], args.seconds)
  musiclm = generate.MusicLM.from_pretrained(args.model)
  cold = [cold_seconds(args) for _ in range(args.repeats)]
  print(f'cold: {statistics.median(cold):.1f} s from command to wav '
        f'({min(cold):.1f} to {max(cold):.1f}, {args.repeats} runs)')
  warm = []
  for seed in range(args.repeats + 1):  # the first one compiles
    start = time.perf_counter()
    musiclm.generate([args.prompt], seconds=args.seconds, seed=seed)
    warm.append(time.perf_counter() - start)
  factors = [args.seconds / seconds for seconds in warm[1:]]
  print(f'warm: {statistics.median(factors):.2f} s of music a second '
        f'({min(factors):.2f} to {max(factors):.2f}, {args.repeats} runs)')


if __name__ == '__main__':
  cli.run(main)
