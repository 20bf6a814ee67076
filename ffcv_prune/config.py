"""The configuration of a training run: every key, once, with its meaning, range and default.

A config file is YAML with the sections of `sections`; ``base: other.yaml`` names a file (relative to it) that it only
changes. The command line beats the file, the file its base, the base the defaults here. Environment variables
count for nothing. How keys are read and refused is in `strict_args`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from ffcv_prune import methods, strict_args, yaml_settings
from ffcv_prune.errors import TRAIN, WRITE, UserError, nearest
from ffcv_prune.methods import Method
from ffcv_prune.methods.method import parameters_of
from ffcv_prune.methods.sources import SOURCES, Source
from ffcv_prune.sections import Data, Model, Run, StaticScores, Train
from ffcv_prune.settings import key
from ffcv_prune.yaml_settings import Setting

USAGE = f"""\
usage: {TRAIN} --config FILE | --resume RUN | --init-from RUN [--profile] [--section.key=value ...]

  --config      file of a run, or the name of one in rn_configs/
  --resume      go on with a run that was interrupted, as if it had not been
  --init-from   begin a new run like RUN, from the weights that it ended with
  --profile     print where the time went when the run ends"""
DEFAULT_METHOD = "full"
_SAVE = "share of a full run's seconds to save: solves keep, or what takes its place, from a measurement; 0: off"
_SCORE_SOURCE = "losses for the scores: a pass over all samples, those of training, or both (a pass over the others)"
# What may differ when a run is resumed: where it finds things and runs, not what it computes.
CHANGEABLE = (
    "run.save_every",
    "run.profile",
    "run.tracker",
    "data.train",
    "data.test",
    "data.score",
    "data.num_workers",
    "train.device",
)


SECTIONS: dict[str, type] = {
    "run": Run,
    "data": Data,
    "model": Model,
    "train": Train,
    "prune": Method,
    "static": StaticScores,
}
RECIPE_SECTIONS = ("dataset", "source", "splits", "image", "subset")  # of `data.recipe`, which imports this module
CONFIGS = Path(__file__).with_name("rn_configs")  # in a clone a link to that at its root


@dataclass(frozen=True, kw_only=True)
class Config:
    """All keys of a run, typed and immutable: ``config.train.lr``.

    The section prune is a `Method`, and `save`, the key prune.save.
    """

    run: Run
    data: Data
    model: Model
    train: Train
    prune: Method
    save: float = 0.0
    static: StaticScores

    def __post_init__(self) -> None:
        """Check what one key's range cannot tell: a `UserError` names the first faults."""
        train, prune = self.train, self.prune
        faults = []
        if "/" in self.run.name or self.run.name.startswith("."):
            faults.append(f"run.name={self.run.name}: not a plain folder name; run.out says where it goes")
        if self.data.num_workers == 0:
            faults.append("data.num_workers=0: the loader needs threads; use -1 for all cores")
        if list(train.lr_milestones) != sorted(set(train.lr_milestones)):
            faults.append(f"train.lr_milestones={train.lr_milestones}: must rise from one to the next")
        if train.nesterov and train.momentum == 0:
            faults.append("train.nesterov=true needs train.momentum > 0; set train.nesterov=false")
        faults += _ramp_faults(self.data)
        if self.data.size_ramp and prune.selector.fills_batches:
            faults.append(
                "prune.form=jiang has samples wait for a later epoch, which may be of another side: "
                "set prune.form=composer, or leave data.size_ramp out"
            )
        if train.warmup_epochs >= train.epochs:
            faults.append(f"train.warmup_epochs={train.warmup_epochs}: must be below train.epochs={train.epochs}")
        try:
            prune.phases.check(train.epochs)
        except UserError as error:
            faults.append(str(error))
        if self.save and prune.sized_by is None:
            able = ", ".join(sorted(name for name, preset in methods.PRESETS.items() if preset.sized_by))
            faults.append(
                f"prune.save={self.save:g}: no parameter sets evenly how much method {prune.name} trains on; take one "
                f"of {able}, or leave prune.save out"
            )
        faults += [
            f"prune.method={prune.name} needs prune.{name}{declared.metadata['needed']}"
            for name, declared in prune.parameters.items()
            if declared.metadata["needed"] and not prune.values[name]
        ]
        strict_args.refuse(faults)

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """Every key by section, with its value: what `load` reads back as the same."""
        sections = {name: asdict(getattr(self, name)) for name in SECTIONS if name != "prune"}
        return sections | {"prune": asdict(_prune_section(self.prune)()) | {"save": self.save}}

    @property
    def defaults(self) -> dict[str, dict[str, Any]]:
        """The default of every key of `sections`; those of the section prune are the method's."""
        of = _keys(_prune_section(methods.PRESETS[self.prune.name]))
        sections = {name: {f.name: f.default for f in fields(kind)} for name, kind in get_type_hints(of).items()}
        return sections | {"prune": sections["prune"] | {"method": "full"}}

    def to_yaml(self) -> str:
        """Return the resolved configuration as a config file that `load` reads back as the same."""
        return yaml_settings.to_yaml(self.sections)


def _ramp_faults(data: Data) -> list[str]:
    ramp = data.size_ramp
    if not ramp:
        return []
    given = f"data.size_ramp={','.join(f'{value:g}' for value in ramp)}"
    if len(ramp) != 4 or not ramp[2] < ramp[3] <= 1 or any(side != int(side) or side < 1 for side in ramp[:2]):
        return [f"{given}: expected two sides in pixels and two rising fractions of the run, such as 160,192,0.74,0.86"]
    if data.augment != "random_resized_crop":
        return [f"{given} needs data.augment=random_resized_crop, which cuts images to any side"]
    return []


def fixed_keys(config: Config) -> dict[str, Any]:
    """The keys, with dots, that decide what a run computes: all but `CHANGEABLE`."""
    return {name: value for name, value in dotted(config.sections).items() if name not in CHANGEABLE}


def dotted(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The values of all sections by their names with a dot: ``train.lr``."""
    return {f"{section}.{name}": value for section, keys in sections.items() for name, value in keys.items()}


def load(argv: Sequence[str]) -> Config:
    """Read ``--config FILE [--section.key=value …]``; see `read_command`."""
    return read_command(argv)[0]


def read_command(argv: Sequence[str], usage: str = USAGE) -> tuple[Config, Path | None]:
    """Read ``--config FILE``, ``--resume RUN`` or ``--init-from RUN``, ``--profile`` and ``[--section.key=value …]``.

    ``--help`` prints all keys and exits with 0. Any fault is a `UserError`: an unknown key (it names the nearest), a
    value of the wrong type or out of range. So is a missing or unreadable file, and a key that may not change when a
    run is resumed.

    Returns:
        The configuration, and the run folder to go on with; None for a new run.
    """
    options, overrides = strict_args.parse_command_line(argv, ("config", "resume", "init-from"), flags=("profile",))
    if "profile" in options:
        del options["profile"]
        overrides["run.profile"] = "true"
    if "help" in options:
        every = sorted(methods.PRESETS.values(), key=lambda method: method.name != DEFAULT_METHOD)
        print(usage, strict_args.help_text(_keys(_prune_section(*every))), _shared_keys(every), sep="\n")
        raise SystemExit(0)
    if len(options) > 1:
        raise UserError(
            f"--{' and --'.join(options)} exclude each other: each says what to train; leave out all but one"
        )
    if "resume" in options:
        run = _run_folder(options["resume"])
        for name in overrides:
            if name not in CHANGEABLE:
                raise UserError(
                    f"{name} may not change when a run is resumed (only {', '.join(CHANGEABLE)} may); "
                    "leave it out, or begin a new run with --config"
                )
        return _resolve(run / "config.yaml", overrides), run
    if "init-from" in options:
        run = _run_folder(options["init-from"])
        if not (run / "weights.pt").is_file():
            raise UserError(f"{run} did not finish, and has no weights.pt: go on with it by --resume")
        return _resolve(run / "config.yaml", {"model.weights": str(run / "weights.pt")} | overrides), None
    if "config" not in options:
        raise UserError(f"no config file; {usage.splitlines()[0]}")
    path = _config_file(options["config"])
    config = _resolve(path, overrides)
    return config if config.run.name else replace(config, run=replace(config.run, name=path.stem)), None


def _run_folder(name: str) -> Path:
    run = Path(name)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not the folder of a run: it has no config.yaml")
    return run


def _config_file(name: str) -> Path:
    """A path, or what stands in rn_configs/ under a name without any suffix."""
    path = Path(name)
    known = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    if path.exists():
        return path
    if path.suffix == ".yaml" and path.stem in known:
        raise UserError(f"{path} does not exist; --config={path.stem} is the one that comes with ffcv_prune")
    if path.suffix:
        return path
    if name not in known:
        raise UserError(f'no config "{name}"{nearest(name, known)} (or give the path of a .yaml file)')
    return known[name]


def _resolve(path: Path, overrides: dict[str, str]) -> Config:
    settings = yaml_settings.read_settings(path)
    if strict_args.is_foreign(settings, own=SECTIONS, other=RECIPE_SECTIONS):
        raise UserError(f"{path} is a recipe, not a training config: use {WRITE} --dataset {path}")
    settings |= {name: Setting(text, "command line", -1) for name, text in overrides.items()}
    return resolve(settings)


def resolve(
    settings: dict[str, Setting],
    options: Collection[str] = ("config", "resume", "init-from", "profile", "base", "version"),
) -> Config:
    """Make a configuration of dotted keys; a `UserError` names the first unknown, missing and unacceptable ones.

    Which keys the section prune has, the method says. Keys that another method left in a file below that which names
    the method do not count.
    """
    named = settings.get("prune.method", Setting(DEFAULT_METHOD, "default", 1 << 30))
    name = str(named.text)  # a YAML list is no name
    if name not in methods.PRESETS:
        static = name.lower() in StaticScores.__dataclass_fields__["method"].metadata["choices"]
        remedy = f"; set prune.method=static and static.method={name.lower()}"
        raise UserError(
            f"prune.method={name} ({named.source}): unknown{remedy if static else nearest(name, methods.PRESETS)}"
        )
    method = methods.PRESETS[name]
    source = settings.get("prune.score_source")
    own = SOURCES.get(str(source.text)) if source is not None and method.takes_source else None
    section = _prune_section(method, source=own() if own else None)
    known, others = (
        {f"prune.{field.name}" for field in fields(of)} for of in (section, _prune_section(*methods.PRESETS.values()))
    )
    faults = []
    for name in sorted((settings.keys() & others) - known):
        if settings[name].level <= named.level:
            faults.append(
                f"{name} ({settings[name].source}): method {method.name} takes no {name.removeprefix('prune.')}; "
                f"{'leave it out' if method.prunes else 'set prune.method, such as random, or leave it out'}"
            )
        del settings[name]
    keys: Any = strict_args.resolve(_keys(section), settings, options, faults)
    prune = asdict(keys.prune)
    sections = {name: getattr(keys, name) for name in SECTIONS if name != "prune"}
    save = prune.pop("save")
    return Config(**sections, prune=methods.build(prune.pop("method"), **prune), save=save)


@cache
def _prune_section(*shown: Method, source: Source | None = None) -> type:
    """The keys of the section prune for these methods; their defaults are the values in the first one that has each.

    `source` takes the place of theirs.
    """
    declared: dict[str, Any] = {}
    for method in shown:
        preset = methods.PRESETS[method.name]
        if preset.takes_source:
            choices = tuple(SOURCES)
            current = next(name for name, kind in SOURCES.items() if kind is type(source or method.source))
            declared.setdefault("score_source", (str, key(current, _SCORE_SOURCE, choices=choices)))
        for part in (source or method.source, *method.other_parts):
            for name, of in parameters_of(part).items():
                declared.setdefault(name, (of.type, field(default=getattr(part, name), metadata=of.metadata)))
    first = key(shown[0].name, "who selects; full: all data, no selections", choices=tuple(methods.PRESETS))
    keys = [
        ("method", str, first),
        ("save", float, key(0.0, _SAVE, within="[0, 1)")),
        *((name, kind, value) for name, (kind, value) in declared.items()),
    ]
    section = make_dataclass("Prune", keys, frozen=True, kw_only=True)
    section.__doc__ = "which samples are trained on; which keys there are, the method says"
    return section


def _shared_keys(shown: Sequence[Method]) -> str:
    """Lines of --help: keys of the section prune that have another meaning or default in a later method."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}  # by key, by meaning and default: methods
    for method in shown:
        for part in (method.source, *method.other_parts):
            for name, of in parameters_of(part).items():
                same = found.setdefault(name, {})
                same.setdefault((of.metadata["description"], str(getattr(part, name))), []).append(method.name)
    lines = ["\nprune, where it differs:"]
    for name, ways in found.items():
        (first, _), *others = ways
        for meaning, default in others:
            says = f"{meaning};" if meaning != first else f"{', '.join(ways[meaning, default])}:"
            lines.append(f"  --{f'prune.{name}':26} {says} default {default}")
    return "\n".join(lines)


@cache
def _keys(prune: type) -> type:
    """All sections of a configuration, with this section prune."""
    sections = SECTIONS | {"prune": prune}
    return make_dataclass("Keys", sections.items(), frozen=True, kw_only=True)
