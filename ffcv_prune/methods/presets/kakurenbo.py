"""KAKURENBO: Nguyen et al., NeurIPS 2023.

Of the samples of lowest loss, those that the model classifies right with confidence are hidden in the next epoch. A
pass scores them at its end. After its warm-up, the learning rate rises by what may be hidden. The share that may be
hidden falls in steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ffcv_prune.methods import kernels
from ffcv_prune.methods.guards import Null
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import EveryEpoch, floor
from ffcv_prune.methods.rule import Draw, Ids, Samples
from ffcv_prune.methods.selectors import Selector
from ffcv_prune.methods.sources import Hidden
from ffcv_prune.methods.statistics import LastOfTraining
from ffcv_prune.methods.weights import NoWeight
from ffcv_prune.settings import key

STEPS = ((0.8, 0.4), (0.6, 0.6), (0.3, 0.8))  # from this fraction of the run on, this factor


@dataclass(frozen=True, kw_only=True)
class HideInSteps(EveryEpoch):
    """F, 0.8·F, 0.6·F and 0.4·F of the samples may be hidden from 0, 30, 60 and 80 % of the run on."""

    fraction: float = key(0.3, "kakurenbo: the most that may be hidden at first", within="[0, 1)")

    def kept(self, n: int, epoch: int, epochs: int) -> int:
        factor = next((factor for start, factor in STEPS if epoch >= start * epochs - 1e-9), 1.0)
        return n - floor(self.fraction * factor * n)


@dataclass(frozen=True, kw_only=True)
class HideConfident(Selector):
    """All but those of the m − k lowest losses of m candidates that are right with a confidence of τ or more."""

    needs_certainty: ClassVar[bool] = True
    has_fixed_size: ClassVar[bool] = False
    confidence: float = key(0.7, "kakurenbo: the least confidence of a hidden sample", within="[0, 1]")

    def most(self, k: int, n: int) -> int:
        return n

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates = samples.candidates(among)
        losses = samples.scores(among)
        hidden = np.zeros(candidates.size, np.bool_)
        if k < candidates.size:
            hidden[kernels.top_k(np.where(np.isnan(losses), -np.inf, -losses), candidates.size - k)] = True
        hidden &= ~np.isnan(losses) & samples.column("correct", among)
        hidden &= samples.column("confidence", among) >= self.confidence
        return Draw(candidates[~hidden])


@dataclass(frozen=True, kw_only=True)
class RaisedRate(NoWeight):
    """The learning rate times 1/(1 − F), with F what may be hidden (the authors' code), or what is hidden.

    In a warm-up of the rate the authors leave the factor out. That is up to the loop, which knows of it.
    """

    of_hidden: bool = key(False, "kakurenbo: raise the learning rate by what is hidden, not by what may be")

    def lr_factor(self, samples: Samples, ids: Ids, allowed: int) -> float:
        if samples.previous is None:  # no losses yet: nothing can be hidden
            return 1.0
        return samples.table.n / max(1, ids.size if self.of_hidden else allowed)


METHODS = (
    Method(
        name="kakurenbo",
        source=Hidden(),
        statistic=LastOfTraining(),
        selector=HideConfident(),
        weight=RaisedRate(),
        phases=HideInSteps(),
        guards=(Null(),),
    ),
)
