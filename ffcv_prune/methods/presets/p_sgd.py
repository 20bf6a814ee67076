"""p-SGD and c-SGD: Arazo et al., "How Important is Importance Sampling for Deep Budgeted Training?", BMVC 2021.

Each epoch draws its samples in proportion to a function of how wrong the model was about them, on average so far. It
is the mildest of all rules: the mean of that function is added to each, so that no sample is out of reach. GLWS, a
loss times a Gaussian of it, favours losses that are high but not the highest. It comes from the abstract: the exact
form is not verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import Periodic
from ffcv_prune.methods.rule import Ids, Scores
from ffcv_prune.methods.selectors import Proportional
from ffcv_prune.methods.sources import Training
from ffcv_prune.methods.statistics import Statistic
from ffcv_prune.methods.table import Column, ScoreTable
from ffcv_prune.settings import key


@dataclass(frozen=True, kw_only=True)
class RunningError(Statistic):
    """f(a) + mean of f, with a the mean of 1 − p_y over all times that a sample was trained on; unseen: the highest a.

    p_y, the probability of the label, is exp(−ℓ) for a cross entropy without label smoothing. The functions f: "p" a,
    "c" a·(1−a), "uniform" 1, and "gaussian" ℓ·exp(−(ℓ−μ)²/2σ²), without the mean added. There ℓ is the mean loss of a
    sample, and μ and σ are the mean and the standard deviation of all ℓ. Unseen samples get the highest f.
    """

    compares_all: ClassVar[bool] = True
    columns = (Column("running_mean", np.float32, np.nan), Column("losses_seen", np.int32, 0))
    transform: str = key(
        "p", "p_sgd: the function of the error that draws follow", choices=("p", "c", "uniform", "gaussian")
    )

    def take(self, table: ScoreTable, ids: Ids, losses: Scores, batch_means: Scores) -> None:
        values = losses if self.transform == "gaussian" else -np.expm1(-losses)
        mean = np.nan_to_num(table.columns["running_mean"][ids])
        table.columns["losses_seen"][ids] += 1
        table.columns["running_mean"][ids] = mean + (values - mean) / table.columns["losses_seen"][ids]

    def score(self, table: ScoreTable, among: Ids | None) -> Scores:
        odds = self._odds(table.columns["running_mean"].astype(np.float64)).astype(np.float32)
        return odds if among is None else odds[among]

    def _odds(self, means: np.ndarray) -> np.ndarray:
        seen = ~np.isnan(means)
        if self.transform == "uniform" or not seen.any():
            return np.ones(means.size)
        if self.transform == "gaussian":
            known = means[seen]
            variance = known.var()
            values = means * np.exp(-((means - known.mean()) ** 2) / (2 * variance)) if variance else means
            return np.where(seen, values, values[seen].max())
        errors = np.where(seen, means, means[seen].max())
        values = errors if self.transform == "p" else errors * (1 - errors)
        return values + values.mean()


METHODS = tuple(
    Method(
        name=name,
        source=Training(),
        statistic=RunningError(transform=transform),
        selector=Proportional(),
        phases=Periodic(keep=0.5, period=1),
    )
    for name, transform in (("p_sgd", "p"), ("c_sgd", "c"), ("glws", "gaussian"))
)
