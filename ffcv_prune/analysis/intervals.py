"""Whether two means over seeds differ: the interval of their difference, and the correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05  # one minus the confidence, of a single comparison
ROUNDING = 1e-12  # values that differ by less than this share of them are equal


def _stats() -> Any:
    """Only where means are compared: the report of one run does without scipy."""
    from scipy import stats

    return stats


@dataclass(frozen=True)
class Difference:
    """Of two means, a minus b.

    Attributes:
        mean: in the unit of the values.
        error: its standard error; infinite where there are too few values to tell.
        freedom: degrees of freedom of the t distribution that it is judged by.
    """

    mean: float
    error: float
    freedom: float = math.inf

    def half_width(self, level: float = LEVEL) -> float:
        """Half the interval around the mean that holds the true difference but for `level` of the cases."""
        return float(_stats().t.isf(level / 2, self.freedom)) * self.error if 0 < self.error < math.inf else self.error

    def in_words(self, level: float = LEVEL) -> str:
        """``+0.74 ± 0.61``, with the half width at this level."""
        return (
            f"{self.mean:+.2f} ± {self.half_width(level):.2f}"
            if self.error < math.inf
            else f"{self.mean:+.2f}, one run"
        )

    def p(self, null: float = 0.0) -> float:
        """Two-sided, of the true difference being `null`; NaN where there are too few values to tell."""
        if self.error == 0:
            return 1.0 if abs(self.mean - null) <= ROUNDING else 0.0
        if math.isinf(self.error):
            return math.nan
        return float(2 * _stats().t.sf(abs(self.mean - null) / self.error, self.freedom))


@dataclass(frozen=True)
class Correction:
    """For the number of comparisons that stand together: of the differences found, at most 5 % are none, in the mean.

    Benjamini and Hochberg (1995) find those with p <= `level`. Intervals at that level (Benjamini and Yekutieli, 2005)
    leave the null out exactly where it is found: what is printed and what is decided agree.

    Attributes:
        level: one minus the confidence of each single interval.
        number: comparisons that have a p.
    """

    level: float
    number: int

    def __str__(self) -> str:
        interval = f"{100 * (1 - self.level):.4g} % interval"
        return interval if self.number < 2 else f"{interval}, corrected for {self.number} comparisons"


def correction(ps: Iterable[float]) -> Correction:
    """For all comparisons whose p values these are; NaN does not count."""
    known = [p for p in ps if not math.isnan(p)]
    if not known:
        return Correction(LEVEL, 0)
    found = int(np.count_nonzero(_stats().false_discovery_control(known) <= LEVEL))
    return Correction(LEVEL * max(1, found) / len(known), len(known))


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """The difference of the means of a and b, values by seed, paired by seed where both share at least two.

    Paired, seeds that only one of them has are left out. Otherwise it is Welch's.
    """
    shared = sorted(a.keys() & b.keys())
    if len(shared) < 2:
        return _welch(list(a.values()), list(b.values()))
    gaps = np.array([a[seed] - b[seed] for seed in shared])
    if _equal(gaps, largest=max(abs(b[seed]) for seed in shared)):
        return Difference(float(gaps.mean()), 0.0)
    return Difference(float(gaps.mean()), float(_stats().sem(gaps)), len(gaps) - 1)


def difference_of_tests(a: float, b: float, samples_a: int, samples_b: int) -> Difference:
    """Of two single runs of accuracies a and b, 0..1, in points, by the sizes of their test sets alone."""
    return Difference(100 * (a - b), 100 * math.sqrt(a * (1 - a) / samples_a + b * (1 - b) / samples_b))


def _welch(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Of two independent samples, whose variances may differ."""
    mean = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2:
        return Difference(mean, math.inf)
    if _equal(np.asarray(a)) and _equal(np.asarray(b)):
        return Difference(mean, 0.0)
    test: Any = _stats().ttest_ind(a, b, equal_var=False)
    return Difference(mean, math.hypot(_stats().sem(a), _stats().sem(b)), float(test.df))


def _equal(values: NDArray[np.float64], largest: float = 0.0) -> bool:
    return bool(np.ptp(values) <= ROUNDING * max(largest, float(np.abs(values).max())))
