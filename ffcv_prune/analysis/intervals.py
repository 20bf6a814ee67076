"""Whether two means over seeds differ: Welch's 95 % interval of their difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Two-sided 95 % quantiles of Student's t by degrees of freedom, 1 to 10; beyond, that of 10 is on the safe side.
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def welch_margin(a: Sequence[float], b: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the difference of the means of a and b; infinite for single values."""
    if min(len(a), len(b)) < 2:
        return math.inf
    parts = [statistics.variance(values) / len(values) for values in (a, b)]
    if sum(parts) == 0:
        return 0.0
    spread = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    freedom = int(sum(parts) ** 2 / spread + 1e-9)  # Welch and Satterthwaite, rounded down
    return T_QUANTILES[min(freedom, len(T_QUANTILES)) - 1] * math.sqrt(sum(parts))
