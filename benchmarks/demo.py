"""Fashion-MNIST in minutes on a CPU: full data, random and UCB at keep 0.3, and what they cost.

    ./run demo                                             one seed, at most 5 minutes on 2 cores
    ./run demo --seeds 0,1,2 --csv benchmarks/results/demo.csv
    ./run demo --redraw benchmarks/results/demo.csv        demo.md and demo.svg again, without training

It shows whether pruning bought accuracy for its time. Read it against three rows: "full", what all data reach;
"full, equal samples", which sees as many samples as the pruned runs by stopping earlier; and "full, equal time",
which also gets the time of UCB's scoring passes, as whole epochs. Pruning that does not beat the last one saved
nothing. Seconds leave out the tests after each epoch and the compilation of the loaders, which all runs share.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from benchmarks.harness.machine import ROOT
from benchmarks.harness.plots import save
from benchmarks.harness.rows import read_csv
from benchmarks.harness.tables import Row, aligned, mean_and_spread, table, values
from benchmarks.harness.training import SharedLoaders
from ffcv_prune import config
from ffcv_prune.analysis.intervals import correction, difference, difference_of_tests
from ffcv_prune.analysis.report import write_report
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.training.run_folder import append_csv, create_unused
from ffcv_prune.training.trainer import train

METHODS = {  # config -> what the table calls it, and where the picture writes that, in points from its mark
    "fashion_full": ("full", (-8, -14, "right")),
    "fashion_full_equal": ("full, equal samples", (8, -14, "left")),
    "fashion_full_equal_time": ("full, equal time", (9, -3, "left")),
    "fashion_random": ("random", (-8, 5, "right")),
    "fashion_ucb": ("UCB, guarded", (-9, -3, "right")),
    "fashion_ucb_as_written": ("UCB as written", (9, -3, "left")),
}
TEST_SAMPLES = 10_000
GAP = 80  # the picture's scale of accuracy leaves out what lies about it, in %


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0", help="comma-separated; default: 0")
    parser.add_argument("--csv", type=Path, help="add one row a run to this file")
    parser.add_argument("--redraw", type=Path, help="only make the table and the picture beside such a file again")
    args = parser.parse_args()
    if args.redraw:
        rows = read_csv(args.redraw)
        args.redraw.with_suffix(".md").write_text(page(rows), encoding="utf-8")
        draw(rows, args.redraw.with_suffix(".svg"))
        return
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {args.seeds}: give whole numbers, such as 0,1,2") from None
    csv_file = args.csv.resolve() if args.csv else None
    os.chdir(ROOT)  # the configs' paths are relative to it
    if not all(Path(f"betons/fashion_mnist/{split}.beton").exists() for split in ("train", "test")):
        subprocess.run([sys.executable, "write_datasets.py", "--dataset", "fashion_mnist"], check=True)
    # A second thread speeds up a net this small by at most a third, and slows it eightfold while another process
    # is busy on the core (measured): it would be the noise of this table.
    torch.set_num_threads(1)
    out = create_unused(Path("runs"), "demo")
    folders = run_all(seeds, out)
    rows = [row for folder in folders for row in read_csv(folder / "result.csv")]
    if csv_file:
        for row in rows:
            append_csv(csv_file, row)
    print(f"\n{summary(rows)}")
    first_seed = folders[: len(METHODS)]
    print(f"report: {write_report(first_seed, out / 'report.html', 'Fashion-MNIST', verdicts(rows))}")


def run_all(seeds: Sequence[int], out: Path) -> list[Path]:
    """Train every config with every seed, on the same compiled loaders; return the run folders."""
    folders = []
    with SharedLoaders() as loaders:
        for seed in seeds:
            for name, (method, _) in METHODS.items():
                print(f"\n{method} (seed {seed})", flush=True)
                place = [f"--run.out={out / f'seed_{seed}'}", f"--run.seed={seed}"]
                settings = config.load(["--config", f"rn_configs/{name}.yaml", *place])
                folders.append(train(settings, loaders.of(settings)).folder)
    return folders


def page(rows: Sequence[Row]) -> str:
    """The committed page of the rows, in Markdown."""
    return f"# The demo: Fashion-MNIST on a CPU\n\n{summary(rows)}\n"


def summary(rows: Sequence[Row]) -> str:
    """The table, in Markdown, and what follows from it in plain words."""
    seeds = sorted({row["seed"] for row in rows}, key=int)
    machines = sorted({f"{row['cpu']}, {row['cores']} cores" for row in rows})
    lines = [
        table(aligned(lines_of(rows))),
        f"Seconds without tests and compilation. Seeds: {', '.join(seeds)}. Machine: {'; '.join(machines)}.",
        *verdicts(rows),
    ]
    return "\n\n".join(lines)


def lines_of(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One line a method, means over its seeds."""
    full_total = statistics.mean(values(_of(rows, "fashion_full"), _total))
    lines = []
    for name, (method, _) in METHODS.items():
        runs = _of(rows, name)
        keep, totals = float(runs[0]["keep"]), values(runs, _total)
        line = {"method": method, "keep": f"{keep:g}", "pruning rate": f"{1 - keep:g}"}
        line["test accuracy"] = f"{mean_and_spread(values(runs, 'accuracy', 100))} %"
        for head, phases in (("load", "load"), ("score", "score"), ("select", "select swap"), ("train", "train")):
            line[head] = f"{sum(statistics.mean(values(runs, f'{phase}_seconds')) for phase in phases.split()):.1f}"
        line |= {"total": mean_and_spread(totals, 1), "speedup": f"{full_total / statistics.mean(totals):.2f}"}
        lines.append(line | {"samples seen": f"{int(runs[0]['samples_seen']):,}"})
    return lines


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write an SVG: accuracy against seconds, a small mark a run, a large one the mean of a method.

    The scale has a gap, between the method that collapses and the others.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for color, (name, (method, place)) in zip(matplotlib.color_sequences["tab10"], METHODS.items(), strict=False):
        right, up, align = place
        runs = _of(rows, name)
        x, y = values(runs, _total), values(runs, "accuracy", 100)
        mean = statistics.mean(x), statistics.mean(y)
        axes = lower if mean[1] < GAP else upper
        for part in (upper, lower):  # a run may lie on the other side of the gap
            part.plot(x, y, ".", color=color, alpha=0.5)
        axes.plot(*mean, "o", color=color, markersize=9)
        axes.annotate(method, mean, (right, up), textcoords="offset points", color=color, ha=align)
    upper.set(ylim=(89, 93), ylabel="test accuracy, %")
    lower.set(ylim=(45, 70), xlim=(0, None), xlabel="seconds of training, scoring and selection; without tests")
    for axes, edge, place in ((upper, "bottom", 0), (lower, "top", 1)):
        axes.grid(alpha=0.3)
        axes.spines[edge].set_visible(False)
        marks = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 9, "color": "black", "clip_on": False}
        axes.plot([0, 1], [place, place], linestyle="none", transform=axes.transAxes, **marks)
    upper.tick_params(bottom=False)
    save(figure, path)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Whether UCB beat its three rivals, one sentence, by these rows alone."""
    seeds = len(_of(rows, "fashion_ucb"))
    gaps = {}
    for rival in ("fashion_random", "fashion_full_equal", "fashion_full_equal_time"):
        ours, other = (_by_seed(rows, name) for name in ("fashion_ucb", rival))
        if seeds > 1:
            gaps[rival] = difference(ours, other)
        else:
            single = (accuracy / 100 for own in (ours, other) for accuracy in own.values())
            gaps[rival] = difference_of_tests(*single, TEST_SAMPLES, TEST_SAMPLES)
    corrected = correction(gap.p() for gap in gaps.values())
    told: dict[str, list[str]] = {}
    for rival, gap in gaps.items():
        better = "is better than" if gap.mean > 0 else "is worse than"
        word = better if gap.p() <= corrected.level else "cannot be told from"
        told.setdefault(word, []).append(f"{METHODS[rival][0]} ({gap.in_words(corrected.level)} points)")
    parts = [f"{word} {', '.join(rivals)}" for word, rivals in told.items()]
    source = f"{seeds} seeds" if seeds > 1 else f"one seed on {TEST_SAMPLES:,} test images"
    return [f"{METHODS['fashion_ucb'][0]} {'; '.join(parts)}; ± is the {corrected}, of {source}."]


def _of(rows: Sequence[Row], name: str) -> list[Row]:
    runs = [row for row in rows if row["run"] == name]
    if not runs:
        raise UserError(f"no run of {name} among the rows; run the demo again")
    return runs


def _by_seed(rows: Sequence[Row], name: str) -> dict[int, float]:
    """Accuracies in percent."""
    return {int(row["seed"]): 100 * float(row["accuracy"]) for row in _of(rows, name)}


def _total(row: Row) -> float:
    return sum(float(row[f"{phase}_seconds"]) for phase in ("load", "score", "select", "swap", "train"))


if __name__ == "__main__":
    run_command(main)
