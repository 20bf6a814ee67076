"""The table and the figure of docs/findings.md: which claims hold at the small scale, by the committed rows alone.

    python -m benchmarks.paper findings --scale small      train; resumes where it was stopped
    python -m benchmarks.paper.findings                    write docs/findings/ from the rows

The claims are in claims.yaml, how they are judged in verdicts.py. People write the page; tests/test_findings.py checks
its verdicts and numbers against the table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness.machine import ROOT, made_on
from benchmarks.harness.tables import Row, table
from benchmarks.paper import figures, grid
from benchmarks.paper.balance import starved_words, write_balance
from benchmarks.paper.cells import RESULTS, cells, rate_words, read_rows
from benchmarks.paper.selection_counts import groups_in_words, read_histogram
from benchmarks.paper.verdicts import comparisons, measured, overall, read_claims
from ffcv_prune.analysis.intervals import correction
from ffcv_prune.errors import Arguments, UserError, run_command

ABOUT = """# The comparisons behind the findings

Made by `python -m benchmarks.paper.findings` from benchmarks/results/small.csv. [The findings](../findings.md) say what
to make of it.

A claim of "above" or "below" holds where the whole interval of the difference lies on its side of 0. "Level" holds
where the interval lies within ±1 point. It fails where the interval lies wholly beyond, and is undecided otherwise.
Runs with the same seed are compared in pairs. Means are percent of test accuracy, or seconds with those of static
scores. "Starved" is how many selections of the first held less than a fifth of some class's part, of those looked at.
The rate of InfoBatch is the share that it left out, beside its ratio r."""


def main() -> None:
    parser = Arguments(
        prog="python -m benchmarks.paper.findings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    rows, runs = read_rows(RESULTS / "small.csv"), grid.load(grid.find("findings"), "small")[1]
    write_balance(runs, rows, ROOT / "runs" / "paper" / "small", RESULTS / "small" / "findings_classes.csv")
    print(write_findings(rows, RESULTS / "small", ROOT / "docs" / "findings"))


def write_findings(rows: Mapping[str, Row], results: Path, out: Path) -> Path:
    """Write the table and the figure into the folder `out`; return the path of the table."""
    about, runs = grid.load(grid.find("findings"), "small")
    grouped = cells(runs, rows)
    done = {row["key"]: row for cell in grouped for row in cell.rows}
    if not done:
        raise UserError("the CSV has no run of this grid; first: python -m benchmarks.paper findings --scale small")
    figures.draw("accuracy", grouped, about.title, out / "findings")
    classes = read_rows(results / "findings_classes.csv")
    judged = [(claim, comparisons(claim, grouped)) for claim in read_claims()]
    corrected = correction(one.p for _, found in judged for one in found)
    lines = []
    for claim, found in judged:
        verdicts = [one.verdict(corrected.level) for one in found]
        heads = ("claim", "data", "pruning rate", "first", "second", "means", "difference", "starved", "verdict")
        lines.append(dict.fromkeys(heads, "") | {"claim": f"**{claim.name}**", "verdict": f"**{overall(verdicts)}**"})
        for one, verdict in zip(found, verdicts, strict=True):
            first, second = one.first, one.second
            values = (statistics.mean(measured(cell, claim.measure).values()) for cell in (first, second))
            line = {"claim": claim.sign, "data": first.run.part, "pruning rate": rate_words(first, grouped)}
            line |= {"first": first.run.label, "second": second.run.label}
            line["means"] = "{:.2f}, {:.2f}".format(*values) + " s" * (claim.measure == "seconds")
            line |= {"difference": one.gap.in_words(corrected.level), "starved": starved_words(first, classes)}
            lines.append(line | {"verdict": verdict})
    counts = read_histogram(results / "findings_selections.csv")
    noise = f"± is the {corrected}: of the differences found here, at most one in twenty should be chance, in the mean."
    blocks = [ABOUT, noise, table(lines), groups_in_words(about.distribution, *counts)]
    blocks.append(f"{len(done)} of {len({run.key for run in runs})} runs. {made_on(list(done.values()))}")
    path = out / "comparisons.md"
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    run_command(main)
