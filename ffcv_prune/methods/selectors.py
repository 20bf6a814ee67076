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


@dataclass(frozen=True, kw_only=True)
class Selector(Part, ABC):
    """A `Rule` that needs no other.

    Attributes:
        ranks: whether it looks at scores at all.
        is_random: whether it reports probabilities other than 0 and 1.
        has_fixed_size: whether it draws exactly k samples; False: as many as its rule says.
    """

    is_random: ClassVar[bool] = False
    has_fixed_size: ClassVar[bool] = True

    @property
    def ranks(self) -> bool:
        return True

    def least(self, k: int, n: int) -> int:
        """The smallest selection out of n samples to reckon with."""
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

    The mean is over the samples with a loss. One without is always kept; so the first epoch is on all data, as it is
    with the authors' code, whose scores begin as equal constants. That code keeps exactly int((1−r)·m) of m below the
    mean; here each draw is independent, as in the paper, and no sample is out of reach however small m is. The size
    of a selection varies: `k` is not looked at.
    """

    is_random: ClassVar[bool] = True
    has_fixed_size: ClassVar[bool] = False
    ratio: float = key(0.5, "infobatch: probability that a sample below the mean loss is dropped", within="[0, 1)")

    def least(self, k: int, n: int) -> int:
        spread = math.sqrt(n * self.ratio * (1 - self.ratio))  # standard deviation, if all were below the mean
        return max(0, math.floor(n * (1 - self.ratio) - 5 * spread))

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates = samples.candidates(among)
        below = _below_mean(samples.scores(None))[candidates]
        dropped = np.zeros(candidates.size, np.bool_)
        dropped[below] = rng.random(np.count_nonzero(below)) < self.ratio
        return Draw(candidates[~dropped], lambda: np.where(below, 1 - self.ratio, 1.0))


def _below_mean(losses: Scores) -> NDArray[np.bool_]:
    """bool[m]: which losses are below the mean of those that are not NaN. In float64: equal losses are not."""
    known = losses[~np.isnan(losses)]
    return losses < known.mean(dtype=np.float64) if known.size else np.zeros(losses.size, np.bool_)


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
