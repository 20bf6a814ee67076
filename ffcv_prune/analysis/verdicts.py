"""What pruning cost or saved, in plain words: every pruned run against full data at the same samples seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ffcv_prune.analysis.intervals import Correction, Difference, correction, difference, difference_of_tests
from ffcv_prune.analysis.runs import Run, repetitions
from ffcv_prune.words import percent

SAME_SAMPLES = 0.15  # runs that differ by no more than this share are compared: a small file loses much to drop_last
SAME_SETTINGS = ("data.train", "data.test", "model.name")
SAME_DATA = ("train_samples", "test_samples", "classes")


def verdicts(runs: Sequence[Run]) -> list[str]:
    """One sentence for each pruned setting; repetitions with other seeds are taken together.

    Whether a difference is beyond noise, and the interval beside it, are corrected for the number of verdicts.
    """
    settings = repetitions([run for run in runs if run.tested])
    full = [group for group in settings if not group[0].pruned]
    pruned = [group for group in settings if group[0].pruned]
    rivals = [_rival(group, full) for group in pruned]
    gaps = [_gap(group, rival) if rival else None for group, rival in zip(pruned, rivals, strict=True)]
    corrected = correction(gap.p() for gap in gaps if gap)
    return [
        _said(group) + (_judged(group, rival, gap, corrected) if rival and gap else _why_not(group, full))
        for group, rival, gap in zip(pruned, rivals, gaps, strict=True)
    ]


def savings(runs: Sequence[Run]) -> list[str]:
    """One sentence for each run with prune.save: what was asked, and what it saved, or saves by its log so far."""
    sentences = []
    for run in runs:
        plan, epochs = run.rows[-1].get("saving"), run.settings.get("train.epochs")
        if plan is not None:
            saved = plan["predicted"] if run.saved is None else run.saved
            sentences.append(
                f"{run.name} was to save {percent(plan['asked'])} of a full run's seconds; after {len(run.rows)} of "
                f"{epochs} epochs it saves {percent(saved)}."
            )
    return sentences


def _rival(group: list[Run], full: list[list[Run]]) -> list[Run] | None:
    """The nearest finished runs of full data; None if none saw about as many samples."""
    nearest = _nearest(group, full)
    return nearest if nearest and abs(_more_samples(nearest, group)) <= SAME_SAMPLES else None


def _nearest(group: list[Run], full: list[list[Run]]) -> list[Run] | None:
    """The finished runs of full data, of the same files and model, that are nearest in samples seen.

    To a percent, for drop_last differs by the selection. Of equally near ones, those of the highest accuracy.
    """
    same = [other for other in full if other[0].finished and _same(other[0]) == _same(group[0])]
    return min(
        same, key=lambda other: (round(abs(_more_samples(other, group)), 2), -_mean(other, "accuracy")), default=None
    )


def _same(run: Run) -> list[object]:
    """What must be equal for a comparison to tell of pruning alone."""
    return [run.settings.get(name) for name in SAME_SETTINGS] + [run.dataset.get(name) for name in SAME_DATA]


def _more_samples(rival: list[Run], group: list[Run]) -> float:
    """How many samples more the rival saw, as a share of those of the group."""
    return _mean(rival, "samples_seen") / _mean(group, "samples_seen") - 1


def _why_not(group: list[Run], full: list[list[Run]]) -> str:
    nearest = _nearest(group, full)
    if nearest is None:
        return "; there is no finished run of full data, of the same files and model, to judge it by."
    return (
        f"; there is no finished run of full data at the same samples seen to judge it by: the nearest, "
        f"{nearest[0].name}, saw {_share_more(_more_samples(nearest, group))}."
    )


def _share_more(share: float) -> str:
    return f"{percent(abs(share))} {'more' if share > 0 else 'fewer'}"


def _said(group: list[Run]) -> str:
    own, static = _mean(group, "training_seconds"), _mean(group, "static_seconds")
    with_scores = f", {own + static:.1f} s with its static scores" if static > 0 else ""
    return (
        f"{group[0].name} reached {percent(_mean(group, 'accuracy'))} in {own:.1f} s{with_scores} ({_runs(group)})"
        + _how_far(group[0])
    )


def _how_far(run: Run) -> str:
    return "" if run.finished else f", stopped after {len(run.rows)} of {run.settings['train.epochs']} epochs"


def _judged(group: list[Run], rival: list[Run], gap: Difference, corrected: Correction) -> str:
    over_seeds = _have_seeds(group, rival)
    if gap.p() <= corrected.level:
        outcome = f"{'won' if gap.mean > 0 else 'lost'} {abs(gap.mean):.2f} points"
    else:
        outcome = f"bought no accuracy {'beyond noise' if over_seeds else 'that the test set could show'}"
    noise = (
        "over the seeds" if over_seeds else "by the size of the test set alone (one seed: others may differ by more)"
    )
    static = _mean(group, "static_seconds")
    seconds = _mean(group, "training_seconds") - _mean(rival, "training_seconds")
    cost = _more_or_less(seconds, " time")
    if static > 0:
        cost += f", {_more_or_less(seconds + static)} with its static scores"
    elif math.isnan(static):
        cost += "; what its static scores cost is not on record"
    more = _more_samples(rival, group)
    same = "the same" if abs(more) < 0.01 else _share_more(more)
    against = f"{percent(_mean(rival, 'accuracy'))} in {_mean(rival, 'training_seconds'):.1f} s ({_runs(rival)})"
    return (
        f". Full data at {same} samples seen, {rival[0].name}, reached {against}. Pruning {outcome} and took {cost} "
        f"(difference {gap.in_words(corrected.level)} points, {noise}: the {corrected})."
    )


def _have_seeds(group: list[Run], rival: list[Run]) -> bool:
    return min(len({run.seed for run in runs}) for runs in (group, rival)) > 1


def _gap(group: list[Run], rival: list[Run]) -> Difference:
    """In points, over the seeds; of a single seed, by the size of the test set alone."""
    if _have_seeds(group, rival):
        return difference(*({run.seed: 100 * run.accuracy for run in runs} for runs in (group, rival)))
    tests = [int(runs[0].dataset["test_samples"]) for runs in (group, rival)]
    return difference_of_tests(_mean(group, "accuracy"), _mean(rival, "accuracy"), tests[0], tests[1])


def _more_or_less(seconds: float, noun: str = "") -> str:
    return f"{abs(seconds):.1f} s {'more' if seconds > 0 else 'less'}{noun}"


def _mean(group: list[Run], what: str) -> float:
    return sum(float(getattr(run, what)) for run in group) / len(group)


def _runs(group: list[Run]) -> str:
    return "one run" if len(group) == 1 else f"mean of {len(group)} runs"
