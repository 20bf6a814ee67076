"""What pruning cost or saved, in plain words: every pruned run against full data at the same samples seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ffcv_prune.analysis.intervals import welch_margin
from ffcv_prune.analysis.runs import Run, repetitions

SAME_SAMPLES = 0.1  # two runs that differ by less than this share see as many samples
NORMAL_QUANTILE = 1.96  # two-sided, 95 %


def verdicts(runs: Sequence[Run]) -> list[str]:
    """One sentence for each pruned setting; repetitions with other seeds are taken together."""
    settings = repetitions([run for run in runs if run.tested])
    full = [group for group in settings if group[0].method == "full"]
    return [_sentence(group, full) for group in settings if group[0].method != "full"]


def _sentence(group: list[Run], full: list[list[Run]]) -> str:
    name, samples, accuracy = group[0].name, _mean(group, "samples_seen"), _mean(group, "accuracy")
    own, static = _mean(group, "training_seconds"), _mean(group, "static_seconds")
    with_scores = f", {own + static:.1f} s with its static scores" if static > 0 else ""
    said = f"{name} reached {100 * accuracy:.2f} % in {own:.1f} s{with_scores} ({_runs(group)})"
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
    margin, nothing, noise = _noise(group, rival)
    outcome = nothing if abs(gap) <= margin else f"{'won' if gap > 0 else 'lost'} {abs(100 * gap):.2f} points"
    seconds = own - _mean(rival, "training_seconds")
    cost = _more_or_less(seconds, " time")
    if static > 0:
        cost += f", {_more_or_less(seconds + static)} with its static scores"
    elif math.isnan(static):
        cost += "; what its static scores cost is not on record"
    against = f"{100 * _mean(rival, 'accuracy'):.2f} % in {_mean(rival, 'training_seconds'):.1f} s ({_runs(rival)})"
    return (
        f"{said}. Full data at the same samples seen, {rival[0].name}, reached {against}. "
        f"Pruning {outcome} and took {cost} (difference {100 * gap:+.2f} ± {100 * margin:.2f} points{noise})."
    )


def _noise(group: list[Run], rival: list[Run]) -> tuple[float, str, str]:
    """Half the width of the 95 % interval of the difference, what to say of less than that, and what it covers."""
    margin = welch_margin([run.accuracy for run in group], [run.accuracy for run in rival])
    if math.isfinite(margin):
        return margin, "bought no accuracy beyond noise", ", the 95 % interval over the seeds"
    variance = 0.0  # that of tests on so many samples
    for runs in (group, rival):
        accuracy = _mean(runs, "accuracy")
        variance += accuracy * (1 - accuracy) / int(runs[0].dataset["test_samples"])
    doubt = " by the size of the test set alone; one run: seeds may differ by more"
    return NORMAL_QUANTILE * math.sqrt(variance), "bought no accuracy that the test set could show", doubt


def _more_or_less(seconds: float, noun: str = "") -> str:
    return f"{abs(seconds):.1f} s {'more' if seconds > 0 else 'less'}{noun}"


def _mean(group: list[Run], what: str) -> float:
    return sum(float(getattr(run, what)) for run in group) / len(group)


def _runs(group: list[Run]) -> str:
    return "one run" if len(group) == 1 else f"mean of {len(group)} runs"
