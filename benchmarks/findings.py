"""docs/findings.md: which findings of the paper hold at the small scale, by the committed rows alone.

    python -m benchmarks.paper findings --scale small      train; resumes where it was stopped
    python -m benchmarks.findings                          write the page and its plots from the CSV

Every number and every verdict on the page follows from the rows. A difference counts when it is larger than its 95 %
interval (Welch's, over the seeds); otherwise it is called undecided, whichever way it points. "Level" is what
differs by at most one point with that interval: an interval that is merely wide shows nothing.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import figures, grid
from benchmarks.balance import balance_table, write_balance
from benchmarks.claims import CLAIMS, Claim
from benchmarks.results import RESULTS, Cell, Row, cells, markdown, read_rows, table
from benchmarks.selections import read_histogram
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.training.run_log import STARVED

WHY = (
    "Looked at to understand what does not hold: of each selection that the method's rule made, the class of which it "
    "holds least, as a percentage of that class's proportional part (100: as in the data), mean over checkpoints and "
    f"seeds; and how many selections hold less than {STARVED:.0%} of some class's part."
)
SOMETIMES_QUOTE = (
    "The paper: “a significant portion of the mass is contained in this component, suggesting that a large subset of "
    "the dataset cannot be classified as always or never selected (section 4.2, Fig. 3)”"
)
ROOT = Path(__file__).resolve().parent.parent
FULL = ("full", "full_equal")
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
RARELY, SOMETIMES = 0.1, 0.05  # of the checkpoints: as good as never; of the samples: a group
LEVEL = 1.0  # points of accuracy within which two methods count as level

# Two-sided 95 % quantiles of Student's t by degrees of freedom, 1 to 10; beyond, that of 10 is on the safe side.
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True)
class Comparison:
    """Two cells: their difference in points of accuracy, the half width of its 95 % interval, and the verdict."""

    cell: Cell
    rival: Cell
    gap: float
    margin: float
    verdict: str


def compare(cell: Cell, rival: Cell, relation: str) -> Comparison:
    a, b = ([100 * accuracy for accuracy in one.accuracies] for one in (cell, rival))
    gap, margin = statistics.mean(a) - statistics.mean(b), welch_margin(a, b)
    low, high = gap - margin, gap + margin
    holds, fails = {
        "above": (low > 0, high < 0),
        "below": (high < 0, low > 0),
        "not above": (high <= LEVEL, low > 0),
        "level with": (low >= -LEVEL and high <= LEVEL, low > 0 or high < 0),
    }[relation]
    # Both for what differs for certain, and by less than a point: that is level.
    verdict = HOLDS if holds else FAILS if fails else UNDECIDED
    return Comparison(cell, rival, gap, margin, verdict)


def welch_margin(a: Sequence[float], b: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the difference of the means of a and b; infinite for single values."""
    if min(len(a), len(b)) < 2:
        return math.inf
    parts = [statistics.variance(values) / len(values) for values in (a, b)]
    if sum(parts) == 0:
        return 0.0
    spread = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    freedom = int(sum(parts) ** 2 / spread + 1e-9)  # Welch and Satterthwaite, rounded down
    return T_QUANTILES[min(freedom, len(T_QUANTILES)) - 1] * math.sqrt(sum(parts))


def comparisons(claim: Claim, grouped: Sequence[Cell]) -> list[Comparison]:
    """Those of the claim's comparisons that have rows on both sides."""

    def find(method: str, rate: float) -> Cell | None:
        fitting = (c for c in grouped if (c.run.part, c.run.method) == (claim.part, method))
        return next((c for c in fitting if c.run.rate in (rate, None) and c.rows), None)

    pairs = [
        (find(method, rate), find(rival, rate))
        for rate in claim.rates
        for method in claim.methods.split()
        for rival in claim.rivals.split()
    ]
    return [compare(cell, rival, claim.relation) for cell, rival in pairs if cell and rival]


def overall(verdicts: Sequence[str]) -> str:
    """The verdict that all comparisons share, or how many have which: ``holds in 1 of 3, undecided in 2``."""
    if not verdicts:
        return "not measured"
    numbers = [(verdict, verdicts.count(verdict)) for verdict in (HOLDS, FAILS, UNDECIDED) if verdict in verdicts]
    if len(numbers) == 1:
        return verdicts[0]
    first, *rest = (f"{verdict} in {number}" for verdict, number in numbers)
    return ", ".join([f"{first} of {len(verdicts)}", *rest])


def section(claim: Claim, found: Sequence[Comparison]) -> str:
    """The claim, what the paper says, and each comparison with its numbers."""
    lines = [f"### {claim.title}: {overall([one.verdict for one in found])}"]
    lines.append(f"The paper: “{claim.quote}”" if claim.quote else "The paper has no such claim; this is ours.")
    body = [
        [
            f"{one.cell.run.label} {claim.relation} {one.rival.run.label}",
            "–" if one.cell.run.rate is None else f"{one.cell.run.rate:g}",
            f"{100 * statistics.mean(one.cell.accuracies):.2f}",
            f"{100 * statistics.mean(one.rival.accuracies):.2f}",
            f"{one.gap:+.2f} ± {one.margin:.2f}" if math.isfinite(one.margin) else f"{one.gap:+.2f}, one run",
            one.verdict,
        ]
        for one in found
    ]
    if body:
        lines.append(markdown(["claim", "pruning rate", "first, %", "second, %", "difference, 95 %", "verdict"], body))
    return "\n\n".join(lines)


def groups_by_count(selected: Sequence[float]) -> tuple[float, float, float]:
    """Shares of samples selected never (at most RARELY of the times), sometimes and always, of those by count 0, 1, ….

    `selected` has for each possible count the number of samples, or their share.
    """
    times, total = len(selected) - 1, sum(selected)
    never = sum(number for count, number in enumerate(selected) if count <= RARELY * times) / total
    always = sum(number for count, number in enumerate(selected) if count >= (1 - RARELY) * times) / total
    return never, 1 - never - always, always


def sometimes_section(counts: NDArray[np.int64], checkpoints: int, about: str, fitted: str) -> str:
    """Whether samples are that are neither always nor never selected: counted, by chance alone, and as fitted."""
    counted = groups_by_count(np.bincount(counts, minlength=checkpoints + 1).tolist())
    keep = counts.mean() / checkpoints
    chance = [
        math.comb(checkpoints, count) * keep**count * (1 - keep) ** (checkpoints - count)
        for count in range(checkpoints + 1)
    ]
    by_chance = groups_by_count(chance)
    verdict = HOLDS if counted[1] > SOMETIMES else FAILS
    words = ("never, at most {:.0%} of the times", "sometimes", "always, at least {:.0%} of the times")
    head = ["", *(word.format(limit) for word, limit in zip(words, (RARELY, 0, 1 - RARELY), strict=True))]
    body = [
        [name, *(f"{100 * share:.1f} %" for share in shares)]
        for name, shares in ((about, counted), ("random selections", by_chance))
    ]
    return "\n\n".join(
        [
            f"### Sometimes samples exist: {verdict}",
            SOMETIMES_QUOTE,
            f"Counted over {checkpoints} checkpoints of all seeds; it holds where the middle group is more than "
            f"{SOMETIMES:.0%}. Where the selections of a collapsing run swing between classes, that alone makes it so.",
            markdown(head, body),
            f"The mixture that the paper fits to the same counts: {fitted}.",
        ]
    )


def cost_sentences(grouped: Sequence[Cell]) -> list[str]:
    """Accuracy and time of each pruned cell against all data, with the epochs that come nearest in samples seen."""
    lines = []
    for cell in grouped:
        full = [c for c in grouped if c.run.part == cell.run.part and c.run.method in FULL and c.rows]
        if not cell.rows or cell.run.method in FULL or not full:
            continue
        ratios = {cell.mean("samples_seen") / rival.mean("samples_seen"): rival for rival in full}
        ratio = min(ratios, key=lambda ratio: abs(math.log(ratio)))
        one = compare(cell, ratios[ratio], "above")
        word = {HOLDS: "better", FAILS: "worse", UNDECIDED: "no difference shown"}[one.verdict]
        seconds, against = (statistics.mean(c.seconds) + statistics.mean(c.score_seconds) for c in (cell, one.rival))
        lines.append(
            f"- {cell.run.part}, {cell.run.label} at {cell.run.rate:g}: {word} ({one.gap:+.2f} points), "
            f"{ratio:.2f} times the samples, {seconds / against:.2f} times the seconds."
        )
    return lines


def provenance(rows: Sequence[Row]) -> str:
    """Machines, versions, commits and dates of the rows, in one sentence each."""

    def of(column: str) -> str:
        return ", ".join(sorted({row[column] for row in rows if row.get(column)}))

    machines = sorted({f"{row['cpu']}, {row['cores']} core{'s' * (row['cores'] != '1')}" for row in rows})
    dates = sorted(row["date"][:10] for row in rows)
    versions = ", ".join(f"{name} {of(name)}" for name in ("torch", "ffcv", "numba", "numpy"))
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return f"{len(rows)} runs on {'; '.join(machines)}; {versions}; commits {of('commit')}; {days}."


def page(grouped: Sequence[Cell], claims: Sequence[Claim], groups: str, balance: str, pictures: Sequence[str]) -> str:
    """The whole of docs/findings.md."""
    found = [(claim, comparisons(claim, grouped)) for claim in claims]
    summary = [[claim.title, overall([one.verdict for one in ones])] for claim, ones in found]
    if groups:  # its first line is its title
        summary.append(groups.partition("\n")[0].removeprefix("### ").split(": "))
    rows = {row["key"]: row for cell in grouped for row in cell.rows}
    missing = sum(cell.missing for cell in grouped)
    blocks = [
        "# What holds of the paper at a small scale",
        "Made by `python -m benchmarks.findings` from benchmarks/results/small.csv; the grid is "
        "benchmarks/experiments/findings.yaml.",
        provenance(list(rows.values())),
        *([f"{missing} runs of the grid are missing."] if missing else []),
        "A difference counts when it is larger than its 95 % interval (Welch, over the seeds); level is what differs "
        f"by at most {LEVEL:g} point with that interval. These are a small net and a short schedule: what does not "
        "hold here may hold at the paper's scale.",
        markdown(["finding", "here"], summary),
        "## The findings one by one",
        *(section(claim, ones) for claim, ones in found),
        *([groups] if groups else []),
        *([f"## What the selections hold of each class\n\n{WHY}\n\n{balance}"] if balance else []),
        "## Against full data at the same samples seen",
        "Full data with the epochs cut is the baseline that pruning must beat. Seconds include scoring and static "
        "scores, and leave out tests.",
        "\n".join(cost_sentences(grouped)),
        "## All numbers",
        "Mean ± standard deviation over the seeds.",
        table(grouped),
        *(f"![]({picture})" for picture in pictures),
    ]
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.findings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path, default=RESULTS / "small.csv")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "findings.md")
    args = parser.parse_args()
    results = args.csv.parent / "small"
    write_balance(grid.load(grid.find("findings"), "small")[1], ROOT / "runs" / "paper" / "small", balance_csv(results))
    print(write_findings(read_rows(args.csv), results, args.out))


def balance_csv(results: Path) -> Path:
    return results / "findings_classes.csv"


def write_findings(rows: Mapping[str, Row], results: Path, out: Path) -> Path:
    """Write the page at `out` and its plots into the folder `out` without its ending."""
    about, runs = grid.load(grid.find("findings"), "small")
    grouped = cells(runs, rows)
    if not any(cell.rows for cell in grouped):
        raise UserError("the CSV has no run of this grid; first: python -m benchmarks.paper findings --scale small")
    picture = out.with_suffix("") / "findings"
    drawn = [figures.draw("accuracy", grouped, about.title, picture)]
    histogram, groups = results / "findings_selections.csv", ""
    if histogram.exists():
        counts, checkpoints = read_histogram(histogram)
        path, words = figures.draw_distribution(about.distribution, counts, checkpoints, picture)
        groups = sometimes_section(counts, checkpoints, about.distribution, words)
        drawn.append(path)
    pictures = [path.relative_to(out.parent).as_posix() for path in drawn if path]
    out.parent.mkdir(parents=True, exist_ok=True)
    balance = balance_table(grouped, balance_csv(results))
    out.write_text(page(grouped, CLAIMS, groups, balance, pictures), encoding="utf-8")
    return out


if __name__ == "__main__":
    run_command(main)
