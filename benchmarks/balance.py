"""How evenly the selections of a grid's runs hold the classes: why a method collapses, where it does.

What is committed is SCALE/EXPERIMENT_classes.csv, one row a run: the run folders it is read from are not.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.grid import Run
from benchmarks.results import Cell, markdown, mean_and_spread, read_rows
from ffcv_prune.analysis.runs import read_run
from ffcv_prune.training.run_log import STARVED

COLUMNS = ("key", "run", "checkpoints", "least_share", "starved_checkpoints")


def write_balance(runs: Iterable[Run], folder: Path, path: Path) -> None:
    """Bring the CSV at `path` up to date with the finished runs of the grid that are in `folder`."""
    rows: dict[str, Mapping[str, object]] = dict(read_rows(path))
    for run in runs:
        if (folder / run.config.run.name / "result.csv").exists() and run.config.prune.policy != "none":
            rows[run.key] = balance_of(run, folder / run.config.run.name)
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())


def balance_of(run: Run, folder: Path) -> dict[str, object]:
    """The row of a run: over the selections of its policy, the mean share of the class that has least of its
    proportional part (1: as in the data), and in how many of them that is below the share the trainer warns of."""
    selections = [row for row in read_run(folder).rows if row["checkpoint"] and row["phase"] == "policy"]
    least = [
        min(fraction for fraction in row["class_fraction"].values() if fraction is not None) / row["keep"]
        for row in selections
    ]
    return {
        "key": run.key,
        "run": run.config.run.name,
        "checkpoints": len(least),
        "least_share": round(statistics.mean(least), 4),
        "starved_checkpoints": sum(share < STARVED for share in least),
    }


def balance_table(grouped: Sequence[Cell], path: Path) -> str:
    """The Markdown table of the cells whose runs have rows; empty if there are none."""
    rows = read_rows(path)
    body = []
    for cell in grouped:
        own = [rows[row["key"]] for row in cell.rows if row["key"] in rows]
        if own:
            starved = sum(int(row["starved_checkpoints"]) for row in own)
            body.append(
                [
                    cell.run.part,
                    cell.run.label,
                    f"{cell.run.rate:g}",
                    mean_and_spread([100 * float(row["least_share"]) for row in own], 0),
                    f"{starved} of {sum(int(row['checkpoints']) for row in own)}",
                    mean_and_spread([100 * accuracy for accuracy in cell.accuracies]),
                ]
            )
    head = ["data", "method", "pruning rate", "least class, % of its part", "selections with a starved class"]
    return markdown([*head, "test accuracy, %"], body) if body else ""
