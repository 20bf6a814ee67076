"""The CSV of a scale: one row a run, found again by the run's key; means over seeds, and the table."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.grid import Run
from ffcv_prune.errors import UserError

Row = Mapping[str, str]
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Cell:
    """The runs of a grid that differ in their seeds only, and the rows of those that are done."""

    run: Run  # one of them
    rows: list[Row]
    missing: int

    def values(self, column: str) -> list[float]:
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

    def mean(self, column: str) -> float:
        return statistics.mean(self.values(column))


def read_rows(path: Path) -> dict[str, Row]:
    """The rows by key; none if the file does not exist. UserError if it is no such file."""
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if any(None in row.values() or not row.get("key") for row in rows):
        raise UserError(f"{path} holds a row that is cut short or has no key; remove that line")
    return {row["key"]: row for row in rows}


def cells(runs: Sequence[Run], rows: Mapping[str, Row]) -> list[Cell]:
    """Group the runs over their seeds, in the order of the grid."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.part, run.method, run.rate, run.swept), []).append(run)
    made = []
    for group in groups.values():
        done = [rows[run.key] for run in group if run.key in rows]
        made.append(Cell(group[0], done, len(group) - len(done)))
    return made


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """``92.10 ± 0.23``, the sample standard deviation; without it for a single value."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(grid: Sequence[Cell]) -> str:
    """The Markdown table of the cells that have rows."""
    swept = any(cell.run.swept for cell in grid)
    parts = any(cell.run.part for cell in grid)
    scored = any(cell.score_seconds and max(cell.score_seconds) > 0 for cell in grid)
    head = [
        *(["data"] if parts else []),
        "method",
        "pruning rate",
        *(["setting"] if swept else []),
        "test accuracy, %",
        "runs",
        "samples seen",
        "seconds",
        *(["static scores, s"] if scored else []),
    ]
    body = []
    for cell in grid:
        if not cell.rows:
            continue
        run = cell.run
        body.append(
            [
                *([run.part] if parts else []),
                run.label,
                "–" if run.rate is None else f"{run.rate:g}",
                *([" = ".join(run.swept) if run.swept else ""] if swept else []),
                mean_and_spread([100 * accuracy for accuracy in cell.accuracies]),
                f"{len(cell.rows)}",
                f"{cell.mean('samples_seen'):,.0f}",
                mean_and_spread(cell.seconds, 0),
                *([f"{statistics.mean(cell.score_seconds):.0f}"] if scored else []),
            ]
        )
    return markdown(head, body)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
