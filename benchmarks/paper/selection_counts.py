"""How often each sample was selected: kept beside the runs, and summed over seeds for the distributions.

What is committed is the histogram, SCALE/EXPERIMENT_selections.csv: the sums over seeds cannot be had from the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.harness.rows import read_csv, write_csv
from benchmarks.paper.grid import Run
from ffcv_prune.analysis.counts import method_selections
from ffcv_prune.analysis.runs import read_run
from ffcv_prune.errors import UserError


def save_counts(key: str, folder: Path, out: Path) -> None:
    """Write out/KEY.npz: `counts` int64[n], how many `selections`, the `last` of them, the `seconds`."""
    run = read_run(folder)
    if run.counts is not None:
        out.mkdir(parents=True, exist_ok=True)
        last = np.load(method_selections(folder, run.rows)[-1])
        facts = {"counts": run.counts, "selections": run.selections, "last": last, "seconds": run.training_seconds}
        np.savez_compressed(out / f"{key}.npz", **facts)


def find_cell(wanted: str, runs: Sequence[Run]) -> list[Run]:
    """The runs of a method and a pruning rate, written like ``ema 0.7``, one a seed; of the first part that has it."""
    method, _, rate = wanted.partition(" ")
    found = [run for run in runs if run.method == method and f"{run.rate:g}" == rate and not run.swept]
    if not found:
        raise UserError(f"the distribution of {wanted} has no run in the grid; name a method and a rate that it has")
    return [run for run in found if run.part == found[0].part]


def write_histogram(runs: Sequence[Run], counts: Path, path: Path) -> None:
    """Write the histogram over all these runs, if the counts of all of them are there."""
    files = [counts / f"{run.key}.npz" for run in runs]
    if not all(file.exists() for file in files):
        return
    made = [np.load(file) for file in files]
    selections = sum(int(one["selections"]) for one in made)
    histogram = np.bincount(sum(one["counts"] for one in made), minlength=selections + 1)
    write_csv(path, [{"times_selected": i, "samples": samples} for i, samples in enumerate(histogram.tolist())])


def read_histogram(path: Path) -> tuple[NDArray[np.int64], int]:
    """Counts, int64[n], in rising order, and the number of selections."""
    samples = [int(row["samples"]) for row in read_csv(path)]
    return np.repeat(np.arange(len(samples)), samples), len(samples) - 1


def groups_in_words(about: str, counts: NDArray[np.int64], selections: int) -> str:
    """How many samples were selected never, sometimes and always, and how many would be by chance (paper, Fig. 3)."""
    chance = stats.binom.pmf(np.arange(selections + 1), selections, counts.mean() / selections)
    told = []
    for selected in (np.bincount(counts, minlength=selections + 1) / counts.size, chance):
        rarely = np.arange(selections + 1) <= 0.1 * selections
        never, always = float(selected[rarely].sum()), float(selected[rarely[::-1]].sum())
        shares = (100 * never, 100 * (1 - never - always), 100 * always)
        told.append("{:.1f} % never, {:.1f} % sometimes, {:.1f} % always".format(*shares))
    return (
        f"Of {selections} selections of {about}, samples were in: {told[0]}. Drawn at random: {told[1]}. "
        "Never is at most a tenth of the times, always at least nine tenths."
    )
