"""Which epochs train on what: warm-up, pruned epochs with a selection every T_p, final phase."""

from __future__ import annotations

import math
from abc import ABC
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

    The first `warmup` epochs and the last epochs train on the full data set or on random selections, as their mode
    says. The epochs between follow the method.
    `prunes`: whether anything is ever selected. `sized_by`: see `Method.sized_by`.
    """

    prunes: ClassVar[bool] = True
    sized_by: ClassVar[str | None] = None

    warmup: int | float = key(
        0, "epochs before the first scored selection; below 1: share of the run", within="[0, inf)"
    )
    warmup_mode: str = key("random", "what the warm-up trains on", choices=MODES)

    @property
    def share(self) -> float:
        """The fraction kept in every epoch that is not "full", in (0, 1]."""
        return 1.0

    @property
    def interval(self) -> int:
        """T_p, epochs from one selection to the next within a phase, ≥ 1."""
        return 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("warmup", "final"):
            length = getattr(self, name, 0)
            if length >= 1 and length != int(length):
                raise UserError(f"{name}={length}: expected whole epochs, or a share of the run below 1")

    def final_phase(self, epochs: int) -> tuple[int, Phase]:
        """(length of the final phase in epochs, what it trains on)."""
        return 0, "random"

    def warmup_epochs(self, epochs: int) -> int:
        return _length(self.warmup, epochs)

    def check(self, epochs: int) -> None:
        """Raise `UserError` unless the phases fit into a run of `epochs`."""
        if epochs < 1:
            raise UserError(f"epochs = {epochs} must be at least 1")
        final, _ = self.final_phase(epochs)
        warmup = self.warmup_epochs(epochs)
        if warmup + final > epochs:
            raise UserError(
                f"warmup = {warmup} and final = {final} do not fit into {epochs} epochs: shorten them or train longer"
            )

    def phase(self, epoch: int, epochs: int) -> Phase:
        """Return what the epoch trains on: "full" data, a "random" selection or the "method"'s."""
        if epoch < self.warmup_epochs(epochs):
            return "full" if self.warmup_mode == "full" else "random"
        final, mode = self.final_phase(epochs)
        return mode if epoch >= epochs - final else "method"

    def selects(self, epoch: int, epochs: int) -> bool:
        """Return whether a selection is due before the epoch: at each phase's start, then every `interval`."""
        return (epoch - self._start(epoch, epochs)) % self.interval == 0

    def turn(self, epoch: int, epochs: int) -> int:
        """Return how many selections the epoch's phase has had before the one that the epoch trains on."""
        return (epoch - self._start(epoch, epochs)) // self.interval

    def chooses(self, epoch: int, batch: int, epochs: int) -> bool:
        """Return whether samples of this batch are chosen; of a method that chooses in batches."""
        return self.phase(epoch, epochs) == "method"

    def _start(self, epoch: int, epochs: int) -> int:
        """The first epoch of the phase that the epoch is in."""
        warmup, last = self.warmup_epochs(epochs), epochs - self.final_phase(epochs)[0]
        return 0 if epoch < warmup else last if epoch >= last else warmup

    def kept(self, n: int, epoch: int, epochs: int) -> int:
        """Return k = round(keep·n), the size of the epoch's selection out of n samples; `UserError` if none is left."""
        k = round(self.share * n)
        if k < 1:
            raise UserError(f"keep = {self.share} of {n} samples leaves none: raise keep")
        return k


@dataclass(frozen=True, kw_only=True)
class Periodic(Phases):
    """A selection of constant size every T_p epochs. Without a warm-up and a final phase: the paper's algorithm."""

    sized_by: ClassVar[str | None] = "keep"
    keep: float = key(0.3, "fraction of the data kept (pruning rate = 1 - keep)", within="(0, 1]")
    period: int = key(10, "epochs between selections (the paper's T_p)", within="[1, inf)")
    final: int | float = key(0, "epochs after the last scored selection; below 1: share of the run", within="[0, inf)")
    final_mode: str = key("random", "what the final phase trains on", choices=MODES)

    @property
    def share(self) -> float:
        return self.keep

    @property
    def interval(self) -> int:
        return self.period

    def final_phase(self, epochs: int) -> tuple[int, Phase]:
        return _length(self.final, epochs), "full" if self.final_mode == "full" else "random"


@dataclass(frozen=True, kw_only=True)
class EveryEpoch(Phases):
    """A selection before every epoch; how many samples it holds, the selector says."""


@dataclass(frozen=True, kw_only=True)
class UntilFull(Phases):
    """A selection before every epoch e < ⌊δ·epochs⌋, then all data (InfoBatch: δ = 0.875).

    The authors' code counts alike: 78 of 90 epochs are pruned, where δ·90 = 78.75.
    """

    delta: float = key(
        0.875, "infobatch, bls, seta: fraction of the epochs that are pruned by the rule", within="(0, 1]"
    )

    def final_phase(self, epochs: int) -> tuple[int, Phase]:
        return epochs - floor(self.delta * epochs), "full"


@dataclass(frozen=True, kw_only=True)
class UntilRandom(UntilFull):
    """A selection before every epoch e < ⌊δ·epochs⌋, then a random one before each."""

    def final_phase(self, epochs: int) -> tuple[int, Phase]:
        return super().final_phase(epochs)[0], "random"


@dataclass(frozen=True, kw_only=True)
class Geometric(Phases):
    """gamma^e of the samples in epoch e, rounded down; all data in the last one."""

    sized_by: ClassVar[str | None] = "gamma"
    gamma: float = key(0.95, "srd: factor of the share kept from one epoch to the next", within="(0, 1]")

    def final_phase(self, epochs: int) -> tuple[int, Phase]:
        return 1, "full"

    def kept(self, n: int, epoch: int, epochs: int) -> int:
        return max(1, floor(self.gamma**epoch * n))


@dataclass(frozen=True, kw_only=True)
class AllData(Phases):
    """All data in every epoch; nothing is ever selected."""

    prunes: ClassVar[bool] = False

    warmup: int | float = 0
    warmup_mode: str = "full"

    def final_phase(self, epochs: int) -> tuple[int, Phase]:
        return epochs, "full"

    def selects(self, epoch: int, epochs: int) -> bool:
        return False


def floor(product: float) -> int:
    """The whole part of a share of a number: 0.29 · 100 is 28.999999999999996, and counts as 29."""
    return math.floor(product + 1e-9)


def _length(length: float, epochs: int) -> int:
    """The length of a phase in epochs; below 1 it is a share of the run, and one epoch at least."""
    return max(1, round(length * epochs)) if 0 < length < 1 else int(length)
