"""The mixture that the paper fits to selection counts, kept in a CSV: fitting needs PyMC, reading does not.

SCALE/EXPERIMENT_fit.csv has one row for each group, with its share of the samples, and in the same row one of the three
components, in the order of their means. Its `histogram` is the hash of the counts: a fit of other counts is made anew.
Remove the file to fit the same counts again.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.analysis.mixture import GROUPS, RHAT_LIMIT, Mixture, fit_mixture
from ffcv_prune.errors import UserError

COLUMNS = ("histogram", "rhat", "group", "share", "low", "high", "weight", "mean", "deviation")


def find_fit(counts: NDArray[np.int64], checkpoints: int, path: Path) -> tuple[Mixture | None, str]:
    """The fit of these counts, at its posterior means, and the shares in words; None unless the chains agree."""
    kept = hash_of(counts, checkpoints)
    rows = _read(path)
    if not rows or rows[0]["histogram"] != kept:
        try:
            _write(fit_mixture(counts, checkpoints), kept, path)
        except UserError as error:  # too few selections, or PyMC is not there: the histogram stands alone
            return None, f"not fitted: {error}"
        rows = _read(path)
    rhat = float(rows[0]["rhat"])
    if rhat > RHAT_LIMIT:
        return None, f"not converged (R-hat {rhat:.2f}, above {RHAT_LIMIT:g}), so no shares can be had from it"
    weights, means, deviations = (np.array([[float(row[name]) for row in rows]]) for name in COLUMNS[-3:])
    words = []
    for row in rows:
        share, low, high = (f"{100 * float(row[name]):.1f}" for name in ("share", "low", "high"))
        words.append(f"{row['group']} {share} % ({low}–{high})")
    return Mixture(checkpoints, weights, means, deviations, rhat), ", ".join(words)


def hash_of(counts: NDArray[np.int64], checkpoints: int) -> str:
    histogram = np.bincount(counts, minlength=checkpoints + 1)
    return hashlib.sha256(" ".join(map(str, histogram.tolist())).encode()).hexdigest()[:16]


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(fit: Mixture, histogram: str, path: Path) -> None:
    components = zip(fit.weights.mean(axis=0), fit.means.mean(axis=0), fit.deviations.mean(axis=0), strict=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for group, shares, component in zip(GROUPS, fit.shares(), components, strict=True):
            writer.writerow([histogram, f"{fit.rhat:.4f}", group, *(f"{x:.6g}" for x in (*shares, *component))])
