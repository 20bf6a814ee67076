"""Notices when selections hold next to nothing of some classes: how a run on a short schedule collapses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.words import percent

STARVED = 0.2  # of a class whose share of a selection is less than this, in proportion to its share of the data


class StarvedClasses:
    """Finds the selection from which on some classes are starved, and the one from which on none is.

    Classes whose proportional share is below 1 / STARVED samples can lose them by chance: nothing is said of those.

    Args:
        labels: int64[n], any numbers.
        names: of the classes 0, 1, …; None: their numbers.
        remedy: what to do about it.
    """

    def __init__(self, labels: NDArray[np.int64], names: Sequence[str] | None, remedy: str) -> None:
        self.remedy = remedy
        values, self.classes, self.counts = np.unique(labels, return_inverse=True, return_counts=True)
        if names is not None and not 0 <= values[0] <= values[-1] < len(names):
            raise UserError(f"{len(names)} class_names for labels from {values[0]} to {values[-1]}: give one a class")
        self.names = [str(value) if names is None else names[value] for value in values]
        self.starving = False

    def look_at(self, ids: NDArray[np.int64]) -> str | None:
        """Return what to say if starving begins or ends with the selection `ids`, int64[k]; otherwise None."""
        keep = len(ids) / len(self.classes)
        fractions = np.bincount(self.classes[ids], minlength=len(self.counts)) / self.counts  # [C], kept of each class
        starved = np.flatnonzero((fractions < STARVED * keep) & (keep * self.counts >= 1 / STARVED))
        if self.starving == bool(len(starved)):
            return None
        self.starving = not self.starving
        if not self.starving:
            return "no class is starved any more"
        worst = starved[np.argmin(fractions[starved])]
        found = f"{len(starved)} of {len(self.counts)} classes"
        least = f"least: {percent(fractions[worst])} of {self.names[worst]}, {percent(keep)} of all samples are kept"
        return f"{found} hold less than {100 * STARVED:g} % of their share of the selection ({least}): {self.remedy}"
