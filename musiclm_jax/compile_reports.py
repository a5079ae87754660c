"""L3. What a run costs on TPUs, as compile_check.py finds it: text, JSON, and a table of many."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from musiclm_jax import errors, program_costs, tpu_chips

_GATHERS = ('all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')


@dataclasses.dataclass(frozen=True)
class TrainReport:
  """Of one training step; bytes are per chip, FLOPs of all chips.

  hbm: {'parameters', 'optimizer', 'activations', 'program', 'total'}; 'optimizer' is all else that
    the state holds, activations are all that lives within the step.
  model_flops: three times the forward pass; program_flops: with what the backward pass computes
    again.
  collectives: {kind: (how many, bytes a chip sends)}, of choices by the branch that sends least;
    dearest_collectives: by the one that sends most, as in a first step that starts codebooks.
  needed: the bytes that the sharding needs, see
    program_costs.needed_bytes and needed_for_activations.
  seconds: {'compute', 'memory', 'network'}: lower bounds of a step, each as if the others took no
    time.
  """

  topology: str
  num_chips: int
  mesh: dict[str, int]
  batch_size: int
  microbatches: int
  num_params: int
  hbm: dict[str, int]
  hbm_limit: int
  model_flops: int
  program_flops: int
  collectives: dict[str, program_costs.Collectives]
  dearest_collectives: dict[str, program_costs.Collectives]
  needed: dict[str, float]
  seconds: dict[str, float]
  compile_seconds: float

  @property
  def mfu_bound(self) -> float:
    """Returns the largest model FLOPs utilisation that the bounds allow, when all overlaps."""
    chip = tpu_chips.parse(self.topology)
    return self.model_flops / self.num_chips / chip.flops / max(self.seconds.values())

  @property
  def gather_ratio(self) -> float | None:
    """Returns bytes of gathers and scatters, permutes in their place too, over those needed."""
    needed = self.needed['all-gather'] + self.needed['reduce-scatter']
    sent = sum(each.sent for kind, each in self.collectives.items() if kind in _GATHERS)
    return sent / needed if needed else None

  def as_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self) | {
        'mfu_bound': self.mfu_bound, 'gather_ratio': self.gather_ratio}

  def describe(self) -> str:
    """Returns the report as lines of text."""
    ratio = self.gather_ratio
    return '\n'.join([
        f'{self.topology}: {self.num_chips} chips, mesh {self.mesh}, batch {self.batch_size}'
        + (f' in {self.microbatches} microbatches' if self.microbatches > 1 else '')
        + f', {self.num_params:,} parameters; compiled in {self.compile_seconds:.0f} s',
        f'HBM per chip, GiB: {gib(self.hbm)}, of {self.hbm_limit / 2**30:.2f}',
        f'FLOPs per step: model {self.model_flops:.3e}, program {self.program_flops:.3e} '
        f'({self.program_flops / self.model_flops:.2f} times the model)',
        f'collectives, sent by a chip per step: {_moved(self.collectives)}'
        + (f'; by the dearest branches: {_moved(self.dearest_collectives)}'
           if self.dearest_collectives != self.collectives else ''),
        'of these the sharding needs: ' + ', '.join(
            f'{kind} {sent / 2**20:,.0f} MiB' for kind, sent in self.needed.items())
        + (f'; gathers and scatters, with permutes in their place: {ratio:.2f} times that'
           if ratio else ''),
        f'at least, per step: {_times(self.seconds)}; model FLOPs utilisation at most '
        f'{100 * self.mfu_bound:.0f}%',
    ])


@dataclasses.dataclass(frozen=True)
class DecodeReport:
  """Of sampling with a cache of `slots` tokens; bytes are per chip, FLOPs of all chips.

  hbm: {'parameters', 'cache', 'activations', 'program', 'total'} of the loop that draws tokens.
  prefill_flops: of `slots` tokens of every example; token_flops: of one token of every example.
  token_bytes: {'parameters', 'cache'} read for a token: every matrix once, of the output table one
    level's rows, and all slots.  collectives: of one token.
  seconds: {'compute', 'memory', 'network'}: lower bounds of one token of every example.
  """

  topology: str
  num_chips: int
  mesh: dict[str, int]
  batch_size: int
  slots: int
  dtype: str
  num_params: int
  hbm: dict[str, int]
  hbm_limit: int
  prefill_flops: int
  token_flops: int
  token_bytes: dict[str, int]
  collectives: dict[str, program_costs.Collectives]
  seconds: dict[str, float]
  compile_seconds: float

  @property
  def tokens_per_second(self) -> float:
    """Returns the most tokens a second, of all examples, that the bounds allow."""
    return self.batch_size / max(self.seconds.values())

  def as_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self) | {'tokens_per_second': self.tokens_per_second}

  def describe(self) -> str:
    """Returns the report as lines of text."""
    return '\n'.join([
        f'{self.topology}: {self.num_chips} chips, mesh {self.mesh}, decoding batch '
        f'{self.batch_size} with a cache of {self.slots} tokens, {self.num_params:,} parameters in '
        f'{self.dtype}; compiled in {self.compile_seconds:.0f} s',
        f'HBM per chip, GiB: {gib(self.hbm)}, of {self.hbm_limit / 2**30:.2f}',
        f'FLOPs: prefill {self.prefill_flops:.3e}, per token {self.token_flops:.3e}',
        'bytes read by a chip per token: ' + ', '.join(
            f'{name} {size / 2**20:,.1f} MiB' for name, size in self.token_bytes.items()),
        f'collectives, sent by a chip per token: {_moved(self.collectives)}',
        f'at least, per token: {_times(self.seconds)}; at most {self.tokens_per_second:,.0f} '
        'tokens/s',
    ])


def gib(sizes: Mapping[str, float]) -> str:
  return ', '.join(f'{name} {size / 2**30:.2f}' for name, size in sizes.items())


def _moved(collectives: Mapping[str, program_costs.Collectives]) -> str:
  return ', '.join(f'{kind} {each.sent / 2**20:,.0f} MiB in {each.count}'
                   for kind, each in sorted(collectives.items())) or 'none'


def _times(seconds: Mapping[str, float]) -> str:
  return ', '.join(f'{name} {1e3 * each:.3g} ms' for name, each in seconds.items())


# --- A table of many --------------------------------------------------------------------------

_COLUMNS = ('run', 'topology', 'mesh', 'batch', 'HBM per chip, GiB', 'program / model FLOPs',
            'compute, ms', 'network, ms')


def table(reports: Iterable[Mapping[str, Any]]) -> str:
  """Returns a Markdown table of training steps, from the JSON files of tools/compile_check.py.

  A batch that is not the run's own has a mark, and what the run's is.
  """
  rows = [_COLUMNS, ('---',) * len(_COLUMNS)]
  for each in sorted(reports, key=lambda each: (str(each.get('run')), str(each.get('topology')))):
    try:
      batch, wanted, mesh = each['batch_size'], each['wanted_batch_size'], each['mesh'].values()
      rows.append((
          f'`{each["run"]}`', each['topology'], '×'.join(map(str, mesh)),
          (f'{batch}' if batch == wanted else f'{batch} (of {wanted})')
          + (f' in {each["microbatches"]} parts' if each['microbatches'] > 1 else ''),
          f'{each["hbm"]["total"] / 2**30:.1f} of {each["hbm_limit"] / 2**30:.1f}',
          f'{each["program_flops"] / each["model_flops"]:.2f}',
          f'{1e3 * each["seconds"]["compute"]:.1f}', f'{1e3 * each["seconds"]["network"]:.1f}'))
    except (KeyError, TypeError, AttributeError) as error:
      raise errors.UserError(f'not a report of a training step: {error}') from error
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)
