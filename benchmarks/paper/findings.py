"""docs/findings.md: which findings of the paper hold at the small scale, by the committed rows alone.

    python -m benchmarks.paper findings --scale small      train; resumes where it was stopped
    python -m benchmarks.paper.findings                          write the page and its plots from the CSV

Every number and every verdict on the page follows from the rows: the claims are in claims.py, how they are judged in
verdicts.py, what they add up to in conclusions.py.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.tables import Row, markdown
from benchmarks.paper import figures, grid
from benchmarks.paper.balance import balance_table, write_balance
from benchmarks.paper.cells import RESULTS, Cell, cells, distinct, rate_words, read_rows, table
from benchmarks.paper.claims import CLAIMS, Claim
from benchmarks.paper.conclusions import explanation, opening
from benchmarks.paper.conditions import conditions, provenance
from benchmarks.paper.costs import cost_section
from benchmarks.paper.selection_counts import find_cell, read_histogram
from benchmarks.paper.sometimes import sometimes_section
from benchmarks.paper.verdicts import RULE, cell_of, comparisons, measured, overall
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.training.run_log import STARVED

WHY = (
    "Looked at to understand what does not hold: of each selection that the method's rule made, the class of which it "
    "holds least, as a percentage of that class's proportional part (100: as in the data), mean over checkpoints and "
    f"seeds; and how many selections hold less than {STARVED:.0%} of some class's part. “Runs looked at” says of how "
    "many seeds the selections are known; the accuracy is that of all seeds."
)
ROOT = Path(__file__).resolve().parents[2]


def verdict_words(claim: Claim, grouped: Sequence[Cell]) -> str:
    """The verdict over all comparisons; how it is elsewhere, if it should be another there; how many are marked."""
    found = comparisons(claim, grouped)
    words = [overall([one.verdict for one in found])]
    if claim.elsewhere:
        other = overall([one.verdict for one in comparisons(elsewhere(claim), grouped)])
        words.append(f"the same on {claim.elsewhere}: {other}")
    accuracy = claim.measure == "accuracy"
    marked = sum(one.collapsed if accuracy else one.unsteady for one in found)
    if marked:
        what = "a collapsed method (†)" if accuracy else "unsteady seconds (‡)"
        words.append(f"with {what} in {marked} of {len(found)}")
    return "; ".join(words)


def elsewhere(claim: Claim) -> Claim:
    """The same comparisons where they should not hold."""
    return replace(claim, parts=(claim.elsewhere,))


def section(claim: Claim, grouped: Sequence[Cell]) -> str:
    """The claim, who says so in what words, and each comparison with its numbers."""
    found = [*comparisons(claim, grouped), *(comparisons(elsewhere(claim), grouped) if claim.elsewhere else [])]
    lines = [f"### {claim.title}: {verdict_words(claim, grouped)}"]
    lines.append(f"{claim.source}: “{claim.quote}”" if claim.quote else "The paper has no such claim; this is ours.")
    if claim.elsewhere:
        lines.append(
            f"This is a finding about {' and '.join(claim.parts)} data only so far as it fails on {claim.elsewhere}."
        )
    several = len({one.cell.run.part for one in found}) > 1
    body = [
        [
            *([one.cell.run.part] if several else []),
            f"{one.cell.run.label} {claim.relation} {one.rival.run.label}",
            rate_words(one.cell, grouped),
            mean_words(one.cell, claim.measure),
            mean_words(one.rival, claim.measure),
            one.difference,
            one.verdict,
        ]
        for one in found
    ]
    unit = "%" if claim.measure == "accuracy" else "s"
    head = [*(["data"] if several else []), "claim", "pruning rate", f"first, {unit}", f"second, {unit}"]
    if body:
        lines.append(markdown([*head, "difference, 95 %", "verdict"], body))
    return "\n\n".join(lines)


def mean_words(cell: Cell, measure: str) -> str:
    mean = f"{statistics.mean(measured(cell, measure)):.2f}"
    return mean + (" †" * cell.collapsed if measure == "accuracy" else " ‡" * cell.unsteady)


def page(
    grouped: Sequence[Cell], claims: Sequence[Claim], groups: str, classes: Mapping[str, Row], pictures: Sequence[str]
) -> str:
    """The whole of docs/findings.md."""
    summary = [[claim.title, verdict_words(claim, grouped)] for claim in claims]
    if groups:  # its first line is its title
        summary.append(groups.partition("\n")[0].removeprefix("### ").split(": "))
    rows = {row["key"]: row for cell in grouped for row in cell.rows}
    missing = sum(cell.missing for cell in grouped)
    made = sum(len(comparisons(claim, grouped)) for claim in claims)
    balance = balance_table(grouped, classes)
    config = grouped[0].run.config
    blocks = [
        "# What holds of the paper at a small scale",
        "Made by `python -m benchmarks.paper.findings` from benchmarks/results/small.csv; the grid is "
        "benchmarks/paper/experiments/findings.yaml. "
        f"These are a small net ({config.model.name}) and a short schedule ({config.train.epochs} epochs): what does "
        "not hold here may hold at the paper's scale.",
        *([f"{missing} runs of the grid are missing."] if missing else []),
        opening(grouped),
        "## The findings",
        RULE,
        f"The claims below make {made} comparisons, not corrected for their number: of as many between methods that do "
        f"not differ, about {made / 20:.0f} would be called different by chance.",
        markdown(["finding", "here"], summary),
        "## How the runs were made",
        provenance(list(rows.values())),
        conditions(grouped),
        "## The findings one by one",
        *(section(claim, grouped) for claim in claims),
        *([groups] if groups else []),
        *([f"## What the selections hold of each class\n\n{WHY}"] if balance else []),
        *([explanation(grouped, classes), balance] if balance else []),
        "## Against full data at the same samples seen",
        "Full data with the epochs cut is the baseline that pruning must beat. The cost is in images: what was trained "
        "on and scored (a pass without gradients), in multiples of all data, plus what the static scores took before.",
        cost_section(grouped),
        "## All numbers",
        "Mean ± standard deviation over the seeds; what several parts have stands under the first. Seconds leave out "
        "tests and static scores. The pruning rate of InfoBatch is the share of samples that it left out, beside its "
        "ratio r.",
        table(distinct(grouped), marked=True),
        *(f"![]({picture})" for picture in pictures),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper.findings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--csv", type=Path, default=RESULTS / "small.csv")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "findings.md")
    args = parser.parse_args()
    rows, results = read_rows(args.csv), args.csv.parent / "small"
    runs = grid.load(grid.find("findings"), "small")[1]
    write_balance(runs, rows, ROOT / "runs" / "paper" / "small", balance_csv(results))
    print(write_findings(rows, results, args.out))


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
        fitted = results / "findings_fit.csv"
        path, words = figures.draw_distribution(about.distribution, counts, checkpoints, picture, fitted)
        run = find_cell(about.distribution, runs)[0]
        compared = [cell_of(grouped, run.part, method, run.rate) for method in (run.method, "random")]
        known = [cell for cell in compared if cell]
        groups = sometimes_section(counts, checkpoints, about.distribution, words, known)
        drawn.append(path)
    pictures = [path.relative_to(out.parent).as_posix() for path in drawn if path]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(grouped, CLAIMS, groups, read_rows(balance_csv(results)), pictures), encoding="utf-8")
    return out


if __name__ == "__main__":
    run_command(main)
