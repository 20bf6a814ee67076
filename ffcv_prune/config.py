"""The configuration of a training run: every key, once, with its meaning, range and default.

A config file is YAML with the sections below; ``base: other.yaml`` names a file (relative to it) that it only
changes. The command line beats the file, the file its base, the base the defaults here. Environment variables
count for nothing. How keys are read and refused is in `strict_args`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ffcv_prune import strict_args
from ffcv_prune.errors import UserError
from ffcv_prune.strict_args import REQUIRED, Setting, key

USAGE = "usage: python train_imagenet.py --config FILE | --resume RUN [--profile] [--section.key=value ...]"
SCORED_BEFORE = ("static", "static_epsilon_greedy", "static_ucb")  # policies that read prune.scores
POLICIES = (
    "none",
    "random",
    "uncertainty",
    "ema",
    "epsilon_greedy",
    "ucb",
    "infobatch",
    "static_random",
    *SCORED_BEFORE,
)
SCORE_SOURCES = ("pass", "training", "both")
# InfoBatch is these parts; it sizes its selections itself, so that no guard can ask it for a number of samples.
INFOBATCH = {
    "keep": 1.0,
    "period": 1,
    "score_source": "training",
    "final": 0,
    "random_share": 0.0,
    "class_floor": 0.0,
    "loss_cap": 0.0,
}
PHASE_MODES = ("random", "full")
# What may differ when a run is resumed: where it finds things and runs, not what it computes.
CHANGEABLE = (
    "run.save_every",
    "run.profile",
    "data.train",
    "data.test",
    "data.score",
    "data.num_workers",
    "train.device",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """the run and its folder"""

    name: str = key("", "folder name of the run; empty: the config file's name")
    out: str = key("runs", "folder that holds the run folders")
    save_every: float = key(300.0, "seconds between saves within an epoch; its end saves too", within="[0, inf)")
    profile: bool = key(False, "print where the time went when the run ends, into profile.json too; short: --profile")
    seed: int = key(0, "seed of weights, order, augmentation and selection", within="[0, 4294967295]")


@dataclass(frozen=True, kw_only=True)
class Data:
    """the compiled data set and how its images are cut"""

    train: str = key(REQUIRED, "path of the training .beton")
    test: str = key(REQUIRED, "path of the test .beton")
    augment: str = key("none", "training augmentation", choices=("none", "pad_crop_flip", "random_resized_crop"))
    size: int = key(0, "side of the images fed to the model; 0: as stored", within="[0, inf)")
    test_ratio: float = key(1.0, "centre crop over image side, scoring and test", within="(0, 1]")
    score: str = key("", "path of a smaller .beton of the same training samples, to score; empty: data.train")
    score_size: int = key(
        0, "side of the images in scoring; 0: data.size, or as stored in data.score", within="[0, inf)"
    )
    num_workers: int = key(-1, "loader threads; -1: all cores available", within="[-1, inf)")


@dataclass(frozen=True, kw_only=True)
class Model:
    """the network"""

    name: str = key(REQUIRED, "name of the model, for example resnet18_cifar")
    classes: int = key(0, "number of classes; 0: from the data set's manifest", within="[0, inf)")


@dataclass(frozen=True, kw_only=True)
class Train:
    """optimiser, schedule and device"""

    epochs: int = key(REQUIRED, "passes over the data, or over what is kept of it", within="[1, inf)")
    batch_size: int = key(128, "images per step, over all processes", within="[1, inf)")
    lr: float = key(0.1, "peak learning rate", within="(0, inf)")
    momentum: float = key(0.9, "momentum of SGD", within="[0, 1)")
    nesterov: bool = key(True, "Nesterov momentum")
    weight_decay: float = key(5e-4, "weight decay", within="[0, inf)")
    label_smoothing: float = key(0.0, "label smoothing of the training loss", within="[0, 1)")
    lr_schedule: str = key("step", "shape of the learning rate", choices=("step", "cosine"))
    lr_milestones: tuple[float, ...] = key(
        (0.3, 0.6, 0.8), "where a step schedule drops, as fractions of the run, rising", within="(0, 1)"
    )
    lr_factor: float = key(0.2, "factor of each drop", within="(0, 1]")
    warmup_epochs: float = key(0.0, "epochs in which the learning rate rises linearly", within="[0, inf)")
    device: str = key("auto", "auto: the GPU if there is one", pattern=r"auto|cpu|cuda(:\d+)?")
    amp: str = key("auto", "mixed precision; auto: as the hardware has it", choices=("auto", "bf16", "fp16", "off"))
    eval_every: int = key(1, "epochs between tests; the last epoch is always tested", within="[1, inf)")


@dataclass(frozen=True, kw_only=True)
class Prune:
    """which samples are trained on"""

    policy: str = key("none", "who selects; none: all data, no checkpoints", choices=POLICIES)
    keep: float = key(1.0, "fraction of the data kept (pruning rate = 1 - keep)", within="(0, 1]")
    period: int = key(10, "epochs between checkpoints (the paper's T_p)", within="[1, inf)")
    alpha: float = key(0.8, "weight of the new loss in the running statistics", within="(0, 1]")
    c: float = key(1.0, "ucb: weight of the variance", within="[0, inf)")
    epsilon: float = key(0.1, "epsilon_greedy: share of the selection drawn at random", within="[0, 1]")
    scores: str = key("", "static: the scores' file, see section static", pattern=r"(.*[^/]\.npy)?")
    ratio: float = key(0.5, "infobatch: probability that a sample below the mean loss is dropped", within="[0, 1)")
    delta: float = key(0.875, "infobatch: fraction of the epochs that are pruned; then all data", within="(0, 1]")
    unbiased: bool = key(False, "infobatch: scale the weights so that a step's expected gradient is the full one")
    score_source: str = key(
        "pass",
        "losses for the scores: a pass over all samples, those of training, or both (a pass over the others)",
        choices=SCORE_SOURCES,
    )
    score_budget: float = key(1.0, "share of the samples that a scoring pass scores; 1: all", within="(0, 1]")
    score_revisit: int = key(
        10, "score_budget: scoring passes within which each sample is scored at least once", within="[1, inf)"
    )
    class_floor: float = key(
        0.0, "guard: share of its proportional places that each class is sure of; 0: off", within="[0, 1]"
    )
    loss_cap: float = key(
        0.0, "guard: share of the highest losses left out, in each class if there is a class_floor", within="[0, 1)"
    )
    random_share: float = key(0.0, "guard: share of any policy's selection drawn at random", within="[0, 1]")
    warmup: int = key(0, "epochs before the first scored selection", within="[0, inf)")
    warmup_mode: str = key("random", "what the warm-up trains on", choices=PHASE_MODES)
    final: int = key(0, "epochs after the last scored selection", within="[0, inf)")
    final_mode: str = key("random", "what the final phase trains on", choices=PHASE_MODES)
    score_batch_size: int = key(0, "images per scoring batch, over all; 0: twice train.batch_size", within="[0, inf)")


@dataclass(frozen=True, kw_only=True)
class StaticScores:
    """what python -m ffcv_prune.static_scores writes to prune.scores, before training"""

    method: str = key("el2n", "the score", choices=("el2n", "grand", "forget"))
    model: str = key("", "network that scores, a proxy; empty: model.name")
    models: int = key(10, "independent models to average over", within="[1, inf)")
    epochs: int = key(20, "of the schedule, trained before scoring, or over which to count", within="[0, inf)")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All keys of a run, typed and immutable: ``config.train.lr``."""

    run: Run
    data: Data
    model: Model
    train: Train
    prune: Prune
    static: StaticScores

    def __post_init__(self) -> None:
        """Check what one key's range cannot tell: UserError."""
        train, prune = self.train, self.prune
        if "/" in self.run.name or self.run.name.startswith("."):
            raise UserError(f"run.name={self.run.name}: not a plain folder name; run.out says where it goes")
        if self.data.num_workers == 0:
            raise UserError("data.num_workers=0: the loader needs threads; use -1 for all cores")
        if list(train.lr_milestones) != sorted(set(train.lr_milestones)):
            raise UserError(f"train.lr_milestones={train.lr_milestones}: must rise from one to the next")
        if train.nesterov and train.momentum == 0:
            raise UserError("train.nesterov=true needs train.momentum > 0; set train.nesterov=false")
        if train.warmup_epochs >= train.epochs:
            raise UserError(f"train.warmup_epochs={train.warmup_epochs}: must be below train.epochs={train.epochs}")
        if prune.warmup + prune.final > train.epochs:
            raise UserError(
                f"prune.warmup + prune.final = {prune.warmup + prune.final} epochs is more than "
                f"train.epochs={train.epochs}; lower one of them"
            )
        if prune.policy == "none" and prune.keep < 1:
            raise UserError(
                f"prune.keep={prune.keep} without a policy; set prune.policy (such as random) or prune.keep=1"
            )
        if prune.policy == "infobatch":
            for name, needed in INFOBATCH.items():
                if getattr(prune, name) != needed:
                    raise UserError(
                        f"prune.{name}={getattr(prune, name)}: prune.policy=infobatch needs prune.{name}={needed}; "
                        "see rn_configs/cifar10_infobatch.yaml"
                    )
        if prune.policy in SCORED_BEFORE and not prune.scores:
            raise UserError(
                f"prune.policy={prune.policy} needs prune.scores=FILE.npy, "
                "which python -m ffcv_prune.static_scores --config FILE writes"
            )

    def to_yaml(self) -> str:
        """Return the resolved configuration as a config file that `load` reads back as the same."""
        return strict_args.to_yaml(self)


def fixed_keys(config: Config) -> dict[str, Any]:
    """The keys, with dots, that decide what a run computes: all but `CHANGEABLE`."""
    flat = {f"{section}.{name}": value for section, keys in asdict(config).items() for name, value in keys.items()}
    return {name: value for name, value in flat.items() if name not in CHANGEABLE}


def load(argv: Sequence[str]) -> Config:
    """Read ``--config FILE [--section.key=value …]``; see `read_command`."""
    return read_command(argv)[0]


def read_command(argv: Sequence[str], usage: str = USAGE) -> tuple[Config, Path | None]:
    """Read ``--config FILE`` or ``--resume RUN``, ``--profile`` and ``[--section.key=value …]``.

    ``--help`` prints all keys and exits with 0. Everything that is wrong is a `UserError`: an unknown key (it
    names the nearest), a value of the wrong type or out of range, a missing or unreadable file, a key that
    may not change when a run is resumed.

    Returns:
        The configuration, and the run folder to go on with; None for a new run.
    """
    argv = ["--run.profile=true" if argument == "--profile" else argument for argument in argv]
    options, overrides = strict_args.parse_command_line(argv, options=("config", "resume"))
    if "help" in options:
        print(usage, strict_args.help_text(Config), sep="\n")
        raise SystemExit(0)
    if "config" in options and "resume" in options:
        raise UserError("--resume takes the configuration of its run; leave out --config")
    if "resume" in options:
        run = Path(options["resume"])
        for name in overrides:
            if name not in CHANGEABLE:
                raise UserError(
                    f"{name} may not change when a run is resumed (only {', '.join(CHANGEABLE)} may); "
                    "leave it out, or begin a new run with --config"
                )
        if not (run / "config.yaml").is_file():
            raise UserError(f"{run} is not the folder of a run: it has no config.yaml")
        return _resolve(run / "config.yaml", overrides), run
    if "config" not in options:
        raise UserError(f"no config file; {usage}")
    path = Path(options["config"])
    config = _resolve(path, overrides)
    return config if config.run.name else replace(config, run=replace(config.run, name=path.stem)), None


def _resolve(path: Path, overrides: dict[str, str]) -> Config:
    settings = strict_args.read_settings(path)
    settings |= {name: Setting(text, "command line") for name, text in overrides.items()}
    return strict_args.resolve(Config, settings, options=("config", "resume", "profile", "base"))
