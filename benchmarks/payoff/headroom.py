"""Headroom beside the gain of a method, over the conditions of the referee.

    python -m benchmarks.payoff.headroom --grid benchmarks/payoff/grid_fashion.yaml \\
        --payoff benchmarks/results/payoff_fashion.csv

In each condition this trains on all data at full length, with a scoring pass before every epoch. A row is a pass. The
page sets their means beside the gain and the saving of the first method of the claim, from the referee's rows
(`--payoff`). The pass before the first epoch is left out: that net has learned nothing. docs/cheaper_scores.md says
how headroom is computed. It bounds importance sampling with weights. A method that selects without weights may gain
more or less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from scipy import stats

from benchmarks.harness import machine
from benchmarks.harness.machine import ROOT, measured_on
from benchmarks.harness.rows import Results, benchmark, positive
from benchmarks.harness.tables import Row, groups, mean_and_spread, table, values
from benchmarks.harness.training import SharedLoaders
from benchmarks.paper.grid import key_of
from benchmarks.payoff import grid as grids
from benchmarks.payoff.grid import Case, Grid
from benchmarks.payoff.judge import Judged, add_files, files_of, read_rows
from ffcv_prune.config import Config
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.training.trainer import train

TITLE = "Headroom, and what pruning gains"
MEASURES = ("highest_10", "highest_30", "highest_50", "variance_reduction")
COLUMNS = ("condition", "seed", "choice", "key", "epoch", *MEASURES)
SETTINGS = ("grid", "payoff")
MIXED = tuple(name for name in machine.MIXED if name not in ("cpu", "cores"))  # no seconds are measured
# All data is trained on, so the scores select nothing: they are only measured.
PASSES = {"prune.method": "uncertainty", "prune.keep": 1.0, "prune.period": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser)
    parser.add_argument("--seeds", type=positive, default=1, help="runs of each condition")


def run(args: argparse.Namespace, results: Results) -> None:
    """Measure the conditions that have no rows yet."""
    grid = grids.load(ROOT / args.grid)
    full = grid.budgets[-1]
    if not grid.claim.methods:
        raise UserError(f"{args.grid}: the claim names no method, whose gain could be set beside headroom")
    _, choice = _referees(grid, args.payoff)
    cases = {
        key_of(_config(grid, case)): case
        for seed in range(1, args.seeds + 1)
        for case in (Case(condition, full.name, choice, seed) for condition in grid.conditions)
    }
    with SharedLoaders() as shared:
        for key in results.left(cases, lambda row: row["key"]):
            print(f"{cases[key].condition}, seed {cases[key].seed}", flush=True)
            results.append([{"key": key, **row} for row in measure(grid, cases[key], shared)])


def _config(grid: Grid, case: Case, out: str = "runs") -> Config:
    return grid.config(case, out, PASSES)


def measure(grid: Grid, case: Case, shared: SharedLoaders) -> list[dict[str, Any]]:
    """The rows of a run: its passes."""
    with TemporaryDirectory() as out:
        config = _config(grid, case, out)
        log = (train(config, shared.of(config)).folder / "log.jsonl").read_text().splitlines()
    own = {"condition": case.condition, "seed": case.seed, "choice": case.choice}
    passes = [(row["epoch"], row["headroom"]) for row in map(json.loads, log)]
    return [{**own, "epoch": epoch, **{name: found[name] for name in MEASURES}} for epoch, found in passes]


def _referees(grid: Grid, payoff: str) -> tuple[list[dict[str, str]], str]:
    """The rows of the referee, and the choice of full data by them; UserError: it is not known yet."""
    rows = read_rows(ROOT / payoff)
    choice = Judged(grid, grid.first_condition, rows).choice(grid.budgets[-1])
    if choice is None:
        raise UserError(f"{payoff}: full data is not tuned yet; run python -m benchmarks.payoff first")
    return rows, choice


def summary(rows: Sequence[Row]) -> str:
    """The table of the conditions, and how their order by headroom agrees with their order by gain."""
    path, payoff = files_of(rows)
    grid = grids.load(ROOT / path)
    referees, choice = _referees(grid, payoff)
    method, full = grid.entry(grid.claim.methods[0]), grid.budgets[-1].name
    runs = {(row["condition"], int(row["seed"])) for row in rows if row["condition"] in grid.conditions}
    keys = {key_of(_config(grid, Case(condition, full, choice, seed))) for condition, seed in runs}
    lines: list[dict[str, str]] = []
    headrooms, gains = [], []
    learned = [row for row in rows if int(row["epoch"]) and row["key"] in keys]
    for (condition,), own in groups(learned, "condition").items():
        share, reduction = values(own, "highest_30"), values(own, "variance_reduction")
        batch_gain = [1 / (1 - float(value)) for value in reduction]
        found = Judged(grid, condition, referees).payoff(method)
        lines.append(
            {
                "condition": condition,
                "highest 30 % hold, %": mean_and_spread([100 * held for held in share]),
                "variance reduction": mean_and_spread(reduction),
                "batch gain": mean_and_spread(batch_gain),
                f"gain of {method.name}, points": "" if found is None else found.gain.in_words(),
                "saving in work, %": "" if found is None else found.saving_in_words(),
            }
        )
        if found is not None:
            headrooms.append(statistics.mean(batch_gain))
            gains.append(found.gain.mean)
    return f"{table(lines)}\n\n{_agreement(headrooms, gains)}\n\nThe choice: {choice}. {measured_on(rows)}"


def _agreement(headrooms: Sequence[float], gains: Sequence[float]) -> str:
    words = "± of headroom is the standard deviation over passes, of a gain the 95 % interval over paired seeds."
    if len(gains) < 3 or len(set(gains)) == 1 or len(set(headrooms)) == 1:
        return words

    def rho(order: Sequence[float]) -> float:
        return float(stats.spearmanr(headrooms, order).statistic)

    # Over all orders: with so few conditions, spearmanr's own p is far too small.
    found = stats.permutation_test((gains,), rho, permutation_type="pairings")
    return (
        f"{words} Spearman's rank correlation of batch gain and gain over {len(gains)} conditions: "
        f"{found.statistic:+.2f}, p = {found.pvalue:.2g}."
    )


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
