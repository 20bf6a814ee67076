"""A run of a method: what is known of its samples, and the selections made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.methods.phases import Phase
from ffcv_prune.methods.rule import Ids, Probabilities, Samples
from ffcv_prune.methods.selectors import Uniform

if TYPE_CHECKING:
    from ffcv_prune.methods.method import Method

_SELECTION_STREAM = 1  # keeps the selection's random numbers apart from the order's, which share seed and epoch


@dataclass(frozen=True)
class Selection:
    """What the epochs from `epoch` on train on.

    Attributes:
        epoch: the first of these epochs.
        phase: "full", "random" or "method".
        ids: int64[k], sorted.
        weights: float32[k], the factor of the loss of each sample; None: all 1.
    """

    epoch: int
    phase: Phase
    ids: Ids
    weights: NDArray[np.float32] | None = None
    _probability: Callable[[], Probabilities] | None = field(default=None, repr=False)

    @property
    def probability(self) -> NDArray[np.float32] | None:
        """float32[k], with which each of these samples was drawn; None: not at random, or it is not known.

        It is not known of a class floor below 1 around a rule that both ranks and draws.
        """
        found = None if self._probability is None else self._probability().astype(np.float32)
        return None if found is None or np.isnan(found).any() else found


class State:
    """A run that is driven epoch by epoch: `wanted`, `record`, `select`.

        state = methods.build("ucb", keep=0.3, period=10).start(n, epochs=200)
        for epoch in range(200):
            ids = state.wanted(epoch)
            if ids is not None:
                state.record(ids, losses_of(ids), epoch=epoch)
            selection = state.select(epoch)      # at a selection; else None: go on with the last one
            ...                                  # train on selection.ids

    A method whose source is training takes the losses of each sample as they came last: `record` them once, before
    the next selection.

    Attributes:
        table: the `ScoreTable` with the statistics of each sample.
        selection: the last one; None before the first.
        nonfinite: losses that were left out of the last ones recorded for a selection, because they were not finite.
    """

    def __init__(
        self, method: Method, n: int, epochs: int, groups: ArrayLike | None, seed: int, scores: ArrayLike | None
    ) -> None:
        if seed < 0:
            raise UserError(f"seed = {seed} must be at least 0")
        method.phases.check(epochs)
        self.method, self.epochs, self.seed = method, epochs, seed
        self.table = method.statistic.table(n, seed, scores)
        self.kept = method.phases.kept(n)
        self.samples = Samples(method.statistic, self.table, _checked_groups(groups, n, method.needs_groups))
        self.selection: Selection | None = None
        self.nonfinite = 0
        self._rule = method.rule
        self._fresh = np.zeros(n, np.bool_)  # recorded since the last selection

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.table.n

    def phase(self, epoch: int) -> Phase:
        """What the epoch trains on: "full" data, a "random" selection or the "method"'s."""
        return self.method.phases.phase(epoch, self.epochs)

    def is_due(self, epoch: int) -> bool:
        """Whether `select` makes a selection before this epoch."""
        if not 0 <= epoch < self.epochs:
            raise UserError(f"epoch {epoch} is outside the run: it has epochs={self.epochs}, give as many as you train")
        made = self.selection is not None and self.selection.epoch == epoch
        return not made and self.method.phases.selects(epoch, self.epochs)

    def wanted(self, epoch: int) -> Ids | None:
        """The samples whose value a pass should bring before `select(epoch)`: int64[m], ascending; None: no pass."""
        if not (self.method.makes_passes and self.is_due(epoch) and self.phase(epoch) == "method"):
            return None
        ids = self.method.source.due(self._fresh)
        if ids is not None and ids.size:
            ids = self.method.source.budget.choose(self.samples, self._rule, self.kept, ids)
        return ids if ids is not None and ids.size else None

    def record(self, ids: ArrayLike | None, losses: ArrayLike, *, epoch: int) -> int:
        """Take in the newest loss of each of some samples; returns how many of them were not finite.

        Args:
            ids: int64[m], unique, in any order; None for all n samples.
            losses: float32[m] or float64[m].
            epoch: in which, or before which, they were computed.

        Raises:
            UserError: see `ScoreTable.update`; nothing has changed then.
        """
        if not 0 <= epoch < self.epochs:
            raise UserError(f"epoch {epoch} is outside the run of {self.epochs} epochs")
        nonfinite = self.table.update(losses, ids)
        if not self._fresh.any():
            self.nonfinite = 0
        self._fresh[slice(None) if ids is None else np.asarray(ids)] = True
        self.nonfinite += nonfinite
        return nonfinite

    def select(self, epoch: int) -> Selection | None:
        """Return the selection that is due before `epoch`, or None: go on with the last one.

        A function of (seed, epoch) and of what was recorded.
        """
        if not self.is_due(epoch):
            return None
        phase, k = self.phase(epoch), self.kept
        rng = np.random.default_rng([self.seed, epoch, _SELECTION_STREAM])
        weights = drawn = None
        if phase == "full":
            ids = np.arange(self.n)
        else:
            draw = (self._rule if phase == "method" else Uniform()).draw(self.samples, k, rng, None)
            ids = draw.ids
            drawn = draw.probability and (lambda: draw.probabilities(np.arange(self.n))[ids])
            if phase == "method" and self.method.weight.needs_probability:
                weights = self.method.weight.of(draw.probabilities(np.arange(self.n))[ids], self.n)
        self.selection = Selection(epoch, phase, ids, weights, drawn)
        self._fresh[:] = False
        return self.selection

    @contextmanager
    def whole_or_not_at_all(self) -> Iterator[None]:
        """Take back what was recorded and selected inside if an exception leaves it."""
        table, fresh = self.table.state_dict(), self._fresh.copy()
        selection, nonfinite = self.selection, self.nonfinite
        try:
            yield
        except BaseException:
            self.table.load_state_dict(table)
            self._fresh[:] = fresh
            self.selection, self.nonfinite = selection, nonfinite
            raise

    def state_dict(self) -> dict[str, Any]:
        """Arrays and plain numbers: all that a run which goes on from here needs."""
        selection = self.selection
        return {
            "n": self.n,
            "epochs": self.epochs,
            "seed": self.seed,
            "nonfinite": self.nonfinite,
            "table": self.table.state_dict(),
            "fresh": self._fresh.copy(),
            "selection": selection
            and {
                "epoch": selection.epoch,
                "phase": selection.phase,
                "ids": selection.ids.copy(),
                "weights": None if selection.weights is None else selection.weights.copy(),
                "probability": selection.probability,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. `UserError`, and nothing has changed, for one of another run."""
        for name in ("n", "epochs", "seed"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the state has {name} {state[name]}, but this run has {name} {getattr(self, name)}: "
                    "resume with the data and settings that it was made with"
                )
        self.table.load_state_dict(state["table"])
        self.nonfinite = state["nonfinite"]
        self._fresh[:] = state["fresh"]
        stored = state["selection"]
        self.selection = None
        if stored is not None:
            kept = stored["probability"]
            self.selection = Selection(
                stored["epoch"],
                stored["phase"],
                stored["ids"],
                stored["weights"],
                None if kept is None else lambda: kept,
            )


def _checked_groups(groups: ArrayLike | None, n: int, needed: bool) -> Ids | None:
    if groups is None:
        if needed:
            raise UserError("a class floor needs the class of each sample: give start(groups=LABELS), or class_floor=0")
        return None
    labels = np.asarray(groups)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size == 0 or labels.min() < 0:
        raise UserError("groups must be one class number ≥ 0 for each sample")
    if labels.size != n:
        raise UserError(f"{labels.size} groups for {n} samples: they are of other data")
    return np.ascontiguousarray(labels, dtype=np.int64)
