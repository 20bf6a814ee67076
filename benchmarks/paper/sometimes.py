"""Whether always, sometimes and never samples exist: counts of selection against what chance makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.tables import markdown
from benchmarks.paper.cells import Cell, accuracy_words
from benchmarks.paper.verdicts import FAILS, HOLDS

QUOTE = (
    "The paper: “a significant portion of the mass is contained in this component, suggesting that a large subset of "
    "the dataset cannot be classified as always or never selected (section 4.2, Fig. 3)”"
)
RARELY = 0.1  # of the checkpoints: as good as never
GROUP, SOMETIMES = 0.01, 0.05  # of the samples: an outer group, beyond chance; the middle one


def groups_by_count(selected: Sequence[float]) -> tuple[float, float, float]:
    """Shares of samples selected never (at most RARELY of the times), sometimes and always, of those by count 0, 1, ….

    `selected` has for each possible count the number of samples, or their share.
    """
    times, total = len(selected) - 1, sum(selected)
    never = sum(number for count, number in enumerate(selected) if count <= RARELY * times) / total
    always = sum(number for count, number in enumerate(selected) if count >= (1 - RARELY) * times) / total
    return never, 1 - never - always, always


def groups_by_chance(keep: float, checkpoints: int) -> tuple[float, float, float]:
    """The same of selections that are drawn at random and independently."""
    return groups_by_count(
        [
            math.comb(checkpoints, count) * keep**count * (1 - keep) ** (checkpoints - count)
            for count in range(checkpoints + 1)
        ]
    )


def sometimes_section(
    counts: NDArray[np.int64], checkpoints: int, about: str, fitted: str, compared: Sequence[Cell] = ()
) -> str:
    """Whether there are three groups: counted, by chance, and as fitted; `compared` are these runs and random ones."""
    counted = groups_by_count(np.bincount(counts, minlength=checkpoints + 1).tolist())
    by_chance = groups_by_chance(counts.mean() / checkpoints, checkpoints)
    outer = all(counted[i] > by_chance[i] + GROUP for i in (0, 2))
    words = ("never, at most {:.0%} of the times", "sometimes", "always, at least {:.0%} of the times")
    head = ["", *(word.format(limit) for word, limit in zip(words, (RARELY, 0, 1 - RARELY), strict=True))]
    body = [
        [name, *(f"{100 * share:.1f} %" for share in shares)]
        for name, shares in ((about, counted), ("random selections", by_chance))
    ]
    reached = "; ".join(f"{cell.run.label} {accuracy_words(cell)} %" for cell in compared)
    return "\n\n".join(
        [
            f"### Always, sometimes and never samples exist: {HOLDS if outer and counted[1] > SOMETIMES else FAILS}",
            QUOTE,
            f"Counted over {checkpoints} checkpoints of all seeds. Selections at random leave nearly all samples in "
            "the middle, so that group alone shows nothing: it holds where both outer groups have at least "
            f"{GROUP:.0%} of the samples more than by chance, and the middle more than {SOMETIMES:.0%}.",
            *([f"Selections of a collapsing run swing between classes. Accuracies: {reached}."] if reached else []),
            markdown(head, body),
            f"The mixture that the paper fits to the same counts: {fitted}.",
        ]
    )
