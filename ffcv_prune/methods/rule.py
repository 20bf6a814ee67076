"""What selectors and guards share: the draw of a selection, and the samples that it is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.methods import kernels
from ffcv_prune.methods.statistics import Statistic
from ffcv_prune.methods.table import ScoreTable

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
Probabilities = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moment:
    """When a selection is made.

    Attributes:
        epoch, epochs: the first epoch that it is for, from 0, and how many the run has.
        turn: how many selections this phase has had before.
        seed: of the run. For draws that several selections share; those of one come from its `rng`.
        batch: of the epoch, where samples of a batch are chosen; None: a selection before the epoch.
    """

    epoch: int = 0
    epochs: int = 1
    turn: int = 0
    seed: int = 0
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """The n samples of a run as a rule sees them.

    Attributes:
        statistic, table: what is known of each sample, and the score made of it.
        groups: int64[n], the class of each sample, ≥ 0; None where there are none.
        moment: when the selection is made.
        previous: int64[k], the selection before, ascending; None: there was none.
        shuffled: int64[n], the sample whose score and columns each sample shows; None: its own.
    """

    statistic: Statistic
    table: ScoreTable
    groups: Ids | None = None
    moment: Moment = Moment()
    previous: Ids | None = None
    shuffled: Ids | None = None
    _of_all: list[Scores] = field(default_factory=list, repr=False, compare=False)

    def scores(self, among: Ids | None) -> Scores:
        """float32[m]: the score of each sample in `among` (None: all). NaN: no value yet."""
        shown = self._shown(among)
        if not self.statistic.compares_all:
            return self.statistic.score(self.table, shown)
        if not self._of_all:  # once a selection, not once a class
            self._of_all.append(self.statistic.score(self.table, None))
        return self._of_all[0].copy() if shown is None else self._of_all[0][shown]

    def column(self, name: str, among: Ids | None) -> NDArray[Any]:
        """[m]: this column of the table for each sample in `among` (None: all)."""
        return self.table.read(name, self._shown(among))

    def top(self, k: int, among: Ids | None) -> Ids:
        """The k samples of highest score in `among`, int64[k], ascending; ties go to the lower id."""
        if self.shuffled is None:
            return self.statistic.top(self.table, k, among)
        chosen = kernels.top_k(self.scores(among), k)
        return chosen if among is None else among[chosen]

    def _shown(self, among: Ids | None) -> Ids | None:
        if self.shuffled is None:
            return among
        return self.shuffled if among is None else self.shuffled[among]

    def candidates(self, among: Ids | None) -> Ids:
        return np.arange(self.table.n) if among is None else among


@dataclass(frozen=True, slots=True)
class Draw:
    """What a rule drew out of m candidates.

    Attributes:
        ids: int64[k], ascending and unique.
        probability: makes float64[m], the probability with which the draw takes each candidate. It is called where
            somebody asks. None: the rule takes what it takes for certain, and nothing else. NaN: not known, for a class
            floor below 1 around a rule that both ranks and draws.
    """

    ids: Ids
    probability: Callable[[], Probabilities] | None = None

    def probabilities(self, candidates: Ids) -> Probabilities:
        """float64[m]: the probability of each of the candidates that were drawn from, int64[m], ascending."""
        if self.probability is not None:
            return self.probability()
        certain = np.zeros(candidates.size)
        certain[np.searchsorted(candidates, self.ids)] = 1.0
        return certain


class Rule(Protocol):
    """A selector, or guards around one."""

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        """Draw k of the samples in `among` (int64[m], ascending and unique; None: all), 1 ≤ k ≤ m.

        The result depends on nothing but the arguments.
        """
        ...

    def thresholds(self, samples: Samples, k: int, among: Ids | None) -> tuple[Scores, Scores]:
        """Return (scores, thresholds), float32[m] each, of the samples in `among`.

        A sample's threshold is the lowest score with which the rule would select a sample like it among k; +inf where
        it selects none. What it draws at random does not count. UserError for a rule without thresholds.
        """
        ...
