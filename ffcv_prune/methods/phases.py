"""Which epochs train on what: warm-up, pruned epochs with a selection every T_p, final phase."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from ffcv_prune.errors import UserError
from ffcv_prune.methods.part import Part
from ffcv_prune.settings import key

Phase = Literal["full", "random", "method"]
MODES = ("random", "full")


@dataclass(frozen=True, kw_only=True)
class Phases(Part, ABC):
    """What each epoch of a run, numbered from 0, trains on: the paper's Algorithm 1 plus two unscored phases.

    The first `warmup` epochs and the last ones train on the full data set or on random selections, as their mode
    says; those between follow the method.
    `prunes`: whether anything is ever selected.
    """

    prunes: ClassVar[bool] = True

    warmup: int = key(0, "epochs before the first scored selection", within="[0, inf)")
    warmup_mode: str = key("random", "what the warm-up trains on", choices=MODES)

    @property
    def share(self) -> float:
        """The fraction kept in every epoch that is not "full", in (0, 1]."""
        return 1.0

    @property
    def interval(self) -> int:
        """T_p, epochs from one selection to the next within a phase, ≥ 1."""
        return 1

    @abstractmethod
    def final_phase(self, epochs: int) -> tuple[int, Phase]:
        """(length of the final phase in epochs, what it trains on)."""

    def check(self, epochs: int) -> None:
        """Raise `UserError` unless the phases fit into a run of `epochs`."""
        if epochs < 1:
            raise UserError(f"epochs = {epochs} must be at least 1")
        final, _ = self.final_phase(epochs)
        if self.warmup + final > epochs:
            raise UserError(
                f"warmup = {self.warmup} and final = {final} do not fit into {epochs} epochs: "
                "shorten them or train longer"
            )

    def phase(self, epoch: int, epochs: int) -> Phase:
        """Return what the epoch trains on: "full" data, a "random" selection or the "method"'s."""
        if epoch < self.warmup:
            return "full" if self.warmup_mode == "full" else "random"
        final, mode = self.final_phase(epochs)
        return mode if epoch >= epochs - final else "method"

    def selects(self, epoch: int, epochs: int) -> bool:
        """Return whether a selection is due before the epoch: at each phase's start, then every `interval`."""
        start = 0
        if epoch >= self.warmup:
            last = epochs - self.final_phase(epochs)[0]
            start = last if epoch >= last else self.warmup
        return (epoch - start) % self.interval == 0

    def kept(self, n: int) -> int:
        """Return k = round(keep·n), the size of a selection out of n samples; `UserError` if none is left."""
        k = round(self.share * n)
        if k < 1:
            raise UserError(f"keep = {self.share} of {n} samples leaves none: raise keep")
        return k

    def samples_in(self, epoch: int, epochs: int, n: int) -> int:
        """Return how many of n samples the epoch trains on; at most, where the selector sizes its selections itself."""
        return n if self.phase(epoch, epochs) == "full" else self.kept(n)

    def samples_seen(self, epochs: int, n: int) -> int:
        """Return the samples selected over all epochs for a data set of n samples (paper, Eq. 5: k·N × T)."""
        return sum(self.samples_in(epoch, epochs, n) for epoch in range(epochs))


@dataclass(frozen=True, kw_only=True)
class Periodic(Phases):
    """A selection of constant size every T_p epochs. Without a warm-up and a final phase: the paper's algorithm."""

    keep: float = key(0.3, "fraction of the data kept (pruning rate = 1 - keep)", within="(0, 1]")
    period: int = key(10, "epochs between selections (the paper's T_p)", within="[1, inf)")
    final: int = key(0, "epochs after the last scored selection", within="[0, inf)")
    final_mode: str = key("random", "what the final phase trains on", choices=MODES)

    @property
    def share(self) -> float:
        return self.keep

    @property
    def interval(self) -> int:
        return self.period

    def final_phase(self, epochs: int) -> tuple[int, Phase]:
        return self.final, "full" if self.final_mode == "full" else "random"


@dataclass(frozen=True, kw_only=True)
class UntilFull(Phases):
    """A selection before every epoch e < ⌊δ·epochs⌋, then all data (InfoBatch: δ = 0.875).

    The authors' code counts alike: 78 of 90 epochs are pruned, where δ·90 = 78.75.
    """

    delta: float = key(0.875, "infobatch: fraction of the epochs that are pruned; then all data", within="(0, 1]")

    def final_phase(self, epochs: int) -> tuple[int, Phase]:
        return epochs - math.floor(self.delta * epochs + 1e-9), "full"  # 0.29 · 100 is 28.999999999999996


@dataclass(frozen=True, kw_only=True)
class AllData(Phases):
    """All data in every epoch; nothing is ever selected."""

    prunes: ClassVar[bool] = False

    warmup: int = 0
    warmup_mode: str = "full"

    def final_phase(self, epochs: int) -> tuple[int, Phase]:
        return epochs, "full"

    def selects(self, epoch: int, epochs: int) -> bool:
        return False
