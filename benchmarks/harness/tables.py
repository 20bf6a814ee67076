"""Numbers and rows as the pages print them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

Row = Mapping[str, str]
Value = str | Callable[[Row], float]  # a column, or what is computed of a row


def table(lines: Sequence[Mapping[str, str]]) -> str:
    """In Markdown; the head is the keys, which all lines share."""
    body = [[*lines[0]], ["---"] * len(lines[0]), *([*line.values()] for line in lines)] if lines else []
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def aligned(lines: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The same lines, padded so that the table reads well in a terminal too."""
    widths = {head: max(len(head), *(len(line[head]) for line in lines)) for head in lines[0]}
    return [{head.ljust(width): line[head].ljust(width) for head, width in widths.items()} for line in lines]


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


def groups(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """The rows by their values in these columns, in the order in which they come first."""
    made: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        made.setdefault(tuple(row[column] for column in columns), []).append(row)
    return made


def values(rows: Iterable[Row], value: Value, scale: float = 1.0) -> list[float]:
    """Of each row, but for those that have nothing in the column."""
    if isinstance(value, str):
        return [scale * float(row[value]) for row in rows if row[value]]
    return [scale * value(row) for row in rows]


def ratios(above: Iterable[Row], below: Iterable[Row], value: Value) -> list[float]:
    """One ratio for each repeat that both have, in the order of `below`."""
    of_above = {row["repeat"]: values([row], value) for row in above}
    return [of_above[row["repeat"]][0] / values([row], value)[0] for row in below if row["repeat"] in of_above]
