"""Whether two means over seeds differ: the 95 % interval of their difference, and the correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.05  # one minus the confidence
ROUNDING = 1e-12  # values that differ by less than this share of them are equal


@dataclass(frozen=True)
class Difference:
    """Of two means, a minus b.

    Attributes:
        mean: in the unit of the values.
        half_width: of the 95 % interval around it; infinite where there are too few values to tell.
        p: two-sided, of no difference; NaN where there are too few values to tell.
    """

    mean: float
    half_width: float
    p: float


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """The difference of the means of a and b, values by seed, paired by seed where both share at least two.

    Paired, seeds that only one of them has are left out. Otherwise it is Welch's.
    """
    shared = sorted(a.keys() & b.keys())
    if len(shared) < 2:
        return welch(list(a.values()), list(b.values()))
    gaps = np.array([a[seed] - b[seed] for seed in shared])
    if _equal(gaps, largest=max(abs(b[seed]) for seed in shared)):
        return _certain(float(gaps.mean()))
    return _of_test(float(gaps.mean()), stats.ttest_1samp(gaps, 0.0))


def welch(a: Sequence[float], b: Sequence[float]) -> Difference:
    """The difference of the means of two independent samples, whose variances may differ."""
    mean = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2:
        return Difference(mean, math.inf, math.nan)
    if _equal(np.asarray(a)) and _equal(np.asarray(b)):
        return _certain(mean)
    return _of_test(mean, stats.ttest_ind(a, b, equal_var=False))


def false_discovery(ps: Sequence[float]) -> list[float]:
    """The p values corrected for their number (Benjamini and Hochberg); NaN stays NaN and does not count."""
    corrected = np.array(ps, dtype=np.float64)
    known = ~np.isnan(corrected)
    if known.any():
        corrected[known] = stats.false_discovery_control(corrected[known])
    return [float(p) for p in corrected]


def _of_test(mean: float, test: Any) -> Difference:
    interval = test.confidence_interval(1 - LEVEL)
    return Difference(mean, float(interval.high - interval.low) / 2, float(test.pvalue))


def _certain(mean: float) -> Difference:
    """Without any variance, whose test would divide by zero."""
    return Difference(mean, 0.0, 1.0 if abs(mean) <= ROUNDING else 0.0)


def _equal(values: NDArray[np.float64], largest: float = 0.0) -> bool:
    return bool(np.ptp(values) <= ROUNDING * max(largest, float(np.abs(values).max())))
