"""Learning-rate schedules as pure functions of the position in the run.

The position is measured in epochs: ``epoch + step / steps_in_this_epoch``. Pruning changes the number of steps from
one epoch to the next, so nothing here counts steps over the whole run. A schedule that divides by 5 at epoch 60 does
so at epoch 60, for any number of samples an epoch. A resumed run needs no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ffcv_prune.sections import Train

# In epochs. Milestones are fractions of the run: 0.333333333 of 90 epochs must fall on epoch 30.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class LRSchedule:
    """Learning rate of each step of a run.

    The shape ``step`` multiplies by lr_factor at each milestone; ``cosine`` and ``linear`` fall to 0 at the end of the
    run. The paper's 60/120/160 of 200 epochs are the milestones (0.3, 0.6, 0.8), and scale with the epochs. The
    learning rate grows linearly from 0 in the warm-up.
    """

    settings: Train

    def __call__(self, epoch: int, step: int, steps: int) -> float:
        """Learning rate of step `step` (0-based) of `steps` in epoch `epoch` (0-based)."""
        run = self.settings
        if epoch + (step + 1) / steps <= run.warmup_epochs:
            return run.lr * (epoch + (step + 1) / steps) / run.warmup_epochs
        position = epoch + step / steps
        done = max(0.0, position - run.warmup_epochs) / (run.epochs - run.warmup_epochs)
        if run.lr_schedule == "linear":
            return run.lr * (1.0 - done)
        if run.lr_schedule == "cosine":
            return run.lr * 0.5 * (1.0 + math.cos(math.pi * done))
        passed = sum(position >= m * run.epochs - _ROUNDING for m in run.lr_milestones)
        return run.lr * run.lr_factor**passed
