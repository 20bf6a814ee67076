"""Run folders as the report reads them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.analysis.counts import method_selections, selection_counts
from ffcv_prune.errors import UserError
from ffcv_prune.yaml_settings import flatten, read_yaml

PLACE = ("run.seed", "run.name", "run.out", "run.save_every", "run.profile", "run.tracker", "data.num_workers")


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        name: of the folder.
        settings: dotted keys of its configuration, as text.
        rows: of the log, one an epoch.
        dataset: classes, class_counts, train_samples, test_samples.
        counts: int64[n], in how many of the method's selections each sample is; None without any (full data).
        selections: how many the method made; those of a random warm-up or final phase do not count.
        machine: where and with what versions it was made.
        static_seconds: what the static scores that it pruned by had cost before; NaN if that is not on record.
        saved: with prune.save, the share of a full run's seconds that a finished run saved; otherwise None.
    """

    name: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    dataset: dict[str, Any]
    counts: NDArray[np.int64] | None
    selections: int
    machine: dict[str, Any]
    static_seconds: float = 0.0
    saved: float | None = None

    @property
    def method(self) -> str:
        """Its name, "full" without any."""
        return str(self.settings.get("prune.method", "full"))

    @property
    def pruned(self) -> bool:
        """Whether any epoch was on less than all data by plan: by a method, or at random before or after it.

        So is a run of a method that ended in its warm-up on all data.
        """
        cut_short = not self.finished and self.method != "full"
        return cut_short or any(row["phase"] != "full" for row in self.rows)

    @property
    def finished(self) -> bool:
        """Whether it came to its last epoch: the learning rate of one that did not has not fallen to its end."""
        return len(self.rows) >= int(self.settings.get("train.epochs", 0))

    @property
    def seed(self) -> int:
        return int(self.settings.get("run.seed", 0))

    @property
    def tested(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["test_accuracy"] is not None]

    @property
    def accuracy(self) -> float:
        """Of the last test, 0..1; NaN for a run that was never tested."""
        return float(self.tested[-1]["test_accuracy"]) if self.tested else float("nan")

    @property
    def other_metrics(self) -> dict[str, float]:
        """Of the last test of a task without accuracy, by their names in the log."""
        names = [name for name in self.rows[-1] if name.startswith("test_")]
        return {name: row[name] for name in names for row in self.rows if row.get(name) is not None}

    @property
    def samples_seen(self) -> int:
        return int(self.rows[-1]["samples_seen"])

    @property
    def kept(self) -> float:
        """The mean share of the data that the epochs trained on: 1 - the pruning rate. drop_last does not count."""
        return sum(row["keep"] for row in self.rows) / len(self.rows)

    def seconds(self, phase: str) -> float:
        return float(sum(row["seconds"].get(phase, 0.0) for row in self.rows))

    @property
    def training_seconds(self) -> float:
        """Wall-clock time without the tests, and without what static scores had cost before."""
        return self.seconds("total") - self.seconds("eval")


def repetitions(runs: Sequence[Run]) -> list[list[Run]]:
    """Group the runs that differ in nothing but seed and place, and came equally far."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = sorted((name, str(text)) for name, text in run.settings.items() if name not in PLACE)
        groups.setdefault(f"{same}{len(run.rows)} {run.dataset['train_samples']}", []).append(run)
    return list(groups.values())


def differing_keys(groups: Sequence[Sequence[Run]]) -> list[tuple[str, list[str]]]:
    """The keys of the configuration that differ among the `repetitions` that have them, with the value in each, or "".

    What the method does not have is no difference of its own: the method is.
    """
    names = dict.fromkeys(name for group in groups for name in group[0].settings if name not in PLACE[1:])
    rows = [(name, [_texts(group, name) for group in groups]) for name in names]
    return [(name, values) for name, values in rows if len({*values} - {""}) > 1]


def _texts(group: Sequence[Run], name: str) -> str:
    """The values that the runs of a group have: one, but for the seeds."""
    return ", ".join(dict.fromkeys(_text(run.settings.get(name, "")) for run in group))


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def together(group: Sequence[Run]) -> Run:
    """Repetitions as one run, as far as selections go: counts and number are sums (paper, Fig. 3)."""
    counted = [run.counts for run in group if run.counts is not None]
    counts = np.sum(counted, axis=0) if counted else None
    name = group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more"
    return replace(group[0], name=name, counts=counts, selections=sum(run.selections for run in group))


def phases(runs: Sequence[Run]) -> list[str]:
    """The phases that the runs' time is split into, in the order of the log."""
    named = dict.fromkeys(phase for run in runs for phase in run.rows[0]["seconds"])
    return [phase for phase in named if phase != "total"]


def read_run(folder: str | Path) -> Run:
    """Read a run folder. A run that was interrupted is read as far as it came.

    Raises:
        UserError: not a run folder, or one whose first epoch did not end.
    """
    folder = Path(folder)

    def read(name: str, parse: Callable[[str], Any]) -> Any:
        return parse((folder / name).read_text(encoding="utf-8"))

    try:
        rows = read("log.jsonl", lambda text: [json.loads(line) for line in text.splitlines()])
        machine, dataset = read("machine.json", json.loads), read("dataset.json", json.loads)
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a run folder: {Path(error.filename).name} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the run folder {folder}: {error}") from None
    if not rows:
        raise UserError(f"{folder} has no finished epoch; there is nothing to report")
    config = folder / "config.yaml"
    settings = {name: setting.text for name, setting in flatten(read_yaml(config), str(config)).items()}
    files = method_selections(folder, rows)
    counts = selection_counts(files, dataset["train_samples"]) if files else None
    result = _result(folder)
    static_seconds = _static_seconds(result, settings)
    saved = result.get("saved")
    return Run(folder.name, settings, rows, dataset, counts, len(files), machine, static_seconds, saved)


def _result(folder: Path) -> dict[str, float]:
    """The numbers of result.csv; none as long as the run has not written it."""
    try:
        with (folder / "result.csv").open(newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        return {name: float(row[name]) for name in ("static_seconds", "saved") if row.get(name)}
    except (OSError, ValueError, TypeError):
        return {}


def _static_seconds(result: Mapping[str, float], settings: Mapping[str, Any]) -> float:
    """By the run's result, or as long as it has none by the description of the score file."""
    if not settings.get("prune.scores"):
        return 0.0
    if "static_seconds" in result:
        return result["static_seconds"]
    try:
        description = Path(settings["prune.scores"]).with_suffix(".json").read_text(encoding="utf-8")
        return float(json.loads(description)["seconds"]["total"])
    except (OSError, ValueError, KeyError, TypeError):
        return float("nan")
