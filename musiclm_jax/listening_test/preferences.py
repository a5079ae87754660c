"""L5. What the answers of a listening test say: wins, ties, the Wilcoxon signed-rank test.

MusicLM (2301.11325), 5: a win is a strong or a weak preference; the test is on the five answers,
-2 to 2, of each pair of systems, corrected by Bonferroni at 0.01 (the paper divides by 15, which
are not the pairs of its four systems; here it is their number unless another is given).
"""

import collections
import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Sequence

from musiclm_jax import errors
from musiclm_jax.listening_test import store

ALPHA = 0.01
UNITS = ('answer', 'rater', 'item')


@dataclasses.dataclass(frozen=True)
class System:
  name: str
  wins: int
  losses: int
  ties: int

  @property
  def answers(self) -> int:
    return self.wins + self.losses + self.ties


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two systems; `counts` are answers from strongly `first` to strongly `second`."""

  first: str
  second: str
  counts: tuple[int, int, int, int, int]
  statistic: float  # the smaller sum of ranks
  p_value: float  # two-sided; 1 without answers that prefer one
  p_corrected: float  # times the number of comparisons, at most 1
  significant: bool

  @property
  def wins(self) -> int:
    return self.counts[0] + self.counts[1]

  @property
  def ties(self) -> int:
    return self.counts[2]

  @property
  def losses(self) -> int:
    return self.counts[3] + self.counts[4]


@dataclasses.dataclass(frozen=True)
class Rater:
  """How attentive someone was: chance chooses A in half of the cases, and takes any time."""

  id: str
  label: str
  answers: int
  median_seconds: float  # from a question to its answer, listening included
  share_a: float  # of the answers that prefer one
  share_ties: float


@dataclasses.dataclass(frozen=True)
class Results:
  systems: list[System]  # most wins first
  pairs: list[Pair]
  raters: list[Rater]
  num_answers: int
  num_captions: int  # with an answer
  alpha: float
  comparisons: int  # of Bonferroni's correction
  unit: str  # of the signed-rank test


def results(systems: Sequence[str], answers: Sequence[store.Answer], alpha: float = ALPHA,
            comparisons: int | None = None, unit: str = 'answer') -> Results:
  """Returns all figures of a test.

  Args:
    systems: names; pairs come in their order.
    answers: of the raters.
    alpha: level of significance of the corrected p.
    comparisons: Bonferroni's factor; default: the number of pairs (the paper has 15).
    unit: what the signed-rank test takes as independent: each 'answer', as the paper, or the mean
      answer of each 'rater' or 'item'.
  """
  if unit not in UNITS:
    raise errors.UserError(f'unit is {unit!r}, wanted one of {", ".join(UNITS)}')
  if not 0 < alpha < 1:
    raise errors.UserError(f'alpha is {alpha:g}, wanted more than 0, less than 1')
  names = list(itertools.combinations(systems, 2))
  comparisons = comparisons or len(names)
  pairs = [_pair(first, second, answers, alpha, comparisons, unit) for first, second in names]
  counted = [_system(name, pairs) for name in systems]
  return Results(
      sorted(counted, key=lambda system: -system.wins), pairs, _raters(answers), len(answers),
      len({answer.item for answer in answers}), alpha, comparisons, unit)


def score(answer: store.Answer, first: str) -> int:
  """Returns 2 for a strong preference for the system `first`, to -2 for one against it."""
  towards_a = 3 - answer.answer
  return towards_a if answer.a == first else -towards_a


def signed_rank(scores: Iterable[float]) -> tuple[float, float]:
  """Returns (statistic, two-sided p) of Wilcoxon's test as scipy has it.

  Zeros are dropped and ties get their mean rank; p is exact for few values without ties, for very
  few with them, and from the normal distribution, corrected for ties, otherwise.
  """
  from scipy import stats

  scores = [float(value) for value in scores]
  if not any(scores):
    return 0.0, 1.0
  tested = stats.wilcoxon(scores, zero_method='wilcox')
  return float(tested.statistic), float(tested.pvalue)


def _pair(first, second, answers, alpha: float, comparisons: int, unit: str) -> Pair:
  own = [answer for answer in answers if {answer.a, answer.b} == {first, second}]
  counts = collections.Counter(score(answer, first) for answer in own)
  groups = collections.defaultdict(list)
  for number, answer in enumerate(own):
    key = {'answer': number, 'rater': answer.rater, 'item': answer.item}[unit]
    groups[key].append(score(answer, first))
  statistic, p_value = signed_rank(statistics.fmean(group) for group in groups.values())
  corrected = min(1.0, p_value * comparisons)
  return Pair(first, second, tuple(counts[value] for value in (2, 1, 0, -1, -2)), statistic,
              p_value, corrected, corrected < alpha)


def _system(name: str, pairs: Sequence[Pair]) -> System:
  wins = sum(pair.wins for pair in pairs if pair.first == name)
  wins += sum(pair.losses for pair in pairs if pair.second == name)
  losses = sum(pair.losses for pair in pairs if pair.first == name)
  losses += sum(pair.wins for pair in pairs if pair.second == name)
  ties = sum(pair.ties for pair in pairs if name in (pair.first, pair.second))
  return System(name, wins, losses, ties)


def _raters(answers: Sequence[store.Answer]) -> list[Rater]:
  groups = collections.defaultdict(list)
  for answer in answers:
    groups[answer.rater, answer.label].append(answer)
  found = []
  for (rater, label), own in groups.items():
    preferring = [answer.answer < 3 for answer in own if answer.answer != 3]
    found.append(Rater(
        rater, label, len(own), statistics.median(answer.seconds for answer in own),
        statistics.fmean(preferring) if preferring else 0.5, 1 - len(preferring) / len(own)))
  return sorted(found, key=lambda rater: (-rater.answers, rater.id))
