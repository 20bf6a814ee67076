"""Training loops of other frameworks, one module each. None is imported before it is asked for."""

from __future__ import annotations

from typing import Any

from ffcv_prune.errors import UserError

# What a schedule of torch calls the number of its steps: beyond it one fails, the other raises the rate again.
STEPS_OF = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max"}


def check_schedule(schedule: Any, steps: int) -> None:
    """UserError if a schedule of torch that is stepped after each step of the optimizer ends before these."""
    name = STEPS_OF.get(type(schedule).__name__)
    if name is not None and getattr(schedule, name) < steps:
        raise UserError(
            f"{type(schedule).__name__} ends after {getattr(schedule, name)} steps, and the run has {steps}: "
            f"build it with {name}={steps}"
        )
