"""Controls: what a method must beat that claims something for its scores.

rs2, repeated sampling of random subsets (Okanovic et al., ICLR 2024): a permutation of all samples, served in slices.
srd (Sathiyanarayanan et al., "Progressive Data Dropout", NeurIPS 2025): a random share that falls from epoch to epoch.
bls (Batch Loss Score, CVPR 2026): InfoBatch on the mean losses of batches, which depend little on the single sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ffcv_prune.methods.guards import Null
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import Geometric, Periodic, UntilFull
from ffcv_prune.methods.rule import Draw, Ids, Samples
from ffcv_prune.methods.selectors import DropBelowMean, Selector, Uniform
from ffcv_prune.methods.sources import Training
from ffcv_prune.methods.statistics import BatchMean, LastOfTraining
from ffcv_prune.methods.weights import InverseProbability

_WALK_STREAM = 4  # keeps the permutations apart from the draws of a run (state.py)


@dataclass(frozen=True, kw_only=True)
class Walk(Selector):
    """A permutation of all samples in ⌈n/k⌉ slices, one a selection; the next permutation when it is served.

    In each pass every sample is selected once. Slices differ by one sample at most, and hold at most k.
    """

    is_random: ClassVar[bool] = True
    has_fixed_size: ClassVar[bool] = False

    @property
    def ranks(self) -> bool:
        return False

    def least(self, k: int, n: int) -> int:
        return n // -(-n // k)

    def most(self, k: int, n: int) -> int:
        return -(-n // -(-n // k))

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        candidates = samples.candidates(among)
        slices = -(-candidates.size // k)
        passed, turn = divmod(samples.moment.turn, slices)
        order = np.random.default_rng([samples.moment.seed, passed, _WALK_STREAM]).permutation(candidates)
        ids = np.sort(np.array_split(order, slices)[turn])
        return Draw(ids, lambda: np.full(candidates.size, ids.size / candidates.size))


METHODS = (
    Method(
        name="rs2",
        source=Training(),
        statistic=LastOfTraining(),
        selector=Walk(),
        phases=Periodic(period=1),
        guards=(Null(),),
    ),
    Method(name="srd", statistic=LastOfTraining(), selector=Uniform(), phases=Geometric()),
    Method(
        name="bls",
        source=Training(),
        statistic=BatchMean(),
        selector=DropBelowMean(),
        weight=InverseProbability(),
        phases=UntilFull(),
        guards=(Null(),),
    ),
)
