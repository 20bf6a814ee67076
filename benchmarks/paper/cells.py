"""The CSV of a scale: one row a run, found again by the run's key; means over seeds, and the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import tables
from benchmarks.harness.rows import read_csv
from benchmarks.harness.tables import Row, mean_and_spread
from benchmarks.paper.grid import Run, methods
from ffcv_prune.errors import UserError

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Cell:
    """The runs of a grid that differ in their seeds only, and the rows of those that are done."""

    run: Run  # one of them
    rows: list[Row]
    missing: int

    def values(self, column: str) -> list[float]:
        """Of the runs that have the column."""
        return [float(row[column]) for row in self.rows if row.get(column)]

    @property
    def accuracies(self) -> list[float]:
        return self.values("accuracy")

    @property
    def seconds(self) -> list[float]:
        """Wall-clock time of training and selecting, without tests, compilation and static scores."""
        return [float(row["total_seconds"]) - float(row["eval_seconds"]) for row in self.rows]

    @property
    def score_seconds(self) -> list[float]:
        """What the static scores cost, once; 0 for dynamic methods."""
        return [float(row.get("static_seconds") or 0) for row in self.rows]

    @property
    def all_seconds(self) -> list[float]:
        """Of each run, with what its static scores cost."""
        return [a + b for a, b in zip(self.seconds, self.score_seconds, strict=True)]

    def mean(self, column: str) -> float:
        return statistics.mean(self.values(column))


def read_rows(path: Path) -> dict[str, Row]:
    """The rows by key; none if the file does not exist. UserError if it is no such file."""
    if not path.exists():
        return {}
    rows = read_csv(path)
    if not all(row.get("key") for row in rows):
        raise UserError(f"{path} holds a row that has no key; remove that line")
    return {row["key"]: row for row in rows}


def cells(runs: Sequence[Run], rows: Mapping[str, Row]) -> list[Cell]:
    """Group the runs over their seeds, in the order of the grid."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.part, run.method, run.rate, run.swept), []).append(run)
    done = [[rows[run.key] for run in group if run.key in rows] for group in groups.values()]
    return [Cell(group[0], own, len(group) - len(own)) for group, own in zip(groups.values(), done, strict=True)]


def pruned_share(cell: Cell, grouped: Sequence[Cell]) -> float:
    """The cell's pruning rate; where the losses decide it, the share of full data's samples that was not seen."""
    rate = cell.run.rate or 0.0
    if "." not in methods()[cell.run.method][0].rate:
        return rate
    full = (c for c in grouped if (c.run.part, c.run.method) == (cell.run.part, "full") and c.rows)
    return next((1 - cell.mean("samples_seen") / one.mean("samples_seen") for one in full), rate)


def rate_words(cell: Cell, grouped: Sequence[Cell]) -> str:
    """``0.7``; ``0.28 (ratio 0.5)`` where the losses decide how many samples are pruned; a dash for full data."""
    if cell.run.rate is None:
        return "–"
    key = methods()[cell.run.method][0].rate
    if "." not in key:
        return f"{cell.run.rate:g}"
    return f"{pruned_share(cell, grouped):.2f} ({key.partition('.')[2]} {cell.run.rate:g})"


def table(grid: Sequence[Cell]) -> str:
    """The Markdown table of the cells that have rows."""
    swept = any(cell.run.swept for cell in grid)
    parts = any(cell.run.part for cell in grid)
    scored = any(cell.score_seconds and max(cell.score_seconds) > 0 for cell in grid)
    lines = []
    for cell in grid:
        if not cell.rows:
            continue
        run = cell.run
        line = {"data": run.part} if parts else {}
        line |= {"method": run.label, "pruning rate": rate_words(cell, grid)}
        line |= {"setting": " = ".join(run.swept) if run.swept else ""} if swept else {}
        line["test accuracy, %"] = mean_and_spread([100 * accuracy for accuracy in cell.accuracies])
        line |= {"runs": f"{len(cell.rows)}", "samples seen": f"{cell.mean('samples_seen'):,.0f}"}
        line["seconds"] = mean_and_spread(cell.seconds, 0)
        lines.append(line | ({"static scores, s": f"{statistics.mean(cell.score_seconds):.0f}"} if scored else {}))
    return tables.table(lines)
