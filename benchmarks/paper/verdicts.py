"""How claims are judged: two cells by the interval of their difference over the seeds, paired where both have them.

The interval is corrected for the number of all comparisons of the page (`ffcv_prune.analysis.intervals`). All signs are
symmetric: what would make one fail is as far off as what makes it hold.

    above, below    0 decides: holds where the whole interval is on the claimed side, fails where it is on the other
    level           ±LEVEL decides: holds where the whole interval is within, fails where it is wholly beyond

Whatever is left is undecided, whichever way it points: an interval that is merely wide shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper.cells import Cell
from ffcv_prune.analysis.intervals import Difference, difference
from ffcv_prune.yaml_settings import read_yaml

CLAIMS = Path(__file__).resolve().parent / "claims.yaml"
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
LEVEL = 1.0  # points of accuracy within which two methods count as level


@dataclass(frozen=True)
class Claim:
    """An entry of claims.yaml, which says what the fields mean."""

    name: str
    data: Sequence[str]
    first: str
    sign: str
    second: str
    rates: Sequence[str]
    measure: str = "accuracy"
    source: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two cells, and their difference in points of accuracy or in seconds."""

    first: Cell
    second: Cell
    sign: str
    gap: Difference

    @property
    def p(self) -> float:
        """Two-sided, of the difference being exactly what decides: 0, or the nearer of ±LEVEL."""
        return self.gap.p(math.copysign(LEVEL, self.gap.mean) if self.sign == "level" else 0.0)

    def verdict(self, level: float) -> str:
        """By the interval of confidence 1 - level."""
        margin = self.gap.half_width(level)
        low, high = self.gap.mean - margin, self.gap.mean + margin
        holds, fails = {
            "above": (low > 0, high < 0),
            "below": (high < 0, low > 0),
            "level": (low >= -LEVEL and high <= LEVEL, low > LEVEL or high < -LEVEL),
        }[self.sign]
        return HOLDS if holds else FAILS if fails else UNDECIDED


def read_claims() -> list[Claim]:
    return [Claim(name, **entry) for name, entry in read_yaml(CLAIMS).items()]


def compare(first: Cell, second: Cell, sign: str, measure: str = "accuracy") -> Comparison:
    return Comparison(first, second, sign, difference(measured(first, measure), measured(second, measure)))


def measured(cell: Cell, measure: str) -> dict[int, float]:
    """By seed: accuracy in percent, or the seconds of training, selecting and static scores."""
    values = [100 * value for value in cell.accuracies] if measure == "accuracy" else cell.all_seconds
    return dict(zip((int(row["seed"]) for row in cell.rows), values, strict=True))


def comparisons(claim: Claim, grouped: Sequence[Cell]) -> list[Comparison]:
    """Those of the claim's comparisons that have rows on both sides; full data has one cell for all rates."""

    def cell_of(part: str, method: str, rate: str) -> Cell | None:
        own = (c for c in grouped if (c.run.part, c.run.method) == (part, method) and c.rows)
        return next((c for c in own if c.run.rate in (float(rate), None)), None)

    pairs = [
        (cell_of(part, first, rate), cell_of(part, second, rate))
        for part in claim.data
        for rate in claim.rates
        for first in claim.first.split()
        for second in claim.second.split()
    ]
    return [compare(first, second, claim.sign, claim.measure) for first, second in pairs if first and second]


def overall(verdicts: Sequence[str]) -> str:
    """The verdict that all comparisons share, or how many have which: ``holds 1, undecided 2``."""
    counted = {verdict: verdicts.count(verdict) for verdict in (HOLDS, FAILS, UNDECIDED) if verdict in verdicts}
    if len(counted) == 1:
        return verdicts[0]
    return ", ".join(f"{verdict} {count}" for verdict, count in counted.items()) or "not measured"
