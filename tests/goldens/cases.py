"""The cases of the goldens and their made-up losses: what `record.py` and `test_goldens.py` share. Numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

N, EPOCHS = 301, 12
LABELS = np.random.default_rng(7).permutation(np.repeat(np.arange(5), (120, 90, 55, 30, 6))).astype(np.int64)
PASS, TRAINING = 0, 1  # where losses come from
SCHEDULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "phases": {"warmup": 2, "warmup_mode": "random", "final": 2, "final_mode": "random"},
}
GUARDS: dict[str, dict[str, float]] = {
    "alone": {},
    "random": {"random_share": 0.3},
    "cap": {"loss_cap": 0.1},
    "floor": {"class_floor": 0.8},
    "all": {"random_share": 0.3, "loss_cap": 0.1, "class_floor": 0.8},
}
PARAMETERS: dict[str, dict[str, float]] = {
    "random": {},
    "uncertainty": {},
    "ema": {"alpha": 0.7},
    "epsilon_greedy": {"alpha": 0.8, "epsilon": 0.2},
    "ucb": {"alpha": 0.8, "c": 1.5},
    "static_random": {},
    "static": {},
    "static_epsilon_greedy": {"epsilon": 0.2},
    "static_ucb": {"alpha": 0.8, "c": 1.5},
}


def losses(epoch: int, source: int) -> NDArray[np.float32]:
    """float32[N]: rounded, so that many are equal; each eighth sample has the same loss in all epochs."""
    rng = np.random.default_rng([20, epoch, source])
    made = np.round(rng.gamma(2.0, 1.0 + 0.2 * LABELS) / (1 + 0.1 * epoch), 1)
    made[::8] = 2.5
    return made.astype(np.float32)


def static_scores(name: str) -> NDArray[np.float32] | None:
    """float32[N] or, for static_ucb, float32[models, N]; None where a method takes no scores."""
    if name not in ("static", "static_epsilon_greedy", "static_ucb"):
        return None
    made = np.stack([losses(epoch, 2) for epoch in range(3)])
    return made if name == "static_ucb" else made[0]


def cases() -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """(case, method, seed, the method's keys as in a configuration)."""
    for seed in (0, 1):
        for name, own in PARAMETERS.items():
            for guard, guards in GUARDS.items():
                for schedule, phases in SCHEDULES.items():
                    base = {"keep": 0.3, "period": 2, **own, **guards, **phases}
                    yield f"{name}-{guard}-{schedule}-{seed}", name, seed, base
                    if name in ("uncertainty", "ema", "ucb") and guard != "cap" and guard != "all":
                        budget = {"score_budget": 0.4, "score_revisit": 5}
                        yield f"{name}-{guard}-{schedule}-budget-{seed}", name, seed, base | budget
        for unbiased in (False, True):
            keys = {"ratio": 0.5, "delta": 0.75, "unbiased": unbiased}
            yield f"infobatch-{unbiased}-{seed}", "infobatch", seed, keys
        ucb = {"keep": 0.3, "period": 2, **PARAMETERS["ucb"]}
        full_first = {"warmup": 2, "warmup_mode": "full", "score_source": "training"}
        yield f"ucb-training-{seed}", "ucb", seed, ucb | full_first
        yield f"ucb-both-{seed}", "ucb", seed, ucb | {"score_source": "both"}


def digest(array: NDArray[Any] | None) -> str:
    return "-" if array is None else hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()


def line(
    epoch: int, wanted: NDArray[np.int64] | None, ids: NDArray[np.int64], weights: NDArray[np.float32] | None
) -> str:
    """What is compared of a selection. Weights that are all 1 are as good as none."""
    if weights is not None and (weights == 1).all():
        weights = None
    return f"{epoch} {ids.size} {digest(ids)} {digest(weights)} {digest(wanted)}"
