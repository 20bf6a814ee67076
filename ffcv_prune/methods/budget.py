"""Which samples a checkpoint scores when it may not score all: those that could enter or leave the selection.

    urgency(x) = σ(x) · sqrt(staleness(x)) − |score(x) − threshold(x)|        σ²(x) = (var(x) + mean of var) / 2

The score is the policy's, the threshold the lowest score that it would select now, the staleness the number of
updates of the table since the sample was scored, and σ estimates how far a loss moves from one scoring to the next:
half by the sample's own variance, half by that of all, since one sample's is of few values. What lies far from the
threshold is left alone until it could have come there. A queue, apart from that, takes the samples scored longest
ago: it alone guarantees that every sample comes back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.methods.guards import ClassQuota, proportional_quotas
from ffcv_prune.methods.kernels.samples import Floats, Ids, group_by_label
from ffcv_prune.methods.kernels.topk import top_k
from ffcv_prune.methods.policies import Policy, Ranking, Static, WithRandom
from ffcv_prune.methods.table import ScoreTable


@dataclass(frozen=True)
class ScoreBudget:
    """At most a share of the samples is scored at a checkpoint, and each within a number of checkpoints.

    Attributes:
        share: of the n samples, in (0, 1]. Samples without a loss are scored beyond it: at first, all of them.
        revisit: among this many checkpoints that score, in a row, each sample is scored at least once, ≥ 1. The
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
            raise UserError(f"score_revisit = {self.revisit} must be at least 1: checkpoints until all are scored")
        least = math.ceil(1 / self.share - 1e-9)
        if self.revisit < least:
            raise UserError(
                f"score_budget = {self.share} cannot score every sample within score_revisit = {self.revisit} "
                f"checkpoints: set score_revisit={least} or more"
            )

    def choose(self, table: ScoreTable, policy: Policy, k: int, among: Ids) -> Ids:
        """Return the samples to score, int64[m], ascending, out of `among`, int64, ascending and unique.

        It depends on the arguments alone. Samples not among them were scored for this checkpoint already.
        """
        if self.share == 1:
            return among
        scores, thresholds = thresholds_of(policy, table, k)
        urgencies = urgency(table, scores, thresholds)[among]
        queue = min(math.ceil(table.n / self.revisit), among.size)
        urgencies[top_k(-table.last_scored[among].astype(np.float32), queue)] = np.inf  # exact up to 2^24 updates
        certain = int(np.count_nonzero(np.isposinf(urgencies)))
        budget = min(math.ceil(self.share * table.n - 1e-6), among.size)
        return among[top_k(urgencies, max(budget, certain))]


def urgency(table: ScoreTable, scores: Floats, thresholds: Floats) -> Floats:
    """float32[n]: by how much each sample could have crossed its threshold; +inf for one without a loss.

    `scores` and `thresholds` are float32[n], see `thresholds_of`. The formula stands at the top of this module.
    """
    scored = table.last_scored >= 0
    mean_var = table.var.mean(dtype=np.float64, where=scored) if scored.any() else 0.0
    urgencies = np.empty(table.n, np.float32)
    _urgency(scores, thresholds, table.var, table.last_scored, table.updates, mean_var, urgencies)
    return urgencies


@njit(cache=True, nogil=True)
def _urgency(
    scores: Floats,
    thresholds: Floats,
    var: Floats,
    last_scored: NDArray[np.int32],
    updates: int,
    mean_var: float,
    urgencies: Floats,
) -> None:
    for i in range(scores.size):
        if last_scored[i] < 0:
            urgencies[i] = np.inf
        else:
            reach = math.sqrt((updates - last_scored[i]) * (var[i] + mean_var) / 2)
            urgencies[i] = reach - abs(scores[i] - thresholds[i])


# ---- where a policy draws the line -------------------------------------------------------------------------


@singledispatch
def thresholds_of(policy: Policy, table: ScoreTable, k: int, among: Ids | None = None) -> tuple[Floats, Floats]:
    """Return (scores, thresholds), float32[m] each, of the m samples in `among` (all of the table if None).

    A sample's threshold is the lowest score with which `policy` would select a sample like it, of its class where
    that matters, among k; +inf where it selects none. What it draws at random does not count. Raises `UserError` for
    a policy that does not select by a threshold on scores that a pass brings.
    """
    raise UserError(
        f"policy {policy.name} does not select by a threshold on scores that a pass brings: set score_budget=1"
    )


@thresholds_of.register
def _(policy: Ranking, table: ScoreTable, k: int, among: Ids | None = None) -> tuple[Floats, Floats]:
    if isinstance(policy, Static):
        raise UserError(f"policy {policy.name} needs no scoring pass: set score_budget=1")
    scores = policy.scores(table, among)
    chosen = scores[top_k(scores, k)]
    chosen = chosen[~np.isnan(chosen)]  # NaN: never scored, ranked above all
    return scores, np.full_like(scores, chosen.min() if chosen.size else np.inf)


@thresholds_of.register
def _(policy: WithRandom, table: ScoreTable, k: int, among: Ids | None = None) -> tuple[Floats, Floats]:
    by_policy = k - round(policy.share * k)
    scores, thresholds = thresholds_of(policy.policy, table, max(1, by_policy), among)
    return scores, thresholds if by_policy else np.full_like(scores, np.inf)


@thresholds_of.register
def _(policy: ClassQuota, table: ScoreTable, k: int, among: Ids | None = None) -> tuple[Floats, Floats]:
    candidates = np.arange(table.n) if among is None else among
    classes = group_by_label(np.arange(candidates.size), policy.labels[candidates])  # positions in `candidates`
    quotas = proportional_quotas(round(policy.floor * k), np.array([members.size for members in classes]))
    scores, thresholds = thresholds_of(policy.policy, table, k, candidates)
    thresholds[:] = np.inf
    for quota, members in zip(quotas, classes, strict=True):
        if quota:
            thresholds[members] = thresholds_of(policy.policy, table, int(quota), candidates[members])[1]
    rest = candidates[scores < thresholds]  # what the quotas leave competes for the other places
    places = min(k - int(quotas.sum()), rest.size)
    if places > 0:
        of_rest = thresholds_of(policy.policy, table, places, rest)[1]
        thresholds = np.minimum(thresholds, of_rest[0])
    return scores, thresholds
