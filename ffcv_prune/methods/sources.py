"""Where the values come from that the statistic takes in before a selection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.methods.budget import ScoreBudget
from ffcv_prune.methods.part import Part
from ffcv_prune.settings import key

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Source(Part, ABC):
    """Says which samples need a value.

    Attributes:
        records: whether it takes the training losses of each sample.
        passes: whether it asks for passes.
        in_batches: whether it asks for a forward pass of each batch, just before it is trained on.
        by_proxy: whether its passes are those of a proxy net, which trains on the batches that it scores.
    """

    records: ClassVar[bool] = False
    passes: ClassVar[bool] = True
    in_batches: ClassVar[bool] = False
    by_proxy: ClassVar[bool] = False

    @property
    def budget(self) -> ScoreBudget:
        """How many samples a pass may score."""
        return ScoreBudget(1.0, 1)

    @abstractmethod
    def due(self, fresh: NDArray[np.bool_], selection: Ids | None) -> Ids | None:
        """The samples that a pass should score, int64[m], ascending; None: no pass.

        Args:
            fresh: bool[n], which samples were recorded since the last selection.
            selection: int64[k], the last selection, ascending; None before the first.
        """


@dataclass(frozen=True, kw_only=True)
class _Budgeted(Source):
    score_budget: float = key(1.0, "share of the samples that a scoring pass scores; 1: all", within="(0, 1]")
    score_revisit: int = key(
        10, "score_budget: scoring passes within which each sample is scored at least once", within="[1, inf)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.budget  # noqa: B018 - refuses a budget that cannot be met

    @property
    def budget(self) -> ScoreBudget:
        return ScoreBudget(self.score_budget, self.score_revisit)


@dataclass(frozen=True, kw_only=True)
class Pass(_Budgeted):
    """A pass over all samples with the model as it is (the paper)."""

    def due(self, fresh: NDArray[np.bool_], selection: Ids | None) -> Ids:
        return np.arange(fresh.size)


@dataclass(frozen=True, kw_only=True)
class Training(Source):
    """The latest loss of each sample trained on since the last selection, which costs nothing.

    It is under augmentation, in training mode, up to a period old; what is not trained on keeps its old statistics.
    """

    records: ClassVar[bool] = True
    passes: ClassVar[bool] = False

    def due(self, fresh: NDArray[np.bool_], selection: Ids | None) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Both(_Budgeted):
    """The losses of training, and a pass over the samples that were not trained on."""

    records: ClassVar[bool] = True

    def due(self, fresh: NDArray[np.bool_], selection: Ids | None) -> Ids:
        return np.flatnonzero(~fresh)


@dataclass(frozen=True, kw_only=True)
class Hidden(Source):
    """The losses of training, and a pass over the samples that the last selection left out."""

    records: ClassVar[bool] = True

    def due(self, fresh: NDArray[np.bool_], selection: Ids | None) -> Ids | None:
        if selection is None:
            return None
        hidden = ~fresh
        hidden[selection] = False  # trained on, though a last batch that is not whole may have left some out
        return np.flatnonzero(hidden)


# Those that a user chooses from, where the method is not made for one.
SOURCES: dict[str, type[Source]] = {"pass": Pass, "training": Training, "both": Both}
