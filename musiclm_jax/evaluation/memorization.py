"""L5. Does the semantic stage repeat what it was trained on?  MusicLM sections 4.4 and 5.

Axes: N examples, T prompt tokens, G generated tokens (125, 5 s), P prefix ids, L target ids.

The stage gets the music tokens M_A of a crop and its first T semantic tokens, and goes on greedily:

  exact match        all G tokens are those of the crop
  approximate match  the histograms of both are nearer than tau: the cost of the cheapest transport,
                     where moving a token costs the distance of the k-means centroids

tau is calibrated on permuted pairs, a continuation and the crop of another piece, so that less than
a given share of those is called a match; it is in units of the centroids (the paper's: 0.85).

Departures: the paper does not give Sinkhorn's regularisation and iterations (here
optimal_transport.Sinkhorn); a crop is drawn anywhere in a clip, on whole seconds, as in training;
and with a stage of 10 s, T + G ends at 250 tokens, where the paper's 30 s leave room for T = 250.
"""

import collections
import dataclasses
import io
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import tqdm

from musiclm_jax import audio, errors, sampling, token_layout
from musiclm_jax.evaluation import codec_quality, optimal_transport

PAPER_PROMPTS = (0, 25, 50, 75, 125, 250)
_HISTOGRAM_BINS = 40


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is asked of the model, and when two sequences are nearly the same.

  prompt_tokens: T; None for those of the paper that fit the stage.
  new_tokens: G.
  num_examples: at most.
  permutations: permuted pairs an example and T, for tau.
  false_positives: less than this share of the permuted pairs is nearer than tau.
  tau: None to calibrate it; or that of another report, to compare with it.
  batch_size: examples at a time; only figures an example are kept of what was before.
  """

  prompt_tokens: tuple[int, ...] | None = None
  new_tokens: int = 125
  num_examples: int = 1024
  permutations: int = 16
  false_positives: float = 1e-4
  tau: float | None = None
  batch_size: int = 64
  seed: int = 0
  transport: optimal_transport.Sinkhorn = optimal_transport.Sinkhorn()

  def __post_init__(self):
    for name in ('new_tokens', 'num_examples', 'permutations'):
      if getattr(self, name) < 1:
        raise errors.UserError(f'{name} is {getattr(self, name)}, wanted at least 1')
    if self.batch_size < 2:
      raise errors.UserError(f'batch_size is {self.batch_size}, wanted at least 2: pairs are '
                             'permuted within a batch')
    if not 0 < self.false_positives < 1:
      raise errors.UserError(
          f'false_positives is {self.false_positives}, wanted more than 0 and less than 1')
    if self.tau is not None and not 0 < self.tau < math.inf:
      raise errors.UserError(f'tau is {self.tau}, wanted more than 0')

  def prompts(self, stage: token_layout.StageLayout) -> tuple[int, ...]:
    """Returns the T, ascending; one that does not fit `stage` is an error."""
    room = stage.target_length - self.new_tokens
    wanted = PAPER_PROMPTS if self.prompt_tokens is None else self.prompt_tokens
    if self.prompt_tokens is None:
      wanted = [tokens for tokens in wanted if tokens <= room]
    wanted = tuple(sorted(set(wanted)))
    if room < 0 or not wanted or not 0 <= wanted[0] <= wanted[-1] <= room:
      raise errors.UserError(
          f'prompts of {list(wanted)} tokens and {self.new_tokens} new ones do not fit the '
          f'{stage.target_length} of the {stage.name} stage')
    return wanted


class Example(NamedTuple):
  """A crop: ids int32[P] of its prefix and int32[L] of its target, and the piece it is from."""

  prefix: np.ndarray
  target: np.ndarray
  piece: str


@dataclasses.dataclass(frozen=True)
class Row:
  """What was found with T prompt tokens; errors are standard errors of the shares.

  cost, permuted_cost: means over the crops' own and over permuted pairs.
  entropy, target_entropy: mean bits of the histograms of all continuations and of the crops.
  exact_entropy, approximate_entropy: of the continuations that match.
  What is a mean of nothing is NaN.
  """

  prompt_tokens: int
  exact: float
  exact_error: float
  approximate: float
  approximate_error: float
  cost: float
  permuted_cost: float
  entropy: float
  target_entropy: float
  exact_entropy: float
  approximate_entropy: float


@dataclasses.dataclass(frozen=True)
class Costs:
  """How many of the own and of the permuted pairs, of all T, cost what: a histogram."""

  edges: tuple[float, ...]
  own: tuple[int, ...]
  permuted: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Report:
  """Exact and approximate matches over T.

  mean_distance: of two centroids, to compare tau with that of other centroids.
  tau_matches: of the num_permuted pairs, those below tau.
  unconverged: share of all transport plans that missed the tolerance.
  """

  num_examples: int
  settings: Settings
  tau: float
  tau_matches: int
  num_permuted: int
  mean_distance: float
  unconverged: float
  rows: tuple[Row, ...]
  costs: Costs


def calibrate(permuted: np.ndarray, false_positives: float) -> float:
  """Returns the largest tau below which less than a share of costs float[M] lies.

    share 0.5 of [3 1 2 4]: 2, as only 1 is below      share 0.01 of them: 1, as none is below
  """
  permuted = np.sort(np.asarray(permuted, np.float64))
  if not len(permuted):
    raise errors.UserError('tau needs permuted pairs: give examples of two or more pieces')
  below = math.ceil(round(false_positives * len(permuted), 9)) - 1
  return float(permuted[max(below, 0)])


def share_error(share: float, count: int) -> float:
  """Returns the standard error of a share of `count` examples, as if they were independent."""
  return math.sqrt(share * (1 - share) / count)


def largest_share(count: int) -> float:
  """Returns the share up to which 0 of `count` independent ones is no surprise (95 %, rule of three)."""
  return min(1.0, 3 / count)


class _Tally:
  """Figures of each example so far, for one T."""

  def __init__(self):
    self._parts = collections.defaultdict(list)

  def add(self, **figures: np.ndarray) -> None:
    for name, values in figures.items():
      self._parts[name].append(values)

  def __getitem__(self, name: str) -> np.ndarray:
    return np.concatenate(self._parts[name])


def measure(sampler: sampling.Sampler, centroids: np.ndarray, examples: Iterable[Example],
            settings: Settings = Settings(), progress: bool = False) -> Report:
  """Returns how often the model goes on as its examples do.

  Args:
    sampler: of the semantic stage.
    centroids: float[K, D] of the semantic tokens.
    examples: read once, a batch at a time.
    settings: see there.
    progress: shows a progress bar.
  """
  stage = sampler.stage
  if stage.target.num_levels != 1 or stage.codebook_size != len(centroids):
    raise errors.UserError(
        f'{len(centroids)} centroids for {stage.target.num_levels} levels of {stage.codebook_size} '
        f'{stage.target.name} tokens, wanted one each of one level')
  prompts, distance = settings.prompts(stage), optimal_transport.distances(centroids)
  tallies = {tokens: _Tally() for tokens in prompts}
  rng, count = np.random.default_rng(settings.seed), 0
  examples = itertools.islice(examples, settings.num_examples)
  total = settings.num_examples * len(prompts)  # fewer, when there are fewer examples
  with tqdm.tqdm(desc='continuations', total=total, disable=not progress) as bar:
    while batch := list(itertools.islice(examples, settings.batch_size)):
      pairs = _permuted(batch, settings.permutations, rng)
      for tokens, tally in tallies.items():
        tally.add(**_compare(sampler, batch, pairs, tokens, distance, settings))
        bar.update(len(batch))
      count += len(batch)
  if not count:
    raise errors.UserError(f'no example of {stage.seconds:g} s, which is what the stage reads')
  return _report(tallies, count, distance, settings)


def _permuted(batch: Sequence[Example], permutations: int, rng) -> np.ndarray:
  """Returns int[M, 2]: examples and others of other pieces, each pair at most once."""
  order = rng.permutation(len(batch))
  shifts = range(1, min(permutations, len(batch) - 1) + 1)
  pairs = [(order[i], order[(i + shift) % len(batch)])
           for shift in shifts for i in range(len(batch))]
  kept = [(i, j) for i, j in pairs if batch[i].piece != batch[j].piece]
  return np.array(kept, np.int64).reshape(-1, 2)


def _compare(sampler, batch, pairs, tokens, distance, settings) -> dict[str, np.ndarray]:
  """Returns the figures of the examples of a batch and of their permuted pairs."""
  stage, end = sampler.stage, tokens + settings.new_tokens
  rows = np.minimum(np.arange(settings.batch_size), len(batch) - 1)  # the last batch: filled up
  prefix = np.stack([example.prefix for example in batch])[rows]
  target = np.stack([example.target for example in batch])
  given = target[rows][:, :tokens] if tokens else None
  ids = sampler.sample(
      prefix, jax.random.key(0), temperature=0.0, num_frames=end, given=given)
  made = stage.unflatten(np.asarray(ids)[:len(batch), tokens:])[..., 0]
  wanted = stage.unflatten(target[:, tokens:end])[..., 0]
  made_bins, wanted_bins = (optimal_transport.histograms(codes) for codes in (made, wanted))

  def costs(i, j):
    return optimal_transport.costs([part[i] for part in made_bins], [part[j] for part in wanted_bins],
                                   distance, settings.transport)

  own, own_good = costs(np.arange(len(batch)), np.arange(len(batch)))
  permuted, permuted_good = costs(*pairs.T) if len(pairs) else (np.zeros(0), np.zeros(0, bool))
  return {
      'exact': np.all(made == wanted, axis=1), 'cost': own, 'permuted': permuted,
      'entropy': optimal_transport.entropy(made_bins[1]),
      'target_entropy': optimal_transport.entropy(wanted_bins[1]),
      'converged': np.concatenate([own_good, permuted_good])}


def _report(tallies, count, distance, settings) -> Report:
  own, permuted, converged = (
      np.concatenate([tally[name] for tally in tallies.values()])
      for name in ('cost', 'permuted', 'converged'))
  tau = settings.tau or calibrate(permuted, settings.false_positives)
  highest = max(np.concatenate([own, permuted]).max(), 1e-6)  # all may be 0
  edges = np.linspace(0, highest, _HISTOGRAM_BINS + 1)
  return Report(
      num_examples=count, settings=settings, tau=tau, tau_matches=int(np.sum(permuted < tau)),
      num_permuted=len(permuted), mean_distance=optimal_transport.mean_distance(distance),
      unconverged=float(np.mean(~converged)),
      rows=tuple(_row(tokens, tally, tau) for tokens, tally in tallies.items()),
      costs=Costs(tuple(edges.tolist()), *(tuple(np.histogram(values, edges)[0].tolist())
                                           for values in (own, permuted))))


def _row(tokens: int, tally: _Tally, tau: float) -> Row:
  entropy, matches = tally['entropy'], {'exact': tally['exact'], 'approximate': tally['cost'] < tau}
  shares = {name: float(match.mean()) for name, match in matches.items()}
  return Row(
      prompt_tokens=tokens, **shares,
      **{f'{name}_error': share_error(share, len(entropy)) for name, share in shares.items()},
      **{f'{name}_entropy': _mean(entropy[match]) for name, match in matches.items()},
      cost=float(tally['cost'].mean()), permuted_cost=_mean(tally['permuted']),
      entropy=float(entropy.mean()), target_entropy=float(tally['target_entropy'].mean()))


def _mean(values: np.ndarray) -> float:
  return float(values.mean()) if len(values) else math.nan


# --- What a report says ------------------------------------------------------------------------


def describe(report: Report) -> str:
  """Returns a report as lines of text and a table in markdown."""
  new, count = report.settings.new_tokens, report.num_examples
  unsure = (f'; no more than {100 * largest_share(report.num_permuted):.3g} % of all such pairs are '
            '(95 %)') if report.num_permuted and not report.tau_matches else ''
  lines = [
      f'{count} examples; {new} tokens, greedy, after M_A and the first T tokens of each',
      f'tau {report.tau:.4g}, {report.tau / report.mean_distance:.3f} mean distances of two centroids: '
      f'{report.tau_matches} of {report.num_permuted} permuted pairs are nearer{unsure}']
  if report.unconverged:
    lines.append(f'{100 * report.unconverged:.2g} % of the transport plans missed the tolerance of '
                 f'{report.settings.transport.tolerance:g}')
  rows = [(str(row.prompt_tokens), _share(row.exact, row.exact_error, count),
           _share(row.approximate, row.approximate_error, count), f'{row.cost:.2f}',
           *('-' if math.isnan(value) else f'{value:.2f}' for value in (
               row.permuted_cost, row.entropy, row.target_entropy, row.exact_entropy,
               row.approximate_entropy)))
          for row in report.rows]
  names = ('T', 'exact matches, %', 'approximate, %', 'cost', 'of permuted pairs', 'entropy, bits',
           'of the crops', 'of exact matches', 'of approximate')
  return '\n'.join(lines) + '\n\n' + codec_quality.table(names, rows)


def _share(share: float, error: float, count: int) -> str:
  if not share:
    return f'0 (below {100 * largest_share(count):.2g})'
  return f'{100 * share:.2f} ± {100 * error:.2f}'


def write_json(path: str | os.PathLike, report: Report) -> None:
  """Writes every figure, null for NaN; an existing file is replaced."""
  content = dataclasses.asdict(report)
  for row in content['rows']:
    row.update({name: None for name, value in row.items() if math.isnan(value)})
  with audio.atomic_path(path, overwrite=True) as temporary:
    pathlib.Path(temporary).write_text(
        json.dumps(content, indent=2, allow_nan=False) + '\n', encoding='utf-8')


def write_plot(path: str | os.PathLike, report: Report) -> None:
  """Writes `draw` to a file; an existing one is replaced."""
  with audio.atomic_path(path, overwrite=True) as temporary:
    pathlib.Path(temporary).write_bytes(draw(report))


def draw(report: Report) -> bytes:
  """Returns a png: the matches over T, and the costs of own and of permuted pairs about tau."""
  import matplotlib.figure

  figure = matplotlib.figure.Figure(figsize=(11, 4.2), layout='constrained')
  curves, costs = figure.subplots(1, 2)
  tokens = [row.prompt_tokens for row in report.rows]
  for name, mark in (('exact', 'o-'), ('approximate', 's--')):
    shares = [100 * getattr(row, name) for row in report.rows]
    spread = [100 * getattr(row, f'{name}_error') for row in report.rows]
    curves.errorbar(tokens, shares, spread, fmt=mark, capsize=3, label=f'{name} matches')
  curves.set(xlabel='semantic tokens in the prompt, T', ylabel='% of examples',
             title=f'Memorization, {report.num_examples} examples')
  curves.set_xticks(tokens)
  curves.legend()
  for name, colour in (('permuted', '#bbbbbb'), ('own', '#4477aa')):
    counts = np.array(getattr(report.costs, name))
    costs.stairs(100 * counts / max(counts.sum(), 1), report.costs.edges, fill=True, alpha=0.6,
                 color=colour, label=f'{name} pairs')
  costs.axvline(report.tau, color='black', linestyle=':', label=f'tau {report.tau:.2f}')
  costs.set(xlabel='cost of transport', ylabel='% of pairs', title='Approximate matches: left of tau')
  costs.set_ylim(top=1.2 * costs.get_ylim()[1])
  costs.legend(ncols=3, loc='upper center')
  png = io.BytesIO()
  figure.savefig(png, format='png', dpi=110)
  return png.getvalue()
