"""The factor of the loss of each selected sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.methods.part import Part
from ffcv_prune.methods.rule import Ids, Samples
from ffcv_prune.settings import key


@dataclass(frozen=True, kw_only=True)
class Weight(Part, ABC):
    """How much each selected sample counts.

    `needs_probability`: whether `of` is given the probability with which each of them was drawn.
    """

    needs_probability: ClassVar[bool] = False

    @abstractmethod
    def of(self, samples: Samples, ids: Ids, probability: NDArray[np.float64] | None) -> NDArray[np.float32] | None:
        """float32[k], the factor of the loss of each of the samples `ids`, int64[k]; None: all 1.

        `probability` is float64[k], see `needs_probability`.
        """

    def lr_factor(self, samples: Samples, ids: Ids, allowed: int) -> float:
        """The factor of the learning rate while `ids` are trained on, where `allowed` is the least to train on."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class NoWeight(Weight):
    """Every loss counts as it is."""

    def of(self, samples: Samples, ids: Ids, probability: NDArray[np.float64] | None) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class InverseProbability(Weight):
    """1/p, so that the expected weighted sum of the gradients of the selection is that of all n samples.

    A step takes the mean of the weighted losses of its batch, out of |S| selected samples. In expectation, this is
    n/|S| times the mean loss of all n. Steps are larger, and there are fewer. That is InfoBatch's original form.
    `unbiased` multiplies all weights by |S|/n, which makes the expected gradient of a batch that of all the data, at
    |S|/n of the steps.
    """

    needs_probability: ClassVar[bool] = True
    unbiased: bool = key(False, "infobatch: scale the weights so that a step's expected gradient is the full one")

    def of(self, samples: Samples, ids: Ids, probability: NDArray[np.float64] | None) -> NDArray[np.float32]:
        assert probability is not None
        return (1 / probability * (ids.size / samples.table.n if self.unbiased else 1)).astype(np.float32)
