"""How urgently each sample needs a new value, see `budget`."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@njit(cache=True, nogil=True)
def write_urgencies(
    scores: Floats,
    thresholds: Floats,
    var: Floats,
    last_scored: NDArray[np.int32],
    updates: int,
    mean_var: float,
    urgencies: Floats,
) -> None:
    """Write the urgency of each of n samples to urgencies, float32[n]: the formula at the top of `budget`."""
    for i in range(scores.size):
        if last_scored[i] < 0:
            urgencies[i] = np.inf
        else:
            reach = math.sqrt((updates - last_scored[i]) * (var[i] + mean_var) / 2)
            urgencies[i] = reach - abs(scores[i] - thresholds[i])
