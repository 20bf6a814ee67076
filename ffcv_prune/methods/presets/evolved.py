"""Evolved sampling, ES: Cheng, Li, Bian, arXiv 2509.23461, in the form for whole epochs; no code is public.

Each epoch draws its samples in proportion to w, a moving mean of two speeds of the training losses. The first and the
last epochs are on all data; their shares are ours, for the source that we have does not state them. In the authors'
form for batches a part of each large batch is drawn after a forward pass of all of it.
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
class TwoSpeeds(Statistic):
    """w = β1·s + (1−β1)·ℓ with the old s, then s ← β2·s + (1−β2)·ℓ; s starts at 1/n."""

    columns = (Column("slow_mean", np.float32, np.nan), Column("two_speeds", np.float32, np.nan))
    reads: ClassVar[str] = "two_speeds"
    beta1: float = key(0.2, "evolved: weight of the slow mean against the new loss", within="[0, 1]")
    beta2: float = key(0.8, "evolved: weight of the old slow mean against the new loss", within="[0, 1]")

    def take(self, table: ScoreTable, ids: Ids, losses: Scores, batch_means: Scores) -> None:
        slow = table.columns["slow_mean"][ids]
        slow[np.isnan(slow)] = 1 / table.n
        table.columns["two_speeds"][ids] = self.beta1 * slow + (1 - self.beta1) * losses
        table.columns["slow_mean"][ids] = self.beta2 * slow + (1 - self.beta2) * losses


METHODS = (
    Method(
        name="evolved",
        source=Training(),
        statistic=TwoSpeeds(),
        selector=Proportional(),
        phases=Periodic(keep=0.5, period=1, warmup=0.05, warmup_mode="full", final=0.05, final_mode="full"),
    ),
)
