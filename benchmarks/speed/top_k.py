"""Taking in the losses of a selection and choosing the k highest UCB scores: time and memory against numpy and torch.

    python -m benchmarks.speed.top_k                      0.1 to 100 million samples, 5 GB
    python -m benchmarks.speed.top_k --redraw             table and plot again, without measuring
    python -m benchmarks.speed.top_k --samples 1281167 --repeats 9 --csv glance.csv      ImageNet's number, seconds

Each repeat starts from the same table of statistics and takes in the same losses; all methods run in it in turn. "ours"
is what the trainer calls, `ScoreTable.update` with its checks and `UpperBound.top`. The rivals update mean and variance
alone, in place and in float32, as one would by hand. Before anything is timed, each method's statistics are compared
bit for bit with ours, and its choice with the definition of a top k. docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.harness.machine import forget_peak, measured_with, resident_mb
from benchmarks.harness.plots import error_bars, save
from benchmarks.harness.rows import Results, benchmark, positives
from benchmarks.harness.tables import Row, groups, ratios, spread, table, values
from ffcv_prune.errors import run_command
from ffcv_prune.methods.statistics import UpperBound
from ffcv_prune.methods.table import ScoreTable

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
TITLE = "Selection"
COLUMNS = ("losses", "samples", "method", "threads", "repeat", "seconds", "arrays")
SETTINGS = ("repeats", "keep")
SIZES = "100000,300000,1281167,4000000,14000000,40000000,100000000"
MOST_WITH_TIES = 14_000_000
FEWEST_FOR_MEMORY = 14_000_000  # arrays above 32 MB, which malloc always maps on their own
KEEP, ALPHA, C = 0.3, 0.8, 1.0
BETA = 1.0 - ALPHA
SELECTIONS = 3  # in the table before the one that is measured
CORRELATION = 0.9  # of the logarithm of a sample's loss between selections


def ours(table: ScoreTable, losses: Floats, k: int) -> Ids:
    table.update(losses)
    return UpperBound(c=C).top(table, k, None)


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
    """The losses of SELECTIONS + 1 scoring passes, float32[n] each."""
    rng = np.random.default_rng(0)
    level = rng.standard_normal(n, dtype=np.float32)
    passes = []
    for _ in range(SELECTIONS + 1):
        # exp(2 z - 3): half of the losses below 0.05, one in a hundred above 5. With ties, all are 1/150 as high and
        # have the resolution of bfloat16 at 1: a probability nearer to 1 than that is 1, its loss 0.
        losses = np.exp(2 * level - (8 if kind == "ties" else 3))
        passes.append(np.round(losses * 256) / 256 if kind == "ties" else losses)
        level *= np.float32(CORRELATION)
        level += np.float32((1 - CORRELATION**2) ** 0.5) * rng.standard_normal(n, dtype=np.float32)
    return passes


class Bench:
    """A table after some selections and the losses of the next one, for one method after the other."""

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
        """Return the seconds that it took, and its peak of memory in arrays of float32[n].

        It runs twice, and the second time counts. A machine may take seconds to provide memory that the method before
        has freed, if that method needed more or less of it.
        """
        cores, torch_threads = os.sched_getaffinity(0), torch.get_num_threads()
        os.sched_setaffinity(0, sorted(cores)[:threads])  # ours takes as many threads as it has cores
        torch.set_num_threads(threads)
        try:
            for _ in range(2):
                self.reset()
                before = resident_mb()["VmRSS"]
                forget_peak()
                start = time.perf_counter()
                method(self.table, self.losses, self.k)
                seconds = time.perf_counter() - start
                peak = resident_mb()["VmHWM"] - before
        finally:
            os.sched_setaffinity(0, cores)
            torch.set_num_threads(torch_threads)
        return seconds, peak * 1024 * 1000 / (4 * self.table.n)


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
                row = {"losses": kind, "samples": n, "method": name, "threads": threads}
                row |= {"repeat": repeat, "seconds": seconds}
                rows.append(row | {"arrays": arrays if n >= FEWEST_FOR_MEMORY else ""})
    return [row for row in rows if row["repeat"] >= 0]


def summary(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, and what they were measured with."""
    lines = []
    by_method = groups(rows, "losses", "samples", "method", "threads")
    for (kind, n, name, threads), own in by_method.items():
        one, two = (ratios(own, by_method.get((kind, n, "ours", count), []), "seconds") for count in ("1", "2"))
        line = {"losses": kind, "samples": f"{int(n):,}", "method": name, "threads": threads}
        line["ms"] = spread(values(own, "seconds", 1000))
        line["ns a sample"] = f"{statistics.median(values(own, 'seconds', 1e9 / int(n))):.2f}"
        line |= {"x ours, 1 thread": spread(one) or "–", "x ours, 2 threads": spread(two) or "–"}
        arrays = values(own, "arrays")
        lines.append(line | {"arrays": f"{max(arrays):.2f}" if arrays else "–"})
    return f"{table(lines)}\n\n{measured_with(rows)}"


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Time against the number of samples, both logarithmic; median, lowest and highest of the lognormal losses."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple[str, str], list[tuple[int, list[float]]]] = {}
    for (kind, n, name, threads), own in groups(rows, "losses", "samples", "method", "threads").items():
        if kind == "lognormal":
            lines.setdefault((name, threads), []).append((int(n), values(own, "seconds", 1000)))
    for (name, threads), points in lines.items():
        sizes, repeats = zip(*sorted(points), strict=True)
        middle, around = error_bars(repeats)
        label = f"{name}, {threads} thread{'s' if threads != '1' else ''}"
        axes.errorbar(sizes, middle, around, fmt="o-" if threads == "1" else "s--", capsize=3, label=label)
    axes.set(xscale="log", yscale="log", xlabel="samples", ylabel="milliseconds: update, UCB score, top k")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return save(figure, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=positives, default=SIZES, help="separated by commas")
    parser.set_defaults(keep=KEEP)


def run(args: argparse.Namespace, results: Results) -> None:
    sizes = [int(size) for size in args.samples.split(",")]
    cases = [(n, kind) for n in sizes for kind in ("lognormal", "ties") if n <= MOST_WITH_TIES or kind != "ties"]
    for n, kind in results.left(cases, lambda row: (int(row["samples"]), row["losses"])):
        results.append(measure(n, kind, args.repeats, len(os.sched_getaffinity(0))))
        print(f"{n:,} samples, {kind}: done", flush=True)


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
