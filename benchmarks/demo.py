"""Fashion-MNIST in minutes on a CPU: does pruning pay against full data trained for less?

    ./run demo                                             one seed, in minutes on 2 cores
    ./run demo --seeds 0,1,2,3,4 --csv benchmarks/results/demo.csv
    ./run demo --jobs 7                                    as many runs side by side, each on a core of its own
    ./run demo --redraw benchmarks/results/demo.csv        the table and the picture again, without training

Full data are trained for 3, 5 and 10 epochs, each with a whole schedule: the curve that every method has to lie above.
A method's gain is its accuracy − the accuracy of the curve at its own work. Its saving is 1 − its work / the work at
which the curve reaches its accuracy. Work counts samples trained on, and a forward pass of a sample as a third: the
seconds of runs side by side vary more than the methods differ. Seconds leave out the tests and the compilation of the
loaders, which all runs share.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.harness.jobs import jobs_on, on_cores
from benchmarks.harness.machine import ROOT, refuse_mixed
from benchmarks.harness.plots import save
from benchmarks.harness.rows import positive, read_csv
from benchmarks.harness.tables import Row, aligned, mean_and_spread, table, values
from benchmarks.harness.training import SharedLoaders
from benchmarks.payoff.curve import Curve, Payoff, payoff
from ffcv_prune import config
from ffcv_prune.analysis.intervals import correction, difference_of_tests
from ffcv_prune.analysis.report import write_report
from ffcv_prune.errors import Arguments, UserError, run_command
from ffcv_prune.scoring.headroom import FORWARD
from ffcv_prune.training.run_folder import append_csv, create_unused
from ffcv_prune.training.trainer import train

METHODS = {  # config -> what the table calls it, and where the picture writes that, in points from its mark
    "fashion_full_3": ("full, 3 epochs", (8, -12, "left")),
    "fashion_full_5": ("full, 5 epochs", (8, -12, "left")),
    "fashion_full": ("full, 10 epochs", (0, -24, "right")),
    "fashion_random": ("random", (-8, 5, "right")),
    "fashion_recent_loss": ("recent losses", (-8, 5, "right")),
    "fashion_ucb": ("UCB, guarded", (-9, -3, "right")),
    "fashion_ucb_as_written": ("UCB as written", (9, -3, "left")),
}
CURVE = ("fashion_full_3", "fashion_full_5", "fashion_full")
TEST_SAMPLES = 10_000
GAP = 80  # the picture's scale of accuracy leaves out what lies about it, in %


def main() -> None:
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0", help="comma-separated; default: 0")
    parser.add_argument("--jobs", type=positive, default=2, help="runs side by side; default: 2, or one a core")
    parser.add_argument("--csv", type=Path, help="add one row a run to this file, with a table and a picture beside it")
    parser.add_argument("--redraw", type=Path, help="only make the table and the picture beside such a file again")
    args = parser.parse_args()
    if args.redraw:
        publish(args.redraw)
        return
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {args.seeds}: give whole numbers, such as 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {args.seeds}: give each seed once")
    csv_file = args.csv.resolve() if args.csv else None
    cores = sorted(os.sched_getaffinity(0))[: args.jobs]
    if csv_file and csv_file.exists():
        before = read_csv(csv_file)
        with on_cores(cores[:1]):  # as the runs, whose rows name their number of cores
            refuse_mixed(csv_file, before)
        if known := sorted(set(seeds) & {int(row["seed"]) for row in before}):
            raise UserError(f"{csv_file} has rows of seed {known[0]}: give other --seeds, or name another --csv")
    os.chdir(ROOT)  # the configs' paths are relative to it
    if not all(Path(f"betons/fashion_mnist/{split}.beton").exists() for split in ("train", "test")):
        subprocess.run([sys.executable, "write_datasets.py", "--dataset", "fashion_mnist"], check=True)
    out = create_unused(Path("runs"), "demo")
    folders = run_all(seeds, out, cores)
    rows = [row for folder in folders for row in read_csv(folder / "result.csv")]
    if csv_file:
        for row in rows:
            append_csv(csv_file, row)
        publish(csv_file)
    print(f"\n{summary(rows)}")
    first_seed = folders[: len(METHODS)]
    print(f"report: {write_report(first_seed, out / 'report.html', 'Fashion-MNIST', verdicts(rows))}")


def run_all(seeds: Sequence[int], out: Path, cores: Sequence[int]) -> list[Path]:
    """Train every config with every seed, as many runs side by side as there are cores; return the run folders."""
    # Each on one core: a second thread speeds up a net this small by at most a third, and slows it eightfold while
    # another process is busy on the core (measured): it would be the noise of this table.
    runs = [(name, seed) for seed in seeds for name in METHODS]
    print(f"{len(runs)} runs on Fashion-MNIST, {len(cores)} side by side; their epochs: {out}/*.txt", flush=True)
    with jobs_on([[core] for core in cores]) as pool:
        begun = {pool.submit(run, name, seed, out): (name, seed) for name, seed in runs}
        for done in as_completed(begun):
            name, seed = begun[done]
            (row,) = read_csv(done.result() / "result.csv")
            print(f"{METHODS[name][0]}, seed {seed}: {_percent(row):.2f} % after {_total(row):.0f} s", flush=True)
    return [done.result() for done in begun]


_loaders = SharedLoaders()  # of a job's process


def run(name: str, seed: int, out: Path) -> Path:
    """Train a config with a seed; return the run folder."""
    place = [f"--run.out={out / f'seed_{seed}'}", f"--run.seed={seed}", "--train.eval_every=2"]
    settings = config.load(["--config", f"rn_configs/{name}.yaml", *place])
    with (out / f"{name}_seed_{seed}.txt").open("w") as lines, redirect_stdout(lines):
        return train(settings, _loaders.of(settings)).folder


def publish(csv_file: Path) -> None:
    """Write the table and the picture beside the rows."""
    rows = whole_seeds(read_csv(csv_file))
    csv_file.with_suffix(".md").write_text(page(rows), encoding="utf-8")
    draw(rows, csv_file.with_suffix(".svg"))


def whole_seeds(rows: Sequence[Row]) -> list[Row]:
    """Those of the seeds that have every run: a file may lack a row that was cut short."""
    of_seed = {row["seed"]: {other["run"] for other in rows if other["seed"] == row["seed"]} for row in rows}
    whole = [row for row in rows if of_seed[row["seed"]] >= METHODS.keys()]
    if not whole:
        raise UserError("no seed has all runs among the rows; run the demo again")
    return whole


def page(rows: Sequence[Row]) -> str:
    """The committed page of the rows, in Markdown."""
    return f"# The demo: Fashion-MNIST on a CPU\n\n{summary(rows)}\n"


def summary(rows: Sequence[Row]) -> str:
    """The answer in plain words, and the table that it follows from, in Markdown."""
    seeds = sorted({row["seed"] for row in rows}, key=int)
    machines = sorted({f"{row['cpu']}, {row['cores']} cores" for row in rows})
    lines = [
        *verdicts(rows),
        table(aligned(lines_of(rows))),
        "± of accuracy and seconds is the standard deviation, of the work saved the 95 % interval; a bound is its end. "
        f"Seconds without tests and compilation. Seeds: {', '.join(seeds)}. Machine: {'; '.join(machines)}.",
    ]
    return "\n\n".join(lines)


def lines_of(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One line a method, means over its seeds."""
    found, lines = payoffs(rows), []
    for name, (method, _) in METHODS.items():
        runs = _of(rows, name)
        keep, totals = float(runs[0]["keep"]), values(runs, _total)
        line = {"method": method, "keep": f"{keep:g}", "pruning rate": f"{1 - keep:g}"}
        line["test accuracy"] = f"{mean_and_spread(values(runs, 'accuracy', 100))} %"
        for head, phases in (("load", "load"), ("score", "score"), ("select", "select swap"), ("train", "train")):
            line[head] = f"{sum(statistics.mean(values(runs, f'{phase}_seconds')) for phase in phases.split()):.1f}"
        line |= {"total": mean_and_spread(totals, 1), "samples seen": f"{int(runs[0]['samples_seen']):,}"}
        lines.append(line | {"work saved, %": found[name].saving_in_words() if name in found else ""})
    return lines


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write an SVG: accuracy against work, a small mark a run, a large one the mean of a method, a line full data.

    The scale has a gap, between the method that collapses and the others.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    others = iter(matplotlib.color_sequences["tab10"])
    for name, (method, place) in METHODS.items():
        color = "black" if name in CURVE else next(others)
        right, up, align = place
        runs = _of(rows, name)
        x, y = values(runs, _work), values(runs, _percent)
        mean = statistics.mean(x), statistics.mean(y)
        axes = lower if mean[1] < GAP else upper
        for part in (upper, lower):  # a run may lie on the other side of the gap
            part.plot(x, y, ".", color=color, alpha=0.5)
        axes.plot(*mean, "o", color=color, markersize=9)
        axes.annotate(method, mean, (right, up), textcoords="offset points", color=color, ha=align)
    curve = [[statistics.mean(values(_of(rows, name), value)) for name in CURVE] for value in (_work, _percent)]
    upper.plot(*curve, color="black", linewidth=1, zorder=0)
    upper.set(ylim=(90, 93), ylabel="test accuracy, %")
    lower.set(ylim=(45, 88), xlim=(0, None), xlabel="work: samples trained on, and a third of those in scoring passes")
    for axes, edge, place in ((upper, "bottom", 0), (lower, "top", 1)):
        axes.grid(alpha=0.3)
        axes.spines[edge].set_visible(False)
        marks = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 9, "color": "black", "clip_on": False}
        axes.plot([0, 1], [place, place], linestyle="none", transform=axes.transAxes, **marks)
    upper.tick_params(bottom=False)
    save(figure, path)


def payoffs(rows: Sequence[Row]) -> dict[str, Payoff]:
    """What each method saves and gains against the curve of full data of the same seed, by work."""
    costs, accuracies = ([_by_seed(rows, name, value) for name in CURVE] for value in (_work, _accuracy))
    curves = {seed: Curve([own[seed] for own in costs], [own[seed] for own in accuracies]) for seed in costs[0]}
    methods = [name for name in METHODS if name not in CURVE]
    return {name: payoff(curves, _by_seed(rows, name, _work), _by_seed(rows, name, _accuracy)) for name in methods}


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Whether each method beat full data trained for the same work, by these rows alone."""
    gains = {name: found.gain for name, found in payoffs(rows).items()}
    seeds = len({row["seed"] for row in rows})
    if seeds == 1:
        for name, gain in gains.items():
            own = _accuracy(_of(rows, name)[0])
            gains[name] = difference_of_tests(own, own - gain.mean / 100, TEST_SAMPLES, TEST_SAMPLES)
    corrected = correction(gain.p() for gain in gains.values())
    told: dict[str, list[str]] = {"better": [], "not told apart": [], "worse": []}
    for name, gain in gains.items():
        word = "not told apart" if not gain.p() <= corrected.level else "better" if gain.mean > 0 else "worse"
        told[word].append(f"{METHODS[name][0]} ({gain.in_words(corrected.level)} points)")
    parts = [f"{word}: {', '.join(names)}" for word, names in told.items() if names]
    source = f"{seeds} seeds" if seeds > 1 else f"one seed on {TEST_SAMPLES:,} test images"
    return [f"Against full data trained for the same work, {'; '.join(parts)}. ± is the {corrected}, of {source}."]


def _of(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["run"] == name]


def _by_seed(rows: Sequence[Row], name: str, value: Callable[[Row], float]) -> dict[int, float]:
    return {int(row["seed"]): value(row) for row in _of(rows, name)}


def _work(row: Row) -> float:
    return int(row["samples_seen"]) + FORWARD * int(row["forwards"])


def _accuracy(row: Row) -> float:
    return float(row["accuracy"])


def _percent(row: Row) -> float:
    return 100 * _accuracy(row)


def _total(row: Row) -> float:
    return sum(float(row[f"{phase}_seconds"]) for phase in ("load", "score", "select", "swap", "train"))


if __name__ == "__main__":
    run_command(main)
