"""What `prune.save` saves, against what was asked of it.

    python -m benchmarks.speed.saving                 ten methods, each asked for 0.4: 15 minutes on two cores
    python -m benchmarks.speed.saving --redraw        the table again, without measuring

One core trains by one method after the other, with prune.save. The other core trains on all data meanwhile, run after
run. A run has saved what full data lack of one whole run when it ends: as 0.6 of a full run passed meanwhile, 40 %. So
a machine that becomes faster or slower does so for both. Each process first trains for two epochs, so that all is
compiled. Seconds are those of the whole run, set-up and measurement included. Imports and the report are not.
Fashion-MNIST must be there: `python write_datasets.py --dataset fashion_mnist`. Nothing else may run on the machine.
docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness.jobs import jobs_on, on_cores
from benchmarks.harness.machine import ROOT, measured_on
from benchmarks.harness.rows import Results, benchmark
from benchmarks.harness.tables import Row, table
from ffcv_prune import config
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.training.trainer import train

TITLE = "What prune.save saves"
COLUMNS = ("method", "asked", "planned", "told", "saved", "seconds", "full_seconds", "setup_seconds")
SETTINGS = ("config", "overrides")
# Selections are made often enough that a plan can be corrected.
OFTEN = ["--prune.period=2"]
METHODS = {
    **dict.fromkeys(("random", "uncertainty", "ema", "epsilon_greedy", "ucb"), OFTEN),
    **{name: [] for name in ("recent_loss", "p_sgd", "evolved", "srd")},
    "proxy_batch": ["--prune.proxy_model=basic_cnn"],
}
WITHIN = 0.03


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        method: of it.
        asked: share that it was to save; 0 for full data.
        times: by the clock that all processes share, in seconds: its start, the end of its set-up and of each epoch.
        planned, told: the savings that the run predicted, and told at its end; None for full data.
    """

    method: str
    asked: float
    times: list[float]
    planned: float | None = None
    told: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=Path("rn_configs/fashion_full.yaml"), help="of all runs")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS], help="each a case")
    parser.add_argument("--asked", nargs="+", type=float, default=[0.4], help="shares to save, each with each method")


def run(args: argparse.Namespace, results: Results) -> None:
    """Measure the cases that have no row yet."""
    if not all(0 < asked < 1 for asked in args.asked):
        raise UserError("--asked must lie between 0 and 1")
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise UserError("two cores are needed: one for full data, one for the methods")
    base = ["--config", str(ROOT / args.config), *args.overrides]
    config.load(base)
    cases = [(method, asked) for asked in args.asked for method in args.methods]
    with on_cores(cores[:1]):
        left = results.left(cases, lambda row: (row["method"], float(row["asked"])))
    full: list[Run] = []
    ended: list[Run] = []
    with jobs_on([[core] for core in cores]) as pool:

        def begin(method: str, asked: float) -> Future[Run]:
            return pool.submit(trained, base, method, asked)

        running = {begin("full", 0.0), *(begin(*case) for case in left[:1])} if left else set()
        waiting = left[1:]
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for made in (future.result() for future in done):
                (ended if made.asked else full).append(made)
                if made.asked and waiting:
                    running.add(begin(*waiting.pop(0)))
            rows = [compared(own, full) for own in ended if full and own.times[-1] <= full[-1].times[-1]]
            ended = ended[len(rows) :]
            for row in rows:
                print(f"{row['method']}, asked {row['asked']:g}: saved {row['saved']:.3f}", flush=True)
            with on_cores(cores[:1]):
                results.append(rows)
            if any(not made.result().asked for made in done) and (running or ended):
                running.add(begin("full", 0.0))


def trained(base: Sequence[str], method: str, asked: float) -> Run:
    """Train once by the method, or on full data, in a process that has done so before."""
    own = (*base, f"--prune.method={method}", *METHODS.get(method, ()))
    _warm_up(own)
    with TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
        saving = [f"--prune.save={asked}"] if asked else []
        whole = config.load([*own, *saving, f"--run.out={out}", "--run.name=timed"])
        start = time.monotonic()
        made = train(whole)
        rows = [json.loads(line) for line in (made.folder / "log.jsonl").read_text().splitlines()]
    phases = [made.seconds["setup"], *(row["seconds"]["total"] for row in rows)]
    phases[-1] += made.seconds["setup"] + made.seconds["total"] - sum(phases)  # the last save came after the last row
    planned = rows[0]["saving"]["planned"] if asked else None
    return Run(method, asked, [*accumulate(phases, initial=start)], planned, made.saved)


@cache
def _warm_up(own: Sequence[str]) -> None:
    with TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
        train(config.load([*own, f"--run.out={out}", "--run.name=warm_up", "--train.epochs=2"]))


def compared(own: Run, full: Sequence[Run]) -> dict[str, Any]:
    """The row of a run, beside which full data were trained on."""
    share = passed(full, own.times[-1]) - passed(full, own.times[0])
    seconds = own.times[-1] - own.times[0]
    return {
        "method": own.method,
        "asked": own.asked,
        "planned": own.planned,
        "told": own.told,
        "saved": 1 - share,
        "seconds": seconds,
        "full_seconds": seconds / share,
        "setup_seconds": own.times[1] - own.times[0],
    }


def passed(full: Sequence[Run], when: float) -> float:
    """How many runs on full data had passed by then. Within a phase, and between runs, the pace is taken as even.

    Set-up and epochs count by their median shares of a run's seconds, and the time between runs by the mean run.
    """
    times = np.array([run.times for run in full])
    starts, ends = times[:, 0], times[:, -1]
    mean = (ends - starts).mean()
    shares = np.median((times - times[:, :1]) / (ends - starts)[:, None], axis=0)
    between = np.concatenate([[0.0], starts[1:] - ends[:-1]]).cumsum() / mean
    counts = np.arange(len(full)) + between
    before = min(0.0, when - starts[0]) / mean
    return before + float(np.interp(when, times.ravel(), (counts[:, None] + shares).ravel()))


def summary(rows: Sequence[Row]) -> str:
    """The table, and the largest difference."""
    lines = [
        {
            "method": row["method"],
            "asked": f"{float(row['asked']):.1%}",
            "planned": f"{float(row['planned']):.1%}",
            "told at the end": f"{float(row['told']):.1%}",
            "saved": f"{float(row['saved']):.1%}",
            "off by, points": f"{100 * _off(row):+.1f}",
            "seconds": f"{float(row['seconds']):.1f}",
            "of a full run": f"{float(row['full_seconds']):.1f}",
            "set-up": f"{float(row['setup_seconds']):.1f}",
        }
        for row in rows
    ]
    near = sum(abs(_off(row)) <= WITHIN for row in rows)
    worst = max(abs(_off(row)) for row in rows)
    words = (
        f"{near} of {len(rows)} runs saved what was asked within {100 * WITHIN:.0f} points; the largest difference is "
        f"{100 * worst:.1f} points. {measured_on(rows)}"
    )
    return f"{table(lines)}\n\n{words}"


def _off(row: Row) -> float:
    return float(row["saved"]) - float(row["asked"])


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
