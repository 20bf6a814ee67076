"""Whether a learning-rate schedule of torch that counts steps ends with the run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
)

from ffcv_prune.errors import UserError

# What a schedule calls the number of its steps. Others, as LambdaLR, have no end that can be read.
STEPS_OF = {
    OneCycleLR: "total_steps",
    CosineAnnealingLR: "T_max",
    LinearLR: "total_iters",
    PolynomialLR: "total_iters",
}


def check_schedule(schedule: Any, steps: int) -> None:
    """UserError if a schedule ends before a run of so many steps; a warning if it ends later.

    A `LinearLR` that ends early at a rate above 0 is a warm-up, and passes.
    """
    for part, begin in _last_parts(schedule, 0):
        name, argument = type(part).__name__, STEPS_OF[type(part)]
        if begin >= steps:
            warnings.warn(
                f"{name} begins after {begin} steps, and the run has {steps}: give SequentialLR earlier milestones",
                stacklevel=3,
            )
            continue
        end = begin + getattr(part, argument)
        message = f"{name} ends after {end} steps, and the run has {steps}: build it with {argument}={steps - begin}"
        if end > steps:
            warnings.warn(message, stacklevel=3)
        elif end < steps and not (isinstance(part, LinearLR) and part.end_factor > 0):
            raise UserError(message)


def _last_parts(schedule: Any, begin: int) -> Iterator[tuple[Any, int]]:
    """(a schedule with an end, the step at which it begins) for each schedule that is active in the last step.

    The private names are keys of torch's own state_dict, too: it cannot change them without breaking checkpoints.
    """
    if type(schedule) is SequentialLR:
        yield from _last_parts(schedule._schedulers[-1], begin + (schedule._milestones or [0])[-1])
    elif type(schedule) is ChainedScheduler:
        for part in schedule._schedulers:
            yield from _last_parts(part, begin)
    elif type(schedule) in STEPS_OF:  # a class derived from one may count otherwise
        yield schedule, begin
