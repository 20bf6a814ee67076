"""prune.save: parameters of a method with which a run saves a share of the seconds that one on all data takes.

All is computed from the method, the number of epochs and a `Pace`; that is measured in `pace`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, inf, prod
from typing import Any

from ffcv_prune.errors import UserError
from ffcv_prune.methods import PRESETS, Method
from ffcv_prune.training.pace import Pace, of_log, spent
from ffcv_prune.words import percent

GRID = 100_000  # the parameter that is solved for is a multiple of 1 / GRID
NEAR = 0.001  # of a full run: nearer to what is asked than this, a plan is as good as any
WORTH = 0.005  # of a full run: what a prediction must be off to be corrected
FIRST_SHARE = 1 / 3  # of the epochs, after which the pace of the run itself is known
# Of the samples, in every epoch: before a plan trains on fewer, it makes passes rarer. A correction keeps the mean.
ENOUGH = 0.1
NEARLY = 0.9  # of the most samples that can be had so: rarer passes are not worth the rest


@dataclass(frozen=True)
class Scale:
    """What a run's seconds follow from, beside its method and its pace.

    Attributes:
        n: samples of the training set.
        setup: seconds before the first epoch.
        full_setup: those of them that a run on all data would take, too, with the compilation of its step.
    """

    n: int
    batch_size: int
    epochs: int
    eval_every: int
    setup: float
    full_setup: float

    def trained(self, method: Method, epoch: int) -> int:
        """Samples that the epoch trains on: a last batch that is not whole is left out."""
        return method.samples_in(epoch, self.epochs, self.n) // self.batch_size * self.batch_size

    def least_trained(self, method: Method, first: int = 0) -> int:
        """Samples of the epoch that trains on the fewest, from `first` on."""
        return min(self.trained(method, epoch) for epoch in range(first, self.epochs))

    def mean_trained(self, method: Method, first: int) -> float:
        """Samples of an epoch in the mean, of those from `first` on that do not train on all data."""
        pruned = [epoch for epoch in range(first, self.epochs) if method.phases.phase(epoch, self.epochs) != "full"]
        return sum(self.trained(method, epoch) for epoch in pruned) / len(pruned) if pruned else self.n

    def scored(self, method: Method, epoch: int) -> int:
        """Samples of the pass before the epoch; 0 without any."""
        phases, source = method.phases, method.source
        due = phases.selects(epoch, self.epochs) and phases.phase(epoch, self.epochs) == "method"
        if not method.makes_passes or not due:
            return 0
        left = self.n - (self.trained(method, epoch - 1) if source.records and epoch else 0)
        wanted = ceil(source.budget.share * self.n - 1e-6)
        if epoch == phases.warmup_epochs(self.epochs):  # samples without a loss are scored beyond a budget
            seen = [self.trained(method, e) for e in range(epoch) if source.records and phases.selects(e, self.epochs)]
            wanted = max(wanted, round(self.n * prod(1 - trained / self.n for trained in seen)))
        return min(left, wanted)


def seconds_of(method: Method, pace: Pace, scale: Scale, first: int = 0) -> dict[str, float]:
    """Predicted seconds of the epochs from `first` on, by phase: "train", "score", "select", "eval" and "other"."""
    epochs = range(first, scale.epochs)
    selections = sum(method.prunes and method.phases.selects(epoch, scale.epochs) for epoch in epochs)
    tests = sum((epoch + 1) % scale.eval_every == 0 or epoch + 1 == scale.epochs for epoch in epochs)
    forward = pace.proxy if method.source.by_proxy else pace.forward
    seconds = {
        "train": sum(scale.trained(method, epoch) for epoch in epochs) * pace.step,
        "score": sum(scale.scored(method, epoch) for epoch in epochs) * forward,
        "select": selections * pace.selection,
        "eval": tests * pace.test,
        "other": len(epochs) * pace.epoch,
    }
    seconds["other"] += pace.checkpoints * sum(seconds.values())
    return seconds


@dataclass
class Plan:
    """What a run does to save a share of a full run's seconds.

    Attributes:
        asked: that share, 0 to 1.
        preset: the method as it was configured, but for its size.
        pace: as it was measured before the run.
        values: the parameters that differ from the preset's.
        planned: the share that is saved if the pace stays as it was measured.
        corrected: the epoch before which the rest was solved anew; None: not yet.
    """

    asked: float
    preset: Method
    scale: Scale
    pace: Pace
    values: dict[str, Any] = field(default_factory=dict)
    planned: float = 0.0
    corrected: int | None = None

    @classmethod
    def make(cls, asked: float, preset: Method, pace: Pace, scale: Scale) -> Plan:
        """Solve for the size of the selections; where that leaves too few samples, for the period and the phases, too.

        Raises:
            UserError: more than can be saved, or less; it names the most, or the least.
        """
        plan = cls(asked, preset, scale, pace)
        target = (1 - asked) * plan.full_seconds(pace) - scale.setup
        solved: list[Method] = []
        most, longer = -inf, False
        full = sum(seconds_of(PRESETS["full"], pace, scale).values())
        for milder in _milder(preset, scale.epochs):
            smallest, largest = limits(milder, scale)
            highest, lowest = (plan.saved(plan.seconds(choice)) for choice in (smallest, largest))
            if asked < lowest - NEAR:
                if solved:
                    break
                less = f"{most:.3f} at most, or " if most > -inf else ""
                raise UserError(
                    f"prune.save={asked:g}: method {preset.name} saves {less}{lowest:.3f} at least of a full run here; "
                    f"ask for {'less or ' if less else ''}more"
                )
            if asked <= highest + NEAR:
                solved.append(solve(smallest, pace, scale, target))
                if scale.least_trained(solved[-1]) >= ENOUGH * scale.n:
                    break
            most = max(most, highest)
            longer = longer or sum(seconds_of(smallest, pace, scale).values()) < full
        if not solved:
            remedy = "train longer" if longer else "lower train.batch_size"  # with a batch an epoch no length helps
            saves_any = round(most, 3) > 0
            most_of = f"can save {most:.3f} at most of" if saves_any else "can save nothing of"
            remedy = f"ask for less, or {remedy}" if saves_any else f"{remedy}, or leave prune.save out"
            raise UserError(
                f"prune.save={asked:g}: method {preset.name} {most_of} a full run of {scale.epochs} epochs here; "
                f"{remedy}"
            )
        solved = [choice for choice in solved if _has_time(choice, scale.epochs)] or solved
        enough = min(ENOUGH * scale.n, NEARLY * max(map(scale.least_trained, solved)))
        plan._take(next(choice for choice in solved if scale.least_trained(choice) >= enough))
        plan.planned = plan.saved(plan.seconds())
        return plan

    @property
    def method(self) -> Method:
        """The method to follow."""
        return self.preset.replace(**self.values)

    def _take(self, method: Method) -> None:
        before, size = self.preset.values, self.preset.sized_by
        self.values = {name: value for name, value in method.values.items() if name == size or value != before[name]}

    def seconds(self, method: Method | None = None) -> dict[str, float]:
        """Predicted seconds of the whole run by phase, by the pace measured before it."""
        return {"set-up": self.scale.setup, **seconds_of(method or self.method, self.pace, self.scale)}

    def full_seconds(self, pace: Pace) -> float:
        """Seconds of a run on all data at this pace."""
        once = self.scale.full_setup + pace.first_checkpoint
        return once + sum(seconds_of(PRESETS["full"], pace, self.scale).values())

    def saved(self, seconds: Mapping[str, float]) -> float:
        """The share that a run of these seconds, by phase, saves."""
        return 1 - sum(seconds.values()) / self.full_seconds(self.pace)

    def forecast(self, rows: Sequence[Mapping[str, Any]], since: float = 0.0) -> float:
        """The share that the whole run saves if it goes on as planned.

        Args:
            rows: of its log, at least one.
            since: seconds that it has taken since the last of them, for its last checkpoint. So does a full run.
        """
        pace = of_log(rows, self.pace)
        rest = seconds_of(self.method, pace, self.scale, len(rows))
        own = self.scale.setup + spent(rows) + sum(rest.values())
        return 1 - (own + since) / (self.full_seconds(pace) + since)

    def is_due(self, epoch: int) -> bool:
        """Whether the forecast is to be looked at before this epoch: once, at a selection after a third of the run."""
        epochs = self.scale.epochs
        return self.corrected is None and epoch >= FIRST_SHARE * epochs and _corrects(self.method, epoch, epochs)

    def correct(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Solve for the size of the selections to come if the forecast is off; returns what was done, in words.

        The epochs to come keep `ENOUGH` of the samples in the mean, or as many as they had: the run may then save less
        than was asked.
        """
        self.corrected = epoch = len(rows)
        before = self.forecast(rows)
        if abs(before - self.asked) < WORTH:
            return f"the plan holds: it saves {percent(before)}"
        pace = of_log(rows, self.pace)
        left = (1 - self.asked) * self.full_seconds(pace) - self.scale.setup - spent(rows)
        enough = min(ENOUGH * self.scale.n, self.scale.mean_trained(self.method, epoch))
        smallest, _ = limits(self.method, self.scale, epoch, enough)
        self._take(solve(smallest, pace, self.scale, left, epoch))
        after = self.forecast(rows)
        short = after < self.asked - WORTH and self.method == smallest
        return (
            f"plan corrected: it would have saved {percent(before)}; {self._changes()}; it saves {percent(after)}"
            f"{'; for more, epochs would have too few samples' if short else ''}"
        )

    def in_words(self) -> str:
        """The plan on one line."""
        seconds, full = self.seconds(), self.full_seconds(self.pace)
        parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value >= 0.05)
        late = any(map(self.is_due, range(self.scale.epochs)))
        return (
            f"plan to save {percent(self.asked)} of a full run: {self._changes()}; {parts}: "
            f"{sum(seconds.values()):.1f} of {full:.1f} s, {percent(self.planned)} saved"
            f"{'' if late else '; no selection comes late enough to correct it'}"
        )

    def _changes(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values.items())

    def facts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the log tells of the plan after the last of these rows."""
        shares = {"asked": self.asked, "planned": self.planned, "predicted": self.forecast(rows)}
        return {name: round(share, 6) for name, share in shares.items()} | self.values

    def state_dict(self) -> dict[str, Any]:
        """Plain values: all that a resumed run needs to go on with the plan."""
        state = {name: getattr(self, name) for name in ("asked", "values", "planned", "corrected")}
        return state | {"scale": asdict(self.scale), "pace": asdict(self.pace)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any], preset: Method) -> Plan:
        """The plan that `state_dict` tells of."""
        own = dict(state)
        return cls(preset=preset, scale=Scale(**own.pop("scale")), pace=Pace(**own.pop("pace")), **own)


def limits(method: Method, scale: Scale, first: int = 0, fewest: float = 0) -> tuple[Method, Method]:
    """The method at its smallest size that leaves a batch in every epoch from `first` on, and at its largest.

    In the mean, the smallest leaves `fewest` samples.
    """

    def fits(value: float) -> bool:
        try:
            method_there = sized(method, value)
            return scale.least_trained(method_there, first) > 0 and scale.mean_trained(method_there, first) >= fewest
        except UserError:  # leaves no sample
            return False

    return sized(method, _lowest(fits)), sized(method, 1.0)


def solve(smallest: Method, pace: Pace, scale: Scale, target: float, first: int = 0) -> Method:
    """The method at a size with which its epochs from `first` on take as near to `target` seconds as they can.

    `smallest`: the method at the smallest size that is allowed, as `limits` has it.
    """

    def seconds(choice: Method) -> float:
        return sum(seconds_of(choice, pace, scale, first).values())

    assert smallest.sized_by is not None
    least = smallest.values[smallest.sized_by]
    above = _lowest(lambda value: value >= least and seconds(sized(smallest, value)) >= target)
    below = (round(above * GRID) - 1) / GRID  # of the grid, too: a float beside it may leave other batches
    choices = [sized(smallest, value) for value in (max(least, below), above)]
    return min(choices, key=lambda choice: abs(seconds(choice) - target))


def sized(method: Method, value: float) -> Method:
    """The method with this value of the parameter that sets its size."""
    assert method.sized_by is not None  # `Config` has seen to it
    changed: dict[str, Any] = {method.sized_by: value}
    return method.replace(**changed)


def _lowest(holds: Callable[[float], bool]) -> float:
    """The lowest value of the grid in (0, 1] from which on it holds; 1 if there is none."""
    below, above = 0, GRID
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if holds(middle / GRID) else (middle, above)
    return above / GRID


def _corrects(method: Method, epoch: int, epochs: int) -> bool:
    """Whether the size of the selection before this epoch can be set anew."""
    return method.phases.selects(epoch, epochs) and method.phases.phase(epoch, epochs) != "full"


def _has_time(method: Method, epochs: int) -> bool:
    """Whether a correction comes in the middle third of the run: its pace is known, and there is time to change it."""
    middle = range(ceil(FIRST_SHARE * epochs), int(2 * FIRST_SHARE * epochs) + 1)
    return any(_corrects(method, epoch, epochs) for epoch in middle)


def _milder(preset: Method, epochs: int) -> Iterator[Method]:
    """The method as it is, and then with ever more that saves seconds.

    Its passes become rarer, as long as there is time for a correction. Then phases of all data become random, and
    passes become rarer from the beginning. At last there is a single pass.
    """
    full = {name: "random" for name in ("warmup_mode", "final_mode") if preset.values.get(name) == "full"}
    for method in [preset, preset.replace(**full)] if full else [preset]:
        yield method
        yield from (rarer for rarer in _rarer(method, epochs) if _has_time(rarer, epochs))
    yield from (rarer for rarer in _rarer(method, epochs) if not _has_time(rarer, epochs))


def _rarer(method: Method, epochs: int) -> Iterator[Method]:
    """The method with ever longer periods, where it makes passes."""
    while method.makes_passes and method.values.get("period", epochs) < epochs:
        method = method.replace(period=min(epochs, 2 * method.values["period"]))
        yield method
