"""Whether a saving in work is one in seconds: the methods of the claim beside full data, at the same time.

    python -m benchmarks.payoff.seconds --grid benchmarks/payoff/grid_fashion.yaml \\
        --payoff benchmarks/results/payoff_fashion.csv

The referee's runs are made days apart and on several machines, so it judges by work. Here a method and full data for
about the same work train side by side, each on a core of its own, and change cores in the next repeat. Both are runs of
the first condition, whole, with their best choices. "Seconds of a unit of work" is the ratio of both within a repeat.
A saving in seconds takes the highest ratio: 1 − (1 − the referee's saving in work) · ratio. Seconds are without tests
and compilation. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from benchmarks.harness.jobs import jobs_on, on_cores
from benchmarks.harness.machine import ROOT, measured_on
from benchmarks.harness.rows import Results, benchmark, read_csv, rotated
from benchmarks.harness.tables import Row, groups, ratios, spread, table
from benchmarks.payoff import grid as grids
from benchmarks.payoff.curve import Payoff
from benchmarks.payoff.grid import Case, Entry, Grid
from benchmarks.payoff.judge import Judged
from benchmarks.payoff.page import CLAIM_LEVEL, p_of_claim
from benchmarks.payoff.referee import measure
from ffcv_prune.errors import UserError, run_command

TITLE = "What pruning saves in seconds"
COLUMNS = ("method", "repeat", "entry", "choice", "seed", "key", "accuracy", "work", "seconds")
SETTINGS = ("grid", "payoff")
SEED = 1
CLAIMED = 0.2  # saving in seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grid", default=str(grids.GRID.relative_to(ROOT)), help="the rules and the runs")
    parser.add_argument("--payoff", default="benchmarks/results/payoff.csv", help="the referee's rows of this grid")


def run(args: argparse.Namespace, results: Results) -> None:
    """Measure the pairs that have no rows yet."""
    path = ROOT / args.grid
    judged = _judged(args.grid, args.payoff)
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise UserError("this benchmark needs two cores: two runs are timed side by side")
    pairs = {entry.name: _pair(judged, entry) for entry in _methods(judged)}
    if not pairs:
        raise UserError(f"{args.payoff}: no method of the claim has been run; run python -m benchmarks.payoff first")
    with on_cores(cores[:1]):
        keys = {name: judged.grid.key(method) for name, (method, _) in pairs.items()}
        cases = [(name, str(repeat), keys[name]) for repeat in range(args.repeats) for name in pairs]
        left = results.left(cases, lambda row: (row["method"], row["repeat"], row["key"]))
    with ExitStack() as stack:
        pools = [stack.enter_context(jobs_on([[core]])) for core in cores]
        for name, repeat, _ in left:
            sides = list(zip(pairs[name], rotated(pools, int(repeat)), strict=True))
            begun = [(case, pool.submit(measure, case, path)) for case, pool in sides]
            rows = [_row(judged.grid, name, repeat, case, run.result()) for case, run in begun]
            print(f"{name}, repeat {repeat}: {ratios(rows[:1], rows[1:], _pace)[0]:.3f}", flush=True)
            with on_cores(cores[:1]):
                results.append(rows)


def _row(grid: Grid, method: str, repeat: str, case: Case, measured: dict[str, Any]) -> dict[str, Any]:
    own = {name: measured[name] for name in ("entry", "choice", "seed", "accuracy", "work", "seconds")}
    return {"method": method, "repeat": repeat, "key": grid.key(case), **own}


def _judged(grid: str, payoff: str) -> Judged:
    """The first condition, by the rows of the referee."""
    found = grids.load(ROOT / grid)
    return Judged(found, found.first_condition, read_csv(ROOT / payoff))


def _methods(judged: Judged) -> list[Entry]:
    """Those of the claim that have been run."""
    claimed = [judged.grid.entry(name) for name in judged.grid.claim.methods]
    return [entry for entry in claimed if judged.payoff(entry) is not None]


def _pair(judged: Judged, entry: Entry) -> tuple[Case, Case]:
    """The run of a method, and the run of full data whose work is nearest."""

    def work(of: Entry) -> float:
        return statistics.mean(float(row["work"]) for row in judged.judged(of).values())

    full = min(judged.grid.budgets, key=lambda budget: abs(work(budget) - work(entry)))
    method, other = (
        Case(judged.condition, own.name, choice, SEED)
        for own in (entry, full)
        if (choice := judged.choice(own)) is not None
    )
    return method, other


def summary(rows: Sequence[Row]) -> str:
    """A line for each method: the ratio of the seconds, and the saving that it leaves."""
    path, _, payoff = rows[0]["settings"].removeprefix("grid=").partition(" payoff=")
    judged = _judged(path, payoff)
    lines = []
    valid = [row for row in rows if row["key"] == judged.grid.key(_case(judged, row))]
    for (method,), own in groups(valid, "method").items():
        entry = judged.grid.entry(method)
        found = judged.payoff(entry)
        if found is None:
            raise UserError(f"{payoff}: {method} has no rows that count; name the --payoff of these runs")
        pace = ratios(*_sides(own), _pace)
        left, seeds = _in_seconds(found, max(pace)), len(judged.judged(entry))
        p = p_of_claim(left, CLAIMED, seeds, judged.grid.claim.seeds)
        lines.append(
            {
                "method": method,
                "full data": " and ".join(sorted({row["entry"] for row in _sides(own)[1]})),
                "repeats": f"{len(pace)}",
                "seconds of a unit of work, of full data's": spread(pace),
                "seeds": f"{seeds} of {judged.grid.claim.seeds}",
                "saving in work, %": found.saving_in_words(CLAIM_LEVEL),
                "saving in seconds, %": left.saving_in_words(CLAIM_LEVEL),
                f"p of {CLAIMED:.0%}": "" if p is None else f"{p:.2g}",
                "shown": "yes" if p is not None and p < CLAIM_LEVEL else "no",
            }
        )
    words = (
        f"{judged.condition}. Ratios: median (lowest–highest); savings in seconds take the highest. ± is the "
        f"{1 - CLAIM_LEVEL:.0%} interval over seeds. Where a saving is a bound, it is the end of this interval. "
        f"The claim: at equal accuracy at most {1 - CLAIMED:g} of the seconds of full data, p < {CLAIM_LEVEL:g}."
    )
    return f"{table(lines)}\n\n{words} {measured_on(rows)}"


def _case(judged: Judged, row: Row) -> Case:
    return Case(judged.condition, row["entry"], row["choice"], int(row["seed"]))


def _sides(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The runs of the method, and those of full data."""
    return [row for row in rows if row["entry"] == row["method"]], [
        row for row in rows if row["entry"] != row["method"]
    ]


def _pace(row: Row) -> float:
    return float(row["seconds"]) / float(row["work"])


def _in_seconds(found: Payoff, ratio: float) -> Payoff:
    """A unit of the method's work takes `ratio` times the seconds of full data's."""
    saving = found.saving
    scaled = replace(saving, mean=1 - (1 - saving.mean) * ratio, error=saving.error * ratio)
    return replace(found, saving=scaled, least=1 - (1 - found.least) * ratio)


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
