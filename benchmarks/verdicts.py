"""How findings are judged: two cells by the 95 % interval of their difference, Welch's, over the seeds.

All relations are symmetric: what would make one fail is as far off as what makes it hold.

    above, below    0 decides: holds where the whole interval is on the claimed side, fails where it is on the other
    level with      ±LEVEL decides: holds where the whole interval is within, fails where it is wholly beyond

Whatever is left is undecided, whichever way it points: an interval that is merely wide shows nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.claims import Claim
from benchmarks.results import Cell
from ffcv_prune.analysis.intervals import welch

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
LEVEL = 1.0  # points of accuracy within which two methods count as level
RULE = (
    "A claim of “above” or “below” holds where the whole 95 % interval of the difference (Welch, over the seeds) lies "
    "on the claimed side of 0, and does not hold where it lies on the other. “Level with” holds where the whole "
    f"interval lies within ±{LEVEL:g} point, and does not hold where it lies wholly beyond. All else is undecided."
)


@dataclass(frozen=True)
class Comparison:
    """Two cells: their difference in points of accuracy or in seconds, half its 95 % interval, and the verdict."""

    cell: Cell
    rival: Cell
    gap: float
    margin: float
    verdict: str

    @property
    def difference(self) -> str:
        return f"{self.gap:+.2f} ± {self.margin:.2f}" if math.isfinite(self.margin) else f"{self.gap:+.2f}, one run"

    @property
    def collapsed(self) -> bool:
        return self.cell.collapsed or self.rival.collapsed

    @property
    def unsteady(self) -> bool:
        return self.cell.unsteady or self.rival.unsteady


def compare(cell: Cell, rival: Cell, relation: str, measure: str = "accuracy") -> Comparison:
    a, b = (measured(one, measure) for one in (cell, rival))
    gap, margin = statistics.mean(a) - statistics.mean(b), welch(a, b).half_width
    low, high = gap - margin, gap + margin
    holds, fails = {
        "above": (low > 0, high < 0),
        "below": (high < 0, low > 0),
        "level with": (low >= -LEVEL and high <= LEVEL, low > LEVEL or high < -LEVEL),
    }[relation]
    return Comparison(cell, rival, gap, margin, HOLDS if holds else FAILS if fails else UNDECIDED)


def measured(cell: Cell, measure: str) -> list[float]:
    """Accuracy in percent, or the seconds of training, selecting and static scores, of each run."""
    return [100 * value for value in cell.accuracies] if measure == "accuracy" else cell.all_seconds


def cell_of(grouped: Sequence[Cell], part: str, method: str, rate: float | None) -> Cell | None:
    """The cell of this method, at this rate or without one, if it has rows."""
    fitting = (c for c in grouped if (c.run.part, c.run.method) == (part, method))
    return next((c for c in fitting if c.run.rate in (rate, None) and c.rows), None)


def comparisons(claim: Claim, grouped: Sequence[Cell]) -> list[Comparison]:
    """Those of the claim's comparisons that have rows on both sides."""
    pairs = [
        (cell_of(grouped, part, method, rate), cell_of(grouped, part, rival, rate))
        for part in claim.parts
        for rate in claim.rates
        for method in claim.methods.split()
        for rival in claim.rivals.split()
    ]
    return [compare(cell, rival, claim.relation, claim.measure) for cell, rival in pairs if cell and rival]


def overall(verdicts: Sequence[str]) -> str:
    """The verdict that all comparisons share, or how many have which: ``holds in 1 of 3, undecided in 2``."""
    if not verdicts:
        return "not measured"
    numbers = [(verdict, verdicts.count(verdict)) for verdict in (HOLDS, FAILS, UNDECIDED) if verdict in verdicts]
    if len(numbers) == 1:
        return verdicts[0]
    first, *rest = (f"{verdict} in {number}" for verdict, number in numbers)
    return ", ".join([f"{first} of {len(verdicts)}", *rest])
