"""Which samples a selection takes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.methods import kernels
from ffcv_prune.methods.part import Part
from ffcv_prune.methods.rule import Draw, Ids, Rule, Samples, Scores
from ffcv_prune.settings import key

_FIRST = 2000.0  # the logarithm of odds above all others


@dataclass(frozen=True, kw_only=True)
class Selector(Part, ABC):
    """A `Rule` that needs no other.

    Attributes:
        ranks: whether it looks at scores at all.
        is_random: whether it draws at random, with probabilities other than 0 and 1.
        knows_probability: whether it reports them.
        has_fixed_size: whether it draws exactly k samples; False: as many as its rule says.
        starts_without_values: whether its first k samples make sense before any sample has a value.
        fills_batches: whether what it chooses of a batch waits until it fills one.
        sized_by: its own parameter that sets the size of a selection, see `Method.sized_by`; None: it has none.
    """

    is_random: ClassVar[bool] = False
    knows_probability: ClassVar[bool] = True
    has_fixed_size: ClassVar[bool] = True
    starts_without_values: ClassVar[bool] = False
    sized_by: ClassVar[str | None] = None

    @property
    def ranks(self) -> bool:
        return True

    @property
    def fills_batches(self) -> bool:
        return False

    def size(self, n: int) -> int | None:
        """k for n samples, where the selector says it and not the phases; else None."""
        return None

    def least(self, k: int, n: int) -> int | None:
        """The smallest selection out of n samples to reckon with; None: it follows from the losses, without a bound."""
        return k

    def most(self, k: int, n: int) -> int:
        """The largest selection out of n samples."""
        return k

    @abstractmethod
    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        """See `Rule.draw`."""

    def thresholds(self, samples: Samples, k: int, among: Ids | None) -> tuple[Scores, Scores]:
        """See `Rule.thresholds`."""
        raise UserError("this method does not select by a threshold on its scores: set score_budget=1")


@dataclass(frozen=True, kw_only=True)
class Uniform(Selector):
    """k samples, each set of k equally likely; no scores at all (paper, section 4.2)."""

    is_random: ClassVar[bool] = True

    @property
    def ranks(self) -> bool:
        return False

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        size = samples.table.n if among is None else among.size
        return Draw(kernels.random_subset(size if among is None else among, k, rng), lambda: np.full(size, k / size))


@dataclass(frozen=True, kw_only=True)
class TopK(Selector):
    """The k samples of highest score; ties go to the lower id, samples without a value come first."""

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        return Draw(samples.top(k, among))

    def thresholds(self, samples: Samples, k: int, among: Ids | None) -> tuple[Scores, Scores]:
        scores = samples.scores(among)
        chosen = samples.scores(samples.top(k, among))
        chosen = chosen[~np.isnan(chosen)]  # NaN: no value yet, ranked above all
        return scores, np.full_like(scores, chosen.min() if chosen.size else np.inf)


@dataclass(frozen=True, kw_only=True)
class EpsilonGreedy(Selector):
    """k − round(εk) samples of highest score, round(εk) uniformly from the rest (paper, section 3.2.2)."""

    is_random: ClassVar[bool] = True
    epsilon: float = key(0.1, "epsilon_greedy: share of the selection drawn at random", within="[0, 1]")

    @property
    def ranks(self) -> bool:
        return self.epsilon < 1

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        return draw_with_random(TopK(), self.epsilon, samples, k, rng, among)

    def thresholds(self, samples: Samples, k: int, among: Ids | None) -> tuple[Scores, Scores]:
        return thresholds_with_random(TopK(), self.epsilon, samples, k, among)


@dataclass(frozen=True, kw_only=True)
class DropBelowMean(Selector):
    """Drop each sample of below-mean loss with probability r (Qin et al., InfoBatch, ICLR 2024).

    The mean is over the samples with a loss. A sample without a loss is always kept. So the first epoch is on all
    data, as in the authors' code, whose scores begin as equal constants. That code keeps exactly int((1−r)·m) of m
    below the mean. Here each draw is independent, as in the paper, and no sample is out of reach even if m is small.
    The size of a selection varies: `k` is not looked at.

    With `quantiles` the thresholds are these quantiles of the losses in place of the mean. A sample below j of them is
    kept with probability (1−r)^j. The authors' ImageNet code has (0.2, 0.85), hence 1/4, 1/2 and 1.
    """

    is_random: ClassVar[bool] = True
    has_fixed_size: ClassVar[bool] = False
    ratio: float = key(0.5, "infobatch, bls: probability that a sample below a threshold is dropped", within="[0, 1)")
    quantiles: tuple[float, ...] = key(
        (),
        "infobatch, bls: thresholds as quantiles of the losses, such as 0.2,0.85; empty: their mean",
        within="(0, 1)",
    )

    def least(self, k: int, n: int) -> int:
        if not self.quantiles:
            return least_of_draws(n, 1 - self.ratio)
        shares = np.diff([0.0, *sorted(self.quantiles)])  # of the samples below 1, 2, … thresholds, the last ones first
        kept = (1 - self.ratio) ** np.arange(len(shares), 0, -1)
        return least_of_draws(n, float(shares @ kept) + 1 - max(self.quantiles))

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates = samples.candidates(among)
        below = self._thresholds_above(samples.scores(None))[candidates]
        some = below > 0
        dropped = np.zeros(candidates.size, np.bool_)
        chance = np.where(below[some] == 1, self.ratio, 1 - (1 - self.ratio) ** below[some])
        dropped[some] = rng.random(chance.size) < chance
        return Draw(candidates[~dropped], lambda: (1 - self.ratio) ** below.astype(np.float64))

    def _thresholds_above(self, losses: Scores) -> NDArray[np.int64]:
        """int64[n]: how many thresholds each loss is below; 0 for NaN. In float64: equal losses are not below."""
        known = losses[~np.isnan(losses)].astype(np.float64)
        if not known.size:
            return np.zeros(losses.size, np.int64)
        thresholds = np.quantile(known, self.quantiles) if self.quantiles else np.array([known.mean()])
        return sum((losses < threshold).astype(np.int64) for threshold in thresholds)


@dataclass(frozen=True, kw_only=True)
class Proportional(Selector):
    """k samples, one after the other, each with a chance in proportion to its score among those that are left.

    Drawn at once, by keys (Efraimidis and Spirakis, 2006). Samples without a value come first, and those whose score is
    not above 0 come last, each in a random order. The probability with which a sample is drawn has no closed form: it
    is not reported.
    """

    is_random: ClassVar[bool] = True
    knows_probability: ClassVar[bool] = False
    starts_without_values: ClassVar[bool] = True

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates = samples.candidates(among)
        chosen = smallest_keys(samples.scores(among).astype(np.float64), k, rng)
        return Draw(candidates[chosen], lambda: np.full(candidates.size, np.nan))


def smallest_keys(odds: NDArray[np.float64], k: int, rng: np.random.Generator) -> Ids:
    """int64[k], ascending: places drawn one after the other without replacement, in proportion to `odds`, float64[m].

    The k smallest of −log(U)/odds. NaN is drawn before all, what is not above 0 after all, in a random order each.
    """
    unknown, none = np.isnan(odds), odds <= 0
    # Logarithms of float64 odds lie between -745 and 710, and those of -log(U) between -37 and 4.
    logs = np.select([unknown, none], [_FIRST, -_FIRST], np.log(odds, where=~none, out=np.zeros(odds.size)))
    keys = logs - np.log(-np.log1p(-rng.random(odds.size)))
    return kernels.top_k(keys.astype(np.float32), k)


def least_of_draws(n: int, share: float) -> int:
    """The smallest number to reckon with where each of n samples is kept with probability `share`."""
    # The mean less five standard deviations.
    return max(0, math.floor(n * share - 5 * math.sqrt(n * share * (1 - share))))


def draw_with_random(
    rule: Rule, share: float, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None
) -> Draw:
    """k − round(share·k) samples by `rule`, the others uniformly from what it left."""
    explored = round(share * k)
    if explored == 0:
        return rule.draw(samples, k, rng, among)
    if explored == k:
        return Uniform().draw(samples, k, rng, among)
    candidates = samples.candidates(among)
    by_rule = rule.draw(samples, k - explored, rng, among)
    rest = kernels.difference(candidates, by_rule.ids)
    ids = np.sort(np.concatenate([by_rule.ids, kernels.random_subset(rest, explored, rng)]))

    def probability() -> NDArray[np.float64]:
        earlier = by_rule.probabilities(candidates)
        return earlier + (1 - earlier) * (explored / rest.size)

    return Draw(ids, probability)


def thresholds_with_random(
    rule: Rule, share: float, samples: Samples, k: int, among: Ids | None
) -> tuple[Scores, Scores]:
    """The thresholds of `draw_with_random`: those of the part that `rule` draws."""
    by_rule = k - round(share * k)
    scores, thresholds = rule.thresholds(samples, max(1, by_rule), among)
    return scores, thresholds if by_rule else np.full_like(scores, np.inf)
