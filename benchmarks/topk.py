"""Taking in the losses of a checkpoint and choosing the k highest UCB scores: time and memory against numpy and torch.

    python -m benchmarks.selectors --csv benchmarks/results/selectors.csv      0.1 to 100 million samples, 5 GB
    python -m benchmarks.selectors --samples 1281167 --repeats 9               ImageNet's number, seconds
    python -m benchmarks.selectors --redraw benchmarks/results/selectors.csv   table and plot again, without measuring

Each repeat starts from the same table of statistics and takes in the same losses; all methods run in it in turn, so
that ratios are of neighbours in time. "ours" is what the trainer calls, `ScoreTable.update` with its checks and
`UCB.select`. The rivals update mean and variance alone, in place and in float32, as one would by hand; numpy knows one
thread only. Before anything is timed, each method's statistics are compared bit for bit with ours, and its choice with
the definition of a top k. Compilation is left out.

How to read it: "x ours" is the time divided by that of ours in the same repeat, with 1 and with 2 threads: above 1,
ours is faster. Growth is linear where "ns a sample" stays level; it rises a little where the table no longer fits into
the last cache. "arrays" is the peak of resident memory above the table and the losses, in arrays of float32[n], the
chosen ids included; it is measured from 14 million samples upwards, where malloc gives all memory back. Losses are
lognormal and correlated between checkpoints; "ties" are those of a trained model in bfloat16: most are 0, and the k-th
score is one of them. Ours takes no second thread below two million samples.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.figures import save
from benchmarks.results import markdown
from ffcv_prune import ScoreTable, policies
from ffcv_prune.errors import UserError
from ffcv_prune.training.run_folder import append_csv, provenance

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Row = Mapping[str, Any]

SIZES = "100000,300000,1281167,4000000,14000000,40000000,100000000"
MOST_WITH_TIES = 14_000_000
FEWEST_FOR_MEMORY = 14_000_000  # arrays above 32 MB, which malloc always maps on their own
KEEP, ALPHA, C = 0.3, 0.8, 1.0
BETA = 1.0 - ALPHA
CHECKPOINTS = 3  # in the table before the one that is measured
CORRELATION = 0.9  # of the logarithm of a sample's loss between checkpoints


def ours(table: ScoreTable, losses: Floats, k: int) -> Ids:
    table.update(losses)
    return policies.UCB(C).select(table, k, np.random.default_rng(0))


def _numpy_scores(table: ScoreTable, losses: Floats) -> Floats:
    """Update mean and variance in place and return the UCB scores, with one temporary array, which they are in."""
    mean, var = table.mean, table.var
    work = losses - mean
    work *= work
    work *= np.float32(ALPHA)
    var *= np.float32(BETA)
    var += work
    np.multiply(losses, np.float32(ALPHA), out=work)
    mean *= np.float32(BETA)
    mean += work
    np.multiply(var, np.float32(C), out=work)
    work += mean
    return work


def argsort(table: ScoreTable, losses: Floats, k: int) -> Ids:
    return np.argsort(_numpy_scores(table, losses))[table.n - k :]


def argpartition(table: ScoreTable, losses: Floats, k: int) -> Ids:
    return np.argpartition(_numpy_scores(table, losses), table.n - k)[table.n - k :]


def torch_topk(table: ScoreTable, losses: Floats, k: int) -> Ids:
    """As the others: products and sums apart, for the fused ones of torch round differently."""
    mean, var, new = (torch.from_numpy(array) for array in (table.mean, table.var, losses))
    work = new - mean
    work.mul_(work).mul_(ALPHA)
    var.mul_(BETA).add_(work)
    torch.mul(new, ALPHA, out=work)
    mean.mul_(BETA).add_(work)
    torch.mul(var, C, out=work)
    return torch.topk(work.add_(mean), k, sorted=False).indices.numpy()


Method = Callable[[ScoreTable, Floats, int], Ids]
METHODS: dict[str, tuple[Method, tuple[int, ...]]] = {  # and the numbers of threads that it can make use of
    "ours": (ours, (1, 2)),
    "numpy argpartition": (argpartition, (1,)),
    "numpy argsort": (argsort, (1,)),
    "torch.topk": (torch_topk, (1, 2)),
}


def loss_passes(n: int, kind: str) -> list[Floats]:
    """The losses of CHECKPOINTS + 1 scoring passes, float32[n] each."""
    rng = np.random.default_rng(0)
    level = rng.standard_normal(n, dtype=np.float32)
    passes = []
    for _ in range(CHECKPOINTS + 1):
        # exp(2 z - 3): half of the losses below 0.05, one in a hundred above 5. With ties, all are 1/150 as high and
        # have the resolution of bfloat16 at 1: a probability nearer to 1 than that is 1, its loss 0.
        losses = np.exp(2 * level - (8 if kind == "ties" else 3))
        passes.append(np.round(losses * 256) / 256 if kind == "ties" else losses)
        level *= np.float32(CORRELATION)
        level += np.float32((1 - CORRELATION**2) ** 0.5) * rng.standard_normal(n, dtype=np.float32)
    return passes


class Bench:
    """A table after some checkpoints and the losses of the next one, for one method after the other."""

    def __init__(self, n: int, kind: str) -> None:
        self.k = max(1, round(KEEP * n))
        self.table = ScoreTable(n, ALPHA)
        *before, self.losses = loss_passes(n, kind)
        while before:
            self.table.update(before.pop(0))
        self._mean, self._var = self.table.mean.copy(), self.table.var.copy()

    def reset(self) -> None:
        self.table.mean[:], self.table.var[:] = self._mean, self._var

    def check(self) -> None:
        """Run every method once, and compare what it makes of the statistics, and what it chooses."""
        sums = set()
        for name, (method, _) in METHODS.items():
            self.reset()
            ids = method(self.table, self.losses, self.k)
            sums.add((zlib.crc32(self.table.mean), zlib.crc32(self.table.var)))
            scores = self.table.mean + np.float32(C) * self.table.var
            chosen = np.zeros(self.table.n, np.bool_)
            chosen[ids] = True
            lowest = scores[ids].min()
            if np.count_nonzero(chosen) != self.k or (scores[~chosen] > lowest).any():
                raise AssertionError(f"{name} did not choose the {self.k} highest")
        if len(sums) > 1:
            raise AssertionError("the methods do not agree about mean and variance")

    def run(self, method: Method, threads: int) -> tuple[float, float]:
        """Return the seconds that it took, and its peak of memory in arrays of float32[n]."""
        self.reset()
        cores, torch_threads = os.sched_getaffinity(0), torch.get_num_threads()
        os.sched_setaffinity(0, sorted(cores)[:threads])  # ours takes as many threads as it has cores
        torch.set_num_threads(threads)
        try:
            before = _resident_kb("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
            start = time.perf_counter()
            method(self.table, self.losses, self.k)
            seconds = time.perf_counter() - start
            peak = _resident_kb("VmHWM") - before
        finally:
            os.sched_setaffinity(0, cores)
            torch.set_num_threads(torch_threads)
        return seconds, peak * 1024 / (4 * self.table.n)


def _resident_kb(field: str) -> int:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == f"{field}:")


def measure(n: int, kind: str, repeats: int, most_threads: int) -> list[dict[str, Any]]:
    """One row for each repeat, method and number of threads."""
    bench = Bench(n, kind)
    bench.check()
    rows = []
    for repeat in range(-1, repeats):  # the first is to warm up
        for name, (method, all_threads) in METHODS.items():
            for threads in all_threads:
                if threads > most_threads:
                    continue
                seconds, arrays = bench.run(method, threads)
                row = {"losses": kind, "samples": n, "keep": KEEP, "method": name, "threads": threads}
                row |= {"repeat": repeat, "seconds": f"{seconds:.6f}"}
                rows.append(row | {"arrays": f"{arrays:.2f}" if n >= FEWEST_FOR_MEMORY else ""})
    return [row for row in rows if row["repeat"] >= 0]


def summary(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, and what they were measured with."""
    head = ["losses", "samples", "method", "threads", "ms", "ns a sample", "x ours, 1 thread", "x ours, 2 threads"]
    body = []
    for (kind, n, name, threads), own in _groups(rows).items():
        seconds = [float(row["seconds"]) for row in own]
        ratios = [_ratios(rows, own, reference) for reference in ("1", "2")]
        arrays = [float(row["arrays"]) for row in own if row["arrays"]]
        body.append(
            [
                kind,
                f"{int(n):,}",
                name,
                threads,
                _spread([1000 * value for value in seconds]),
                f"{1e9 * statistics.median(seconds) / int(n):.2f}",
                *(_spread(ratio) if ratio else "–" for ratio in ratios),
                f"{max(arrays):.2f}" if arrays else "–",
            ]
        )
    made = rows[0]
    counts = sorted({len(own) for own in _groups(rows).values()})
    versions = ", ".join(f"{package} {made[package]}" for package in ("numpy", "torch", "numba"))
    measured = (
        f"Median (lowest–highest) of {'/'.join(map(str, counts))} repeats, keep {made['keep']}. "
        f"{made['cpu']}, {made['cores']} cores, {versions}, {made['date'][:10]}."
    )
    return f"{markdown([*head, 'arrays'], body)}\n\n{measured}"


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], list[Row]]:
    """The repeats of each kind of losses, number of samples, method and number of threads."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["losses"], row["samples"], row["method"], row["threads"]), []).append(row)
    return groups


def _ratios(rows: Sequence[Row], own: Sequence[Row], threads: str) -> list[float]:
    """The seconds of each row over those of ours in the same repeat; none if ours was not run with `threads`."""
    ours_rows = _groups(rows).get((own[0]["losses"], own[0]["samples"], "ours", threads), [])
    by_repeat = {row["repeat"]: float(row["seconds"]) for row in ours_rows}
    return [float(row["seconds"]) / by_repeat[row["repeat"]] for row in own if row["repeat"] in by_repeat]


def _spread(values: Sequence[float]) -> str:
    middle, low, high = (
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low}–{high})"


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Time against the number of samples, both logarithmic; median, lowest and highest of the lognormal losses."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple[str, str], list[tuple[int, list[float]]]] = {}
    for (kind, n, name, threads), own in _groups(rows).items():
        if kind == "lognormal":
            lines.setdefault((name, threads), []).append((int(n), [1000 * float(row["seconds"]) for row in own]))
    for (name, threads), points in lines.items():
        sizes, repeats = zip(*sorted(points), strict=True)
        middle = [statistics.median(values) for values in repeats]
        below = [m - min(values) for m, values in zip(middle, repeats, strict=True)]
        above = [max(values) - m for m, values in zip(middle, repeats, strict=True)]
        label = f"{name}, {threads} thread{'s' if threads != '1' else ''}"
        axes.errorbar(sizes, middle, (below, above), fmt="o-" if threads == "1" else "s--", capsize=3, label=label)
    axes.set(xscale="log", yscale="log", xlabel="samples", ylabel="milliseconds: update, UCB score, top k")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return save(figure, path)


def read_rows(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not rows or "arrays" not in rows[0]:
        raise UserError(f"{path} holds no rows of this benchmark: make them with --csv {path}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selectors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", default=SIZES, help="comma-separated; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--csv", type=Path, help="write a row a repeat to this new file, and the plot beside it, as .svg"
    )
    parser.add_argument("--redraw", type=Path, help="only print the table and draw the plot of such a file")
    args = parser.parse_args()
    if args.redraw:
        rows = read_rows(args.redraw)
        print(f"{summary(rows)}\n\n{draw(rows, args.redraw.with_suffix('.svg'))}")
        return
    try:
        sizes = [int(size) for size in args.samples.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or args.repeats < 1:
        raise UserError("--samples and --repeats must be whole numbers from 1, such as --samples 1281167,14000000")
    if args.csv and args.csv.exists():
        raise UserError(f"{args.csv} exists: rows of two runs would be mixed; remove it or name another file")
    made = {name: ", ".join(value) if isinstance(value, list) else value for name, value in provenance().items()}
    most_threads = len(os.sched_getaffinity(0))
    rows = []
    for n in sizes:
        for kind in ("lognormal", "ties") if n <= MOST_WITH_TIES else ("lognormal",):
            new = [row | made for row in measure(n, kind, args.repeats, most_threads)]
            for row in new if args.csv else []:
                append_csv(args.csv, row)
            rows += [{name: str(value) for name, value in row.items()} for row in new]
            print(f"{n:,} samples, {kind}: done", flush=True)
    print(f"\n{summary(rows)}")
    if args.csv:
        print(f"\n{draw(rows, args.csv.with_suffix('.svg'))}")
