"""A method of pruning is a value: a source, a statistic, a selector, a weight, phases and guards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ffcv_prune.errors import UserError, nearest
from ffcv_prune.methods.guards import ClassFloor, Guard, Guarded, LossCap, MaxAge, Null, RandomShare
from ffcv_prune.methods.part import Part
from ffcv_prune.methods.phases import Periodic, Phases
from ffcv_prune.methods.rule import Rule, Samples
from ffcv_prune.methods.selectors import Selector
from ffcv_prune.methods.sources import SOURCES, Pass, Source
from ffcv_prune.methods.state import State
from ffcv_prune.methods.statistics import Given, Statistic
from ffcv_prune.methods.table import CERTAINTY, ScoreTable
from ffcv_prune.methods.weights import NoWeight, Weight

# From the innermost to the outermost: cap and random share work within each class. Otherwise a cap would take whole
# classes, for the losses of a young model differ mostly by class. Only the method's own scores are shuffled.
GUARDS = (Null(), RandomShare(), MaxAge(), LossCap(), ClassFloor())


@dataclass(frozen=True, kw_only=True)
class Method:
    """The six parts of a method, and what names it in logs and reports.

    Raises `UserError` for parts that contradict each other.
    """

    name: str
    statistic: Statistic
    selector: Selector
    source: Source = dataclasses.field(default_factory=Pass)
    weight: Weight = dataclasses.field(default_factory=NoWeight)
    phases: Phases = dataclasses.field(default_factory=Periodic)
    guards: tuple[Guard, ...] = GUARDS

    def __post_init__(self) -> None:
        label = f"method {self.name}"
        active = [guard for guard in self.guards if guard.label]
        sized = [guard for guard in active if not guard.fits_any_size]
        if sized and not self.selector.has_fixed_size:
            raise UserError(
                f"{label} decides itself how many samples it takes: it cannot be combined with {sized[0].label}"
            )
        is_random = self.selector.is_random or any(guard.is_random for guard in active)
        if self.weight.needs_probability and not is_random:
            raise UserError(
                f"{label} weighs by the probability of a draw, but its selector draws nothing: set random_share "
                "or take another weight"
            )
        ranks_and_draws = self.selector.ranks and is_random
        floor = next((guard.class_floor for guard in active if isinstance(guard, ClassFloor)), 1.0)
        if self.weight.needs_probability and not self.selector.knows_probability:
            raise UserError(f"{label} weighs by the probability of a draw, which its selector does not know")
        if self.weight.needs_probability and ranks_and_draws and floor < 1:
            raise UserError(
                f"{label} weighs by the probability of a draw, which is not known under a class_floor of {floor:g} "
                "around a ranking: set class_floor=1 or 0"
            )
        self._check_source()

    def _check_source(self) -> None:
        label = f"method {self.name}"
        if self.source.budget.share < 1:
            if not self.needs_values:
                raise UserError(f"{label} needs no scoring pass that could be budgeted: set score_budget=1")
            table = ScoreTable(2)
            table.update(np.zeros(2, np.float32))
            self.rule.thresholds(Samples(self.statistic, table, np.zeros(2, np.int64)), 1, None)  # refuses, without any
        trained_only = self.source.records and not self.source.passes
        ranks_unseen = self.selector.has_fixed_size and not self.selector.starts_without_values
        if self.needs_values and trained_only and ranks_unseen and not self.phases.warmup:
            raise UserError(
                f"{label} selects by the losses of training, and there are none before its first selection: "
                "set warmup=1 or more"
            )

    @property
    def label(self) -> str:
        """The name, with the guards that are on: ucb+random(0.3)."""
        return "+".join([self.name, *(guard.label for guard in self.guards if guard.label)])

    @property
    def rule(self) -> Rule:
        """The selector with its guards around it."""
        rule: Rule = self.selector
        for guard in self.guards:
            if guard.label:
                rule = Guarded(guard, rule)
        return rule

    @property
    def needs_values(self) -> bool:
        """Whether a value of each sample must be there before a selection."""
        all_random = any(guard.draws_all for guard in self.guards)
        ranks = self.selector.ranks and not self.statistic.is_fixed and not all_random
        return ranks or any(guard.needs_values for guard in self.guards if guard.label)

    @property
    def prunes(self) -> bool:
        """Whether it ever selects."""
        return self.phases.prunes

    @property
    def makes_passes(self) -> bool:
        """Whether it needs scoring passes."""
        return self.needs_values and self.source.passes

    @property
    def records_losses(self) -> bool:
        """Whether it takes the losses of training."""
        return self.needs_values and self.source.records

    @property
    def needs_groups(self) -> bool:
        """Whether `start` needs the class of each sample."""
        return any(part.needs_groups for part in self.active_parts)

    @property
    def needs_certainty(self) -> bool:
        """Whether each loss must come with whether the model was right, and how confident it was."""
        return self.needs_values and any(part.needs_certainty for part in self.active_parts)

    @property
    def chooses_in_batches(self) -> bool:
        """Whether it chooses among the samples of each batch, by a forward pass of it."""
        return self.source.in_batches

    @property
    def facts(self) -> tuple[str, ...]:
        """What it takes beside the loss of each sample, by the names of `State.record`."""
        batches = ("batch_means",) if self.statistic.needs_batches else ()
        return (*batches, *(column.name for column in CERTAINTY if self.needs_certainty))

    @property
    def takes_source(self) -> bool:
        """Whether the source of this preset is for the user to choose, and not part of the rule."""
        return self.source.passes and type(self.source) in SOURCES.values()

    def kept(self, n: int, epoch: int, epochs: int) -> int:
        """The size of a selection out of n samples for `epoch`; `UserError` if none is left.

        Where the selector decides the size itself it is what it starts from, and what a random phase takes.
        """
        own = self.selector.size(n)
        return self.phases.kept(n, epoch, epochs) if own is None else own

    def samples_in(self, epoch: int, epochs: int, n: int) -> int:
        """How many of n samples the epoch trains on; at most, where the selector sizes its selections itself."""
        phase = self.phases.phase(epoch, epochs)
        if phase == "full":
            return n
        kept = self.kept(n, epoch, epochs)
        return kept if phase == "random" else self.selector.most(kept, n)

    @property
    def sized_by(self) -> str | None:
        """The parameter in (0, 1] that sets how many samples epochs train on, which rise with it.

        None where that follows from the losses, too, or does not rise evenly.
        """
        return self.selector.sized_by or (self.phases.sized_by if self.selector.has_fixed_size else None)

    @property
    def constant_share(self) -> float | None:
        """The share that every pruned epoch keeps; None where it follows from the losses or the epoch."""
        return self.phases.share if self.selector.has_fixed_size and "keep" in self.values else None

    def samples_seen(self, epochs: int, n: int) -> int:
        """The samples selected over all epochs for a data set of n samples (paper, Eq. 5: k·N × T)."""
        return sum(self.samples_in(epoch, epochs, n) for epoch in range(epochs))

    @property
    def parts(self) -> Iterator[Part]:
        """All that it is made of, the source first."""
        yield from (self.source, *self.other_parts)

    @property
    def active_parts(self) -> tuple[Part, ...]:
        """All parts but the guards that are off."""
        guards = (guard for guard in self.guards if guard.label)
        return (self.source, self.statistic, self.selector, self.weight, self.phases, *guards)

    @property
    def other_parts(self) -> tuple[Part, ...]:
        """All parts but the source."""
        return (self.statistic, self.selector, self.weight, self.phases, *self.guards)

    @property
    def parameters(self) -> dict[str, dataclasses.Field[Any]]:
        """The declaration of each parameter, by name."""
        return parameters_of(*self.parts)

    @property
    def values(self) -> dict[str, Any]:
        """The value of each parameter, by name."""
        return {name: getattr(part, name) for part in self.parts for name in parameters_of(part)}

    def replace(self, source: str | None = None, **parameters: Any) -> Method:
        """The method with these parameters in its parts, and with another source if one is named: "pass", "training"
        or "both". `UserError` names the nearest of an unknown name.
        """
        parts = {name: getattr(self, name) for name in ("source", "statistic", "selector", "weight", "phases")}
        if source is not None:
            if source not in SOURCES:
                raise UserError(f'unknown score_source "{source}"{nearest(source, SOURCES)}')
            parts["source"] = SOURCES[source]()
        known = parameters_of(*parts.values(), *self.guards)
        for name in parameters:
            if name not in known:
                hint = nearest(name, known) if known else ": it takes none"
                raise UserError(f'method "{self.name}" has no parameter "{name}"{hint}')

        def changed(part: Any) -> Any:
            own = {field.name: parameters[field.name] for field in dataclasses.fields(part) if field.name in parameters}
            return dataclasses.replace(part, **own) if own else part

        guards = tuple(map(changed, self.guards))
        return dataclasses.replace(self, **{name: changed(part) for name, part in parts.items()}, guards=guards)

    def start(
        self,
        n: int,
        epochs: int = 200,
        groups: ArrayLike | None = None,
        seed: int = 0,
        scores: Given = None,
    ) -> State:
        """Begin a run of n samples.

        Args:
            epochs: of the whole run.
            groups: int64[n], the class of each sample, ≥ 0; needed by a class floor only.
            seed: of the random selections; those of an epoch are drawn from (seed, epoch) alone.
            scores: float32[n], or [models, n], made before training, or the name of their .npy; for the static methods
                only.
        """
        return State(self, n, epochs, groups, seed, scores)


def parameters_of(*parts: Part) -> dict[str, dataclasses.Field[Any]]:
    """The declaration of each parameter of the parts, by name."""
    return {field.name: field for part in parts for field in dataclasses.fields(part) if field.metadata}
