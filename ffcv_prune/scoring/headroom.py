"""How much a selection could gain at most: how unevenly the gradient is spread over the samples.

The gradient at the outputs is p − y for a classification. Its norm bounds the norm of a sample's whole gradient, up to
a factor that all samples share (Katharopoulos and Fleuret, ICML 2018). Where all samples have about the same, no
selection can be much better than a random one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FORWARD = 1 / 3  # of a step's arithmetic


@dataclass(frozen=True)
class Headroom:
    """What a scoring pass tells of the gradient.

    Attributes:
        highest_10, highest_30, highest_50: share of the sum of all norms that the highest so many percent hold.
        variance_reduction: the most that drawing in proportion to the norms, with weights 1/p, takes from the second
            moment of a stochastic gradient, 1 − mean(G)² / mean(G²).
        batch_gain: what that is worth, as a factor on the batch size: 1 / (1 − variance_reduction). Exact where the
            gradients of the samples cancel; the more they agree, the more it is worth. The authors' τ is the root.
        batch_gain_needed: the factor that pays for the pass: 1 + its cost over that of the steps on its selection, a
            forward pass counted as a third of a step.
        scored: share of the samples that the pass scored. Those of a part are not drawn at random.
    """

    highest_10: float
    highest_30: float
    highest_50: float
    variance_reduction: float
    batch_gain: float
    batch_gain_needed: float
    scored: float

    @property
    def is_little(self) -> bool:
        """Whether the pass costs more than its scores can gain; no part of the samples can tell."""
        return self.scored == 1 and self.batch_gain < self.batch_gain_needed

    def in_words(self) -> str:
        """One line for a run in which pruning cannot pay yet."""
        return (
            f"little headroom: the highest 30 % of the samples hold {self.highest_30:.0%} of the gradient; drawing by "
            f"it, with weights, is worth {self.batch_gain:.2f} times the batch, and the pass costs "
            f"{self.batch_gain_needed:.2f}: by this estimate pruning cannot pay yet"
        )


def headroom_of(norms: NDArray[np.float32], n: int, trained: int) -> Headroom | None:
    """The headroom by the norms float32[m] of the samples of a pass, of n; None if none of the norms is finite.

    `trained`: samples that are trained on by the scores of this pass, each as often as it is.
    """
    known = norms[np.isfinite(norms)].astype(np.float64)
    if not known.size:
        return None
    known[::-1].sort()  # from the highest on
    total, square = known.sum(), np.square(known).mean()
    if total == 0:  # nothing is left to learn, of any sample
        known[:], total, square = 1.0, known.size, 1.0
    tenth, third, half = (float(known[: round(share * known.size)].sum() / total) for share in (0.1, 0.3, 0.5))
    reduction = max(0.0, 1 - float(known.mean() ** 2 / square))
    gain = 1 / (1 - reduction)
    needed = 1 + FORWARD * norms.size / max(1, trained)
    return Headroom(tenth, third, half, reduction, gain, needed, norms.size / n)
