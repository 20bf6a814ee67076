"""The machine that rows were measured on: what is written of it, and what a page says of it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.tables import Row
from ffcv_prune.training.run_folder import provenance

MACHINE = ("cpu", "cores", "memory_gb", "gpus", "python", "torch", "ffcv", "numba", "numpy", "commit", "date")
MIXED = ("cpu", "cores", "gpus", "torch", "ffcv", "numba", "numpy")  # what ratios of one table must share


def here() -> dict[str, str]:
    """What `provenance` says, as a CSV holds it."""
    return {name: ", ".join(v) if isinstance(v, list) else str(v) for name, v in provenance().items()}


def measured_with(rows: Sequence[Row]) -> str:
    """How often, with what settings and on what the rows were measured."""
    repeats = len({row["repeat"] for row in rows})
    return f"Median (lowest–highest) of {repeats} interleaved repeats; ratios within a repeat. {measured_on(rows)}"


def measured_on(rows: Sequence[Row]) -> str:
    """Settings, machine, versions, days and commits of the rows."""
    return f"Settings: `{rows[0]['settings']}`. {made_on(rows)}"


def made_on(rows: Sequence[Row]) -> str:
    """Machine, versions, days and commits of the rows."""
    machines = dict.fromkeys(
        ", ".join(
            [
                row["cpu"],
                f"{row['cores']} cores",
                f"{row['memory_gb']} GB",
                *([row["gpus"]] if row["gpus"] else []),
                f"Python {row['python']}",
                *(f"{package} {row[package]}" for package in ("torch", "ffcv", "numba", "numpy")),
            ]
        )
        for row in rows
    )
    days = " and ".join(sorted({row["date"][:10] for row in rows}))
    commits = " and ".join(dict.fromkeys(row["commit"] for row in rows if row["commit"]))
    return f"Measured on {'; '.join(machines)}; {days}{f', commit {commits}' if commits else ''}."
