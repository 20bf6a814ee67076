"""What pruning cost or saved, in plain words: every pruned run against full data at the same samples seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ffcv_prune.analysis.runs import Run, repetitions

SAME_SAMPLES = 0.1  # two runs that differ by less than this share see as many samples


def verdicts(runs: Sequence[Run]) -> list[str]:
    """One sentence for each pruned setting; repetitions with other seeds are taken together."""
    settings = repetitions([run for run in runs if run.tested])
    full = [group for group in settings if group[0].method == "full"]
    return [_sentence(group, full) for group in settings if group[0].method != "full"]


def _sentence(group: list[Run], full: list[list[Run]]) -> str:
    name, samples, accuracy = group[0].name, _mean(group, "samples_seen"), _mean(group, "accuracy")
    said = f"{name} reached {100 * accuracy:.2f} % in {_mean(group, 'training_seconds'):.1f} s ({_runs(group)})"
    data = group[0].settings.get("data.train")
    rivals = [
        rival
        for rival in full
        if rival[0].settings.get("data.train") == data
        and abs(_mean(rival, "samples_seen") - samples) <= SAME_SAMPLES * samples
    ]
    if not rivals:
        return f"{said}; there is no run of full data at the same samples seen to judge it by."
    rival = min(rivals, key=lambda other: abs(_mean(other, "samples_seen") - samples))
    gap = accuracy - _mean(rival, "accuracy")
    noise = math.hypot(_standard_error(group), _standard_error(rival))
    seconds = _mean(group, "training_seconds") - _mean(rival, "training_seconds")
    cost = f"{abs(seconds):.1f} s {'more' if seconds > 0 else 'less'} time"
    if abs(gap) <= 2 * noise:
        outcome = f"Pruning bought no accuracy beyond noise and took {cost}"
    elif gap > 0:
        outcome = f"Pruning won {100 * gap:.2f} points and took {cost}"
    else:
        outcome = f"Pruning lost {-100 * gap:.2f} points and took {cost}"
    against = f"{100 * _mean(rival, 'accuracy'):.2f} % in {_mean(rival, 'training_seconds'):.1f} s ({_runs(rival)})"
    return (
        f"{said}. Full data at the same samples seen, {rival[0].name}, reached {against}. "
        f"{outcome} (difference {100 * gap:+.2f} points, standard error {100 * noise:.2f})."
    )


def _standard_error(group: list[Run]) -> float:
    """Of the mean accuracy: over the repetitions, or for a single run that of a test on so many samples."""
    accuracies = [run.accuracy for run in group]
    if len(group) > 1:
        mean = sum(accuracies) / len(accuracies)
        variance = sum((accuracy - mean) ** 2 for accuracy in accuracies) / (len(accuracies) - 1)
        return math.sqrt(variance / len(accuracies))
    return math.sqrt(accuracies[0] * (1 - accuracies[0]) / int(group[0].dataset["test_samples"]))


def _mean(group: list[Run], what: str) -> float:
    return sum(float(getattr(run, what)) for run in group) / len(group)


def _runs(group: list[Run]) -> str:
    return "one run" if len(group) == 1 else f"mean of {len(group)} runs"
