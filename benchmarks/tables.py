"""Rows of repeated measurements: into a CSV with the machine they were made on, out of it, and as median and range."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ffcv_prune.errors import UserError
from ffcv_prune.training.run_folder import append_csv, provenance

Row = Mapping[str, str]


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows, each with machine, versions, commit and date; what a row lacks of the others' columns is empty."""
    made = {name: ", ".join(value) if isinstance(value, list) else value for name, value in provenance().items()}
    columns = dict.fromkeys((column for row in rows for column in row), "")
    for row in rows:
        append_csv(path, columns | dict(row) | made)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of such a file. UserError if it cannot be read or has none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not rows:
        raise UserError(f"{path} has no rows; measure first")
    return rows


def against(values: Mapping[str, float], base: Mapping[str, float]) -> list[float]:
    """The ratios of the repeats that both have."""
    return [value / base[repeat] for repeat, value in values.items() if repeat in base]


def median_and_range(values: Sequence[float], digits: int) -> str:
    """``1.52 [1.48, 1.60]``: median, smallest, largest; only the value where there is one."""
    if not values:
        return ""
    median, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{median} [{low}, {high}]" if len(values) > 1 else median
