"""The cases of the goldens: what is recorded at the commit before the rebuild, and driven again after it. numpy alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

N, EPOCHS, KEEP = 307, 12, 0.3
LABELS = np.repeat(np.arange(5), [100, 87, 60, 40, 20]).astype(np.int64)[np.random.default_rng(9).permutation(N)]
NAMES = ("random", "uncertainty", "ema", "epsilon_greedy", "ucb", "static", "static_epsilon_greedy")
OTHERS = ("static_random", "static_ucb")
GUARDS: dict[str, dict[str, float]] = {
    "alone": {},
    "random_share": {"random_share": 0.3},
    "loss_cap": {"loss_cap": 0.1},
    "class_floor": {"class_floor": 0.8},
    "all": {"random_share": 0.3, "loss_cap": 0.1, "class_floor": 0.8},
}
PHASES = {"plain": {}, "phases": {"warmup": 2, "final": 2}}
FULL_FIRST = {"warmup": 2, "warmup_mode": "full"}


def losses_of(epoch: int) -> NDArray[np.float32]:
    """float32[N]: the losses before an epoch, with ties."""
    rng = np.random.default_rng([7, epoch])
    return (np.round(rng.gamma(1.0, 1.0, N) * 16) / 16 + LABELS * 0.25).astype(np.float32)


def static_scores() -> NDArray[np.float32]:
    """float32[3, N]: scores by three models, with ties."""
    return np.round(np.random.default_rng(3).random((3, N)) * 64).astype(np.float32) / 64


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the parameters of each case; "name" is the method's, "seed" the run's."""
    for name in (*NAMES, *OTHERS):
        for guard, guards in GUARDS.items():
            for phase, phases in PHASES.items():
                yield (
                    f"{name} {guard} {phase}",
                    {"name": name, "seed": 1, "period": 2, "keep": KEEP, **guards, **phases},
                )
    for unbiased in (False, True):
        yield (
            f"infobatch {unbiased}",
            {"name": "infobatch", "seed": 1, "ratio": 0.6, "delta": 0.75, "unbiased": unbiased},
        )
    base = {"seed": 0, "period": 2, "keep": KEEP}
    for name in ("uncertainty", "ema", "ucb"):
        for guard in ("alone", "random_share", "class_floor"):
            budget = {"score_budget": 0.4, "score_revisit": 5}
            yield f"{name} {guard} budget", {"name": name, **base, **GUARDS[guard], **budget}
    for source, phases in (("training", FULL_FIRST), ("both", {}), ("both", FULL_FIRST)):
        for guard in ("alone", "all"):
            parameters = {"name": "ucb", **base, **phases, **GUARDS[guard], "score_source": source}
            yield f"ucb {guard} {source} {len(phases)}", parameters


def digest(*arrays: NDArray[Any] | None) -> str:
    """A short text that differs between arrays."""
    found = hashlib.blake2b(digest_size=8)
    for array in arrays:
        found.update(b"none" if array is None else str(array.dtype).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
