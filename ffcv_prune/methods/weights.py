"""The factor of the loss of each selected sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.methods.part import Part
from ffcv_prune.settings import key


@dataclass(frozen=True, kw_only=True)
class Weight(Part, ABC):
    """A function of the probability with which each selected sample was drawn."""

    needs_probability: ClassVar[bool] = False

    @abstractmethod
    def of(self, probability: NDArray[np.float64], n: int) -> NDArray[np.float32] | None:
        """float32[k], the weight of each of k samples selected out of n with `probability`, float64[k]; None: all 1."""


@dataclass(frozen=True, kw_only=True)
class NoWeight(Weight):
    """Every loss counts as it is."""

    def of(self, probability: NDArray[np.float64], n: int) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class InverseProbability(Weight):
    """1/p, so that the expected weighted sum of the gradients of the selection is that of all n samples.

    The mean of the weighted losses of a batch out of |S| selected samples is, in expectation, n/|S| times the
    mean loss of all n: a larger step, fewer of them. That is InfoBatch's original form. `unbiased` multiplies all
    weights by |S|/n, which makes the expected gradient of a batch that of all the data, at |S|/n of the steps.
    """

    needs_probability: ClassVar[bool] = True
    unbiased: bool = key(False, "infobatch: scale the weights so that a step's expected gradient is the full one")

    def of(self, probability: NDArray[np.float64], n: int) -> NDArray[np.float32]:
        return (1 / probability * (probability.size / n if self.unbiased else 1)).astype(np.float32)
