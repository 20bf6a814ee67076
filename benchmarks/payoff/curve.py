"""What a method saves: its cost against that of full data trained to the same accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ffcv_prune.analysis.intervals import LEVEL, ROUNDING, Difference, difference


@dataclass(frozen=True)
class Curve:
    """Accuracy of full data against cost, each budget with a complete schedule of its own.

    Between the budgets it is linear in the logarithm of the cost. It does not fall: a budget that ends below a cheaper
    one counts as that one, for nobody would pay more for less.

    Attributes:
        costs: rising.
        accuracies: of the budgets, as measured.
    """

    costs: Sequence[float]
    accuracies: Sequence[float]

    def accuracy_at(self, cost: float) -> float:
        """What full data reaches at this cost; at costs outside the curve, that of its nearest end."""
        return float(np.interp(np.log(cost), np.log(self.costs), self._rising))

    def cost_of(self, accuracy: float) -> float:
        """The least cost at which full data reaches it; outside the curve, that of its nearest end."""
        rising = self._rising
        if accuracy <= rising[0]:
            return float(self.costs[0])
        if accuracy >= rising[-1]:
            return float(self.costs[int(np.argmax(rising == rising[-1]))])
        after = int(np.argmax(rising >= accuracy))
        logs = np.log(self.costs)
        share = (accuracy - rising[after - 1]) / (rising[after] - rising[after - 1])
        return float(np.exp(logs[after - 1] + share * (logs[after] - logs[after - 1])))

    def below(self, accuracy: float) -> bool:
        """Whether the cheapest budget reaches more: what is saved is then less than `saving` says."""
        return accuracy < self._rising[0]

    def beyond(self, accuracy: float) -> bool:
        """Whether full data never reaches it: what is saved is then more than `saving` says."""
        return accuracy > self._rising[-1]

    @property
    def _rising(self) -> np.ndarray:
        return np.maximum.accumulate(np.asarray(self.accuracies, float))


@dataclass(frozen=True)
class Payoff:
    """Of a method, over paired seeds.

    Attributes:
        saving: 1 − its cost ÷ the cost at which full data reaches its accuracy.
        gain: points of accuracy above full data at its cost.
        beyond: seeds in which full data never reaches its accuracy.
        below: seeds in which the cheapest budget of full data reaches more.
        least: the saving of the seed that saves least.
    """

    saving: Difference
    gain: Difference
    beyond: int
    below: int
    least: float

    @property
    def bound(self) -> str:
        """What stands before a saving of which some seeds lie beyond the curve or below it; "about " where both do."""
        return {(True, False): "at least ", (False, True): "at most ", (True, True): "about "}.get(
            (self.beyond > 0, self.below > 0), ""
        )

    def saving_in_words(self, level: float = LEVEL) -> str:
        """In percent with the half width of its interval; of a bound, one end of the interval.

        A bound takes the place of what a seed saves, so it hides their spread on its own side.
        """
        percent = Difference(100 * self.saving.mean, 100 * self.saving.error, self.saving.freedom)
        side = -1 if self.beyond else 1 if self.below else 0
        if side == 0 or not percent.error < math.inf or (self.beyond and self.below):
            return self.bound + percent.in_words(level)
        return f"{self.bound}{percent.mean + side * percent.half_width(level):+.2f}"


def ahead(
    curves: Mapping[int, Curve], costs: Mapping[int, float], accuracies: Mapping[int, float], share: float
) -> Difference:
    """Points of accuracy above full data that cost more: of its cost the method's is this share.

    Above 0 the method saves 1 − share at least, at equal accuracy. The saving itself is no measure of that: where full
    data never reach the accuracy it is a bound, which hides a part of the spread. Infinite error: full data at this
    cost are beyond the curve.
    """
    seeds = sorted(curves.keys() & costs.keys())
    full = {seed: costs[seed] / share for seed in seeds}
    if any(full[seed] > curves[seed].costs[-1] * (1 + ROUNDING) for seed in seeds):
        return Difference(math.nan, math.inf)
    gaps = {seed: 100 * (accuracies[seed] - curves[seed].accuracy_at(full[seed])) for seed in seeds}
    return difference(gaps, dict.fromkeys(seeds, 0.0))


def payoff(curves: Mapping[int, Curve], costs: Mapping[int, float], accuracies: Mapping[int, float]) -> Payoff:
    """Of the seeds that the method and full data share. `accuracies` 0 to 1, costs in any unit.

    Each seed is judged by the curve of the same seed, so that what a seed does to both does not count.
    """
    seeds = sorted(curves.keys() & costs.keys())
    savings = {seed: 1 - costs[seed] / curves[seed].cost_of(accuracies[seed]) for seed in seeds}
    gains = {seed: 100 * (accuracies[seed] - curves[seed].accuracy_at(costs[seed])) for seed in seeds}
    nothing = dict.fromkeys(seeds, 0.0)
    beyond = sum(curves[seed].beyond(accuracies[seed]) for seed in seeds)
    below = sum(curves[seed].below(accuracies[seed]) for seed in seeds)
    return Payoff(difference(savings, nothing), difference(gains, nothing), beyond, below, min(savings.values()))
