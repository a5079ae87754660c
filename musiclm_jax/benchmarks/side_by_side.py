"""L5. Our decoding and transformers' static-cache `generate`, in turn on the same machine.

Both run in a process of their own that stays alive and waits while the other one works.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from musiclm_jax import errors, token_layout
from musiclm_jax.benchmarks import decode_speed, devices, hugging_face_decode
from musiclm_jax.models import transformer
from musiclm_jax.objectives import language_model

_CHILD = pathlib.Path(hugging_face_decode.__file__)
_ROOT = _CHILD.parents[2]
_OURS = 'from musiclm_jax.benchmarks import side_by_side; side_by_side.serve_ours()'


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Of one batch size: seconds of each run of ours and of theirs, prefill and all tokens.

  our_model, their_model: what each process says of itself.
  """

  batch_size: int
  prefix: int
  tokens: int
  temperature: float
  our_model: dict[str, Any]
  their_model: dict[str, Any]
  ours: list[float]
  theirs: list[float]

  @property
  def ratios(self) -> list[float]:
    """Returns how many times as long theirs took, pair by pair."""
    return [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]

  def as_json(self) -> dict[str, Any]:
    done = self.batch_size * self.tokens
    return dataclasses.asdict(self) | {
        'ratios': self.ratios, 'ratio': statistics.median(self.ratios),
        'ratio_of_fastest': min(self.theirs) / min(self.ours),
        'our_tokens_per_second': done / statistics.median(self.ours),
        'their_tokens_per_second': done / statistics.median(self.theirs)}

  def describe(self) -> str:
    """Returns the figures as lines of text."""
    found = self.as_json()
    rows = (('ours', self.our_model, self.ours, found['our_tokens_per_second']),
            ('theirs', self.their_model, self.theirs, found['their_tokens_per_second']))
    return '\n'.join([
        f'batch {self.batch_size}, {self.tokens} tokens after {self.prefix}, '
        f'{len(self.ours)} pairs; seconds are median (least to most)',
        *(f'{name}: {devices.spread(seconds, digits=3)} s, {speed:,.1f} tokens/s; '
          f'{model["num_params"]:,} parameters, {model["dtype"]}, on {model["device"]}, '
          f'{model["versions"]}' for name, model, seconds, speed in rows),
        f'theirs takes {devices.spread(self.ratios)} times as long; its fastest run '
        f'{found["ratio_of_fastest"]:.2f} times our fastest',
    ])


def measure(objective: language_model.LanguageModelObjective, batch_sizes: Sequence[int],
            tokens: int, temperature: float = 1.0, weights_dtype: str = '', python: str | None = None,
            dtype: str = 'float32', repeats: int = 5) -> Iterator[Pairs]:
  """Yields the pairs of each batch size.

  Args:
    python: that has torch and transformers; default: the one that runs this.
    dtype: of their weights and cache.
  """
  config, stage = objective.config, objective.stage_layout
  threads = len(os.sched_getaffinity(0))
  with contextlib.ExitStack() as stack:
    child = lambda *args: stack.enter_context(contextlib.closing(Child(*args)))
    theirs = child("transformers' process", [python or sys.executable, str(_CHILD)],
                   {'PYTHONSAFEPATH': '1', 'HF_HUB_OFFLINE': '1'})
    their_model = theirs.ask(like(config, stage.sequence_length + 1)
                             | {'dtype': dtype, 'threads': threads})
    ours = child('our process', [sys.executable, '-c', _OURS],
                 {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}, _ROOT)  # theirs needs GPU memory, too
    our_model = ours.ask(our_spec(objective, weights_dtype))
    for batch_size in batch_sizes:
      request = {'batch_size': batch_size, 'prefix': stage.prefix_length + 1, 'tokens': tokens,
                 'temperature': temperature}
      seconds = {ours: [], theirs: []}
      for pair in range(repeats + 1):  # the first one warms up
        for each in (ours, theirs) if pair % 2 else (theirs, ours):
          seconds[each].append(each.ask(request | {'seed': pair})['seconds'])
      yield Pairs(**request, our_model=our_model, their_model=their_model,
                  ours=seconds[ours][1:], theirs=seconds[theirs][1:])


def like(config: transformer.DecoderConfig, length: int) -> dict[str, Any]:
  """Returns the fields of a LlamaConfig of the same size, with room for `length` positions."""
  return {
      'vocab_size': config.vocab_size, 'num_hidden_layers': config.num_layers,
      'hidden_size': config.emb_dim, 'intermediate_size': config.mlp_dim,
      'num_attention_heads': config.num_heads, 'num_key_value_heads': config.num_heads,
      'head_dim': config.head_dim, 'tie_word_embeddings': config.tie_embeddings,
      'max_position_embeddings': length}


def our_spec(objective: language_model.LanguageModelObjective, weights_dtype: str
             ) -> dict[str, Any]:
  """Returns what `serve_ours` takes first."""
  return {'config': dataclasses.asdict(objective.config), 'layout': objective.layout.to_json(),
          'stage': objective.stage, 'seconds': objective.seconds, 'weights_dtype': weights_dtype}


def serve_ours() -> None:
  """Answers for our model as hugging_face_decode.py does for theirs."""
  hugging_face_decode.serve(_prepare_ours)


def _prepare_ours(spec):
  import jax

  layout = token_layout.TokenLayout.from_json(spec['layout'])
  decoding = decode_speed.Decoding(
      transformer.DecoderConfig(**spec['config']), layout.stage(spec['stage'], spec['seconds']),
      spec['weights_dtype'], (1, 1, 1))

  def decode(request):
    return {'seconds': decoding.seconds(
        *(request[name] for name in ('batch_size', 'tokens', 'temperature', 'seed')))}

  return {'num_params': decoding.num_params,
          'dtype': f'weights {decoding.weights_dtype}, cache {decoding.cache_dtype}',
          'device': jax.devices()[0].device_kind, 'versions': f'jax {jax.__version__}'}, decode


class Child:
  """A process that answers one line of JSON with one; see hugging_face_decode.serve."""

  def __init__(self, name: str, command: Sequence[str], environment: dict[str, str],
               folder: pathlib.Path | None = None):
    self._name, self._errors = name, tempfile.TemporaryFile('w+')
    try:
      self._process = subprocess.Popen(
          command, cwd=folder, env=os.environ | environment, stdin=subprocess.PIPE,
          stdout=subprocess.PIPE, stderr=self._errors, text=True)
    except OSError as error:
      self._errors.close()
      raise errors.UserError(f'{name}: {command[0]} cannot be run: {error.strerror}') from error

  def ask(self, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to a request; a UserError when it is none."""
    line = ''
    with contextlib.suppress(BrokenPipeError):  # it ended: what it wrote last says why
      self._process.stdin.write(json.dumps(request) + '\n')
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    if not line:
      code = self._process.wait()
      self._errors.seek(0)
      last = self._errors.read().strip().splitlines()[-1:]
      raise errors.UserError(f'{self._name} ended with code {code}: {"".join(last) or "no message"}')
    try:
      answer = json.loads(line)
    except ValueError as error:
      raise errors.UserError(f'{self._name} answered {line.strip()[:200]!r}, wanted JSON') from error
    if not isinstance(answer, dict) or 'error' in answer:
      message = answer['error'] if isinstance(answer, dict) else f'answered {line.strip()[:200]!r}'
      raise errors.UserError(f'{self._name}: {message}')
    return answer

  def close(self) -> None:
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    try:
      self._process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()
    self._errors.close()
