"""Does pruning pay? Every method against full data trained for less, each with a complete schedule of its own.

    python -m benchmarks.payoff.data            compile the data sets that only this benchmark has
    python -m benchmarks.payoff --hours 3       the next runs of grid.yaml, until the time is up
    python -m benchmarks.payoff --redraw        page and figure again, without training

grid.yaml has the rules and the runs, in their order. A run whose row is there is not repeated: stop it with Ctrl-C,
start it again. With --methods only full data, these methods, those that they vary and all null twins are run, with
--conditions only the first condition and these. With --jobs J as many runs go on side by side, each on its share of the
cores. "Work" counts samples trained on. A forward pass without a step is a third of one. A sample of the proxy counts
by its share of the arithmetic, decoding by its share of the seconds. The rows have seconds too, without tests and
compilation. They hold for a quiet machine and one job only, so the page does not judge by them: `python -m
benchmarks.payoff.seconds` does.

How to read the page: "saving" is 1 − a method's cost / the cost at which full data reach its accuracy, seed by seed.
"gain" is its accuracy − the accuracy of the curve at its cost. "Beyond the curve" counts the seeds in which full data
reach the accuracy at no budget. Their savings are bounds. So "at least" stands before the lower end of the interval.
Where the cheapest budget reaches more, "at most" stands before the upper end. A null twin is its method with scores
that say nothing. The first seed, with the best choice so far, has a table of its own. In the first condition this seed
tunes, and does not count elsewhere.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness import machine
from benchmarks.harness.jobs import jobs_on, on_cores
from benchmarks.harness.machine import ROOT, measured_on
from benchmarks.harness.plots import save
from benchmarks.harness.rows import Results, positive, read_csv
from benchmarks.harness.tables import Row
from benchmarks.harness.training import SharedLoaders
from benchmarks.payoff import grid as grids
from benchmarks.payoff import page
from benchmarks.payoff.grid import TUNING_SEED, Case, Grid
from benchmarks.payoff.judge import Judged, cases
from benchmarks.speed.proxy import flops
from ffcv_prune.config import Config
from ffcv_prune.errors import UserError
from ffcv_prune.models import build_model
from ffcv_prune.scoring.headroom import FORWARD
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.trainer import train

TITLE = "Does pruning pay?"
COUNTS = ("samples_seen", "passes", "forwards", "decoded", "proxy_forwards", "proxy_steps")
SECONDS = ("load", "score", "select", "swap", "train", "eval", "save", "total")
COLUMNS = (
    *("condition", "entry", "choice", "seed", "key", "method", "keep", "epochs", "accuracy", "work", "seconds"),
    *COUNTS,
    *(f"{phase}_seconds" for phase in SECONDS),
    *("proxy_share", "decode_share"),
)
SETTINGS = ("grid",)
MIXED = tuple(name for name in machine.MIXED if name != "cpu")  # of another one, rows are nearly the same
DECODED_BATCHES = 20  # that the share of decoding is measured on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grid", default=str(grids.GRID.relative_to(ROOT)), help="the rules and the runs")
    parser.add_argument("--hours", type=float, default=1e9, help="no run is begun after so many")
    parser.add_argument("--jobs", type=positive, default=1, help="runs side by side")
    parser.add_argument("--methods", nargs="+", default=[], help="only full data, these, and what they need")
    parser.add_argument("--conditions", nargs="+", default=[], help="only the first, which tunes, and these")
    parser.set_defaults(csv=ROOT / "benchmarks" / "results" / "payoff.csv")


def run(args: argparse.Namespace, results: Results) -> None:
    """The next runs of the grid."""
    path = ROOT / args.grid
    grid = grids.load(path)
    if args.methods:
        grid = grid.only(args.methods)
    if args.conditions:
        grid = grid.under(args.conditions)
    _require_data(grid)
    end = time.monotonic() + 3600 * args.hours
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) % args.jobs:
        raise UserError(f"--jobs {args.jobs} does not divide the {len(cores)} cores evenly: give all jobs as many")
    with on_cores(cores[:: args.jobs]):
        results.left([], _case)  # refuses rows of another grid or machine
    running: dict[Future[dict[str, Any]], Case] = {}
    failed: dict[Case, UserError] = {}
    with jobs_on([cores[job :: args.jobs] for job in range(args.jobs)]) as pool:
        while True:
            rows = results.read() if results.path.exists() else []
            left = [case for case in cases(grid, rows) if case not in {*running.values(), *failed}]
            if not left and not running and not failed:
                print("all runs of the grid are done", flush=True)
            for case in left[: args.jobs - len(running)] if time.monotonic() < end else []:
                print(f"{case.condition}, {case.entry}, {case.choice}, seed {case.seed}", flush=True)
                running[pool.submit(measure, case, path)] = case
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                case = running.pop(future)
                try:
                    row = future.result()
                except UserError as error:  # of one run, such as a learning rate at which it diverges
                    failed[case] = error
                    print(f"left out: {case.condition}, {case.entry}, {case.choice}: {error}", flush=True)
                    continue
                with on_cores(cores[:: args.jobs]):
                    results.append([{"key": grid.key(case), **row}])
    for case, error in failed.items():
        raise UserError(
            f"{len(failed)} runs failed, the first is {case.entry}, {case.choice}, seed {case.seed}: {error}"
        )


_loaders = SharedLoaders()  # of a job's process


def _require_data(grid: Grid) -> None:
    """Refuse a grid of which a run could not begin, hours later."""
    for condition in grid.conditions:
        data = grid.config(Case(condition, grid.budgets[0].name, next(iter(grid.choices)), TUNING_SEED), "runs").data
        for path in map(Path, (data.train, data.test)):
            if not path.exists():
                raise UserError(
                    f"{condition}: {path} does not exist; compile it with python write_datasets.py and then "
                    "python -m benchmarks.payoff.data, or name other --conditions"
                )


def measure(case: Case, path: Path) -> dict[str, Any]:
    """Train as the grid of this path says, and return the row."""
    with TemporaryDirectory() as out:
        config = grids.load(path).config(case, out)
        loaders = _loaders.of(config)
        (result,) = read_csv(train(config, loaders).folder / "result.csv")
    row: dict[str, Any] = {
        "condition": case.condition,
        "entry": case.entry,
        "choice": case.choice,
        "seed": case.seed,
        **{name: result[name] for name in ("method", "keep", "epochs", "accuracy")},
        **{name: int(result[name]) for name in COUNTS},
        **{f"{phase}_seconds": float(result[f"{phase}_seconds"]) for phase in SECONDS},
        "proxy_share": proxy_share(config, loaders),
        "decode_share": 0.0,
    }
    row["seconds"] = row["total_seconds"] - row["eval_seconds"]
    if row["decoded"]:
        of_training = (row["load_seconds"] + row["train_seconds"]) / row["samples_seen"]
        row["decode_share"] = decode_seconds(loaders, config) / of_training
    row["work"] = work(row, config)
    return row


def work(row: Row | dict[str, Any], config: Config) -> float:
    """Samples trained on, and what else was computed in the same unit: a forward pass is a third of a step."""
    # The step on the hardest of a window goes back through all of it: their losses come of one forward pass.
    window = float(config.prune.values.get("window", 0)) if row["proxy_steps"] else 0.0
    by_proxy = FORWARD * float(row["proxy_forwards"]) + (1 - FORWARD) * float(row["proxy_steps"]) * window
    return (
        float(row["samples_seen"])
        + FORWARD * float(row["forwards"])
        + float(row["proxy_share"]) * by_proxy
        + float(row["decode_share"]) * float(row["decoded"])
    )


def proxy_share(config: Config, loaders: Loaders) -> float:
    """The arithmetic of the proxy as a share of the main net's; 0 without one."""
    values = config.prune.values
    if "proxy_model" not in values:
        return 0.0
    data = loaders.dataset
    side = config.data.size or int(data.train.image_heights[0])
    main, proxy = (
        flops(build_model(name, data.outputs, data.mean, data.std), pixels)
        for name, pixels in ((config.model.name, side), (values["proxy_model"], values["proxy_size"] or side))
    )
    return proxy / main


def decode_seconds(loaders: Loaders, config: Config) -> float:
    """Of an image, by the training loader alone."""
    loader, served = loaders.train(config.run.seed), 0
    with closing(loader.batches(0)) as batches:
        next(batches)
        start = time.perf_counter()
        for batch in islice(batches, DECODED_BATCHES):
            served += len(batch.ids)
    return (time.perf_counter() - start) / max(1, served)


def _case(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("condition", "entry", "choice", "seed"))


def _judged(rows: Sequence[Row]) -> tuple[Grid, list[Judged]]:
    grid = grids.load(ROOT / rows[0]["settings"].removeprefix("grid="))
    found = [judged for judged in (Judged(grid, name, rows) for name in grid.conditions) if judged.rows]
    if not found:
        raise UserError(f"no row is of the present rules of {grid.name}: name another --csv, or go on")
    return grid, found


def summary(rows: Sequence[Row]) -> str:
    """The page: of each condition the curve of full data, and the methods against it."""
    grid, conditions = _judged(rows)
    return f"{page.text(grid, conditions)}\n\n{measured_on(rows)}"


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Accuracy against work, a panel for each condition."""
    _, conditions = _judged(rows)
    figure = Figure(figsize=(8, 5 * len(conditions)), layout="constrained")
    for axes, judged in zip(figure.subplots(len(conditions), 1, squeeze=False).ravel(), conditions, strict=True):
        page.plot(axes, judged)
    return save(figure, path)
