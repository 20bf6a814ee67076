"""The training script: from a configuration to a run folder with a trained model, read top to bottom."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ffcv_prune.analysis.counts import class_fractions
from ffcv_prune.analysis.report import write_report
from ffcv_prune.config import Config, Prune
from ffcv_prune.errors import UserError
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.models import build_model
from ffcv_prune.pruning import policies
from ffcv_prune.pruning.pruner import Checkpoint, Pruner
from ffcv_prune.pruning.schedule import Schedule, UnscoredPhase
from ffcv_prune.training.epoch import Stepper, choose_amp_dtype, evaluate
from ffcv_prune.training.loaders import Dataset, Loaders, settings_of
from ffcv_prune.training.run_folder import RunFolder, provenance

PHASES = ("load", "score", "select", "swap", "train", "eval")
STARVED = 0.2  # warn about classes of which a selection keeps less than this share of `keep`


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        method: the policy, or "full".
        keep: fraction of the data kept in pruned epochs.
        accuracy, top5: of the last test, 0..1; top5 is None up to 5 classes.
        samples_seen: samples trained on, over all epochs.
        seconds: wall-clock time by phase; their "total", which includes what is in no phase, such as writing
            selections; and, not in the total, "setup": opening the data and compiling loaders.
    """

    folder: Path
    method: str
    keep: float
    accuracy: float
    top5: float | None
    samples_seen: int
    seconds: dict[str, float]


def train(config: Config, loaders: Loaders | None = None) -> RunResult:
    """Train as `config` says and write ``run.out/run.name``.

    Args:
        config: from `ffcv_prune.config.load`.
        loaders: of an earlier run with the same data settings, to save their compilation.

    Raises:
        UserError: whatever is wrong with the data, the configuration or how they fit together, before
            anything is written; or a diverged model, during training.
    """
    start = time.perf_counter()
    if loaders is not None and loaders.settings != settings_of(config):
        raise ValueError("these loaders were made for other data settings")
    own_loaders = loaders is None
    loaders = loaders or Loaders(config)
    dataset, device = loaders.dataset, loaders.device
    amp_dtype = choose_amp_dtype(config.train.amp, device)
    schedule = Schedule(
        config.train.epochs,
        config.prune.period,
        keep=config.prune.keep,
        warmup=config.prune.warmup,
        warmup_mode=cast(UnscoredPhase, config.prune.warmup_mode),
        final=config.prune.final,
        final_mode=cast(UnscoredPhase, config.prune.final_mode),
    )
    check_batches(schedule, dataset, config.train.batch_size)
    policy = build_policy(config.prune)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model.name, len(dataset.classes), dataset.mean, dataset.std)
    model = model.to(device)
    loader, test_loader = loaders.train(config.run.seed), loaders.test
    pruner = None
    if policy is not None:
        pruner = Pruner(
            loader,
            loaders.score if policy.needs_scores else None,
            policy,
            seed=config.run.seed,
            alpha=config.prune.alpha,
            schedule=schedule,
            amp_dtype=amp_dtype,
        )
    setup_seconds = time.perf_counter() - start

    folder = RunFolder(config.run.out, config.run.name)  # nothing is written before this
    folder.write_config(config.to_yaml())
    folder.write_json("machine.json", provenance())
    folder.write_json(
        "dataset.json",
        {
            "classes": dataset.classes,
            "class_counts": dataset.class_counts.tolist(),
            "train_samples": dataset.train.num_samples,
            "test_samples": dataset.test.num_samples,
        },
    )
    folder.set_status("running", 0)
    rows: list[dict[str, Any]] = []
    try:
        _run_epochs(config, dataset, model, loader, test_loader, pruner, amp_dtype, folder, rows)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        folder.set_status("interrupted" if interrupted else "failed", len(rows), str(error))
        raise
    else:
        folder.save_weights(model)
        seconds = {phase: sum(row["seconds"][phase] for row in rows) for phase in (*PHASES, "total")}
        result = RunResult(
            folder=folder.path,
            method="full" if policy is None else policy.name,
            keep=config.prune.keep,
            accuracy=rows[-1]["test_accuracy"],
            top5=rows[-1]["test_top5"],
            samples_seen=rows[-1]["samples_seen"],
            seconds=seconds | {"setup": setup_seconds},
        )
        folder.write_result(result_row(config, result))
        write_report([folder.path], folder.path / "report.html")
        folder.set_status("finished", len(rows))
        return result
    finally:
        folder.close()
        if own_loaders:
            loaders.close()


def _run_epochs(
    config: Config,
    dataset: Dataset,
    model: nn.Module,
    loader: PrunedLoader,
    test_loader: PrunedLoader,
    pruner: Pruner | None,
    amp_dtype: torch.dtype | None,
    folder: RunFolder,
    rows: list[dict[str, Any]],
) -> None:
    """Train, test and log epoch by epoch; `rows` receives what log.jsonl does."""
    epochs, num_samples = config.train.epochs, dataset.train.num_samples
    stepper = Stepper(model, config.train, amp_dtype)
    fractions = np.ones(len(dataset.classes))
    samples_seen = 0
    for epoch in range(epochs):
        start = time.perf_counter()
        with tqdm(desc=f"epoch {epoch + 1}/{epochs}", total=0, unit="img", leave=False, disable=None) as bar:
            checkpoint = pruner.begin_epoch(epoch, model) if pruner else None
            if checkpoint is not None:
                folder.save_selection(epoch, checkpoint.ids)
                fractions = class_fractions(checkpoint.ids, dataset.labels, dataset.class_counts)
                _warn_of_starved_classes(epoch, fractions, len(checkpoint.ids) / num_samples, dataset.classes)
            steps = len(loader)  # of this epoch: after the swap
            bar.reset(total=steps * loader.batch_size)
            train_start, waited = time.perf_counter(), loader.wait_seconds
            train_loss, lr = stepper.train_epoch(loader, epoch, bar)
            load_seconds = loader.wait_seconds - waited
            train_seconds = time.perf_counter() - train_start - load_seconds
        samples_seen += steps * loader.batch_size
        if not math.isfinite(train_loss):
            raise UserError(
                f"epoch {epoch + 1}: the training loss is {train_loss}, the model diverged; "
                "lower train.lr, or set train.amp=off"
            )
        eval_start = time.perf_counter()
        accuracy = top5 = None
        if (epoch + 1) % config.train.eval_every == 0 or epoch + 1 == epochs:
            accuracy, top5 = evaluate(model, test_loader, len(dataset.classes), amp_dtype)
        end = time.perf_counter()
        keep = len(loader.selection) / num_samples
        row = {
            "epoch": epoch,
            "phase": pruner.schedule.phase(epoch) if pruner else "full",
            "checkpoint": checkpoint is not None,
            "keep": round(keep, 6),
            "pruning_rate": round(1 - keep, 6),
            "samples_seen": samples_seen,
            "steps": steps,
            "lr": lr,
            "train_loss": train_loss,
            "test_accuracy": accuracy,
            "test_top5": top5,
            "seconds": {
                "load": load_seconds,
                **_checkpoint_seconds(checkpoint),
                "train": train_seconds,
                "eval": end - eval_start,
                "total": end - start,
            },
            "class_fraction": dict(zip(dataset.classes, _rounded(fractions), strict=True)),
        }
        rows.append(row)
        folder.log(row)
        print(_line(row, epochs), flush=True)


def build_policy(prune: Prune) -> policies.Policy | None:
    """The policy of a configuration with its random share; None for "none"."""
    if prune.policy == "none":
        return None
    parameters = {"ucb": {"c": prune.c}, "epsilon_greedy": {"epsilon": prune.epsilon}}.get(prune.policy, {})
    policy = policies.build(prune.policy, **parameters)
    return policies.WithRandom(policy, prune.random_share) if prune.random_share > 0 else policy


def check_batches(schedule: Schedule, dataset: Dataset, batch_size: int) -> None:
    """Refuse a selection that does not fill one batch: training leaves out a last batch that is not whole."""
    num_samples = dataset.train.num_samples
    kept = schedule.kept(num_samples)
    if kept < batch_size:
        raise UserError(
            f"prune.keep={schedule.keep} keeps {kept} of {num_samples} samples, less than one batch "
            f"of {batch_size}; raise prune.keep or lower train.batch_size"
        )


def result_row(config: Config, result: RunResult) -> dict[str, Any]:
    """The run in one flat row, for result.csv and the tables made from many of them."""
    made = provenance()
    return {
        "run": config.run.name,
        "method": result.method,
        "keep": result.keep,
        "epochs": config.train.epochs,
        "seed": config.run.seed,
        "model": config.model.name,
        "accuracy": round(result.accuracy, 6),
        "top5": "" if result.top5 is None else round(result.top5, 6),
        "samples_seen": result.samples_seen,
        **{f"{phase}_seconds": round(seconds, 3) for phase, seconds in result.seconds.items()},
        **{name: ", ".join(value) if isinstance(value, list) else value for name, value in made.items()},
        "config": " ".join(f"{s}.{k}={v}" for s, keys in asdict(config).items() for k, v in keys.items()),
    }


def _checkpoint_seconds(checkpoint: Checkpoint | None) -> dict[str, float]:
    names = ("score", "select", "swap")
    return {name: getattr(checkpoint, f"{name}_seconds") if checkpoint else 0.0 for name in names}


def _rounded(fractions: np.ndarray) -> list[float | None]:
    return [None if math.isnan(fraction) else round(fraction, 4) for fraction in fractions.tolist()]


def _warn_of_starved_classes(epoch: int, fractions: np.ndarray, keep: float, classes: list[str]) -> None:
    starved = np.flatnonzero(fractions < STARVED * keep)  # a class without samples is NaN: not starved
    if len(starved):
        worst = classes[int(np.nanargmin(fractions))]
        tqdm.write(
            f"warning: epoch {epoch + 1}: the selection keeps less than {STARVED * keep:.3f} "
            f"of {len(starved)} of {len(classes)} classes (least of {worst}: {np.nanmin(fractions):.4f})",
            file=sys.stderr,
        )


def _line(row: dict[str, Any], epochs: int) -> str:
    tested = "" if row["test_accuracy"] is None else f"  test {row['test_accuracy']:.4f}"
    seconds = ", ".join(f"{name} {s:.1f}" for name, s in row["seconds"].items() if s >= 0.05 or name == "total")
    return (
        f"epoch {row['epoch'] + 1:3d}/{epochs}  {row['phase']:6s}  keep {row['keep']:.2f} "
        f"(pruned {row['pruning_rate']:.2f})  loss {row['train_loss']:.4f}{tested}  ({seconds} s)"
    )
