"""The run folder of a training loop of one's own, so that it gets a report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ffcv_prune import yaml_settings
from ffcv_prune.config import dotted
from ffcv_prune.errors import UserError, wrong_kind
from ffcv_prune.pruner import Pruner, Swap
from ffcv_prune.scoring.forward import known_labels
from ffcv_prune.training.run_folder import RunFolder
from ffcv_prune.training.run_log import pruning_facts, scores_of, shares
from ffcv_prune.training.trackers import Tracker, open_tracker, require_tracker


class RunWriter:
    """Writes the folder of a run: config, log, selections, and at the end the report.

        pruner = Pruner(loader, score_loader, "ucb", keep=0.3, epochs=200)
        with RunWriter("runs/mine", pruner, test_samples=10_000) as run:
            for epoch in range(200):
                swap = pruner.begin_epoch(epoch, model)
                ...  # train and test
                run.log(epoch, swap, test_accuracy=accuracy)

    Of ranks that train together, only the main one writes. An existing folder is not touched: the next free one of
    runs/mine_2, runs/mine_3, … is taken.

    Args:
        folder: to be made.
        pruner: of the loop; one of method "full" for training on all data.
        test_samples: of the test set, for what a difference between two runs means.
        class_names: of the classes 0, 1, …; None: their numbers. Where the loader does not know its classes without a
            pass over the data, `class_fraction` is empty in every row: a `TorchLoader` whose data set has no
            `targets`.
        tracker: where each row goes beside log.jsonl: "tensorboard", "wandb", "mlflow" or "trackio" ("none": nowhere),
            or an object of your own with the two methods of `training.trackers.Tracker`.

    Attributes:
        path: the folder that is written.
    """

    def __init__(
        self,
        folder: str | Path,
        pruner: Pruner,
        test_samples: int,
        class_names: Sequence[str] | None = None,
        tracker: str | Tracker = "none",
    ) -> None:
        if isinstance(tracker, str):
            require_tracker(tracker)
        elif not (hasattr(tracker, "log") and hasattr(tracker, "close")):
            raise wrong_kind("tracker", tracker, "its name, or an object with log(row, scores) and close()")
        wanted = Path(folder)
        self._pruner, loader = pruner, pruner.loader
        n = loader.num_samples
        labels = known_labels(loader)
        if labels is None or labels.min() < 0 or labels.max() >= n:  # numbers that are no classes
            labels, names = np.zeros(n, np.int64), []
        else:
            names = [str(c) for c in range(int(labels.max()) + 1)] if class_names is None else list(class_names)
            if labels.max() >= len(names):
                raise UserError(f"{len(names)} class_names for labels up to {labels.max()}: give one for each class")
        self._labels, self._names = labels, names
        self._counts = np.bincount(labels, minlength=len(names))[: len(names)]
        self._folder = RunFolder.create(wanted.parent, wanted.name) if loader.rank == 0 else None
        self.path = self._folder.path if self._folder else wanted
        chooser = pruner.values.chooser
        self._seen, self._chosen = 0, 0 if chooser is None else chooser.chosen
        self._last = time.perf_counter()
        if self._folder is not None:
            config = self._config()
            self._folder.describe(yaml_settings.to_yaml(config), names, self._counts, n, test_samples)
            self._folder.set_status("running")
            self._tracker = open_tracker(tracker, self.path, dotted(config)) if isinstance(tracker, str) else tracker

    def _config(self) -> dict[str, dict[str, Any]]:
        pruner = self._pruner
        return {
            "run": {"name": self.path.name, "seed": pruner.state.seed},
            "data": {"train": str(getattr(pruner.loader, "path", ""))},
            "train": {"epochs": pruner.state.epochs, "batch_size": pruner.loader.batch_size},
            "prune": {"method": pruner.method.name, **pruner.method.values},
        }

    def log(
        self, epoch: int, swap: Swap | None, test_accuracy: float | None = None, train_loss: float | None = None
    ) -> None:
        """Write the line of an epoch that has ended, and its selection.

        Args:
            swap: what `Pruner.begin_epoch` returned for the epoch.
            test_accuracy: 0 to 1; None: not tested.
            train_loss: the mean over the epoch.
        """
        now = time.perf_counter()
        total, self._last = now - self._last, now
        pruner, loader = self._pruner, self._pruner.loader
        ids = loader.selection if pruner.state.selection is None else pruner.state.selection.ids
        served = min(len(ids), loader.num_batches(len(ids)) * loader.batch_size * loader.world_size)
        trained, chooser = served, pruner.values.chooser
        if chooser is not None:  # the ranks are given as many each
            trained, self._chosen = (chooser.chosen - self._chosen) * loader.world_size, chooser.chosen
        self._seen += trained
        parts = {
            name: getattr(swap, f"{name}_seconds") if swap is not None else 0.0 for name in ("score", "select", "swap")
        }
        if self._folder is None:
            return
        if swap is not None:
            self._folder.save_selection(epoch, swap.ids)
        row = {
            **pruning_facts(pruner, epoch, self._folder, self._labels, self._counts, self._names),
            **({} if chooser is None else shares(trained / served)),
            "samples_seen": self._seen,
            "train_loss": train_loss,
            "test_accuracy": test_accuracy,
            "seconds": {**parts, "train": max(0.0, total - sum(parts.values())), "total": total},
        }
        self._folder.log(row)
        if self._tracker is not None:
            self._tracker.log(row, scores_of(pruner.state, epoch))

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._folder is None:
            return
        if self._tracker is not None:
            self._tracker.close()
        if error is None and self._folder.rows:
            from ffcv_prune.analysis.report import write_report  # matplotlib, which the loop need not wait for

            write_report([self.path], self.path / "report.html")
        self._folder.set_status("finished" if error is None else "failed", "" if error is None else str(error))
        self._folder.close()
