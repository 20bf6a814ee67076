"""Where the time of a run went, what holds it up, and what its keep can save on this machine: ``--profile``.

Nothing is measured in a step. The phases are those of the log; loader and model alone run after the training.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from ffcv_prune.config import Config
from ffcv_prune.loading.loader import PrunedLoader
from ffcv_prune.machine import now
from ffcv_prune.training.clock import PHASES
from ffcv_prune.training.dataset import Dataset
from ffcv_prune.training.epoch import Stepper, mean_loss
from ffcv_prune.training.run_folder import RunFolder

SECONDS = 1.0  # that each measurement takes, about
CUDA_SECONDS = 5.0  # where a second is a dozen of steps
WARM_UP = 5  # steps: compilation, cuDNN's search, the allocator
LIMITS = {  # key of `speedup_limits` -> the words for it
    "ideal": "ideal 1/keep",
    "scoring": "with the scoring pass",
    "swap": "with selection and swap",
    "fixed": "with the fixed costs of an epoch",
}


def report_profile(folder: RunFolder, config: Config, dataset: Dataset, alone: Mapping[str, float]) -> None:
    """Print the profile of a run and write its profile.json; for `alone` see `profile`."""
    if not folder.rows:
        print("profile: no epoch has ended yet")
        return
    made = profile(config, folder.rows, dataset.train.num_samples, alone)
    folder.write_json("profile.json", made)
    print(profile_text(made), flush=True)


def profile(
    config: Config, rows: Sequence[Mapping[str, Any]], samples: int, alone: Mapping[str, float]
) -> dict[str, Any]:
    """The profile of a run, as profile.json holds it.

    Args:
        rows: of its log, one an epoch, at least one.
        samples: of the whole training set.
        alone: what `measure_alone` found; empty for a run that was interrupted.

    Returns:
        "epochs". "seconds" of a mean epoch by phase, "other" (in no phase) and "total". "reached": images/s while
        training. "waiting": the share of that time in which the trainer waited for a batch (a GPU is then two steps
        from idle, see `RunAhead`). The keys of `alone`. "bottleneck": the slower of the two alone. For a run that has
        made selections: its "keep" and the keys of `speedup_limits`.
    """
    totals = {phase: sum(row["seconds"][phase] for row in rows) for phase in (*PHASES, "total")}
    other = totals["total"] - sum(totals[phase] for phase in PHASES)
    seconds = {name: value / len(rows) for name, value in {**totals, "other": other}.items()}
    training = totals["load"] + totals["train"]
    made: dict[str, Any] = {
        "epochs": len(rows),
        "seconds": seconds,
        "reached": rows[-1]["samples_seen"] / training,
        "waiting": totals["load"] / training,
        **alone,
        "bottleneck": None,
    }
    if alone:
        made["bottleneck"] = "loader" if alone["loader_alone"] < alone["model_alone"] else "model"
    pruned = [row for row in rows if row["phase"] == "method"]
    selections = [row["seconds"] for row in pruned if row["selected"]]
    if selections:  # not of a method that chooses in batches: its scores are a part of training
        phases, epochs = config.prune.phases, config.train.epochs
        keep = statistics.mean(row["keep"] for row in pruned)
        first_batch = alone.get("first_batch_seconds", 0.0)
        full = samples * (training - first_batch * len(rows)) / rows[-1]["samples_seen"]
        period = min(phases.interval, epochs - phases.warmup_epochs(epochs) - phases.final_phase(epochs)[0])
        score = statistics.median(own["score"] for own in selections) / period
        swap = statistics.median(own["select"] + own["swap"] for own in selections) / period
        limits = speedup_limits(keep, full, score, swap, seconds["other"] + first_batch)
        made |= {"keep": keep, "speedup": limits}
    return made


def speedup_limits(keep: float, full: float, score: float, swap: float, fixed: float) -> dict[str, float]:
    """How many times as fast as on full data an epoch can be at most, coming down from 1 / keep cost by cost.

        ideal    1 / keep
        scoring  full / (keep·full + score)
        swap     full / (keep·full + score + swap)
        fixed    (full + fixed) / (keep·full + score + swap + fixed)

    The last is the highest speedup that this keep can reach on this machine, at this pace a sample.

    Args:
        keep: fraction of the samples kept.
        full: seconds to train on all samples once.
        score, swap: seconds of a scoring pass, of a selection and its swap, each divided by T_p.
        fixed: seconds of an epoch that do not depend on its samples: what is in no phase (the log, files of
            selections) and the wait for the first batch. Tests and saves are left out.
    """
    pruned = keep * full
    return {
        "ideal": 1 / keep,
        "scoring": full / (pruned + score),
        "swap": full / (pruned + score + swap),
        "fixed": (full + fixed) / (pruned + score + swap + fixed),
    }


def measure_alone(config: Config, stepper: Stepper, loader: PrunedLoader) -> dict[str, float]:
    """Run the loader without the model, then the model without the loader, for some batches; the run is left as it is.

    Of several ranks, one measures, times their number. The others are idle meanwhile. So this rank has all cores and
    the memory of the machine, and its loader is faster than in training.

    Returns:
        "loader_alone" and "model_alone", images/s; "first_batch_seconds" from the start of an epoch to its first batch.
    """
    device, ranks = stepper.device, loader.world_size
    seconds = CUDA_SECONDS if device.type == "cuda" else SECONDS
    served, first = 0, []
    start = now(device)
    while time.perf_counter() - start < seconds:
        begun = time.perf_counter()
        with closing(loader.batches(loader.next_epoch, loader.selection)) as batches:
            for step, served_batch in enumerate(batches):
                if step == 0:
                    first.append(time.perf_counter() - begun)
                    batch = served_batch.inputs.clone(), served_batch.targets.clone(), served_batch.ids.clone()
                served += len(served_batch.ids)
                if time.perf_counter() - start >= seconds:
                    break
    loader_alone = ranks * served / (now(device) - start)
    own = Stepper(copy.deepcopy(stepper.model), config.train, stepper.amp_dtype, stepper.task)
    own.model.train()
    for _ in range(WARM_UP):
        own.step(*batch, mean_loss, lr=0.0)
    steps, start = 0, now(device)
    while time.perf_counter() - start < seconds:
        own.step(*batch, mean_loss, lr=0.0)
        steps += 1
    model_alone = ranks * steps * len(batch[0]) / (now(device) - start)
    return {"loader_alone": loader_alone, "model_alone": model_alone, "first_batch_seconds": statistics.median(first)}


def profile_text(made: Mapping[str, Any]) -> str:
    """The profile in words, for the screen."""
    seconds = made["seconds"]
    lines = [f"profile: seconds of an epoch, mean of {made['epochs']}"]
    for name in (*PHASES, "other", "total"):
        if seconds[name] > 0:
            lines.append(f"  {name:6} {seconds[name]:10.3f} {seconds[name] / seconds['total']:7.1%}")
    lines.append(
        f"training reached {made['reached']:,.0f} images/s and waited for batches in {made['waiting']:.1%} of its time"
    )
    if made["bottleneck"] is not None:
        lines.append(
            f"alone, the loader delivers {made['loader_alone']:,.0f} images/s and the model trains on "
            f"{made['model_alone']:,.0f}: the {made['bottleneck']} is the bottleneck"
        )
    if "speedup" in made:
        steps = ", ".join(f"{words} {made['speedup'][key]:.2f}" for key, words in LIMITS.items())
        lines.append(
            f"keep {made['keep']:.2g}: an epoch can here be at most {made['speedup']['fixed']:.2f} times as fast as "
            f"on full data ({steps}; tests and saves left out)"
        )
    return "\n".join(lines)
