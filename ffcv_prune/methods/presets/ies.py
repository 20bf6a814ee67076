"""IES, instance-dependent early stopping: Yuan et al., ICLR 2025.

A sample is excluded while the second differences of its last losses are close to 0, and comes back when they are not.
What is excluded is scored by a pass before each epoch. A loss that is high but constant counts as mastered, too;
`below_median` (our addition) keeps what is not below the median of its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.methods import kernels
from ffcv_prune.methods.guards import Null
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import EveryEpoch
from ffcv_prune.methods.rule import Draw, Ids, Samples, Scores
from ffcv_prune.methods.selectors import Selector
from ffcv_prune.methods.sources import Hidden
from ffcv_prune.methods.statistics import Statistic
from ffcv_prune.methods.table import Column, ScoreTable
from ffcv_prune.settings import key

LEAST_LOSSES = 6  # before anything is decided: four second differences


@dataclass(frozen=True, kw_only=True)
class Curvature(Statistic):
    """The mean of |ℓ_t − 2ℓ_{t−1} + ℓ_{t−2}| over the last three t. NaN: fewer than six losses were seen."""

    columns = (Column("last_losses", np.float32, np.nan, width=5), Column("losses_seen", np.int32, 0))

    def take(self, table: ScoreTable, ids: Ids, losses: Scores, batch_means: Scores) -> None:
        columns = table.columns
        columns["last_losses"][ids] = np.column_stack([columns["last_losses"][ids, 1:], losses])
        columns["losses_seen"][ids] += 1

    def score(self, table: ScoreTable, among: Ids | None) -> Scores:
        curvature = np.abs(np.diff(table.read("last_losses", among), 2, axis=1)).mean(axis=1)
        curvature[table.read("losses_seen", among) < LEAST_LOSSES] = np.nan
        return curvature


@dataclass(frozen=True, kw_only=True)
class ExcludeMastered(Selector):
    """All samples but those that score below the threshold."""

    has_fixed_size: ClassVar[bool] = False
    threshold: float = key(1e-3, "ies: a sample of lower curvature is excluded", within="[0, inf)")
    below_median: bool = key(False, "ies: exclude no sample whose loss is not below the median of its class")

    @property
    def needs_groups(self) -> bool:
        return self.below_median

    def least(self, k: int, n: int) -> None:
        return None

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates = samples.candidates(among)
        excluded = samples.scores(among) < self.threshold
        if self.below_median:
            assert samples.groups is not None
            excluded &= _below_median(samples.column("last", None), samples.groups)[candidates]
        return Draw(candidates[~excluded])


def _below_median(losses: Scores, groups: Ids) -> NDArray[np.bool_]:
    """bool[n]: whether each loss is below the median of those of its class; NaN, no loss yet, is not."""
    below = np.zeros(losses.size, np.bool_)
    for members in kernels.group_by_label(np.arange(losses.size), groups):
        if not np.isnan(losses[members]).all():
            below[members] = losses[members] < np.nanmedian(losses[members])
    return below


METHODS = (
    Method(
        name="ies",
        source=Hidden(),
        statistic=Curvature(),
        selector=ExcludeMastered(),
        phases=EveryEpoch(),
        guards=(Null(),),
    ),
)
