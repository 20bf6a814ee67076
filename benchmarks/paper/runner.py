"""Each figure and table of the paper by one command, at the paper's settings or small on a CPU.

    python -m benchmarks.paper --list                      the experiments
    python -m benchmarks.paper fig2                        the paper's settings: wants a GPU
    python -m benchmarks.paper fig2 --scale small          a small residual net and few epochs, on 2 cores
    python -m benchmarks.paper fig2 --scale small --dry-run    only the runs, and how long they will take
    python -m benchmarks.paper fig2 --scale small --redraw     only figures and table, from the CSV

Every run adds a row to benchmarks/results/SCALE.csv, and a run whose row is there is not repeated: stop it with
Ctrl-C, start it again. Rows of another machine are refused: name another file with --csv. Figures (SVG) and the table
(Markdown) are written to the folder SCALE beside it.
Read them against "full, equal samples": all data, with the epochs cut to as many samples as the pruned runs see.
Seconds leave out the tests and the compilation of the loaders.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.machine import ROOT, refuse_mixed
from benchmarks.harness.rows import read_csv
from benchmarks.harness.tables import Row
from benchmarks.harness.training import SharedLoaders
from benchmarks.paper import figures, grid
from benchmarks.paper.cells import RESULTS, cells, read_rows, table
from benchmarks.paper.estimate import duration, estimate
from benchmarks.paper.grid import Run
from benchmarks.paper.selection_counts import find_cell, read_histogram, save_counts, write_histogram
from benchmarks.paper.static_scores import make_scores
from ffcv_prune.analysis.runs import read_run
from ffcv_prune.errors import Arguments, UserError
from ffcv_prune.training.run_folder import append_csv
from ffcv_prune.training.trainer import train


def main() -> None:
    parser = Arguments(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", help="see --list")
    parser.add_argument("--scale", choices=grid.SCALES, default="paper")
    parser.add_argument("--csv", type=Path, help="default: benchmarks/results/SCALE.csv")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs whose line in --dry-run contains this")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list the experiments")
    what.add_argument("--dry-run", action="store_true", help="list the runs and estimate their time")
    what.add_argument("--redraw", action="store_true", help="draw from the CSV without training")
    args = parser.parse_args()
    if args.list:
        for name in grid.experiment_names():
            print(f"{name:14} {grid.title(name)}")
        return
    if not args.experiment:
        raise UserError("name an experiment; --list lists them")
    csv_file = (args.csv or RESULTS / f"{args.scale}.csv").resolve()
    os.chdir(ROOT)  # the configs' paths are relative to it
    about, runs = grid.load(grid.find(args.experiment), args.scale)
    wanted = [run for run in runs if args.only in str(run)]
    if args.dry_run:
        print(plan(wanted, read_rows(csv_file)))
        return
    folder = Path("runs") / "paper" / args.scale
    if not args.redraw:
        run_all(wanted, csv_file, folder)
    redraw(about, runs, read_rows(csv_file), folder, csv_file.parent / args.scale / args.experiment)


def plan(runs: Sequence[Run], rows: Mapping[str, Row]) -> str:
    """One line a run, done or with its estimated time, and the sum."""
    left = to_do(runs, rows)
    seconds = estimate(list(left.values()))
    lines = [f"{run.key}  {duration(seconds[run.key]) if run.key in left else 'done':>10}  {run}" for run in runs]
    different = len({run.key for run in runs} | left.keys())
    lines.append(f"{len(left)} of {different} different runs to do, about {duration(sum(seconds.values()))}")
    return "\n".join(lines)


def to_do(runs: Sequence[Run], rows: Mapping[str, Row]) -> dict[str, Run]:
    """The runs without a row, each once, and before a run the one whose selections it needs."""
    left: dict[str, Run] = {}
    for run in runs:
        for needed in (run.source, run) if run.key not in rows else ():
            if needed is not None and needed.key not in rows:
                left.setdefault(needed.key, needed)
    return left


def run_all(runs: Sequence[Run], csv_file: Path, out: Path) -> None:
    """Do the runs that have no row yet, on shared loaders, and add their rows. UserError: see `refuse_mixed`."""
    rows = read_rows(csv_file)
    left = to_do(runs, rows)
    if left:
        refuse_mixed(csv_file, rows.values())
    expected = estimate(list(left.values()))
    spent, of = 0.0, 0.0  # seconds taken, and seconds that they were expected to take
    with SharedLoaders() as shared:
        for i, (key, run) in enumerate(left.items()):
            to_go = sum(list(expected.values())[i:]) * (spent / of if of else 1.0)
            print(f"\nrun {i + 1} of {len(left)}: {run} (about {duration(to_go)} to go)", flush=True)
            config = replace(run.config, run=replace(run.config.run, out=str(out)))
            loaders = shared.of(config)
            start = time.perf_counter()
            make_scores(run, loaders, out / "selections")
            folder = train(config, loaders).folder
            save_counts(key, folder, out / "selections")
            append_csv(csv_file, row_of(run, folder))
            spent, of = spent + time.perf_counter() - start, of + expected[key]


def row_of(run: Run, folder: Path) -> dict[str, str]:
    """The row of a finished run: its key, its result.csv, and its tests as samples:accuracy pairs."""
    (result,) = read_csv(folder / "result.csv")
    tests = [(row["samples_seen"], row["test_accuracy"]) for row in read_run(folder).tested]
    curve = " ".join(f"{samples}:{accuracy:.4f}" for samples, accuracy in tests)
    return {"key": run.key, **result, "curve": curve}


def redraw(about: grid.About, runs: Sequence[Run], rows: Mapping[str, Row], folder: Path, out: Path) -> None:
    """Write the table and the figures of what is done, and say what is missing."""
    grouped = cells(runs, rows)
    missing = sum(cell.missing for cell in grouped)
    if missing == len(runs):
        raise UserError("no run of this experiment is in the CSV yet; leave --redraw away")
    lines = [f"# {about.title}", table(grouped), "Seconds without tests, compilation and static scores."]
    if missing:
        lines.append(f"{missing} of {len(runs)} runs are missing.")
    kinds = about.figures.split()
    pictures = [figures.draw(kind, grouped, about.title, out) for kind in kinds if kind != "distribution"]
    if "distribution" in kinds:
        histogram = out.with_name(f"{out.name}_selections.csv")
        write_histogram(find_cell(about.distribution, runs), folder / "selections", histogram)
        if histogram.exists():
            title = f"{about.title.partition(',')[0]}, {about.distribution}"
            picture, words = figures.draw_distribution(title, *read_histogram(histogram), out)
            pictures.append(picture)
            lines.append(f"Groups by the selections of {about.distribution}: {words}.")
    lines += [f"![]({picture.name})" for picture in pictures if picture]
    text = "\n\n".join(lines) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{out.with_suffix('.md')}")
