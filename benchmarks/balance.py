"""How evenly the selections of a grid's runs hold the classes: why a method collapses, where it does.

What is committed is SCALE/EXPERIMENT_classes.csv, one row a run: the run folders it is read from are not.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.grid import Run
from benchmarks.results import Cell, Row, accuracy_words, distinct, markdown, mean_and_spread, rate_words, read_rows
from ffcv_prune.analysis.runs import read_run
from ffcv_prune.training.run_log import STARVED

COLUMNS = ("key", "run", "checkpoints", "least_share", "starved_checkpoints")


def write_balance(runs: Iterable[Run], done: Mapping[str, Row], folder: Path, path: Path) -> None:
    """Bring the CSV at `path` up to date with the grid's runs that have a row in `done` and are in `folder`.

    A run of one part or experiment counts for all that have it: the row of its key says under what name it was made.
    """
    rows: dict[str, Mapping[str, object]] = dict(read_rows(path))
    for run in runs:
        if run.key not in done or run.config.prune.policy == "none":
            continue
        name = done[run.key]["run"]
        if (folder / name / "result.csv").exists():
            rows[run.key] = {"key": run.key, "run": name, **balance_of(folder / name)}
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())


def balance_of(folder: Path) -> dict[str, object]:
    """Of the run in `folder`: over the selections of its policy, the mean share of the class that has least of its
    proportional part (1: as in the data), and in how many of them that is below the share the trainer warns of."""
    selections = [row for row in read_run(folder).rows if row["selected"] and row["phase"] == "policy"]
    least = [
        min(fraction for fraction in row["class_fraction"].values() if fraction is not None) / row["keep"]
        for row in selections
    ]
    return {
        "checkpoints": len(least),
        "least_share": round(statistics.mean(least), 4),
        "starved_checkpoints": sum(share < STARVED for share in least),
    }


def starved_share(own: Sequence[Row]) -> float:
    """Of these rows: the share of the selections that hold too little of some class."""
    return sum(int(row["starved_checkpoints"]) for row in own) / sum(int(row["checkpoints"]) for row in own)


def least_share(own: Sequence[Row]) -> list[float]:
    """Of each of these rows: the mean percentage that the class with least has of its proportional part."""
    return [100 * float(row["least_share"]) for row in own]


def balance_table(grouped: Sequence[Cell], rows: Mapping[str, Row]) -> str:
    """The Markdown table of the cells whose runs have rows; empty if there are none."""
    body = []
    for cell in distinct(grouped):
        own = [rows[row["key"]] for row in cell.rows if row["key"] in rows]
        if own:
            starved = sum(int(row["starved_checkpoints"]) for row in own)
            body.append(
                [
                    cell.run.part,
                    cell.run.label,
                    rate_words(cell, grouped),
                    f"{len(own)} of {len(cell.rows)}",
                    mean_and_spread(least_share(own), 0),
                    f"{starved} of {sum(int(row['checkpoints']) for row in own)}",
                    accuracy_words(cell),
                ]
            )
    head = ["data", "method", "pruning rate", "runs looked at", "least class, % of its part"]
    return markdown([*head, "selections with a starved class", "test accuracy, %"], body) if body else ""
