"""Trackers: each row of log.jsonl, and the scores behind a selection, sent to where people look at runs."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.errors import UserError, nearest

PROJECT = "ffcv_prune"
BINS = 50


class Tracker(Protocol):
    """What takes the rows of a run; an object of one's own with these two methods is one."""

    def log(self, row: Mapping[str, Any], scores: NDArray[np.float32] | None) -> None:
        """Take the row of an epoch as it stands in log.jsonl.

        `scores`: float32[m], the finite scores of all samples when the epoch's selection was made; None: it has none.
        """

    def close(self) -> None:
        """The run has ended, or was stopped."""


def require_tracker(name: str) -> None:
    """UserError unless `name` is "none" or one of `TRACKERS` whose package is installed."""
    if name == "none":
        return
    if name not in TRACKERS:
        raise UserError(f'run.tracker="{name}"{nearest(name, ("none", *TRACKERS))}')
    try:
        module = import_module(name)  # the package and the tracker have one name
    except ModuleNotFoundError as error:
        if error.name != name:
            raise  # installed, and broken
        module = None
    # A folder of that name, such as wandb leaves behind, is imported as a module without a file.
    if module is None or module.__file__ is None:
        raise UserError(f'run.tracker={name}: {name} is not installed; pip install "ffcv_prune[{name}]"')


def open_tracker(name: str, run: Path, config: Mapping[str, Any]) -> Tracker | None:
    """The tracker `name`, None for "none", for the run in the folder `run`; `config` has its settings by dotted key.

    A run that is resumed goes on under the same identity. UserError where the package is not installed.
    """
    require_tracker(name)
    return None if name == "none" else TRACKERS[name](run, config)


def numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a row by name: those of its dictionaries are called outer/inner. Texts are left out."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run: ``tensorboard --logdir runs``."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()), 0)

    def log(self, row: Mapping[str, Any], scores: NDArray[np.float32] | None) -> None:
        for name, value in numbers(row):
            self._writer.add_scalar(name, value, row["epoch"])
        if scores is not None:
            self._writer.add_histogram("scores", scores, row["epoch"], bins=BINS)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of the project ffcv_prune; wandb's own environment variables (WANDB_MODE, WANDB_PROJECT, …) count."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._wandb = import_module("wandb")
        settings = self._wandb.Settings()
        self._run = self._wandb.init(
            project=settings.project or PROJECT,
            name=run.name,
            id=identity(run),
            dir=str(run),
            config=dict(config),
            resume="allow",
        )

    def log(self, row: Mapping[str, Any], scores: NDArray[np.float32] | None) -> None:
        content: dict[str, Any] = dict(numbers(row))
        if scores is not None:
            content["scores"] = self._wandb.Histogram(np_histogram=np.histogram(scores, BINS))
        self._run.log(content, step=row["epoch"])

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of the project ffcv_prune: ``trackio show``."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._trackio = import_module("trackio")
        name = f"{run.name}-{identity(run)}"  # a run is found again by its name alone
        self._trackio.init(project=PROJECT, name=name, config=dict(config), resume="allow")

    def log(self, row: Mapping[str, Any], scores: NDArray[np.float32] | None) -> None:
        content: dict[str, Any] = dict(numbers(row))
        if scores is not None:
            content["scores"] = self._trackio.Histogram(scores, num_bins=BINS)
        self._trackio.log(content, step=row["epoch"])

    def close(self) -> None:
        self._trackio.finish()


class MLflow:
    """A run of the experiment ffcv_prune; MLFLOW_TRACKING_URI says where. Histograms are artifacts, scores/*.json."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        mlflow = import_module("mlflow")
        self._client = mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(PROJECT)
        experiment_id = self._client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        mine = self._client.search_runs([experiment_id], f"tags.ffcv_prune_run = '{identity(run)}'")
        if mine:
            self._id = mine[0].info.run_id
            return
        self._id = self._client.create_run(
            experiment_id, tags={"ffcv_prune_run": identity(run)}, run_name=run.name
        ).info.run_id
        for name, value in config.items():
            self._client.log_param(self._id, name, value)

    def log(self, row: Mapping[str, Any], scores: NDArray[np.float32] | None) -> None:
        for name, value in numbers(row):
            allowed = re.sub(r"[^\w\-. /]", "_", name)  # class names may have characters that MLflow refuses
            self._client.log_metric(self._id, allowed, value, step=row["epoch"])
        if scores is not None:
            counts, edges = np.histogram(scores, BINS)
            content = {"counts": counts.tolist(), "edges": edges.tolist()}
            self._client.log_dict(self._id, content, f"scores/epoch_{row['epoch']:04d}.json")

    def close(self) -> None:
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def identity(run: Path) -> str:
    """The same for a run that is resumed: made of its name, and of machine.json, which has the time of its start."""
    return hashlib.blake2b(run.name.encode() + (run / "machine.json").read_bytes(), digest_size=6).hexdigest()
