"""The runs of the referee, as grid.yaml multiplies out: conditions, entries, choices, seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.paper.grid import key_of
from ffcv_prune import strict_args
from ffcv_prune.config import Config, resolve
from ffcv_prune.errors import UserError, nearest
from ffcv_prune.strict_args import Setting

GRID = Path(__file__).with_name("grid.yaml")
KEYS = ("config", "epochs", "seeds", "hopeless", "budgets", "choices", "conditions", "methods")
TUNING_SEED = 0

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """Full data at a budget, a share of the epochs, or a method; `settings` are keys of its config."""

    name: str
    budget: float | None
    settings: Settings


@dataclass(frozen=True)
class Case:
    """A run: what a row is found again by."""

    condition: str
    entry: str
    choice: str
    seed: int


@dataclass(frozen=True)
class Grid:
    """What grid.yaml says.

    Attributes:
        base: settings of all runs, those of the base config.
        epochs: of a run on all data at its full length.
        seeds: that pages count, from 1 on.
        hopeless: points below the curve from which a method gets no more seeds.
        choices: by its name, the settings of each way to tune.
    """

    base: dict[str, Setting]
    epochs: int
    seeds: int
    hopeless: float
    entries: tuple[Entry, ...]
    choices: dict[str, Settings]
    conditions: dict[str, Settings]
    keys: dict[Case, str] = field(default_factory=dict, compare=False)  # those that were asked for

    def key(self, case: Case) -> str | None:
        """Of all that decides a run: a row that was made by other settings does not count. None: not of this grid."""
        if case not in self.keys:
            known = case.condition in self.conditions and case.choice in self.choices
            if not known or case.entry not in {entry.name for entry in self.entries}:
                return None
            self.keys[case] = key_of(self.config(case, "runs"))
        return self.keys[case]

    @property
    def budgets(self) -> list[Entry]:
        """Full data, the shortest first."""
        return [entry for entry in self.entries if entry.budget is not None]

    @property
    def methods(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.budget is None]

    def config(self, case: Case, out: str) -> Config:
        """The configuration of a run; UserError names what is wrong in the grid."""
        entry = next(entry for entry in self.entries if entry.name == case.entry)
        condition = dict(self.conditions[case.condition])
        epochs = int(condition.pop("train.epochs", self.epochs))
        changes = condition | dict(self.choices[case.choice]) | dict(entry.settings)
        if entry.budget is not None:
            epochs = max(1, round(entry.budget * epochs))
        warmup = float(str(self.base["train.warmup_epochs"].text)) if "train.warmup_epochs" in self.base else 0.0
        name = f"{case.condition} {case.entry} {case.choice} seed {case.seed}".replace(" ", "_").replace("/", "_")
        changes |= {
            "train.epochs": epochs,
            "train.warmup_epochs": round(min(warmup, epochs / 4), 6),
            "train.eval_every": epochs,
            "run.seed": case.seed,
            "run.name": name,
            "run.out": out,
        }
        settings = self.base | {name: Setting(_text(value), GRID.name) for name, value in changes.items()}
        return resolve(settings, options=())


def load(path: Path = GRID) -> Grid:
    """Read a grid; UserError for keys that are unknown or missing."""
    content = strict_args.read_yaml(path)
    for name in content.keys() - set(KEYS):
        raise UserError(f'{path.name}: unknown key "{name}"{nearest(name, KEYS)}')
    for name in set(KEYS) - content.keys():
        raise UserError(f"{path.name}: the key {name} is missing; see the grid that comes with the benchmark")
    names = list(content["choices"])
    choices = {
        " ".join(f"{name.rpartition('.')[2]}={value}" for name, value in zip(names, values, strict=True)): dict(
            zip(names, values, strict=True)
        )
        for values in product(*content["choices"].values())
    }
    full = tuple(Entry(f"full {float(b):g}", float(b), {}) for b in sorted(content["budgets"], key=float))
    methods = tuple(Entry(name, None, settings) for name, settings in content["methods"].items())
    return Grid(
        base=strict_args.read_settings(path.parent / content["config"]),
        epochs=int(content["epochs"]),
        seeds=int(content["seeds"]),
        hopeless=float(content["hopeless"]),
        entries=(*full, *methods),
        choices=choices,
        conditions=content["conditions"],
    )


def _text(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, list) else str(value)
