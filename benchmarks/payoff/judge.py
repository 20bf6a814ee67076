"""What the rows of a condition say, by the rules of grid.yaml: best choices, the curve, what is left to do."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property
from pathlib import Path

from benchmarks.harness.machine import ROOT
from benchmarks.harness.rows import read_csv
from benchmarks.harness.tables import Row
from benchmarks.payoff import grid as grids
from benchmarks.payoff.curve import Curve, Payoff, ahead, payoff
from benchmarks.payoff.grid import TUNING_SEED, Case, Entry, Grid, Settings, choice_name
from ffcv_prune.analysis.intervals import Difference
from ffcv_prune.errors import UserError


class Stage(IntEnum):
    """In which order the runs of a seed are made: those of a stage for all methods before the next."""

    FIRST = 0  # a choice
    TUNING = 1
    SEEDS = 2
    CLAIM = 3  # more seeds, after all conditions


class Judged:
    """A condition.

    Attributes:
        rows: of this condition, in the order in which they were made; none that was made by other settings.
        first: the first condition of the grid, whose choices the others take over; None for itself.
    """

    def __init__(self, grid: Grid, condition: str, rows: Sequence[Row]) -> None:
        self.grid, self.condition = grid, condition
        self.first = None if condition == grid.first_condition else Judged(grid, grid.first_condition, rows)
        self.rows = [row for row in rows if row["condition"] == condition and row["key"] == grid.key(case_of(row))]

    def choice(self, entry: Entry) -> str | None:
        """The best choice, or None until it is known. Full data has one, a null twin that of its method."""
        if self.first is not None:
            return self.first.choice(entry)
        if entry.budget is not None:
            return self._choice_of_full
        if not self.grid.tuned(entry):
            method = self.grid.varied_by(entry)
            return None if method is None else self.choice(method)
        best, untried = self._tune(entry)
        return None if best is None or untried else best["choice"]

    @cached_property
    def _choice_of_full(self) -> str | None:
        """The highest mean accuracy over the tuned budgets: the best of one budget follows the noise of its seed."""
        tried = [self._tried(entry) for entry in self.grid.budgets if self.grid.tuned(entry)]
        means = {
            choice: statistics.mean(float(rows[choice]["accuracy"]) for rows in tried)
            for choice in self.grid.choices
            if all(choice in rows for rows in tried)
        }
        return max(means, key=lambda choice: means[choice]) if len(means) == len(self.grid.choices) else None

    def counted(self, entry: Entry) -> dict[int, Row]:
        """The runs that count, by seed: those with the best choice, but for the tuning seed."""
        return {seed: row for seed, row in self._runs(entry).items() if seed != TUNING_SEED}

    def judged(self, entry: Entry) -> dict[int, Row]:
        """Those of the seeds that have a whole curve: what pages show."""
        return {seed: row for seed, row in self.counted(entry).items() if seed in self.curves}

    def _runs(self, entry: Entry) -> dict[int, Row]:
        choice = self.choice(entry)
        return {int(row["seed"]): row for row in self._of(entry) if row["choice"] == choice}

    def curve(self, seed: int) -> Curve | None:
        """Full data with this seed; None until all budgets are there."""
        rows = []
        for budget in self.grid.budgets:
            row = self._runs(budget).get(seed)
            if row is None:
                return None
            rows.append(row)
        return Curve([float(row["work"]) for row in rows], [float(row["accuracy"]) for row in rows])

    @cached_property
    def curves(self) -> dict[int, Curve]:
        """Those of the seeds that count, by seed."""
        found = {seed: self.curve(seed) for seed in range(1, self.grid.most_seeds + 1)}
        return {seed: curve for seed, curve in found.items() if curve is not None}

    @cached_property
    def _trial_curve(self) -> Curve | None:
        return self.curve(self._trial_seed)

    @property
    def _trial_seed(self) -> int:
        return TUNING_SEED if self.first is None else 1

    def hopeless(self, entry: Entry) -> bool:
        """Whether a method, or the one that it varies, lies too far below the curve in its first seed to be run on.

        With its best choice, and not a null twin, which is run as long as its method. In other conditions the first
        seed counts, too: there a method of the claim is run in any case.
        """
        if self.first is not None and self.grid.claimed(entry):
            return False
        varied = self.grid.varied_by(entry)
        if varied is not None and self.hopeless(varied):
            return True
        trial = None if entry.twin or self.choice(entry) is None else self.trial(entry)
        return trial is not None and self.trial_gain(trial) < -self.grid.hopeless

    def trial(self, entry: Entry) -> Row | None:
        """The best run of a method with the first seed; None until it and the curve of this seed are there."""
        best = self._tune(entry)[0] if self.first is None else self.counted(entry).get(self._trial_seed)
        return None if self._trial_curve is None else best

    def trial_gain(self, trial: Row) -> float:
        """Points of accuracy above full data with this seed, at the cost of the run."""
        assert self._trial_curve is not None
        return 100 * (float(trial["accuracy"]) - self._trial_curve.accuracy_at(float(trial["work"])))

    @cached_property
    def carried(self) -> list[Entry]:
        """The methods that other conditions try: those of the claim, and the others that gain most here.

        No other is there before all have their seeds.
        """
        claimed = [entry for entry in map(self.grid.entry, self.grid.claim.methods) if not self.hopeless(entry)]
        waits = any(left and stage < Stage.CLAIM for stage, left in map(self.left, self.grid.entries))
        gains = [(found.gain.mean, entry) for entry in self.grid.methods if (found := self.payoff(entry)) is not None]
        best = [entry for _, entry in sorted(gains, key=lambda pair: -pair[0]) if not entry.twin]
        others = [] if waits else [entry for entry in best if entry not in claimed]
        return claimed + others[: self.grid.carry]

    def payoff(self, entry: Entry) -> Payoff | None:
        """What a method saves; None until one of its seeds and the curve of that seed are there."""
        costs, accuracies = self._columns(entry)
        return payoff(self.curves, costs, accuracies) if costs else None

    def ahead(self, entry: Entry, share: float) -> Difference:
        """Points of accuracy above full data, of whose work this method's is a share."""
        return ahead(self.curves, *self._columns(entry), share)

    def _columns(self, entry: Entry) -> tuple[dict[int, float], dict[int, float]]:
        """Work and accuracy of the seeds that count."""
        own = self.judged(entry)
        work, accuracy = ({seed: float(row[name]) for seed, row in own.items()} for name in ("work", "accuracy"))
        return work, accuracy

    def left(self, entry: Entry) -> tuple[Stage, list[Case]]:
        """The runs of an entry that can be made now."""
        if entry.budget is None and (self._waits(entry) or self.hopeless(entry)):
            return Stage.FIRST, []
        choice = self.choice(entry)
        if choice is None:
            best, untried = self._tune(entry)
            ready = best is None or entry.budget is not None or self._trial_curve is not None
            untried = untried if ready and self.first is None and self.grid.tuned(entry) else []
            stage = Stage.FIRST if best is None else Stage.TUNING
            return stage, [Case(self.condition, entry.name, other, TUNING_SEED) for other in untried]
        # Of full data the tuning seed too: the curve of that seed is what methods are given up by.
        lowest = TUNING_SEED if entry.budget is not None and self.first is None else TUNING_SEED + 1
        seeds = range(lowest, 1 + self.grid.seeds_of(entry, self.condition))
        done = self._runs(entry)
        missing = [seed for seed in seeds if seed not in done]
        first = [seed for seed in missing if seed <= self.grid.seeds]
        stage = Stage.SEEDS if first else Stage.CLAIM
        return stage, [Case(self.condition, entry.name, choice, seed) for seed in first or missing]

    def _waits(self, entry: Entry) -> bool:
        """Whether other runs decide first if this method is run."""
        varied = self.grid.varied_by(entry)
        if self.first is not None:
            return (varied if entry.twin else entry) not in self.first.carried
        return varied is not None and self.choice(varied) is None

    def _tune(self, entry: Entry) -> tuple[Row | None, list[str]]:
        """The best run of the tuning seed so far, and the choices to try now.

        Full data tries all, a method one key after the other: what the second may miss counts against the methods.
        """
        tried = self._tried(entry)
        settings: Settings = {name: values[0] for name, values in self.grid.values.items()}
        best = tried.get(choice_name(settings))
        if best is None:
            return None, [choice_name(settings)]
        if entry.budget is not None:
            return best, [choice for choice in self.grid.choices if choice not in tried]
        for name, values in self.grid.values.items():
            names = {choice_name({**settings, name: value}): value for value in values}
            untried = [choice for choice in names if choice not in tried]
            chosen = max(
                (choice for choice in names if choice in tried), key=lambda choice: float(tried[choice]["accuracy"])
            )
            settings, best = {**settings, name: names[chosen]}, tried[chosen]
            if untried:
                return best, untried
        return best, []

    def choices_tried(self, entry: Entry) -> int:
        """How many choices the tuning seed has tried."""
        return len(self._tried(entry))

    def _tried(self, entry: Entry) -> dict[str, Row]:
        """The runs with the tuning seed, by choice."""
        return {row["choice"]: row for row in self._of(entry) if int(row["seed"]) == TUNING_SEED}

    def _of(self, entry: Entry) -> list[Row]:
        return [row for row in self.rows if row["entry"] == entry.name]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the referee; UserError: there are none."""
    rows = read_csv(path)
    if not rows or not {*Case.__dataclass_fields__, "key", "accuracy", "work"} <= rows[0].keys():
        raise UserError(f"{path} has no rows of python -m benchmarks.payoff: name another --payoff")
    return rows


def add_files(parser: argparse.ArgumentParser) -> None:
    """The options --grid and --payoff of a benchmark that goes on from the referee's rows: its SETTINGS."""
    parser.add_argument("--grid", default=str(grids.GRID.relative_to(ROOT)), help="the rules and the runs")
    parser.add_argument("--payoff", default="benchmarks/results/payoff.csv", help="the referee's rows of this grid")


def files_of(rows: Sequence[Row]) -> tuple[str, str]:
    """Grid and referee's rows that rows of such a benchmark were made with."""
    grid, _, payoff = rows[0]["settings"].removeprefix("grid=").partition(" payoff=")
    return grid, payoff


def first_condition(grid: str, payoff: str) -> Judged:
    """By the referee's rows; paths from the root of the project."""
    found = grids.load(ROOT / grid)
    return Judged(found, found.first_condition, read_rows(ROOT / payoff))


def case_of(row: Row) -> Case:
    """The run that a row is of."""
    return Case(row["condition"], row["entry"], row["choice"], int(row["seed"]))


def cases(grid: Grid, rows: Sequence[Row]) -> list[Case]:
    """The runs that can be made now, seed after seed: a grid that is stopped has whole seeds."""
    found: list[tuple[tuple[int, ...], Case]] = []
    for number, condition in enumerate(grid.conditions):
        judged = Judged(grid, condition, rows)
        for entry in grid.entries:
            stage, left = judged.left(entry)
            method = entry.budget is None
            found += [((stage is Stage.CLAIM, number, case.seed, method, stage), case) for case in left]
    return [case for _, case in sorted(found, key=lambda pair: pair[0])]
