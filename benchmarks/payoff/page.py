"""The page of the referee: tables and the panels of the figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence

from matplotlib.axes import Axes

from benchmarks.harness.tables import Row, mean_and_spread, table
from benchmarks.payoff.grid import NULL, Entry, Grid
from benchmarks.payoff.judge import Judged
from ffcv_prune.analysis.intervals import Correction, Difference, correction, difference

CLAIMED = 0.25  # saving in work
CLAIM_LEVEL = 0.01


def text(grid: Grid, conditions: Sequence[Judged]) -> str:
    """The tables of all conditions, with the number of runs that are missing."""
    parts = []
    for judged in conditions:
        found = {entry.name: judged.payoff(entry) for entry in grid.methods}
        # A saving without error has all its seeds at one end of the curve: their spread is not known.
        printed = [part for one in found.values() if one is not None for part in (one.saving, one.gain) if part.error]
        scores = [score for entry in grid.methods if (score := _score(judged, entry)) is not None]
        level = correction(part.p() for part in (*printed, *scores))
        parts.append(f"## {judged.condition}\n\n{_curve(grid, judged)}\n\n{_methods(grid, judged, level)}")
        parts.append(
            f"± of an accuracy is the standard deviation over seeds, elsewhere the {level} over paired seeds. A saving "
            "that is a bound is the end of this interval. Where all seeds lie at that end of the curve there is none."
        )
        if judged.first is None and grid.claim.methods:
            parts.append(_claim(grid, judged))
        trials = _trials(grid, judged)
        if trials:
            parts.append(
                "The first seed decides which methods are run on. Tuned methods more than "
                f"{grid.hopeless:g} points below full data at their cost are given up, with their variants. "
                f"The more choices a gain is the best of, the more it flatters.\n\n{trials}"
            )
        missing = sum(len(judged.left(entry)[1]) for entry in grid.entries)
        if missing:
            parts.append(f"{missing} runs or more are still to do.")
    return "\n\n".join(parts)


def _curve(grid: Grid, judged: Judged) -> str:
    lines = []
    for entry in grid.budgets:
        rows = list(judged.judged(entry).values())
        if rows:
            epochs = {"epochs": rows[0]["epochs"]}
            lines.append({"full data": entry.name.removeprefix("full "), **epochs, **_numbers(rows)})
    return table(lines) if lines else "Full data has not been run yet."


def _methods(grid: Grid, judged: Judged, level: Correction) -> str:
    lines = []
    for entry in grid.methods:
        rows, found, score = list(judged.judged(entry).values()), judged.payoff(entry), _score(judged, entry)
        if found is None:
            continue
        lines.append(
            {
                "method": entry.name,
                **_numbers(rows),
                "saving in work, %": found.saving_in_words(level.level),
                "beyond the curve": f"{found.beyond} of {len(rows)}",
                "gain at equal work, points": found.gain.in_words(level.level),
                "above its null twin, points": "" if score is None else score.in_words(level.level),
            }
        )
    return table(lines) if lines else "No method has been run yet."


def claim_level(grid: Grid) -> float:
    """Below which p shows the claim for one of its methods: all its methods share CLAIM_LEVEL (Bonferroni)."""
    return CLAIM_LEVEL / max(1, len(grid.claim.methods))


def claim_words(grid: Grid) -> str:
    """What a method has to have for the claim, behind its saving."""
    methods = len(grid.claim.methods)
    shared = f" ({CLAIM_LEVEL:g} for {methods} methods)" if methods > 1 else ""
    return f"p < {claim_level(grid):.3g}{shared}, {grid.claim.seeds} seeds"


def claim_interval(grid: Grid) -> str:
    return f"{100 * (1 - claim_level(grid)):.4g}% interval"


def _claim(grid: Grid, judged: Judged) -> str:
    lines, level = [], claim_level(grid)
    full = _percents(judged, grid.budgets[-1])
    for name in grid.claim.methods:
        entry = grid.entry(name)
        found = judged.payoff(entry)
        if found is None:
            continue
        own = _percents(judged, entry)
        lines.append(
            {
                "method": name,
                "seeds": f"{len(own)} of {grid.claim.seeds}",
                "accuracy above full data at full length, points": difference(own, full).in_words(level),
                "saving in work, %": found.saving_in_words(level),
                "of the seed that saves least, %": f"{100 * found.least:+.2f}",
                **shown(judged.ahead(entry, 1 - CLAIMED), CLAIMED, len(own), grid),
            }
        )
    words = (
        f"The claim: at equal accuracy a method takes at most {1 - CLAIMED:g} of the work of full data, "
        f"{claim_words(grid)}. ± is the {claim_interval(grid)}. p compares its "
        f"accuracy with the curve at its work ÷ {1 - CLAIMED:g}."
    )
    return f"{words}\n\n{table(lines)}" if lines else f"{words} No method of it has been run yet."


def shown(ahead: Difference, claimed: float, seeds: int, grid: Grid) -> dict[str, str]:
    """The cells on the claim that more than `claimed` is saved, by the points above full data that cost so much more.

    There is no p before the last seed, without spread, and where these points are not above 0.
    """
    p = ahead.p() if seeds >= grid.claim.seeds and ahead.mean > 0 and ahead.error else math.nan
    return {
        f"p of {claimed:.0%}": "" if math.isnan(p) else f"{p:.2g}",
        "shown": "yes" if p < claim_level(grid) else "no",
    }


def _trials(grid: Grid, judged: Judged) -> str:
    """The first seed of all methods, the best first."""
    found = [(entry, trial) for entry in grid.methods if (trial := judged.trial(entry)) is not None]
    lines = [
        {
            "method": entry.name,
            "choice": trial["choice"],
            **({"choices tried": f"{judged.choices_tried(entry)}"} if judged.first is None else {}),
            "accuracy, %": f"{100 * float(trial['accuracy']):.2f}",
            "work, samples": f"{float(trial['work']):,.0f}",
            "gain at equal work, points": f"{judged.trial_gain(trial):+.2f}",
            "given up": "yes" if judged.hopeless(entry) else "",
        }
        for entry, trial in sorted(found, key=lambda pair: -judged.trial_gain(pair[1]))
    ]
    return table(lines) if lines else ""


def _numbers(rows: Sequence[Row]) -> dict[str, str]:
    return {
        "choice": rows[0]["choice"],
        "seeds": f"{len(rows)}",
        "accuracy, %": mean_and_spread([100 * float(row["accuracy"]) for row in rows]),
        "work, samples": f"{statistics.mean(float(row['work']) for row in rows):,.0f}",
    }


def _percents(judged: Judged, entry: Entry) -> dict[int, float]:
    """Accuracies by seed, in percent."""
    return {seed: 100 * float(row["accuracy"]) for seed, row in judged.judged(entry).items()}


def _score(judged: Judged, entry: Entry) -> Difference | None:
    """Points of accuracy above the null twin, whose cost is nearly the same; None where there is none yet."""
    twin = next((other for other in judged.grid.methods if other.name == entry.name + NULL), None)
    if twin is None:
        return None
    own, null = _percents(judged, entry), _percents(judged, twin)
    return difference(own, null) if own and null else None


def plot(axes: Axes, judged: Judged) -> None:
    """Means over the seeds: the curve of full data, and each method as a point, hollow with the first seed alone."""

    def means(rows: Collection[Row]) -> tuple[float, float]:
        work, accuracy = ([float(row[name]) for row in rows] for name in ("work", "accuracy"))
        return statistics.mean(work), 100 * statistics.mean(accuracy)

    budgets = [means(rows.values()) for rows in map(judged.judged, judged.grid.budgets) if rows]
    if budgets:
        axes.plot(*zip(*budgets, strict=True), "k.-", label="full data")
    for i, entry in enumerate(judged.grid.methods):
        counted, trial = judged.judged(entry).values(), judged.trial(entry)
        shown = counted or ([] if trial is None else [trial])
        if shown:
            fill = "full" if counted else "none"
            axes.plot(*means(shown), "osD^vP*X<"[i % 9], color=f"C{i % 10}", label=entry.name, fillstyle=fill)
    axes.set(xscale="log", xlabel="work, samples", ylabel="test accuracy, %", title=judged.condition)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="x-small", ncols=2)
