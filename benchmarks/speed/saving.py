"""What `prune.save` saves, against what was asked of it.

    python -m benchmarks.speed.saving                 ten methods, each asked for 0.4: 15 minutes on two cores
    python -m benchmarks.speed.saving --redraw        the table again, without measuring

Each case has a core of its own, and as many cases are measured side by side: on two cores, the pace of a run with so
small a net swung more. A case trains for two epochs by the method, so that all is compiled. Then it trains on all data
for half of the epochs, with prune.save, and on all data for the other half. So a machine that becomes faster or slower
does so for both. Seconds are those of the whole run, set-up and measurement included. Imports and the report are not.
Fashion-MNIST must be there: `python write_datasets.py --dataset fashion_mnist`. Nothing else may run on the machine.
docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=Path("rn_configs/fashion_full.yaml"), help="of all runs")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS], help="each a case")
    parser.add_argument("--asked", nargs="+", type=float, default=[0.4], help="shares to save, each with each method")


def run(args: argparse.Namespace, results: Results) -> None:
    """Measure the cases that have no row yet."""
    if not all(0 < asked < 1 for asked in args.asked):
        raise UserError("--asked must lie between 0 and 1")
    if config.load(["--config", str(ROOT / args.config), *args.overrides]).train.epochs < 2:
        raise UserError("train.epochs must be 2 at least: full data is trained for half of them at a time")
    cases = [(method, asked) for asked in args.asked for method in args.methods]
    base = ["--config", str(ROOT / args.config), *args.overrides]
    cores = sorted(os.sched_getaffinity(0))
    with on_cores(cores[:1]):
        left = results.left(cases, lambda row: (row["method"], float(row["asked"])))
    with jobs_on([[core] for core in cores]) as pool:
        for done in as_completed([pool.submit(compare, base, method, asked) for method, asked in left]):
            row = done.result()
            print(f"{row['method']}, asked {row['asked']:g}: saved {row['saved']:.3f}", flush=True)
            with on_cores(cores[:1]):
                results.append([row])


def compare(base: Sequence[str], method: str, asked: float) -> dict[str, Any]:
    """The row of a case."""
    own = [*base, f"--prune.method={method}", *METHODS[method]]
    with TemporaryDirectory() as out, redirect_stdout(io.StringIO()):
        train(config.load([*own, f"--run.out={out}", "--run.name=warm_up", "--train.epochs=2"]))
        whole = config.load([*own, f"--run.out={out}", "--run.name=saved", f"--prune.save={asked}"])

        def full(name: str, epochs: int) -> dict[str, float]:
            words = [*base, f"--run.out={out}", f"--run.name=full_{name}", f"--train.epochs={epochs}"]
            return train(config.load(words)).seconds

        half = whole.train.epochs // 2
        before = full("before", half)
        saved = train(whole)
        after = full("after", whole.train.epochs - half)
        first = json.loads((saved.folder / "log.jsonl").read_text().splitlines()[0])
    seconds = saved.seconds["setup"] + saved.seconds["total"]
    full_seconds = (before["setup"] + after["setup"]) / 2 + before["total"] + after["total"]
    return {
        "method": method,
        "asked": asked,
        "planned": first["saving"]["planned"],
        "told": saved.saved,
        "saved": 1 - seconds / full_seconds,
        "seconds": seconds,
        "full_seconds": full_seconds,
        "setup_seconds": saved.seconds["setup"],
    }


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
