"""Rules of methods driven on a table of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.methods.rule import Draw, Rule, Samples
from ffcv_prune.methods.statistics import Last, Statistic
from ffcv_prune.methods.table import ScoreTable


def samples_of(
    losses: ArrayLike, statistic: Statistic | None = None, groups: NDArray[np.int64] | None = None
) -> Samples:
    """The samples with these losses, [n] of one pass or [passes, n]; one whose loss is NaN is left out of the pass."""
    passes = np.atleast_2d(np.array(losses, np.float32))
    table = ScoreTable(passes.shape[1])
    for values in passes:
        known = np.flatnonzero(~np.isnan(values))
        if known.size:
            table.update(values[known], known)
    return Samples(statistic or Last(), table, groups)


def draw(rule: Rule, samples: Samples, k: int, seed: Any = 0, among: NDArray[np.int64] | None = None) -> Draw:
    return rule.draw(samples, k, np.random.default_rng(seed), among)


def assert_same(one: Any, other: Any) -> None:
    """Fail unless two states hold the same, bit by bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    else:
        np.testing.assert_array_equal(one, other)
