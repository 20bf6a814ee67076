"""Selective backprop: Jiang et al., 2019, and the form of Composer (MosaicML).

A forward pass of each batch says which of its samples are trained on. In "composer" form int(keep·N) of N samples are
drawn, those of higher loss more likely. In "jiang" form each sample is taken with a probability that grows with the
share of lower losses among the last 1024 seen. Samples taken wait until they fill a batch. The first epoch trains on
all. Jiang et al. have start=0, end=1, interrupt=0; the defaults are Composer's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ffcv_prune.errors import UserError
from ffcv_prune.methods.guards import Null
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import AllData, Phase
from ffcv_prune.methods.rule import Draw, Ids, Probabilities, Samples, Scores
from ffcv_prune.methods.selectors import Selector, smallest_keys
from ffcv_prune.methods.sources import Source
from ffcv_prune.methods.statistics import Statistic
from ffcv_prune.methods.table import Column, ScoreTable
from ffcv_prune.settings import key

HISTORY = 1024


@dataclass(frozen=True, kw_only=True)
class BatchForward(Source):
    """A forward pass of each batch before it is trained on."""

    passes: ClassVar[bool] = False
    in_batches: ClassVar[bool] = True

    def due(self, fresh: object, selection: Ids | None) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class RecentLosses(Statistic):
    """The loss of the pass just made, beside the last `HISTORY` losses of all samples."""

    columns = (Column("history", np.float32, np.nan, length=HISTORY), Column("seen", np.int64, 0, length=1))
    reads: ClassVar[str] = "last"

    def take(self, table: ScoreTable, ids: Ids, losses: Scores, batch_means: Scores) -> None:
        seen, newest = table.columns["seen"], losses[-HISTORY:]
        places = (seen[0] + losses.size - newest.size + np.arange(newest.size)) % HISTORY
        table.columns["history"][places] = newest
        seen += losses.size


@dataclass(frozen=True, kw_only=True)
class LikelierTheHigher(Selector):
    """Draws samples of a batch, those of higher loss with higher probability."""

    is_random: ClassVar[bool] = True
    knows_probability: ClassVar[bool] = False
    has_fixed_size: ClassVar[bool] = False
    form: str = key("composer", "selective_backprop: the rule", choices=("composer", "jiang"))
    keep: float = key(0.5, "selective_backprop: share of a batch that is kept, form composer", within="(0, 1]")
    beta: float = key(1.0, "selective_backprop: power of the share of lower losses, form jiang", within="(0, inf)")

    @property
    def fills_batches(self) -> bool:
        return self.form == "jiang"

    def size(self, n: int) -> int:
        return n

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates, losses = samples.candidates(among), samples.scores(among)
        if self.form == "jiang":
            history = samples.table.columns["history"]
            chances = chance_by_history(losses, history[~np.isnan(history)], self.beta)
            return Draw(candidates[rng.random(candidates.size) < chances], lambda: chances)
        kept = int(self.keep * candidates.size + 1e-9)
        if kept in (0, candidates.size):
            return Draw(candidates[:kept])
        odds = np.empty(candidates.size)
        odds[np.lexsort((-candidates, losses))] = odds_by_rank(
            candidates.size, self.keep
        )  # of ties, the lower id above
        return Draw(candidates[smallest_keys(odds, kept, rng)], lambda: np.full(candidates.size, np.nan))


def odds_by_rank(n: int, keep: float) -> Probabilities:
    """float64[n]: the odds, of sum 1, of the lowest to the highest of n losses: ((j + 1/2)/n)^(1/keep − 1)."""
    odds = ((np.arange(n) + 0.5) / n) ** (1 / keep - 1)
    return odds / odds.sum()


def chance_by_history(losses: Scores, history: Scores, beta: float) -> Probabilities:
    """float64[m]: for each of m losses the share of `history`, not empty, that is strictly lower, to the power beta."""
    return (np.searchsorted(np.sort(history), losses, side="left") / history.size) ** beta


@dataclass(frozen=True, kw_only=True)
class SomeBatches(AllData):
    """All data is served; batches are chosen from between two fractions of the run, and not in the first epoch."""

    prunes: ClassVar[bool] = True
    start: float = key(0.5, "selective_backprop: fraction of the run before", within="[0, 1]")
    end: float = key(
        0.9, "selective_backprop: fraction of the run after which all is trained on again", within="[0, 1]"
    )
    interrupt: int = key(2, "selective_backprop: every so many batches one is left whole; 0: none", within="[0, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start > self.end:
            raise UserError(f"start={self.start} lies after end={self.end}: exchange them")

    def phase(self, epoch: int, epochs: int) -> Phase:
        # Composer's start <= epoch / epochs < end.
        first, end = (math.ceil(share * epochs - 1e-9) for share in (self.start, self.end))
        return "method" if max(1, first) <= epoch < end else "full"

    def selects(self, epoch: int, epochs: int) -> bool:
        return epoch == 0

    def chooses(self, epoch: int, batch: int, epochs: int) -> bool:
        whole = self.interrupt > 0 and (batch + 1) % self.interrupt == 0
        return self.phase(epoch, epochs) == "method" and not whole


METHODS = (
    Method(
        name="selective_backprop",
        source=BatchForward(),
        statistic=RecentLosses(),
        selector=LikelierTheHigher(),
        phases=SomeBatches(),
        guards=(Null(),),
    ),
)
