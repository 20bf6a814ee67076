"""A run of a method: what is known of its samples, and the selections made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import UserError, whole_number
from ffcv_prune.methods import same_run
from ffcv_prune.methods.phases import Phase
from ffcv_prune.methods.rule import Ids, Moment, Probabilities, Rule, Samples, Scores
from ffcv_prune.methods.selection import Selection
from ffcv_prune.methods.selectors import Uniform
from ffcv_prune.methods.statistics import Given
from ffcv_prune.methods.table import CERTAINTY, LAST_TRAINED, MAX_NONFINITE_SHARE, TRAINED_EPOCHS

if TYPE_CHECKING:
    from ffcv_prune.methods.method import Method

MAX_NONFINITE_OF_BATCH = 0.5  # one sample can be more than 1 % of a batch
_SELECTION_STREAM = 1  # keeps the selection's random numbers apart from the order's, which share seed and epoch


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

    def __init__(self, method: Method, n: int, epochs: int, groups: ArrayLike | None, seed: int, scores: Given) -> None:
        n, epochs, seed = (
            whole_number("number of samples", n),
            whole_number("number of epochs", epochs),
            whole_number("seed", seed),
        )
        if seed < 0:
            raise UserError(f"seed = {seed} must be at least 0")
        self.method, self.epochs, self.seed = method, epochs, seed
        self._begun_with = method  # `change` replaces the other
        self.table = method.statistic.table(n, seed, scores)
        for part in method.active_parts:
            self.table.add(*part.columns)
        if method.needs_certainty:
            self.table.add(*CERTAINTY)
        self._groups = same_run.checked_groups(groups, n)
        self._check(method)
        self.selection: Selection | None = None
        self.nonfinite = 0
        self._fresh = np.zeros(n, np.bool_)  # recorded since the last selection

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.table.n

    def change(self, **parameters: Any) -> None:
        """Give the method other values of parameters that say how much it selects and when; for selections to come.

        UserError as of `Method.replace`, and for what a run cannot go on with; nothing has changed then.
        """
        method = self.method.replace(**parameters)
        if same_run.foundation(method) != same_run.foundation(self.method):
            values = self.method.values
            changed = [f"{name}={value}" for name, value in parameters.items() if values.get(name) != value]
            raise UserError(
                f"{', '.join(changed)} cannot be set within a run, where it does not fit what was recorded: "
                "give it to methods.build, or to Pruner, before"
            )
        self._check(method)
        self.method = method

    def _check(self, method: Method) -> None:
        """UserError unless the method fits into the run."""
        method.phases.check(self.epochs)
        for epoch in range(self.epochs):
            method.samples_in(epoch, self.epochs, self.n)  # refuses a share that leaves none
        if method.needs_groups and self._groups is None:
            raise UserError(
                "the method needs the class of each sample: give start(groups=LABELS), or leave out class_floor and "
                "below_median"
            )

    def scores(self) -> Scores:
        """float32[n]: the score of each sample by what is known now; NaN: no value yet."""
        return self.method.statistic.score(self.table, None)

    def phase(self, epoch: int) -> Phase:
        """What the epoch trains on: "full" data, a "random" selection or the "method"'s."""
        return self.method.phases.phase(epoch, self.epochs)

    def is_due(self, epoch: int) -> bool:
        """Whether `select` makes a selection before this epoch."""
        epoch = whole_number("epoch", epoch)
        if not 0 <= epoch < self.epochs:
            raise UserError(f"epoch {epoch} is outside the run: it has epochs={self.epochs}, give as many as you train")
        made = self.selection is not None and self.selection.epoch == epoch
        return not made and self.method.phases.selects(epoch, self.epochs)

    def wanted(self, epoch: int) -> Ids | None:
        """The samples whose value a pass should bring before `select(epoch)`: int64[m], ascending; None: no pass."""
        if not (self.method.makes_passes and self.is_due(epoch) and self.phase(epoch) == "method"):
            return None
        ids = self.method.source.due(self._fresh, None if self.selection is None else self.selection.ids)
        if ids is not None and ids.size:
            k = self.method.kept(self.n, epoch, self.epochs)
            ids = self.method.source.budget.choose(self._viewed(self._samples_at(epoch)), self.method.rule, k, ids)
        return ids if ids is not None and ids.size else None

    def record(
        self,
        ids: ArrayLike | None,
        losses: ArrayLike,
        *,
        epoch: int,
        correct: ArrayLike | None = None,
        confidence: ArrayLike | None = None,
        batch_means: ArrayLike | None = None,
    ) -> int:
        """Take in the newest loss of each of some samples; returns how many of them were not finite.

        Args:
            ids: int64[m], unique, in any order; None for all n samples.
            losses: float32[m] or float64[m].
            epoch: in which, or before which, they were computed.
            correct: bool[m], whether the model was right; where the method needs it.
            confidence: float32[m], the model's highest probability; where the method needs it.
            batch_means: float32[m], the mean loss of the batch that each sample was in; None: these are one batch.

        Raises:
            UserError: see `ScoreTable.update`; nothing has changed then.
        """
        return self._record(ids, losses, epoch, correct=correct, confidence=confidence, batch_means=batch_means)

    def _record(
        self,
        ids: ArrayLike | None,
        losses: ArrayLike,
        epoch: int,
        most_nonfinite: float = MAX_NONFINITE_SHARE,
        **facts: ArrayLike | None,
    ) -> int:
        if not 0 <= whole_number("epoch", epoch) < self.epochs:
            raise UserError(f"epoch {epoch} is outside the run of {self.epochs} epochs")
        beside = same_run.checked_facts(self.method, np.size(losses), **facts)
        nonfinite = self.table.update(losses, ids, most_nonfinite)
        if self.table.columns:
            self._take(np.arange(self.n) if ids is None else np.asarray(ids), np.asarray(losses, np.float32), beside)
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
        if self.selection is not None and epoch < self.selection.epoch:
            raise UserError(f"epoch {epoch} comes before the last selection, for epoch {self.selection.epoch}: go on")
        phase, k = self.phase(epoch), self.method.kept(self.n, epoch, self.epochs)
        self._count_trained(epoch)
        samples = self._samples_at(epoch)
        rng = np.random.default_rng([self.seed, epoch, _SELECTION_STREAM])
        weights, drawn, lr_factor = None, None, 1.0
        if phase == "full":
            ids = np.arange(self.n)
        else:
            by_method = phase == "method"
            rule: Rule
            rule, seen = (self.method.rule, self._viewed(samples)) if by_method else (Uniform(), samples)
            draw = rule.draw(seen, k, rng, None)
            ids = draw.ids

            def chances() -> Probabilities:
                return draw.probabilities(np.arange(self.n))[ids]

            drawn = draw.probability and chances
            if by_method:
                weight = self.method.weight
                known = chances() if weight.needs_probability else None
                weights, lr_factor = weight.of(samples, ids, known), weight.lr_factor(samples, ids, k)
        self.selection = Selection(epoch, phase, ids, weights, lr_factor, drawn)
        if not self._fresh.any():
            self.nonfinite = 0  # those were of an earlier selection
        self._fresh[:] = False
        return self.selection

    def choose(self, ids: ArrayLike, losses: ArrayLike, *, epoch: int, batch: int) -> Ids:
        """Choose the samples of a batch to train on, for a method that chooses in batches.

        Args:
            ids: int64[B], unique, of the batch.
            losses: float32[B], of a forward pass that was just made.
            epoch: from 0; with the seed and the batch it decides what is drawn.
            batch: from 0, in the epoch.

        Returns:
            int64[m], ascending: places in `ids`; all of them in a batch that the method leaves whole.

        Raises:
            UserError: a method that does not choose in batches; see `record`.
        """
        if not self.method.chooses_in_batches:
            raise UserError(f"method {self.method.name} selects before an epoch, not in a batch: call select")
        if whole_number("batch", batch) < 0:
            raise UserError(f"batch {batch} must be at least 0: count the batches of the epoch")
        ids = np.asarray(ids)
        self._record(ids, losses, epoch, MAX_NONFINITE_OF_BATCH)
        if not self.method.phases.chooses(epoch, batch, self.epochs):
            return np.arange(ids.size)
        order = np.argsort(ids)
        rng = np.random.default_rng([self.seed, epoch, _SELECTION_STREAM, batch])
        samples = self._viewed(self._samples_at(epoch, batch), ids[order])
        drawn = self.method.rule.draw(samples, ids.size, rng, ids[order])
        return np.sort(order[np.searchsorted(ids[order], drawn.ids)])

    def _samples_at(self, epoch: int, batch: int | None = None) -> Samples:
        moment = Moment(epoch, self.epochs, self.method.phases.turn(epoch, self.epochs), self.seed, batch)
        previous = None if self.selection is None else self.selection.ids
        return Samples(self.method.statistic, self.table, self._groups, moment, previous)

    def _viewed(self, samples: Samples, among: Ids | None = None) -> Samples:
        """The samples as the guards let the rule see them; of a batch `among`, int64[B], ascending."""
        for guard in self.method.guards:
            if guard.label:
                samples = guard.view(samples, among)
        return samples

    def _count_trained(self, epoch: int) -> None:
        """Add the epochs that the last selection was trained on to the columns that tell of them, if there are any."""
        if self.selection is None:
            return
        ids, columns = self.selection.ids, self.table.columns
        if TRAINED_EPOCHS.name in columns:
            columns[TRAINED_EPOCHS.name][ids] += epoch - self.selection.epoch
        if LAST_TRAINED.name in columns:
            columns[LAST_TRAINED.name][ids] = epoch - 1

    def _take(self, ids: Ids, losses: NDArray[np.float32], facts: dict[str, NDArray[Any]]) -> None:
        """Renew the columns of the parts by the losses that are finite."""
        statistic, finite = self.method.statistic, np.isfinite(losses)
        statistic.arrive(self.table, ids)
        means = facts.get("batch_means")
        if means is None:
            means = np.full(losses.size, losses[finite].mean(dtype=np.float64) if finite.any() else np.nan)
        if statistic.needs_batches:
            finite &= np.isfinite(means)
        ids, losses, means = ids[finite], losses[finite], means[finite].astype(np.float32)
        statistic.take(self.table, ids, losses, means)
        for column in CERTAINTY if self.method.needs_certainty else ():
            self.table.columns[column.name][ids] = facts[column.name][finite]

    @contextmanager
    def whole_or_not_at_all(self) -> Iterator[None]:
        """Take back what was recorded, selected and loaded inside if an exception leaves it."""
        table, fresh = self.table.state_dict(), self._fresh.copy()
        selection, nonfinite, methods = self.selection, self.nonfinite, (self.method, self._begun_with)
        try:
            yield
        except BaseException:
            self.table.load_state_dict(table)
            self._fresh[:] = fresh
            self.selection, self.nonfinite = selection, nonfinite
            self.method, self._begun_with = methods
            raise

    def _identity(self) -> dict[str, Any]:
        """What a run that goes on must share with the run of a state."""
        own = {"method": self.method.name, "n": self.n, "epochs": self.epochs, "seed": self.seed}
        # A resumed run is given its fixed scores anew: the state says which they were.
        if self.table.fixed is not None:
            own["static scores"] = hashlib.blake2b(self.table.fixed.tobytes(), digest_size=8).hexdigest()
        return own

    def state_dict(self) -> dict[str, Any]:
        """Arrays and plain values: all that a run which goes on from here needs."""
        return {
            **self._identity(),
            "parameters": {"at first": same_run.parameters(self._begun_with), "now": same_run.parameters(self.method)},
            "nonfinite": self.nonfinite,
            "table": self.table.state_dict(),
            "fresh": self._fresh.copy(),
            "selection": None if self.selection is None else self.selection.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, with what `change` had set by then. `UserError`, and nothing has changed, for one of
        another run.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise same_run.of_another_run(name, state.get(name), value)
        begun_with, method = self._begun_with, self.method
        if "parameters" in state:  # else it was written before a state had them: they are taken for those of this run
            first, now = (dict(state["parameters"][when]) for when in ("at first", "now"))
            for name, value in same_run.parameters(self._begun_with).items():
                if value not in (first.get(name), now.get(name)):
                    raise same_run.of_another_run(name, first.get(name), value)
            begun_with, method = (same_run.with_parameters(method, values) for values in (first, now))
            self._check(method)
        self.table.load_state_dict(state["table"])
        self.method, self._begun_with = method, begun_with
        self.nonfinite = state["nonfinite"]
        self._fresh[:] = state["fresh"]
        stored = state["selection"]
        self.selection = None if stored is None else Selection.from_state(stored)
