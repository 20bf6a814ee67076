"""How evenly the selections of a grid's runs hold the classes: why a method collapses, where it does.

What is committed is SCALE/EXPERIMENT_classes.csv, one row a run: the run folders it is read from are not.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.harness.rows import write_csv
from benchmarks.harness.tables import Row
from benchmarks.paper.cells import Cell, read_rows
from benchmarks.paper.grid import Run
from ffcv_prune.analysis.runs import read_run
from ffcv_prune.starved import STARVED


def write_balance(runs: Iterable[Run], done: Mapping[str, Row], folder: Path, path: Path) -> None:
    """Bring the CSV at `path` up to date with the grid's runs that have a row in `done` and are in `folder`.

    A run of one part or experiment counts for all that have it: the row of its key says under what name it was made.
    """
    rows: dict[str, Mapping[str, object]] = dict(read_rows(path))
    for run in runs:
        if run.key not in done or not run.config.prune.prunes:
            continue
        name = done[run.key]["run"]
        if (folder / name / "result.csv").exists():
            rows[run.key] = {"key": run.key, "run": name, **balance_of(folder / name)}
    if rows:
        write_csv(path, [*rows.values()])


def balance_of(folder: Path) -> dict[str, object]:
    """How evenly the selections of the run in `folder` hold the classes. In each selection, the class with the least
    of its proportional part counts (1: as in the data). The mean of this share, and the number of selections in which
    a `Pruner` would warn of it."""
    selections = [row for row in read_run(folder).rows if row["selected"] and row["phase"] == "method"]
    least = [
        min(fraction for fraction in row["class_fraction"].values() if fraction is not None) / row["keep"]
        for row in selections
    ]
    return {
        "selections": len(least),
        "least_share": round(statistics.mean(least), 4),
        "starved": sum(share < STARVED for share in least),
    }


def starved_words(cell: Cell, rows: Mapping[str, Row]) -> str:
    """``3 of 30``: selections of the cell's runs that starve a class, of those of the runs that have rows."""
    own = [rows[row["key"]] for row in cell.rows if row["key"] in rows]
    starved, all_of_them = (sum(int(row[name]) for row in own) for name in ("starved", "selections"))
    return f"{starved} of {all_of_them}" if own else ""
