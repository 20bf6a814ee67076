"""Learning-rate schedules as pure functions of the position in the run.

The position is measured in epochs: ``epoch + step / steps_in_this_epoch``. Pruning changes the number of
steps from one epoch to the next, so nothing here counts steps over the whole run: a schedule that divides by
5 at epoch 60 does so at epoch 60 however many samples an epoch holds, and a resumed run needs no state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ffcv_prune.config import Train

# In epochs. Milestones are fractions of the run: 0.333333333 of 90 epochs must fall on epoch 30.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class LRSchedule:
    """Learning rate of each step of a run.

    Args:
        base_lr: the learning rate after the warm-up, > 0.
        epochs: length of the run.
        shape: ``step`` multiplies by `factor` at each milestone; ``cosine`` falls to 0 at the end of the run.
        milestones: for ``step``: fractions of the run, rising. The paper's 60/120/160 of 200 epochs
            are (0.3, 0.6, 0.8), and scale with the epochs.
        factor: for ``step``: the paper divides by 5, 0.2.
        warmup_epochs: the learning rate grows linearly from 0 to `base_lr` over so many epochs.
    """

    base_lr: float
    epochs: int
    shape: str = "step"
    milestones: Sequence[float] = (0.3, 0.6, 0.8)
    factor: float = 0.2
    warmup_epochs: float = 0.0

    @classmethod
    def of(cls, train: Train, base_lr: float) -> LRSchedule:
        """The schedule of a run's section train, with another learning rate."""
        return cls(base_lr, train.epochs, train.lr_schedule, train.lr_milestones, train.lr_factor, train.warmup_epochs)

    def __call__(self, epoch: int, step: int, steps: int) -> float:
        """Learning rate of step `step` (0-based) of `steps` in epoch `epoch` (0-based)."""
        if epoch + (step + 1) / steps <= self.warmup_epochs:
            return self.base_lr * (epoch + (step + 1) / steps) / self.warmup_epochs
        position = epoch + step / steps
        if self.shape == "cosine":
            done = max(0.0, position - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
            return self.base_lr * 0.5 * (1.0 + math.cos(math.pi * done))
        passed = sum(position >= m * self.epochs - _ROUNDING for m in self.milestones)
        return self.base_lr * self.factor**passed
