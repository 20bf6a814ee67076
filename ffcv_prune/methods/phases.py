"""Which epochs train on what: warm-up, pruned epochs with a checkpoint every T_p, final phase."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from ffcv_prune.errors import UserError

Phase = Literal["full", "random", "policy"]
UnscoredPhase = Literal["full", "random"]


@dataclass(frozen=True)
class Schedule:
    """What each epoch of a run, numbered from 0, trains on: the paper's Algorithm 1 plus two unscored phases.

    The first `warmup` epochs and the last `final` epochs train on the full data set or on random selections,
    as their mode says; those between follow the policy. With warmup = final = 0 it is the paper's algorithm.

    Attributes:
        epochs: number of epochs, ≥ 1.
        period: T_p, epochs from one selection to the next within a phase, ≥ 1.
        keep: fraction kept of the data set in every epoch that is not "full", in (0, 1].
        warmup, final: epochs, ≥ 0, together at most `epochs`.
        warmup_mode, final_mode: "random" or "full".
    """

    epochs: int
    period: int = 10
    _: KW_ONLY
    keep: float
    warmup: int = 0
    warmup_mode: UnscoredPhase = "random"
    final: int = 0
    final_mode: UnscoredPhase = "random"

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "period": 1, "warmup": 0, "final": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} = {getattr(self, name)} must be at least {least}")
        if not 0 < self.keep <= 1:
            raise UserError(f"keep = {self.keep} is outside (0, 1]: it is the fraction of samples kept")
        if self.warmup + self.final > self.epochs:
            raise UserError(
                f"warmup = {self.warmup} and final = {self.final} do not fit into {self.epochs} epochs: "
                "shorten them or train longer"
            )
        for name in ("warmup_mode", "final_mode"):
            if getattr(self, name) not in ("random", "full"):
                raise UserError(f'{name} = "{getattr(self, name)}" must be "random" or "full"')

    def phase(self, epoch: int) -> Phase:
        """Return what the epoch trains on: "full" data, a "random" selection or the "policy"'s."""
        if epoch < self.warmup:
            return self.warmup_mode
        return self.final_mode if epoch >= self.epochs - self.final else "policy"

    def is_checkpoint(self, epoch: int) -> bool:
        """Return whether a selection is due before the epoch: at each phase's start, then every `period`."""
        if epoch < self.warmup:
            start = 0
        else:
            start = self.epochs - self.final if epoch >= self.epochs - self.final else self.warmup
        return (epoch - start) % self.period == 0

    def kept(self, n: int) -> int:
        """Return k = round(keep·n), the size of a selection out of n samples; `UserError` if none is left."""
        k = round(self.keep * n)
        if k < 1:
            raise UserError(f"keep = {self.keep} of {n} samples leaves none: raise keep")
        return k

    def samples_seen(self, n: int) -> int:
        """Return the samples selected over all epochs for a data set of n samples (paper, Eq. 5: k·N × T).

        For a policy that sizes its selections itself (InfoBatch) it is what they hold at most.
        """
        return sum(n if self.phase(epoch) == "full" else self.kept(n) for epoch in range(self.epochs))


def infobatch_final(epochs: int, delta: float) -> int:
    """Return the length in epochs of InfoBatch's final phase on all data: the epochs e ≥ δ·epochs, 0 < δ ≤ 1."""
    if not 0 < delta <= 1:
        raise UserError(f"delta = {delta} is outside (0, 1]: it is the fraction of the epochs that are pruned")
    return epochs - math.ceil(delta * epochs - 1e-9)  # 0.07 · 100 is 7.000000000000001
