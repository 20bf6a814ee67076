"""What a run says of itself: the row of an epoch, the line on the screen, the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.analysis.counts import class_fractions
from ffcv_prune.config import Config
from ffcv_prune.methods.state import State
from ffcv_prune.pruner import Pruner
from ffcv_prune.training.run_folder import RunFolder, provenance


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        method: its name, with the guards that are on.
        keep: fraction of the data kept in pruned epochs (InfoBatch: their mean).
        metrics: the task's of the last test, the headline first; None for what the data do not have (top5).
        samples_seen: samples trained on, over all epochs.
        cost: what the method cost beside, counted, see `Values.costs`.
        seconds: wall-clock time by phase; their "total", which includes what is in no phase, such as writing
            selections; and, not in the total, "setup": opening the data and compiling loaders, and "static":
            what the scores of a static method cost, however many runs use them.
        saved: with prune.save, the share of a full run's seconds, set-up included, that the run saved.
    """

    folder: Path
    method: str
    keep: float
    metrics: dict[str, float | None]
    samples_seen: int
    cost: dict[str, int]
    seconds: dict[str, float]
    saved: float | None = None


def shares(keep: float) -> dict[str, float]:
    """The keys of an epoch's row that tell how much it trained on."""
    return {"keep": round(keep, 6), "pruning_rate": round(1 - keep, 6)}


def pruning_facts(
    pruner: Pruner,
    epoch: int,
    folder: RunFolder,
    labels: NDArray[np.int64],
    class_counts: NDArray[np.int64],
    classes: Sequence[str],
) -> dict[str, Any]:
    """The keys of an epoch's row that tell what it trained on.

    Args:
        epoch: has ended; the selection made for it, if there is one, is saved in the `folder`.
        labels: int64[n]; class_counts: int64[C]; classes: the C names; C is 0 where there are no classes.
    """
    selection = pruner.state.selection
    selected = selection is not None and selection.epoch == epoch
    ids = pruner.loader.selection if selection is None else selection.ids
    fractions = class_fractions(ids, labels, class_counts).tolist()
    rounded = [None if math.isnan(fraction) else round(fraction, 4) for fraction in fractions]
    return {
        "epoch": epoch,
        "phase": pruner.state.phase(epoch),
        "selected": selected,
        **shares(len(ids) / len(labels)),
        "class_fraction": dict(zip(classes, rounded, strict=True)),
        "overlap": folder.overlap(epoch, ids) if selected else None,
        "mean_weight": round(pruner.mean_weight, 6),
        "headroom": _headroom(pruner, epoch),
    }


def _headroom(pruner: Pruner, epoch: int) -> dict[str, float] | None:
    """What the scoring pass of this epoch told of the gradient, if there was one."""
    found = pruner.values.headroom_at(epoch)
    return None if found is None else {name: round(value, 4) for name, value in asdict(found).items()}


def scores_of(state: State, epoch: int) -> NDArray[np.float32] | None:
    """float32[m]: the finite scores of all samples, if the method made a selection by them for `epoch`; or None."""
    selection = state.selection
    if selection is None or selection.epoch != epoch or state.phase(epoch) != "method":
        return None
    scores = state.scores()
    finite = scores[np.isfinite(scores)]
    return finite if finite.size else None


def epoch_line(row: dict[str, Any], epochs: int, headline: str) -> str:
    """`headline` is the name of the metric to show. Epochs count from 0, as in the log and for `Pruner.begin_epoch`."""
    tested = "" if row[f"test_{headline}"] is None else f"  test {row[f'test_{headline}']:.4f}"
    loss = "no step" if row["train_loss"] is None else f"loss {row['train_loss']:.4f}"
    seconds = ", ".join(f"{name} {s:.1f}" for name, s in row["seconds"].items() if s >= 0.05 or name == "total")
    return (
        f"epoch {row['epoch']:3d} ({row['epoch'] + 1}/{epochs})  {row['phase']:6s}  keep {row['keep']:.2f} "
        f"(pruned {row['pruning_rate']:.2f})  {loss}{tested}  ({seconds} s)"
    )


def kept_share(config: Config, rows: Sequence[Mapping[str, Any]]) -> float:
    """The fraction of the data kept in pruned epochs; `rows` are those of the log."""
    if config.prune.constant_share is not None and not config.save:
        return config.prune.constant_share
    kept = [row["keep"] for row in rows if row["phase"] == "method"]
    kept = kept or [row["keep"] for row in rows if row["phase"] != "full"]  # it ended before its method selected
    return round(sum(kept) / len(kept), 6) if kept else 1.0


def result_row(config: Config, result: RunResult) -> dict[str, Any]:
    """The run in one flat row, for result.csv and the tables made from many of them."""
    made = provenance()
    metrics: dict[str, float | None] = {"accuracy": None, "top5": None, **result.metrics}
    return {
        "run": config.run.name,
        "method": result.method,
        "keep": result.keep,
        "epochs": config.train.epochs,
        "seed": config.run.seed,
        "model": config.model.name,
        **{name: "" if value is None else round(value, 6) for name, value in metrics.items()},
        "samples_seen": result.samples_seen,
        **result.cost,
        **({} if result.saved is None else {"asked": config.save, "saved": round(result.saved, 6)}),
        **{f"{phase}_seconds": round(seconds, 3) for phase, seconds in result.seconds.items()},
        **{name: ", ".join(value) if isinstance(value, list) else value for name, value in made.items()},
        "config": " ".join(f"{s}.{k}={v}" for s, keys in config.sections.items() for k, v in keys.items()),
    }
