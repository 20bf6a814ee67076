"""The machine that rows were measured on: what is written of it, what a page says of it, and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.tables import Row
from ffcv_prune.errors import UserError
from ffcv_prune.training.run_folder import provenance

MACHINE = ("cpu", "cores", "memory_gb", "gpus", "python", "torch", "ffcv", "numba", "numpy", "commit", "date")
MIXED = ("cpu", "cores", "gpus", "torch", "ffcv", "numba", "numpy")  # what ratios of one table must share
ROOT = Path(__file__).resolve().parents[2]


def here() -> dict[str, str]:
    """What `provenance` says, as a CSV holds it."""
    return {name: ", ".join(v) if isinstance(v, list) else str(v) for name, v in provenance().items()}


def refuse_mixed(path: Path, rows: Iterable[Row], shared: Iterable[str] = MIXED) -> None:
    """UserError if a row of this CSV was made on another machine, or with other versions, than a new one would be."""
    own, shared = here(), list(shared)
    for row in rows:
        other = [f"{name} {row.get(name, '')}" for name in shared if row.get(name) != own[name]]
        if other:
            raise UserError(f"{path} holds rows of another machine ({', '.join(other)}); name another --csv")


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


Timed = Callable[[Callable[[], Any]], tuple[Any, dict[str, float]]]


@contextmanager
def stopwatch() -> Iterator[Timed]:
    """A function that runs a step. It returns the step's result and its cost: "seconds", "cpu_seconds" on all threads,
    and the number of functions that numba "compiled". A function from numba's cache on the disk does not count."""
    from numba.core import event  # only here: importing it is measured, too

    with event.install_recorder("numba:compile") as recorder:

        def timed(step: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
            recorder.buffer.clear()
            start, cpu = time.perf_counter(), time.process_time()
            made = step()
            cost = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
            return made, cost | {"compiled": sum(happened.is_start for _, happened in recorder.buffer)}

        yield timed


def resident_mb() -> dict[str, float]:
    """The fields of /proc/self/status that are memory, in MB: VmRSS and RssAnon now, VmHWM at the highest point."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) / 1000 for words in lines if words[-1] == "kB"}


def forget_peak() -> None:
    """Set VmHWM to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def fresh_python(words: Sequence[str], code: int = 0, **environment: str) -> str:
    """What a fresh Python process prints, begun with these words. RuntimeError unless it exits with `code`."""
    made = os.environ | environment
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=made, capture_output=True, text=True)
    if done.returncode != code:
        raise RuntimeError(f"{words} exited with {done.returncode}: {done.stderr}")
    return done.stdout


def called_apart(function: str, *arguments: object, **environment: str) -> Any:
    """What a function of benchmarks, such as "loading.swap.construct", prints as JSON in a fresh process."""
    module, _, name = function.rpartition(".")
    code = f"from benchmarks.{module} import {name}; {name}(*{arguments!r})"
    return json.loads(fresh_python(["-c", code], **environment).splitlines()[-1])
