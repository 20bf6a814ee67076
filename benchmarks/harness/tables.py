"""Numbers and rows as the pages print them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

Row = Mapping[str, str]


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits; from 100 upwards a whole number: ``0.0123``, ``1.52``, ``1,234``."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """``1.52 (1.48–1.6)``: median, lowest and highest; of one value, the value; of none, nothing."""
    if not values:
        return ""
    middle, low, high = (number(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})" if len(values) > 1 else middle


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """``92.10 ± 0.23``, the sample standard deviation; without it for a single value."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def ratios(above: Iterable[Row], below: Iterable[Row], value: Callable[[Row], float]) -> list[float]:
    """One ratio for each repeat that both have, in the order of `below`."""
    of_above = {row["repeat"]: value(row) for row in above}
    return [of_above[row["repeat"]] / value(row) for row in below if row["repeat"] in of_above]
