"""The claim of one method on fresh seeds: a run of it beside one of full data that costs more, at the same time.

    python -m benchmarks.payoff.confirm --csv benchmarks/results/payoff_confirm.csv

The methods of the referee's claim were chosen among others, and several share its p. Here the key `confirm` of the grid
names one method, a budget of full data and a number of seeds, before any of their runs. The seeds follow those of the
claim, and have decided nothing. Both runs of a seed have their best choices, the same seed and a core of their own. The
next seed exchanges the cores.

It is shown if three things hold. The method has at most 0.75 of the work. Its accuracy is higher, p < 0.01. It has less
than 0.8 of the seconds, p < 0.01: by the logarithm of the ratio, the mean of two seeds with the cores exchanged. Tests
are t tests, two-sided, paired by seed. Nothing is judged before the last seed. Seconds are without set-up, tests and
compilation.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence

from benchmarks.harness.jobs import on_cores
from benchmarks.harness.machine import ROOT, measured_on
from benchmarks.harness.rows import Results, benchmark, rotated
from benchmarks.harness.tables import Row, mean_and_spread, table
from benchmarks.payoff.grid import Case, Confirmation, Grid
from benchmarks.payoff.judge import Judged, add_files, files_of, first_condition
from benchmarks.payoff.page import CLAIM_LEVEL, CLAIMED
from benchmarks.payoff.pair import exchanged, jobs_of, key_of, runs_of, side_by_side, two_cores
from benchmarks.payoff.seconds import CLAIMED as CLAIMED_SECONDS
from ffcv_prune.analysis.intervals import Difference, difference
from ffcv_prune.errors import UserError, run_command

TITLE = "A claim on fresh seeds"
SIDE = ("accuracy", "work", "seconds")
COLUMNS = ("method", "full", "seed", "key", *SIDE, *(f"full_{name}" for name in SIDE))
SETTINGS = ("grid", "payoff")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser)


def run(args: argparse.Namespace, results: Results) -> None:
    """Measure the seeds that have no row yet."""
    path = ROOT / args.grid
    judged, pairs = _pairs(args.grid, args.payoff)
    cores = two_cores(judged.grid.config(next(iter(pairs.values()))[0], "runs"))
    with on_cores(cores[:1]):
        cases = [(str(seed), key_of(judged, pair)) for seed, pair in pairs.items()]
        left = results.left(cases, lambda row: (row["seed"], row["key"]))
    with jobs_of(cores) as pools:
        for seed, key in left:
            own, full = side_by_side(pairs[int(seed)], rotated(pools, int(seed)), path)
            row = {
                **{"method": own["entry"], "full": full["entry"], "seed": seed, "key": key},
                **{name: own[name] for name in SIDE},
                **{f"full_{name}": full[name] for name in SIDE},
            }
            print(f"seed {seed}: {own['accuracy']} beside {full['accuracy']}", flush=True)
            with on_cores(cores[:1]):
                results.append([row])


def _pairs(grid: str, payoff: str) -> tuple[Judged, dict[int, tuple[Case, Case]]]:
    """The first condition, and both runs of each seed; UserError: the grid confirms nothing, or choices are missing."""
    judged = first_condition(grid, payoff)
    found = judged.grid
    if found.confirm is None:
        raise UserError(f"{grid} has no key confirm: name another --grid")
    sides = found.entry(found.confirm.method), found.entry(f"full {found.confirm.budget:g}")
    if None in map(judged.choice, sides):
        raise UserError(f"{payoff} lacks runs that choose for {sides[0].name}: run python -m benchmarks.payoff first")
    return judged, {seed: runs_of(judged, sides, seed) for seed in seeds_of(found, found.confirm)}


def seeds_of(grid: Grid, confirm: Confirmation) -> range:
    """Those after the claim's."""
    return range(grid.most_seeds + 1, grid.most_seeds + 1 + confirm.seeds)


def summary(rows: Sequence[Row]) -> str:
    """A table of one line, and what it says."""
    path, payoff = files_of(rows)
    judged, pairs = _pairs(path, payoff)
    keys = {str(seed): key_of(judged, pair) for seed, pair in pairs.items()}
    rows = [row for row in rows if keys.get(row["seed"]) == row["key"]]
    if not rows:
        raise UserError(f"no row is of the present rules and choices of {path}: name another --csv, or go on")
    own, full = ({int(row["seed"]): 100 * float(row[f"{of}accuracy"]) for row in rows} for of in ("", "full_"))
    gain = difference(own, full)
    work = statistics.mean(float(row["work"]) / float(row["full_work"]) for row in rows)
    seconds = _seconds(rows, first=min(pairs))
    ready = len(rows) == len(pairs)
    limit = 1 - CLAIMED_SECONDS
    p_gain, p_seconds = (one.p() if ready else math.nan for one in (gain, seconds))
    holds = p_gain < CLAIM_LEVEL and p_seconds < CLAIM_LEVEL and gain.mean > 0 > seconds.mean and work <= 1 - CLAIMED
    line = {
        "method": rows[0]["method"],
        "beside": rows[0]["full"],
        "seeds": f"{len(rows)} of {len(pairs)}",
        "accuracy, %": mean_and_spread(list(own.values())),
        "of full data, %": mean_and_spread(list(full.values())),
        "above it, points": gain.in_words(CLAIM_LEVEL),
        "p of no difference": _p(p_gain),
        "work, of full data's": f"{work:.3f}",
        "seconds, of full data's": _interval(seconds, limit),
        f"p of {limit:g}": _p(p_seconds),
        "shown": "yes" if holds else "no",
    }
    words = (
        f"{judged.condition}, seeds {min(pairs)} to {max(pairs)}. The claim: the method takes at most {1 - CLAIMED:g} "
        f"of the work and less than {limit:g} of the seconds of full data, and is more accurate, p < {CLAIM_LEVEL:g} "
        f"each. ± of an accuracy is the standard deviation, elsewhere the {100 * (1 - CLAIM_LEVEL):g}% interval over "
        "paired seeds, as in brackets."
    )
    return f"{table([line])}\n\n{words} {measured_on(rows)}"


def _seconds(rows: Sequence[Row], first: int) -> Difference:
    """The logarithm of the ratio of the seconds, less that of the claim."""
    ratios = exchanged({int(row["seed"]) - first: float(row["seconds"]) / float(row["full_seconds"]) for row in rows})
    logs = {pair: math.log(ratio / (1 - CLAIMED_SECONDS)) for pair, ratio in enumerate(ratios)}
    return difference(logs, dict.fromkeys(logs, 0.0)) if logs else Difference(math.nan, math.inf)


def _interval(logs: Difference, limit: float) -> str:
    """``0.76 (0.74–0.78)``"""
    half = logs.half_width(CLAIM_LEVEL)
    if not half < math.inf:
        return ""
    middle, low, high = (limit * math.exp(logs.mean + side * half) for side in (0, -1, 1))
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def _p(p: float) -> str:
    return "" if math.isnan(p) else f"{p:.2g}"


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
