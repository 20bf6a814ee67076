"""An experiment as a list of runs: what its YAML file says, multiplied out.

A file in experiments/ has these parts, all strict (an unknown key names the nearest):

    about:     title, the figures drawn, the distribution shown
    grid:      the base config, methods (of methods.yaml), pruning rates, seeds
    settings:  keys of a training config that differ from the base config
    sweeps:    for a swept key, its values and the methods it is swept for, at each rate
    paper: / small:   any of the above again, as it is at this scale
    parts:     any of the above again, under a name: grids that make up the experiment together

A part goes over the scale, the scale over the rest, and a method's settings over all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

from ffcv_prune import strict_args, yaml_settings
from ffcv_prune.config import Config, resolve
from ffcv_prune.errors import UserError, nearest
from ffcv_prune.settings import key
from ffcv_prune.yaml_settings import Setting

EXPERIMENTS = Path(__file__).resolve().parent / "experiments"
METHODS = EXPERIMENTS / "methods.yaml"
SCALES = ("paper", "small")
SCORES = "runs/paper/scores"  # static scores, shared by all runs that prune by them
SCORE_SECTIONS = ("data", "model", "train", "static")
SECTIONS = ("about", "grid", "settings", "sweeps")
FIGURES = ("accuracy", "zoom", "top5", "time", "time_without_scores", "samples", "sweep", "distribution")


@dataclass(frozen=True, kw_only=True)
class About:
    """what the experiment is and what is drawn of it"""

    title: str = key("", "what it shows, in one line")
    figures: str = key("", f"what is drawn, of: {' '.join(FIGURES)}")
    distribution: str = key("", "method and pruning rate whose selections are drawn, such as: ema 0.7")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """the runs"""

    config: str = key("", "config file that all runs change, relative to this file")
    methods: str = key("", "names in methods.yaml")
    rates: tuple[float, ...] = key((), "pruning rates", within="(0, 1)")
    seeds: int = key(1, "number of seeds, from 0", within="[1, 100]")
    stretch: bool = key(False, "train pruned runs 1 / keep times as many epochs: as many samples as full data")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    about: About
    grid: Grid


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of methods.yaml, besides its keys of a training config.

    `rate` names the setting that follows from the pruning rate. "keep": prune.keep = 1 - rate. "epochs": as many as
    see the same number of samples. "none": one run for all rates. It may also be a key of a config, which is set to
    the rate.
    """

    label: str = key(strict_args.REQUIRED, "how figures and tables call it")
    rate: str = key("keep", "what the pruning rate changes", pattern=r"keep|epochs|none|[a-z]+\.[a-z_]+")
    guard: float = key(
        0.0, "share of the epochs that is random warm-up, and again random final phase", within="[0, 0.5]"
    )
    score_epochs: str = key(
        "", "static scores: epochs that their models train, however long the run; all: as the run", pattern=r"\d*|all"
    )
    score_epochs_small: str = key("", "those at the small scale; empty: score_epochs", pattern=r"\d*|all")
    selections_of: str = key("", "a method whose selections make the static scores: its run with another seed")


@dataclass(frozen=True)
class _MethodFile:
    method: Method


@dataclass(frozen=True)
class Run:
    """One training run of a grid.

    `rate` is None for a method that has none; `swept` is the swept key and its value, or None. Static scores are made
    of the selections of the run `source`, or computed as `scoring` says, with seed 0 whatever the run's.
    """

    part: str
    method: str
    label: str
    rate: float | None
    seed: int
    config: Config
    swept: tuple[str, str] | None = None
    source: Run | None = None
    scoring: Config | None = None

    @property
    def is_static(self) -> bool:
        return self.config.prune.statistic.is_fixed

    @cached_property
    def key(self) -> str:
        """Hash of all that decides the result: the keys whose values are not the default."""
        return key_of(self.config)

    def __str__(self) -> str:
        words = [self.part, self.method]
        words += [] if self.rate is None else [f"{self.rate:g}"]
        words += [] if self.swept is None else ["=".join(self.swept)]
        return " ".join([word for word in words if word] + [f"seed {self.seed}"])


def significant(config: Config, sections: Sequence[str] = ()) -> dict[str, Any]:
    """The keys (of these sections) that decide the outcome of a training and are not at their default.

    Keys that a later version adds leave the results of earlier ones valid.
    """
    defaults = config.defaults
    own = {
        f"{section}.{name}": value
        for section, values in config.sections.items()
        if not sections or section in sections
        for name, value in values.items()
        if value != defaults[section][name]
    }
    aside = ("run.name", "run.out", "run.save_every", "run.profile", "data.num_workers", "train.eval_every")
    return {name: list(v) if isinstance(v, tuple) else v for name, v in own.items() if name not in aside}


def key_of(config: Config) -> str:
    """A hash of the keys that decide the outcome of a training."""
    return _hash(significant(config))


def _hash(keys: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:16]


def experiment_names() -> list[str]:
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path != METHODS)


def find(name: str) -> Path:
    """The file of an experiment; UserError if there is none of this name."""
    if name not in experiment_names():
        raise UserError(f'unknown experiment "{name}"{nearest(name, experiment_names())}')
    return EXPERIMENTS / f"{name}.yaml"


def title(name: str) -> str:
    """What the experiment shows, in one line."""
    return yaml_settings.read_yaml(find(name))["about"]["title"]


def load(path: Path, scale: str) -> tuple[About, list[Run]]:
    """Read an experiment's file at one scale; the runs come seed by seed.

    Raises:
        UserError: a scale that it does not have, and whatever is wrong with the file.
    """
    content = yaml_settings.read_yaml(path)
    scales = {scale: content.pop(scale) for scale in SCALES if scale in content}
    if scale not in scales:
        raise UserError(f"{path.name} has no scale {scale}; add --scale {' or '.join(scales)}")
    parts = content.pop("parts", {"": {}})
    about = _read(path, scale, [content, scales[scale]]).experiment.about
    for word in about.figures.split():
        if word not in FIGURES:
            raise UserError(f'{path.name}: unknown figure "{word}"{nearest(word, FIGURES)}')
    layers = {part: _read(path, scale, [content, scales[scale], changes]) for part, changes in parts.items()}
    runs = [run for part, own in layers.items() for run in _runs(part, own)]
    runs.sort(key=lambda run: run.seed)  # stable: seed 0 of everything comes first
    return about, runs


@dataclass(frozen=True)
class _Layers:
    """The layers of a file, laid over each other."""

    experiment: Experiment
    settings: dict[str, Setting]
    sweeps: dict[str, Any]
    path: Path
    scale: str

    @cached_property
    def below(self) -> dict[str, Setting]:
        """The keys of the config and of the experiment, for all methods: those that one does not take do not count."""
        config = yaml_settings.read_settings(self.path.parent / self.experiment.grid.config)
        return {word: setting._replace(level=1 + setting.level) for word, setting in (config | self.settings).items()}


def _read(path: Path, scale: str, layers: Sequence[Mapping[str, Any]]) -> _Layers:
    declared: dict[str, Setting] = {}
    settings: dict[str, Setting] = {}
    sweeps: dict[str, Any] = {}
    for layer in layers:
        for name in layer.keys() - set(SECTIONS):
            raise UserError(f'{path.name}: unknown key "{name}"{nearest(name, (*SECTIONS, *SCALES, "parts"))}')
        layer = {name: value for name, value in layer.items() if value != ""}  # a section of comments only
        settings |= yaml_settings.flatten(layer.pop("settings", {}), path.name)
        sweeps = layer.pop("sweeps", sweeps)
        declared |= yaml_settings.flatten(layer, path.name)
    return _Layers(strict_args.resolve(Experiment, declared), settings, sweeps, path, scale)


@cache
def methods() -> dict[str, tuple[Method, dict[str, Setting]]]:
    """The methods of methods.yaml, each with its keys of a training config."""
    made = {}
    for name, entry in yaml_settings.read_yaml(METHODS).items():
        settings = yaml_settings.flatten(entry, f"{METHODS.name}, {name}")
        own = {f"method.{word}": setting for word, setting in settings.items() if "." not in word}
        method = strict_args.resolve(_MethodFile, own).method
        made[name] = method, {word: setting for word, setting in settings.items() if "." in word}
    return made


def _runs(part: str, layers: _Layers) -> list[Run]:
    grid, source = layers.experiment.grid, layers.path.name
    wanted: list[tuple[str, float | None, tuple[str, str] | None]] = []
    for name in grid.methods.split():
        rates: Sequence[float | None] = [None] if find_method(name, source).rate == "none" else grid.rates
        wanted += [(name, rate, None) for rate in rates]
    for swept_key, sweep in layers.sweeps.items():
        if not isinstance(sweep, dict) or sweep.keys() != {"values", "methods"}:
            raise UserError(f"{source}: the sweep of {swept_key} needs `values:` and `methods:`, and nothing else")
        swept = product(sweep["methods"].split(), grid.rates, sweep["values"])
        wanted += [(name, rate, (swept_key, value)) for name, rate, value in swept]
    if not wanted:
        raise UserError(f"{source}: no run; name methods and pruning rates")
    return [_run(part, layers, *one, seed) for one in wanted for seed in range(grid.seeds)]


def find_method(name: str, source: str) -> Method:
    if name not in methods():
        raise UserError(f'{source}: unknown method "{name}"{nearest(name, methods())}')
    return methods()[name][0]


def _run(part: str, layers: _Layers, name: str, rate: float | None, swept: tuple[str, str] | None, seed: int) -> Run:
    grid, method = layers.experiment.grid, find_method(name, layers.path.name)
    settings = layers.below | methods()[name][1]
    computed = {"run.seed": f"{seed}"}
    if method.rate == "keep":
        computed["prune.keep"] = f"{_keep(rate)}"
    elif "." in method.rate:
        computed[method.rate] = f"{rate}"
    if method.score_epochs or method.selections_of:
        computed["prune.scores"] = "to_be_named.npy"  # by what makes them, once that is known
    computed |= dict([swept] if swept else [])
    settings |= {word: Setting(text, f"{layers.path.name}, {name}") for word, text in computed.items()}
    base = resolve(settings, options=())
    config = _with_epochs(base, grid, method, rate)
    source = scoring = None
    if method.selections_of:  # another initialisation: the scores must not be of the run that they serve
        other = (seed + 1) % grid.seeds if grid.seeds > 1 else 1
        source = _run(part, layers, method.selections_of, rate, None, other)
        config = _with_scores(config, f"{name}_{source.key}")
    elif method.score_epochs:
        wanted = (method.score_epochs_small if layers.scale == "small" else "") or method.score_epochs
        static = replace(base.static, epochs=base.train.epochs if wanted == "all" else int(wanted))
        scoring = replace(base, static=static, run=replace(base.run, seed=0))
        scoring = _with_scores(scoring, f"{static.method}_{_hash(significant(scoring, SCORE_SECTIONS))}")
        config = replace(config, static=static, prune=config.prune.replace(scores=scoring.prune.values["scores"]))
    run = Run(part, name, method.label, rate, seed, config, swept, source, scoring)
    return replace(run, config=replace(config, run=replace(config.run, name=str(run).replace(" ", "_"))))


def _with_scores(config: Config, name: str) -> Config:
    return replace(config, prune=config.prune.replace(scores=f"{SCORES}/{name}.npy"))


def _keep(rate: float | None) -> float:
    """The share that is kept at a pruning rate, without the noise of 1 - 0.9."""
    return 1.0 if rate is None else round(1 - rate, 6)


def _with_epochs(config: Config, grid: Grid, method: Method, rate: float | None) -> Config:
    """Set what follows from the number of epochs: as many samples as another run sees, and the guards."""
    epochs, warmup = config.train.epochs, config.train.warmup_epochs
    factor = _keep(rate) if method.rate == "epochs" else 1.0
    if grid.stretch:
        factor /= _keep(rate)
    if factor != 1:
        epochs = max(1, round(factor * epochs))
        train = replace(config.train, epochs=epochs, warmup_epochs=round(factor * warmup, 6))
        config = replace(config, train=train)
    if method.guard:
        phase = round(method.guard * epochs)
        config = replace(config, prune=config.prune.replace(warmup=phase, final=phase))
    return config
