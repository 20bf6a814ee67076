"""The runs of the referee, as grid.yaml multiplies out: conditions, entries, choices, seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.paper.grid import key_of
from ffcv_prune import yaml_settings
from ffcv_prune.config import Config, resolve
from ffcv_prune.errors import UserError, nearest
from ffcv_prune.yaml_settings import Setting

GRID = Path(__file__).with_name("grid.yaml")
KEYS = (
    "config",
    "epochs",
    "seeds",
    "hopeless",
    "carry",
    "budgets",
    "tuned_budgets",
    "choices",
    "conditions",
    "methods",
    "claim",
)
OPTIONAL = ("confirm",)
TUNING_SEED = 0
NULL = " null"  # ends the name of a null twin

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """Full data at a budget, a share of the epochs, or a method; `settings` are keys of its config."""

    name: str
    budget: float | None
    settings: Settings

    @property
    def twin(self) -> bool:
        """Whether this is a null twin, whose scores say nothing."""
        return self.name.endswith(NULL)


@dataclass(frozen=True)
class Case:
    """A run: what a row is found again by."""

    condition: str
    entry: str
    choice: str
    seed: int


@dataclass(frozen=True)
class Claim:
    """Methods that get more seeds, and are run in all conditions. Full data and null twins go with them.

    Attributes:
        methods: their names.
        seeds: in the first condition.
        elsewhere: seeds in each other condition.
    """

    methods: Sequence[str]
    seeds: int
    elsewhere: int


@dataclass(frozen=True)
class Confirmation:
    """A method of the claim that is judged once more, by seeds that have decided nothing (`confirm.py`).

    Attributes:
        method: its name.
        budget: of full data, whose accuracy it has to exceed.
        seeds: how many, after those of the claim.
    """

    method: str
    budget: float
    seeds: int


@dataclass(frozen=True)
class Grid:
    """What grid.yaml says.

    Attributes:
        name: of the file.
        base: settings of all runs, those of the base config.
        epochs: of a run on all data at its full length.
        seeds: that pages count, from 1 on.
        hopeless: points below the curve from which a tuned method gets no more runs.
        carry: how many methods the other conditions try beside those of the claim.
        values: by its key, those to choose from; the first is tried first.
    """

    name: str
    base: dict[str, Setting]
    epochs: int
    seeds: int
    hopeless: float
    carry: int
    entries: tuple[Entry, ...]
    tuned_budgets: Sequence[float]
    values: dict[str, Sequence[Any]]
    conditions: dict[str, Settings]
    claim: Claim
    confirm: Confirmation | None = None
    keys: dict[Case, str] = field(default_factory=dict, compare=False)  # those that were asked for

    def key(self, case: Case) -> str | None:
        """Of all that decides a run: a row that was made by other settings does not count. None: not of this grid."""
        if case not in self.keys:
            known = case.condition in self.conditions and case.choice in self.choices
            if not known or case.entry not in self._entries:
                return None
            self.keys[case] = key_of(self.config(case, "runs"))
        return self.keys[case]

    @cached_property
    def choices(self) -> dict[str, Settings]:
        """All values of the keys together, by their name."""
        made = (dict(zip(self.values, together, strict=True)) for together in product(*self.values.values()))
        return {choice_name(settings): settings for settings in made}

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.entries}

    def entry(self, name: str) -> Entry:
        """The one of this name; UserError if there is none."""
        if name not in self._entries:
            raise UserError(f'the grid has no "{name}"{nearest(name, self._entries)}')
        return self._entries[name]

    def varied_by(self, entry: Entry) -> Entry | None:
        """The method of which this is a null twin, or has other parameters: its name begins with that of the method."""
        names = [name for name in self._entries if entry.budget is None and entry.name.startswith(f"{name} ")]
        return self._entries[max(names, key=len)] if names else None

    def tuned(self, entry: Entry) -> bool:
        """Whether runs of this entry decide a choice: a null twin takes that of its method, full data one for all."""
        return entry.budget in self.tuned_budgets if entry.budget is not None else not entry.twin

    @property
    def most_seeds(self) -> int:
        return max(self.seeds, self.claim.seeds, self.claim.elsewhere)

    def claimed(self, entry: Entry) -> bool:
        """Whether the claim is judged by its runs: it is full data, a method of the claim, or its null twin."""
        return entry.budget is not None or entry.name.removesuffix(NULL) in self.claim.methods

    def only(self, names: Sequence[str]) -> Grid:
        """The grid of these methods, of those that they vary, and of their null twins; UserError: no such method."""
        kept = {self.entry(name).name.removesuffix(NULL) for name in names}
        kept |= {varied.name for name in kept if (varied := self.varied_by(self.entry(name))) is not None}
        entries = tuple(own for own in self.entries if own.budget is not None or own.name.removesuffix(NULL) in kept)
        methods = [name for name in self.claim.methods if name in kept]
        claim = replace(self.claim, methods=methods) if methods else Claim([], self.seeds, self.seeds)
        return replace(self, entries=entries, claim=claim, keys={})

    def under(self, names: Sequence[str]) -> Grid:
        """The grid of the first condition and of these; UserError: no such condition."""
        for name in names:
            if name not in self.conditions:
                raise UserError(f'the grid has no condition "{name}"{nearest(name, self.conditions)}')
        kept = {name: own for name, own in self.conditions.items() if name in {self.first_condition, *names}}
        return replace(self, conditions=kept, keys={})

    def seeds_of(self, entry: Entry, condition: str) -> int:
        if not self.claimed(entry):
            return self.seeds
        return max(self.seeds, self.claim.seeds if condition == self.first_condition else self.claim.elsewhere)

    @property
    def first_condition(self) -> str:
        """The one in which all entries are tuned."""
        return next(iter(self.conditions))

    @property
    def budgets(self) -> list[Entry]:
        """Full data, the shortest first."""
        return [entry for entry in self.entries if entry.budget is not None]

    @property
    def methods(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.budget is None]

    def config(self, case: Case, out: str, more: Settings | None = None) -> Config:
        """The configuration of a run, with `more` keys beside the grid's; UserError names what is wrong in it."""
        entry = self.entry(case.entry)
        condition = dict(self.conditions[case.condition])
        epochs = int(condition.pop("train.epochs", self.epochs))
        changes = condition | dict(self.choices[case.choice]) | dict(entry.settings)
        if entry.budget is not None:
            epochs = max(1, round(entry.budget * epochs))
        warmup = float(str(self.base["train.warmup_epochs"].text)) if "train.warmup_epochs" in self.base else 0.0
        name = f"{case.condition} {case.entry} {case.choice} seed {case.seed}".replace(" ", "_").replace("/", "_")
        changes |= {
            "train.epochs": epochs,
            "train.warmup_epochs": round(warmup * epochs / self.epochs, 6),  # the same share of every run
            "train.eval_every": epochs,
            "run.seed": case.seed,
            "run.name": name,
            "run.out": out,
            **(more or {}),
        }
        settings = self.base | {name: Setting(_text(value), self.name) for name, value in changes.items()}
        return resolve(settings, options=())


def load(path: Path = GRID) -> Grid:
    """Read a grid; UserError for keys that are unknown or missing."""
    content = yaml_settings.read_yaml(path)
    for name in content.keys() - {*KEYS, *OPTIONAL}:
        raise UserError(f'{path.name}: unknown key "{name}"{nearest(name, (*KEYS, *OPTIONAL))}')
    for name in set(KEYS) - content.keys():
        raise UserError(f"{path.name}: the key {name} is missing; see the grid that comes with the benchmark")
    try:
        made = _made(path, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path.name}: a value is not as in the grid that comes with the benchmark: {type(error).__name__}: {error}"
        ) from None
    if not set(made.tuned_budgets) <= {entry.budget for entry in made.entries}:
        raise UserError(f"{path.name}: tuned_budgets must be some of the budgets")
    for entry in made.methods:
        if entry.twin and made.varied_by(entry) is None:
            raise UserError(f'{path.name}: "{entry.name}" is the null twin of no method; name it METHOD{NULL}')
    return made


def _made(path: Path, content: Mapping[str, Any]) -> Grid:
    full = tuple(Entry(f"full {float(b):g}", float(b), {}) for b in sorted(content["budgets"], key=float))
    methods = tuple(Entry(name, None, settings) for name, settings in content["methods"].items())
    claim, confirm = content["claim"], content.get("confirm")
    return Grid(
        name=path.name,
        base=yaml_settings.read_settings(path.parent / content["config"]),
        epochs=int(content["epochs"]),
        seeds=int(content["seeds"]),
        hopeless=float(content["hopeless"]),
        carry=int(content["carry"]),
        entries=(*full, *methods),
        tuned_budgets=[float(budget) for budget in content["tuned_budgets"]],
        values=content["choices"],
        conditions=content["conditions"],
        claim=Claim(claim["methods"], int(claim["seeds"]), int(claim.get("elsewhere", content["seeds"]))),
        confirm=confirm and Confirmation(confirm["method"], float(confirm["budget"]), int(confirm["seeds"])),
    )


def choice_name(settings: Settings) -> str:
    """``lr=0.6 label_smoothing=0.2``"""
    return " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in settings.items())


def _text(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, list) else str(value)
