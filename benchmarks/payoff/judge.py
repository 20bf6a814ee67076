"""What the rows of a condition say, by the rules of grid.yaml: best choices, the curve, what is left to do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from benchmarks.harness.tables import Row
from benchmarks.payoff.grid import TUNING_SEED, Case, Entry, Grid
from benchmarks.payoff.saving import Curve, Payoff, payoff

COSTS = ("work", "seconds")


class Judged:
    """A condition.

    Attributes:
        rows: of this condition, in the order in which they were made; none that was made by other settings.
    """

    def __init__(self, grid: Grid, condition: str, rows: Sequence[Row]) -> None:
        self.grid, self.condition = grid, condition
        self.rows = [row for row in rows if row["condition"] == condition and row["key"] == grid.key(case_of(row))]

    def tuned(self, entry: Entry) -> Row | None:
        """The run of the tuning seed with the highest last accuracy; None until all choices were tried."""
        tried = {row["choice"]: row for row in self._of(entry) if int(row["seed"]) == TUNING_SEED}
        if tried.keys() != self.grid.choices.keys():
            return None
        return max((tried[choice] for choice in self.grid.choices), key=lambda row: float(row["accuracy"]))

    def counted(self, entry: Entry) -> dict[int, Row]:
        """The runs that count, by seed: those with the best choice, but for the tuning seed."""
        best = self.tuned(entry)
        if best is None:
            return {}
        own = (row for row in self._of(entry) if row["choice"] == best["choice"])
        return {int(row["seed"]): row for row in own if int(row["seed"]) != TUNING_SEED}

    def curve(self, seed: int, cost: str = "work") -> Curve | None:
        """Full data with this seed; None until all budgets are there."""
        found = [
            self.tuned(budget) if seed == TUNING_SEED else self.counted(budget).get(seed)
            for budget in self.grid.budgets
        ]
        rows = [row for row in found if row is not None]
        if len(rows) < len(found):
            return None
        return Curve([float(row[cost]) for row in rows], [float(row["accuracy"]) for row in rows])

    @cached_property
    def curves(self) -> dict[str, dict[int, Curve]]:
        """Those of the seeds that count, by cost and seed."""
        made: dict[str, dict[int, Curve]] = {}
        for cost in COSTS:
            found = {seed: self.curve(seed, cost) for seed in range(1, self.grid.seeds + 1)}
            made[cost] = {seed: curve for seed, curve in found.items() if curve is not None}
        return made

    def hopeless(self, entry: Entry) -> bool:
        """Whether the tuned run of a method lies too far below the tuned curve to be run with more seeds."""
        best, curve = self.tuned(entry), self.curve(TUNING_SEED)
        if best is None or curve is None:
            return False
        below = 100 * (curve.accuracy_at(float(best["work"])) - float(best["accuracy"]))
        return below > self.grid.hopeless

    def payoff(self, entry: Entry, cost: str = "work") -> Payoff | None:
        """What a method saves; None until one of its seeds and the curve of that seed are there."""
        own = {seed: row for seed, row in self.counted(entry).items() if seed in self.curves[cost]}
        if not own:
            return None
        costs = {seed: float(row[cost]) for seed, row in own.items()}
        return payoff(self.curves[cost], costs, {seed: float(row["accuracy"]) for seed, row in own.items()})

    def left(self, entry: Entry) -> list[Case]:
        """The runs of an entry that are to do next: the choices that were not tried, or the seeds that are missing."""
        done = {(row["choice"], int(row["seed"])) for row in self._of(entry)}

        def cases(pairs: list[tuple[str, int]]) -> list[Case]:
            return [Case(self.condition, entry.name, *pair) for pair in pairs if pair not in done]

        best = self.tuned(entry)
        if best is None:
            return cases([(choice, TUNING_SEED) for choice in self.grid.choices])
        if entry.budget is None and self.hopeless(entry):
            return []
        return cases([(best["choice"], seed) for seed in range(1, self.grid.seeds + 1)])

    def _of(self, entry: Entry) -> list[Row]:
        return [row for row in self.rows if row["entry"] == entry.name]


def case_of(row: Row) -> Case:
    """The run that a row is of."""
    return Case(row["condition"], row["entry"], row["choice"], int(row["seed"]))


def next_case(grid: Grid, rows: Sequence[Row]) -> Case | None:
    """The run to do next, in the order of the grid: full data before the methods; None: all are done."""
    for condition in grid.conditions:
        judged = Judged(grid, condition, rows)
        for entry in grid.entries:
            left = judged.left(entry)
            if left:
                return left[0]
    return None
