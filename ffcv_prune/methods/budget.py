"""Which samples a pass scores when it may not score all: those that could enter or leave the selection.

    urgency(x) = σ(x) · sqrt(staleness(x)) − |score(x) − threshold(x)|        σ²(x) = (var(x) + mean of var) / 2

The score comes from the statistic. The threshold is the lowest score that the method would select now. The staleness
is the number of updates of the table since the sample was scored. σ estimates how far a loss moves from one scoring to
the next. Half of σ² is the sample's own variance, which comes from few values, and half the mean variance of all
samples. What lies far from the threshold is left alone until it could have come there. A queue, apart from that, takes
the samples scored longest ago: it alone guarantees that every sample comes back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ffcv_prune.errors import UserError
from ffcv_prune.methods import kernels
from ffcv_prune.methods.rule import Ids, Rule, Samples, Scores
from ffcv_prune.methods.table import ScoreTable


@dataclass(frozen=True)
class ScoreBudget:
    """At most a share of the samples is scored in a pass, and each within a number of passes.

    Attributes:
        share: of the n samples, in (0, 1]. Samples without a loss are scored beyond it: at first, all of them.
        revisit: among this many passes in a row each sample is scored at least once, ≥ 1. The
            ceil(n / revisit) samples scored longest ago take that much of the budget. A loss that was not finite
            does not count as scored.

    Raises:
        UserError: out of range, or a share below 1 / revisit.
    """

    share: float
    revisit: int

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"score_budget = {self.share} is outside (0, 1]: it is the share of samples scored")
        if self.revisit < 1:
            raise UserError(f"score_revisit = {self.revisit} must be at least 1: passes until all are scored")
        least = math.ceil(1 / self.share - 1e-9)
        if self.revisit < least:
            raise UserError(
                f"score_budget = {self.share} cannot score every sample within score_revisit = {self.revisit} "
                f"passes: set score_revisit={least} or more"
            )

    def choose(self, samples: Samples, rule: Rule, k: int, among: Ids) -> Ids:
        """Return the samples to score, int64[m], ascending, out of `among`, int64, ascending and unique.

        It depends on the arguments alone. Samples not among them have a new value already.
        """
        if self.share == 1:
            return among
        table = samples.table
        scores, thresholds = rule.thresholds(samples, k, None)
        urgencies = urgency(table, scores, thresholds)[among]
        queue = min(math.ceil(table.n / self.revisit), among.size)
        urgencies[kernels.top_k(-table.last_scored[among].astype(np.float32), queue)] = (
            np.inf
        )  # exact up to 2^24 updates
        certain = int(np.count_nonzero(np.isposinf(urgencies)))
        budget = min(math.ceil(self.share * table.n - 1e-6), among.size)
        return among[kernels.top_k(urgencies, max(budget, certain))]


def urgency(table: ScoreTable, scores: Scores, thresholds: Scores) -> Scores:
    """float32[n]: by how much each sample could have crossed its threshold; +inf for one without a loss.

    `scores` and `thresholds` are float32[n], see `Rule.thresholds`. The formula stands at the top of this module.
    """
    scored = table.last_scored >= 0
    mean_var = table.var.mean(dtype=np.float64, where=scored) if scored.any() else 0.0
    urgencies = np.empty(table.n, np.float32)
    kernels.write_urgencies(scores, thresholds, table.var, table.last_scored, table.updates, mean_var, urgencies)
    return urgencies
