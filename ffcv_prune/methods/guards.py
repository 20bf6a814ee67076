"""Wrappers that keep a policy from collapsing on short schedules, imbalanced classes or noisy labels.

On a short schedule the highest losses belong to few classes, and a selection made of them alone misleads
the model. A guard is a policy around a policy: ``ClassQuota(WithRandom(UCB(), 0.5), labels)`` mixes random
samples in within each class, ``WithRandom(ClassQuota(UCB(), labels), 0.5)`` across all of them. No guard is
part of the paper's own rules.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.methods.kernels.samples import difference, group_by_label
from ffcv_prune.methods.kernels.topk import top_k
from ffcv_prune.methods.policies import Ids, Policy, WithRandom, Wrapper
from ffcv_prune.methods.table import ScoreTable

__all__ = ["ClassQuota", "LossCap", "WithRandom"]


def proportional_quotas(total: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Split `total` ≤ sum(counts) in proportion to `counts`, int64[classes], by largest remainder.

    No class gets more than its count; equal remainders go to the lower class. All in integers, hence exact.
    """
    quotas, remainders = np.divmod(total * counts, counts.sum())
    missing = total - quotas.sum()
    quotas[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return quotas


class ClassQuota(Wrapper):
    """Each class holds at least `floor` of the places that its share of the candidates entitles it to.

        quota(class) = floor · k · (candidates of the class) / (candidates)      by largest remainder

    The policy fills each quota within its class; it then fills the other k − round(floor·k) places from all
    that is left. floor = 1 keeps the class proportions exactly; floor = 0 is the policy alone.

    `labels` is an integer array [n], the class of every sample, ≥ 0.
    """

    def __init__(self, policy: Policy, labels: ArrayLike, floor: float = 1.0) -> None:
        if not 0 <= floor <= 1:
            raise UserError(f"the class floor {floor} is outside [0, 1]")
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size == 0 or labels.min() < 0:
            raise UserError("labels of a class quota must be one class number ≥ 0 for each sample")
        super().__init__(policy, f"class_quota({floor:g})")
        self.labels = np.ascontiguousarray(labels, dtype=np.int64)
        self.floor = float(floor)

    def choose(self, table: ScoreTable, k: int, rng: np.random.Generator, among: Ids | None) -> Ids:
        if self.labels.size != table.n:
            raise UserError(f"{self.labels.size} labels for {table.n} samples: they are of other data")
        if among is None:
            among = np.arange(table.n)
        classes = group_by_label(among, self.labels)
        counts = np.array([members.size for members in classes])
        quotas = proportional_quotas(round(self.floor * k), counts)
        parts = [
            self.policy.choose(table, int(quota), rng, members)
            for quota, members in zip(quotas, classes, strict=True)
            if quota
        ]
        chosen = np.sort(np.concatenate(parts)) if parts else among[:0]
        if chosen.size == k:
            return chosen
        rest = self.policy.choose(table, k - chosen.size, rng, difference(among, chosen))
        return np.sort(np.concatenate([chosen, rest]))


class LossCap(Wrapper):
    """The policy, without the `share` of the candidates whose latest loss is highest: likely wrong labels.

    Of m candidates round(share·m) are left out, or m − k if those are fewer. Among equal losses the lower ids
    stay, and so do samples never scored. `share` is in [0, 1). Why: label noise (paper, section 5.2).
    """

    def __init__(self, policy: Policy, share: float) -> None:
        if not 0 <= share < 1:
            raise UserError(f"the share {share} of highest losses to leave out is outside [0, 1)")
        super().__init__(policy, f"loss_cap({share:g})")
        self.share = float(share)
        self.needs_scores = True  # for the latest losses, even around a policy that needs none

    def choose(self, table: ScoreTable, k: int, rng: np.random.Generator, among: Ids | None) -> Ids:
        if among is None:
            among = np.arange(table.n)
        left_out = min(round(self.share * among.size), among.size - k)
        if left_out:
            among = among[top_k(-table.last[among], among.size - left_out)]
        return self.policy.choose(table, k, rng, among)
