"""SeTa: Zhou, Gao, Wang, CVPR 2025.

Before each epoch a random pool is drawn. Its training losses are split into groups, from easy to hard. A window of
neighbouring groups is selected, which moves on by one group an epoch. The last epochs are random pools. Late in
training the easiest group holds most samples: the share that is kept then swings from epoch to epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.methods import kernels
from ffcv_prune.methods.guards import Null
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import UntilRandom, floor
from ffcv_prune.methods.rule import Draw, Ids, Samples, Scores
from ffcv_prune.methods.selectors import Selector
from ffcv_prune.methods.sources import Training
from ffcv_prune.methods.statistics import LastOfTraining
from ffcv_prune.settings import key

BINS = 512


@dataclass(frozen=True, kw_only=True)
class GroupWindow(Selector):
    """A window of ⌊window·groups⌉ groups of losses out of a random pool; in epoch 0 all groups.

    Epoch e starts at group e mod (groups − window + 1). Samples without a loss are selected in every window.
    """

    is_random: ClassVar[bool] = True
    knows_probability: ClassVar[bool] = False
    has_fixed_size: ClassVar[bool] = False
    groups: int = key(10, "seta: groups that the losses are split into", within="[1, 256]")
    window: float = key(0.5, "seta: share of the groups that an epoch trains on", within="(0, 1]")
    ratio: float = key(0.0, "seta: share of the samples left out at random before", within="[0, 1)")

    def size(self, n: int) -> int:
        return max(1, floor((1 - self.ratio) * n))

    def least(self, k: int, n: int) -> None:
        return None

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates = samples.candidates(among)
        pool = candidates if k == candidates.size else kernels.random_subset(candidates, k, rng)
        losses = samples.scores(pool)
        unseen = np.isnan(losses)
        width = max(1, round(self.groups * self.window))
        if samples.moment.epoch > 0 and width < self.groups and not unseen.all():
            start = samples.moment.epoch % (self.groups - width + 1)
            group = np.full(pool.size, start)
            group[~unseen] = groups_of(losses[~unseen], self.groups)
            pool = pool[(group >= start) & (group < start + width)]
        return Draw(pool, lambda: np.full(candidates.size, np.nan))


def groups_of(losses: Scores, groups: int) -> NDArray[np.int64]:
    """int64[m]: the group, 0 to groups − 1, of each of m losses, finite: the 1-D k-means of their histogram.

    Groups are ranges of losses, the lowest first, with the smallest possible sum of squared distances to their means.
    Dynamic programming finds them, over the values, or over `BINS` bins where there are more values. Half the bins are
    equally wide and half hold equally many losses: one far outlier leaves the others their bins. Losses that fall into
    fewer than `groups` bins are split into equal parts by loss, then by place.
    """
    ordered = np.sort(losses.astype(np.float64))
    starts = np.flatnonzero(np.diff(ordered, prepend=-np.inf))  # of each value
    if starts.size > BINS:
        edges = np.linspace(ordered[0], ordered[-1], BINS // 2, endpoint=False)
        wide = np.searchsorted(ordered, edges)
        many = np.searchsorted(ordered, ordered[np.arange(BINS // 2) * losses.size // (BINS // 2)])
        starts = np.union1d(wide, many)
    if starts.size < groups:
        chunks = np.array_split(np.argsort(losses, kind="stable"), groups)
        found = np.empty(losses.size, np.int64)
        for group, members in enumerate(chunks):
            found[members] = group
        return found
    weights = np.diff(starts, append=losses.size).astype(np.float64)
    means = np.add.reduceat(ordered, starts) / weights
    of_bins = _ranges(means - means.mean(), weights, groups)
    lowest = ordered[starts[np.searchsorted(of_bins, np.arange(1, groups))]]
    return np.searchsorted(lowest, losses, side="right")


def _ranges(values: NDArray[np.float64], weights: NDArray[np.float64], groups: int) -> NDArray[np.int64]:
    """int64[m]: the optimal group of each of m ascending values, m ≥ groups; the lower bound wins ties."""
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    firsts = np.concatenate([[0.0], np.cumsum(weights * values)])
    squares = np.concatenate([[0.0], np.cumsum(weights * values**2)])
    size = sums[None, 1:] - sums[:-1, None]  # [i, j]: of the range i … j
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = squares[None, 1:] - squares[:-1, None] - (firsts[None, 1:] - firsts[:-1, None]) ** 2 / size
    cost = np.where(np.tri(values.size, k=-1, dtype=np.bool_), np.inf, np.maximum(cost, 0.0))
    best, starts = cost[0], []
    for _ in range(groups - 1):
        before = np.concatenate([[np.inf], best[:-1]])  # the least cost of what lies below i
        total = before[:, None] + cost
        starts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    found, end = np.zeros(values.size, np.int64), values.size - 1
    for group in range(groups - 1, 0, -1):
        start = int(starts[group - 1][end])
        found[start : end + 1] = group
        end = start - 1
    return found


METHODS = (
    Method(
        name="seta",
        source=Training(),
        statistic=LastOfTraining(),
        selector=GroupWindow(),
        phases=UntilRandom(),
        guards=(Null(),),
    ),
)
