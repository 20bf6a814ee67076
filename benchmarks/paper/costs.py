"""What pruned runs gain over full data that sees as many samples, and what they cost: images, which are exact."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.harness.tables import markdown
from benchmarks.paper.cells import Cell, distinct, rate_words
from benchmarks.paper.grid import Run
from benchmarks.paper.verdicts import FAILS, HOLDS, UNDECIDED, compare
from ffcv_prune.config import Config

FULL = ("full", "full_equal")
EQUAL = 0.05  # by which the samples seen of two runs may differ and still count as equal
WORDS = {HOLDS: "better", FAILS: "worse", UNDECIDED: "undecided"}


def cost_section(grouped: Sequence[Cell]) -> str:
    """A table of each pruned cell against full data with the epochs cut, and what is left out of it."""
    body, left_out = [], []
    for cell in distinct(grouped):
        full = [c for c in grouped if c.run.part == cell.run.part and c.run.method in FULL and c.rows]
        if cell.run.method in FULL or not full:
            continue
        ratios = {cell.mean("samples_seen") / rival.mean("samples_seen"): rival for rival in full}
        ratio = min(ratios, key=lambda ratio: abs(math.log(ratio)))
        name = [cell.run.part, cell.run.label, rate_words(cell, grouped)]
        if abs(ratio - 1) > EQUAL:
            left_out.append(f"{name[0]}, {name[1]} at {name[2]}, {ratio:.2f} times the samples")
            continue
        one = compare(cell, ratios[ratio], "above")
        body.append([*name, one.difference, WORDS[one.verdict], f"{ratio:.2f}", *work_words(cell, full)])
    head = ["data", "method", "pruning rate", "difference, points", "than full data", "its samples, times"]
    blocks = [markdown([*head, "trained on, epochs", "scored, passes"], body)]
    if left_out:
        blocks.append(
            "Left out, for the nearest run of full data did not see as many samples, and the difference would be that "
            f"of the samples: {'; '.join(left_out)}."
        )
    return "\n\n".join(blocks)


def work_words(cell: Cell, full: Sequence[Cell]) -> tuple[str, str]:
    """Images trained on and scored, as multiples of all data; a sum where static scores cost some before."""
    epoch = next(c.mean("samples_seen") / c.run.config.train.epochs for c in full)
    trained, scored = f"{cell.mean('samples_seen') / epoch:.1f}", f"{scoring_passes(cell.run.config)}"
    before = work_before(cell.run)
    if before is None:
        return trained, scored
    return f"{trained} + {before[0]:.1f}", f"{scored} + {before[1]}"


def work_before(run: Run) -> tuple[float, int] | None:
    """Epochs and passes over all data that the run's static scores took."""
    if run.source is not None:
        return run.source.config.train.epochs * run.source.config.prune.phases.share, scoring_passes(run.source.config)
    if run.scoring is None:
        return None
    static = run.scoring.static
    return static.models * static.epochs, 0 if static.method == "forget" else static.models


def scoring_passes(config: Config) -> int:
    """Passes over all data that a run's selections take: none for static scores and for losses of training."""
    phases, epochs = config.prune.phases, config.train.epochs
    if not config.prune.makes_passes:
        return 0
    return sum(phases.selects(e, epochs) and phases.phase(e, epochs) == "method" for e in range(epochs))
