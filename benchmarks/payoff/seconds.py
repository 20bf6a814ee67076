"""Whether a saving in work is one in seconds: the methods of the claim beside full data, at the same time.

    python -m benchmarks.payoff.seconds --grid benchmarks/payoff/grid_fashion.yaml \\
        --payoff benchmarks/results/payoff_fashion.csv

The referee's runs are made days apart and on several machines, so it judges by work. Here a method and the shortest
full data of at least its work train side by side, each on a core of its own. They change cores in the next repeat. Both
are whole runs of the first condition, with their best choices and seed 1. The ratio is of their seconds per unit of
work: the geometric mean of two repeats, so that a slower core counts for both. (The rule was made after the first rows,
of CIFAR-10, where a core was slower by a seventh. By the rule before, each repeat had a ratio of its own: the page has
the p of that, too.) Where a method saves s of the work, it saves 1 − (1 − s) · ratio of the seconds. p is of
accuracies, as on the referee's page. Interval and p count the spread of the seeds and of the ratios. Seconds are
without set-up, tests and compilation. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.harness.jobs import on_cores
from benchmarks.harness.machine import ROOT, measured_on
from benchmarks.harness.rows import Results, benchmark, rotated
from benchmarks.harness.tables import Row, spread, table
from benchmarks.payoff.curve import Payoff
from benchmarks.payoff.grid import Case, Entry
from benchmarks.payoff.judge import Judged, add_files, files_of, first_condition
from benchmarks.payoff.page import claim_interval, claim_level, claim_words, shown
from benchmarks.payoff.pair import exchanged, jobs_of, key_of, runs_of, side_by_side, two_cores
from ffcv_prune.analysis.intervals import Difference, difference
from ffcv_prune.errors import UserError, run_command

TITLE = "What pruning saves in seconds"
COLUMNS = ("method", "full", "repeat", "key", "work", "seconds", "full_work", "full_seconds")
SETTINGS = ("grid", "payoff")
SEED = 1
CLAIMED = 0.2  # saving in seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser)
    parser.add_argument("--methods", nargs="+", default=[], help="of the claim, only these")
    parser.set_defaults(repeats=6)


def run(args: argparse.Namespace, results: Results) -> None:
    """Measure the pairs that have no row yet."""
    path = ROOT / args.grid
    judged = first_condition(args.grid, args.payoff)
    pairs = {entry.name: _pair(judged, entry) for entry in _methods(judged, args.payoff)}
    if strangers := [name for name in args.methods if name not in pairs]:
        raise UserError(f"--methods {strangers[0]}: the claim has rows of {', '.join(pairs)}")
    pairs = {name: pair for name, pair in pairs.items() if name in (args.methods or pairs)}
    cores = two_cores(judged.grid.config(next(iter(pairs.values()))[0], "runs"))
    with on_cores(cores[:1]):
        cases = [(name, str(repeat), key_of(judged, pairs[name])) for repeat in range(args.repeats) for name in pairs]
        left = results.left(cases, lambda row: (row["method"], row["repeat"], row["key"]))
    with jobs_of(cores) as pools:
        for name, repeat, key in left:
            own, full = side_by_side(pairs[name], rotated(pools, int(repeat)), path)
            row = {
                **{"method": name, "full": full["entry"], "repeat": repeat, "key": key},
                **{"work": own["work"], "seconds": own["seconds"]},
                **{"full_work": full["work"], "full_seconds": full["seconds"]},
            }
            print(f"{name}, repeat {repeat}: {_ratio(row):.3f}", flush=True)
            with on_cores(cores[:1]):
                results.append([row])


def _methods(judged: Judged, payoff: str) -> list[Entry]:
    """Those of the claim that have been run; UserError: none."""
    claimed = [judged.grid.entry(name) for name in judged.grid.claim.methods]
    if not claimed:
        raise UserError("the claim of the grid names no method, whose seconds could be measured")
    found = [entry for entry in claimed if judged.payoff(entry) is not None]
    if not found:
        raise UserError(f"{payoff}: no method of the claim has been run; run python -m benchmarks.payoff first")
    return found


def _pair(judged: Judged, entry: Entry) -> tuple[Case, Case]:
    """The run of a method, and the shortest of full data that is not shorter: it trains alone at the end."""

    def work(of: Entry) -> float:
        return statistics.mean(float(row["work"]) for row in judged.judged(of).values())

    budgets = judged.grid.budgets
    full = next((budget for budget in budgets if work(budget) >= work(entry)), budgets[-1])
    return runs_of(judged, (entry, full), SEED)


def summary(rows: Sequence[Row]) -> str:
    """A line for each method: the ratio of the seconds, and the saving that it leaves."""
    path, payoff = files_of(rows)
    judged = first_condition(path, payoff)
    lines, counted, unpaired = [], [], []
    for entry in _methods(judged, payoff):
        pair = _pair(judged, entry)
        own = [row for row in rows if row["method"] == entry.name and row["key"] == key_of(judged, pair)]
        found = judged.payoff(entry)
        ratios = exchanged({int(row["repeat"]): _ratio(row) for row in own})
        if not ratios or found is None:
            unpaired.append(entry.name)
            continue
        counted += own
        seeds, grid = len(judged.judged(entry)), judged.grid
        left = _in_seconds(found, ratios)
        told, by_repeat = (
            shown(_ahead(judged, entry, of), CLAIMED, seeds, grid) for of in (ratios, [_ratio(row) for row in own])
        )
        lines.append(
            {
                "method": entry.name,
                "beside": pair[1].entry,
                "ratios": f"{len(ratios)}",
                "seconds of a unit of work, of full data's": spread(ratios),
                "seeds": f"{seeds} of {grid.claim.seeds}",
                "saving in work, %": found.saving_in_words(claim_level(grid)),
                "saving in seconds, %": left.saving_in_words(claim_level(grid)),
                **told,
                "p, repeat by repeat": by_repeat[f"p of {CLAIMED:.0%}"],
            }
        )
    if not lines:
        raise UserError(f"no two rows are of the present rules and choices of {path}: name another --csv, or go on")
    words = (
        f"{judged.condition}. A ratio is of two repeats, with the cores exchanged: median (lowest–highest). Savings in "
        f"seconds take the mean. ± is the {claim_interval(judged.grid)} over seeds and ratios. A saving that is a "
        f"bound is the end of this interval. The claim: at equal accuracy a method takes at most {1 - CLAIMED:g} of "
        f"the seconds of full data, {claim_words(judged.grid)}. p compares its "
        f"accuracy with the curve at its seconds ÷ {1 - CLAIMED:g}."
    )
    if unpaired:
        words += f" Not measured: {', '.join(unpaired)}."
    return f"{table(lines)}\n\n{words} {measured_on(counted)}"


def _ratio(row: Row) -> float:
    method, full = (float(row[f"{of}seconds"]) / float(row[f"{of}work"]) for of in ("", "full_"))
    return method / full


def _in_seconds(found: Payoff, ratios: Sequence[float]) -> Payoff:
    """Its saving if a unit of its work takes so many times the seconds of full data's. The error is of the product."""
    ratio = _mean(ratios)
    left = 1 - found.saving.mean
    error, freedom = _together(found.saving, ratio.mean, ratio, left)
    saving = Difference(1 - left * ratio.mean, error, freedom)
    return replace(found, saving=saving, least=1 - (1 - found.least) * ratio.mean)


def _ahead(judged: Judged, entry: Entry, ratios: Sequence[float]) -> Difference:
    """Points of accuracy above full data, of whose seconds this method's are 1 − CLAIMED."""
    ratio, step = _mean(ratios), 0.01
    at, above = (judged.ahead(entry, (1 - CLAIMED) / (ratio.mean + more)) for more in (0.0, step))
    slope = (above.mean - at.mean) / step
    error, freedom = _together(at, 1.0, ratio, slope)
    return Difference(at.mean, error, freedom)


def _mean(ratios: Sequence[float]) -> Difference:
    return difference(dict(enumerate(ratios)), dict.fromkeys(range(len(ratios)), 0.0))


def _together(one: Difference, factor: float, other: Difference, slope: float) -> tuple[float, float]:
    """The standard error of factor · one + slope · other, and its degrees of freedom, after Welch and Satterthwaite.

    Savings and ratios are independent.
    """
    parts = [(abs(factor) * one.error, one.freedom), (abs(slope) * other.error, other.freedom)]
    error = math.hypot(*(part for part, _ in parts))
    if not 0 < error < math.inf:
        return error, math.inf
    return error, 1 / sum((part / error) ** 4 / freedom for part, freedom in parts)


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
