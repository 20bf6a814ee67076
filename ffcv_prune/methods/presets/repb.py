"""RePB: "Inconsistency Biases in Dynamic Data Pruning", ICLR 2026; from notes of the paper, no code is public.

Each sample is compared with the mean loss of its own batch, by the same model and at the same moment. What was below
is dropped with probability r; what was not trained on comes back with probability 1 − r. A sample that was trained on
in N of e epochs weighs e/N, and at most `max_weight`. This bound is our addition: e/N of a rarely seen sample
explodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.methods.guards import Null
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import UntilFull
from ffcv_prune.methods.rule import Draw, Ids, Samples, Scores
from ffcv_prune.methods.selectors import Selector, least_of_draws
from ffcv_prune.methods.sources import Training
from ffcv_prune.methods.statistics import Statistic
from ffcv_prune.methods.table import TRAINED_EPOCHS, Column, ScoreTable
from ffcv_prune.methods.weights import Weight
from ffcv_prune.settings import key


@dataclass(frozen=True, kw_only=True)
class AboveBatch(Statistic):
    """d = ℓ − the mean loss of its batch, when it was trained on last. A batch is one of a rank."""

    needs_batches: ClassVar[bool] = True
    columns = (Column("above_batch", np.float32, np.nan),)
    reads: ClassVar[str] = "above_batch"

    def take(self, table: ScoreTable, ids: Ids, losses: Scores, batch_means: Scores) -> None:
        table.columns["above_batch"][ids] = losses - batch_means


@dataclass(frozen=True, kw_only=True)
class DropAndReturn(Selector):
    """Of the last selection, drop what scores below 0 with probability r; of the rest, take each with 1 − r."""

    is_random: ClassVar[bool] = True
    has_fixed_size: ClassVar[bool] = False
    ratio: float = key(0.5, "repb: probability that a sample below the mean of its batch is dropped", within="[0, 1)")

    def least(self, k: int, n: int) -> int:
        return least_of_draws(n, 1 - self.ratio)

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates = samples.candidates(among)
        sure = np.ones(samples.table.n, np.bool_)
        if samples.previous is not None:
            sure[:] = False
            sure[samples.previous] = True
        sure = sure[candidates] & ~(samples.scores(among) < 0)
        kept = sure | (rng.random(candidates.size) >= self.ratio)
        return Draw(candidates[kept], lambda: np.where(sure, 1.0, 1 - self.ratio))


@dataclass(frozen=True, kw_only=True)
class EpochsOverCount(Weight):
    """min(e/N, max_weight) for a sample that epoch number e, counted from 1, trains on for the N-th time."""

    columns = (TRAINED_EPOCHS,)
    max_weight: float = key(10.0, "repb: the most that a sample may weigh", within="[1, inf)")

    def of(self, samples: Samples, ids: Ids, probability: NDArray[np.float64] | None) -> NDArray[np.float32]:
        counts = samples.table.columns[TRAINED_EPOCHS.name][ids] + 1
        return np.minimum((samples.moment.epoch + 1) / counts, self.max_weight).astype(np.float32)


METHODS = (
    Method(
        name="repb",
        source=Training(),
        statistic=AboveBatch(),
        selector=DropAndReturn(),
        weight=EpochsOverCount(),
        phases=UntilFull(delta=1.0),
        guards=(Null(),),
    ),
)
