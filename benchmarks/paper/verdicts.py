"""How claims are judged: two cells by the 95 % interval of their difference, Welch's, over the seeds.

All signs are symmetric: what would make one fail is as far off as what makes it hold.

    above, below    0 decides: holds where the whole interval is on the claimed side, fails where it is on the other
    level           ±LEVEL decides: holds where the whole interval is within, fails where it is wholly beyond

Whatever is left is undecided, whichever way it points: an interval that is merely wide shows nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper.cells import Cell
from ffcv_prune.analysis.intervals import welch
from ffcv_prune.strict_args import read_yaml

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
    """Two cells: their means, their difference in points of accuracy or in seconds, and the verdict."""

    first: Cell
    second: Cell
    means: tuple[float, float]
    margin: float  # half the 95 % interval of the difference
    verdict: str

    @property
    def difference(self) -> str:
        gap = self.means[0] - self.means[1]
        return f"{gap:+.2f} ± {self.margin:.2f}" if math.isfinite(self.margin) else f"{gap:+.2f}, one run"


def read_claims() -> list[Claim]:
    return [Claim(name, **entry) for name, entry in read_yaml(CLAIMS).items()]


def compare(first: Cell, second: Cell, sign: str, measure: str = "accuracy") -> Comparison:
    a, b = (measured(cell, measure) for cell in (first, second))
    means, margin = (statistics.mean(a), statistics.mean(b)), welch(a, b).half_width
    low, high = means[0] - means[1] - margin, means[0] - means[1] + margin
    holds, fails = {
        "above": (low > 0, high < 0),
        "below": (high < 0, low > 0),
        "level": (low >= -LEVEL and high <= LEVEL, low > LEVEL or high < -LEVEL),
    }[sign]
    return Comparison(first, second, means, margin, HOLDS if holds else FAILS if fails else UNDECIDED)


def measured(cell: Cell, measure: str) -> list[float]:
    """Accuracy in percent, or the seconds of training, selecting and static scores, of each run."""
    return [100 * value for value in cell.accuracies] if measure == "accuracy" else cell.all_seconds


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
