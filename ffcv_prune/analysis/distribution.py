"""The histogram of selection counts with the fitted groups (paper, Fig. 3, 7, 8b, 9b and 11)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ffcv_prune.analysis.mixture import GROUPS, Mixture
from ffcv_prune.words import percent


def plot_distribution(axes: Axes, counts: NDArray[np.int64], selections: int, fit: Mixture | None = None) -> None:
    """Draw the share of samples by count, and over it the density of each group that there is, and of all.

    The red lines are, as in Fig. 3, one standard deviation from the means of never and always components.

    Args:
        counts: int64[n], how often each sample was selected, of `selections` times.
        fit: of these counts; None draws the histogram alone.
    """
    times = np.arange(selections + 1)
    axes.bar(times, np.bincount(counts, minlength=selections + 1) / counts.size, width=1.0, color="0.8")
    axes.set(xlabel=f"times selected, of {selections}", ylabel="share of the samples")
    axes.locator_params(axis="x", integer=True)
    if fit is None:
        return
    masses = fit.masses()
    for i in np.unique(fit.groups):
        axes.plot(times, masses[i], linewidth=1, color=f"C{i}", label=GROUPS[i])
    axes.plot(times, masses.sum(axis=0), color="black", label="all")
    means, deviations = fit.means.mean(axis=0), fit.deviations.mean(axis=0)
    for inwards, mean, deviation in zip(1 - fit.groups, means, deviations, strict=True):  # 0 for "sometimes"
        if inwards:
            axes.axvline(mean + inwards * deviation, color="red", linewidth=1)
    axes.legend(fontsize="small")


def describe_groups(fit: Mixture) -> str:
    """``never 30.10 % (29.61 % to 30.72 %), …``: posterior means, 95 % intervals; a warning where chains disagree."""
    parts = [
        f"{group} {percent(mean)} ({percent(low)} to {percent(high)})"
        for group, (mean, low, high) in zip(GROUPS, fit.shares(), strict=True)
    ]
    doubt = "" if fit.agrees else f"; the chains disagree (R-hat {fit.rhat:.2f}), do not rely on it"
    return ", ".join(parts) + doubt
