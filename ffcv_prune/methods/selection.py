"""What a method selected: which samples, how much each counts, and with which probability it was drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.methods.phases import Phase
from ffcv_prune.methods.rule import Ids, Probabilities


@dataclass(frozen=True)
class Selection:
    """What the epochs from `epoch` on train on.

    Attributes:
        epoch: the first of these epochs.
        phase: "full", "random" or "method".
        ids: int64[k], sorted.
        weights: float32[k], the factor of the loss of each sample; None: all 1.
        lr_factor: the factor of the learning rate in these epochs.
    """

    epoch: int
    phase: Phase
    ids: Ids
    weights: NDArray[np.float32] | None = None
    lr_factor: float = 1.0
    _probability: Callable[[], Probabilities] | None = field(default=None, repr=False)

    @cached_property
    def probability(self) -> NDArray[np.float32] | None:
        """float32[k], with which each of these samples was drawn; None: not at random, or it is not known.

        It is not known of a class floor below 1 around a rule that both ranks and draws.
        """
        found = None if self._probability is None else self._probability().astype(np.float32)
        return None if found is None or np.isnan(found).any() else found

    def state_dict(self) -> dict[str, Any]:
        """Arrays and plain values, for `from_state`."""
        return {
            "epoch": self.epoch,
            "phase": self.phase,
            "ids": self.ids.copy(),
            "weights": None if self.weights is None else self.weights.copy(),
            "lr_factor": self.lr_factor,
            "probability": self.probability,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Selection:
        """The selection that `state` was made of."""
        known = state["probability"]
        named = {name: state[name] for name in ("epoch", "phase", "ids", "weights", "lr_factor")}
        return cls(**named, _probability=None if known is None else lambda: known)
