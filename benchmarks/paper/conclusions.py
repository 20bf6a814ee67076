"""What the rows of findings.yaml add up to, in sentences that follow from them: the opening and the explanation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.harness.tables import Row, mean_and_spread
from benchmarks.paper.balance import least_share, starved_share
from benchmarks.paper.cells import COLLAPSED, Cell, distinct
from benchmarks.paper.claims import CIFAR10, CIFAR10_STATIC, EACH_GUARD, GUARDED, OTHERS, PROPOSED, RATES, STATIC, Claim
from benchmarks.paper.costs import WORDS
from benchmarks.paper.verdicts import FAILS, HOLDS, UNDECIDED, Comparison, cell_of, compare, comparisons
from ffcv_prune.training.run_log import STARVED

TABLE_1 = "always_ema last_ema"
AS_WRITTEN, WITH_GUARDS, CHANCE = "As written, EMA, ε-greedy and UCB", "Guarded, EMA and UCB", "Random subsets"
EQUAL_SAMPLES = "full data at equal samples"


def against(
    grouped: Sequence[Cell], parts: Sequence[str], methods: str, rivals: str, rates: tuple[float, ...] = RATES
) -> list[Comparison]:
    """Whether each of these methods is above each of the rivals, as far as there are rows."""
    return comparisons(Claim("", "", tuple(parts), methods, "above", rivals, rates), grouped)


def opening(grouped: Sequence[Cell]) -> str:
    """The short conclusion that the page starts with."""
    cifar, static = (CIFAR10,), (CIFAR10_STATIC,)
    fallen = [f"{cell.run.label} at {cell.run.rate:g}, {cell.run.part}" for cell in distinct(grouped) if cell.collapsed]
    sentences = [
        tell(AS_WRITTEN, "random on CIFAR-10", against(grouped, cifar, PROPOSED, "random")),
        tell(AS_WRITTEN, "random on the other data", against(grouped, OTHERS, PROPOSED, "random")),
        f"Collapsed to within {COLLAPSED:g} points of chance: {'; '.join(fallen) or 'none'}.",
        tell("EMA runs as written", "static pruning", against(grouped, static, "ema", STATIC)),
        tell("Sometimes samples drawn anew or chosen once", "EMA itself", against(grouped, static, TABLE_1, "ema")),
        tell(CHANCE, "static pruning", against(grouped, static, "random", STATIC)),
        tell(CHANCE, f"{EQUAL_SAMPLES} on CIFAR-10", against(grouped, cifar, "random", "full_equal")),
        tell(WITH_GUARDS, f"{EQUAL_SAMPLES} on CIFAR-10", against(grouped, cifar, GUARDED, "full_equal")),
        tell(WITH_GUARDS, "random on CIFAR-10", against(grouped, cifar, GUARDED, "random")),
        *(tell(WITH_GUARDS, f"random on {part} data", against(grouped, [part], GUARDED, "random")) for part in OTHERS),
    ]
    dynamic = f"random {PROPOSED} {GUARDED}"
    for rivals, words in (("random", "random"), ("full_equal", EQUAL_SAMPLES)):
        better = [one for one in against(grouped, (CIFAR10, *OTHERS), dynamic, rivals) if one.verdict == HOLDS]
        sentences.append(f"Where a method is better than {words}: {names(better) or 'nowhere'}.")
    return "\n".join(f"- {sentence}" for sentence in sentences if sentence)


def tell(who: str, rival: str, found: Sequence[Comparison]) -> str:
    """``They mostly lose to random: better in 0 of 9, worse in 5, undecided in 4 (-48.4 to -0.6 points).``"""
    if not found:
        return ""
    verdicts = [one.verdict for one in found]
    better, worse, unknown = (verdicts.count(verdict) for verdict in (HOLDS, FAILS, UNDECIDED))
    return (
        f"{who} {verb(better, worse, unknown)} {rival}: better in {better} of {len(found)}, worse in {worse}, "
        f"undecided in {unknown} ({span(found)} points)."
    )


def verb(better: int, worse: int, unknown: int) -> str:
    total = better + worse + unknown
    for number, word in ((unknown, "{}cannot be told from"), (worse, "{}lose to"), (better, "{}beat")):
        if 2 * number > total:
            return word.format("" if number == total else "mostly ")
    return "do not fare alike against"


def span(found: Sequence[Comparison]) -> str:
    gaps = [one.gap for one in found]
    return f"{min(gaps):+.2f} to {max(gaps):+.2f}" if len(gaps) > 1 else found[0].difference


def names(found: Sequence[Comparison]) -> str:
    return "; ".join(
        f"{one.cell.run.label} at {one.cell.run.rate:g}, {one.cell.run.part} ({one.difference})" for one in found
    )


def explanation(grouped: Sequence[Cell], classes: Mapping[str, Row]) -> str:
    """What the balance of the classes explains of the differences to random, and what it does not."""
    rows = {id(cell): [classes[row["key"]] for row in cell.rows if row["key"] in classes] for cell in grouped}
    starving: list[Comparison] = []
    fed: list[Comparison] = []
    unexplained: list[str] = []
    for cell in distinct(grouped):
        rival = cell_of(grouped, cell.run.part, "random", cell.run.rate)
        if not rows[id(cell)] or rival is None or cell.run.rate is None or cell.run.method == "infobatch":
            continue
        one, share = compare(cell, rival, "above"), starved_share(rows[id(cell)])
        if cell.run.method in PROPOSED.split():
            (starving if share >= 0.5 else fed).append(one)
        if share == 0 and one.verdict == FAILS:
            least = mean_and_spread(least_share(rows[id(cell)]), 0)
            name = f"{cell.run.label} at {cell.run.rate:g}, {cell.run.part}"
            unexplained.append(f"{name} (least class {least} %, {one.difference})")
    lines = []
    if starving and fed:
        lines.append(
            f"Of EMA, ε-greedy and UCB as written, the {len(starving)} cells of which at least half the selections "
            f"starve a class differ from random by {span(starving)} points, the other {len(fed)} by {span(fed)}."
        )
    if unexplained:
        lines.append(
            f"Starved classes (below {STARVED:.0%} of their part) are not all of it. No selection of these had one, "
            f"and yet they are worse than random: {'; '.join(unexplained)}."
        )
    single = against(grouped, (EACH_GUARD,), "ucb_phases ucb_half_random ucb_class_floor", "random")
    if single:
        best = sorted(single, key=lambda one: -one.gap)
        told = "; ".join(f"{one.cell.run.label} ({one.difference}, {WORDS[one.verdict]})" for one in best)
        lines.append(f"One guard alone against random, the best first: {told}.")
    return "\n".join(f"- {line}" for line in lines)
