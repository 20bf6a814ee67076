"""OrderDP: Jin et al., ICLR 2026; Ordered SGD (Kawaguchi and Lu, 2020) with an epoch in place of a batch.

Before each epoch a random pool is drawn, and its highest losses are selected. Losses are those of training: only what
is selected is renewed. Of n samples ranked by loss, the samples below rank n − pool + top are out of reach while
losses do not change. `max_age` brings them back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ffcv_prune.methods import kernels
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import EveryEpoch, floor
from ffcv_prune.methods.rule import Draw, Ids, Probabilities, Samples
from ffcv_prune.methods.selectors import Selector
from ffcv_prune.methods.sources import Training
from ffcv_prune.methods.statistics import LastOfTraining
from ffcv_prune.settings import key


@dataclass(frozen=True, kw_only=True)
class TopOfPool(Selector):
    """The k highest scores of a random pool of ⌊pool·m⌋ of m candidates, or of k where that is more.

    Samples without a score come first, in a random order.

    Out of all n samples k = ⌊top·⌊pool·n⌋⌋.
    """

    is_random: ClassVar[bool] = True
    starts_without_values: ClassVar[bool] = True
    sized_by: ClassVar[str | None] = "pool"
    pool: float = key(0.5, "orderdp: share of the samples in the random pool", within="(0, 1]")
    top: float = key(0.6, "orderdp: share of the pool that is selected, the highest losses", within="(0, 1]")

    def size(self, n: int) -> int:
        return max(1, floor(self.top * floor(self.pool * n)))

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates = samples.candidates(among)
        size = max(k, floor(self.pool * candidates.size))
        pool = kernels.random_subset(candidates, size, rng)

        scores = samples.scores(candidates)  # a copy: later losses do not change the probabilities

        def probability() -> Probabilities:
            order = np.argsort(-scores, kind="stable")  # NaN last
            unseen = np.isnan(scores)
            by_rank = chance_by_rank(candidates.size, size, k)
            first = np.count_nonzero(unseen)
            chances = np.empty(candidates.size)
            chances[order[: candidates.size - first]] = by_rank[first:]
            chances[unseen] = by_rank[:first].sum() / max(1, first)  # their ranks are in a random order
            return chances

        unseen = pool[np.isnan(samples.scores(pool))]
        chosen = samples.top(k, pool) if unseen.size <= k else kernels.random_subset(unseen, k, rng)
        return Draw(chosen, probability)


def chance_by_rank(n: int, pool: int, top: int) -> Probabilities:
    """float64[n]: the probability that the sample of rank 1, 2, … n is among the best `top` of a random `pool` of n.

    For rank j it is the sum over l of C(j−1, l−1)·C(n−j, pool−l)/C(n, pool), computed in O(n). Let R be the rank of
    the last selected sample. It has a negative hypergeometric distribution, and given R = r each of the r−1 ranks
    above is in the pool with probability (top−1)/(r−1).
    """
    ranks = np.arange(top, n - pool + top + 1, dtype=np.float64)  # of R
    ratio = ranks[:-1] / (ranks[:-1] - top + 1) * (n - ranks[:-1] - pool + top) / (n - ranks[:-1])
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratio))])
    last = np.exp(logs - logs.max())
    last /= last.sum()
    of_higher = np.zeros(ranks.size)
    of_higher[ranks > 1] = (last * (top - 1))[ranks > 1] / (ranks[ranks > 1] - 1)
    tail = np.cumsum(of_higher[::-1])[::-1]  # over R ≥ r
    chances = np.zeros(n)
    chances[: top - 1] = tail[0]
    chances[top - 1 : top - 1 + ranks.size] = last + tail - of_higher
    return chances


METHODS = (
    Method(
        name="orderdp",
        source=Training(),
        statistic=LastOfTraining(),
        selector=TopOfPool(),
        phases=EveryEpoch(),
    ),
)
