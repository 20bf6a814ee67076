"""The page of findings: verdicts follow from the rows, noise is taken into account, nothing is typed by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks import findings, grid
from benchmarks.balance import balance_table, write_balance
from benchmarks.claims import CLAIMS, Claim
from benchmarks.results import Cell, Row, cells, read_rows
from ffcv_prune.errors import UserError

MADE = {
    "cpu": "A",
    "cores": "2",
    "torch": "1",
    "ffcv": "1",
    "numba": "1",
    "numpy": "1",
    "commit": "abc",
    "date": "2026-01-01T00:00:00+00:00",
}


@cache
def runs_of_the_grid() -> list[grid.Run]:
    return grid.load(grid.find("findings"), "small")[1]


def row(run: grid.Run, accuracy: float, seconds: float = 10.0) -> Row:
    numbers = {"accuracy": accuracy, "total_seconds": seconds, "eval_seconds": 1.0, "samples_seen": 1000}
    return {"key": run.key, "curve": "1000:0.5", **MADE, **{name: str(value) for name, value in numbers.items()}}


def cell(accuracies: list[float]) -> Cell:
    run = runs_of_the_grid()[0]
    return Cell(run, [row(run, accuracy) for accuracy in accuracies], 0)


@pytest.mark.parametrize(
    ("a", "b", "relation", "verdict"),
    [
        ([0.80, 0.81, 0.80], [0.70, 0.71, 0.70], "above", "holds"),
        ([0.70, 0.71, 0.70], [0.80, 0.81, 0.80], "above", "does not hold"),
        ([0.70, 0.71, 0.70], [0.80, 0.81, 0.80], "below", "holds"),
        ([0.70, 0.80, 0.90], [0.70, 0.79, 0.91], "above", "undecided"),
        ([0.80, 0.60, 0.95], [0.70, 0.71, 0.70], "above", "undecided"),  # better on average, by one lucky seed
        ([0.800, 0.801, 0.802], [0.800, 0.803, 0.801], "level with", "holds"),
        ([0.80, 0.82, 0.79], [0.80, 0.79, 0.82], "level with", "undecided"),  # a wide interval shows nothing
        ([0.80, 0.81, 0.80], [0.70, 0.71, 0.70], "level with", "does not hold"),
        ([0.800, 0.801, 0.802], [0.800, 0.803, 0.801], "not above", "holds"),
        ([0.70, 0.71, 0.70], [0.80, 0.81, 0.80], "not above", "holds"),
        ([0.80, 0.82, 0.79], [0.80, 0.79, 0.82], "not above", "undecided"),
        ([0.80, 0.81, 0.80], [0.70, 0.71, 0.70], "not above", "does not hold"),
        ([0.9], [0.1], "above", "undecided"),  # single runs have no spread
    ],
)
def test_a_verdict_takes_the_noise_into_account(a: list[float], b: list[float], relation: str, verdict: str) -> None:
    assert findings.compare(cell(a), cell(b), relation).verdict == verdict


def test_the_margin_is_that_of_welchs_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = [70.0, 72.0, 71.0], [60.0, 66.0, 62.0, 63.0]
    test = stats.ttest_ind(a, b, equal_var=False)
    exact = (test.confidence_interval(0.95).high - test.confidence_interval(0.95).low) / 2
    assert exact <= findings.welch_margin(a, b) < 1.25 * exact  # degrees of freedom are rounded down
    for freedom, quantile in enumerate(findings.T_QUANTILES, start=1):
        assert quantile == pytest.approx(stats.t.ppf(0.975, freedom), abs=0.005)
    assert findings.welch_margin([1.0], b) == math.inf
    assert findings.welch_margin([1.0, 1.0], [2.0, 2.0]) == 0


def test_several_verdicts_make_one() -> None:
    assert findings.overall(["holds", "holds"]) == "holds"
    assert findings.overall(["holds", "undecided"]) == "holds in 1 of 2, undecided in 1"
    assert findings.overall(["undecided", "does not hold", "undecided"]) == "does not hold in 1 of 3, undecided in 2"
    assert findings.overall([]) == "not measured"


def planted_rows(gains: dict[str, float]) -> dict[str, Row]:
    """Rows for the whole grid: 70 % everywhere but for the gains of single methods, with a little noise."""
    rng = np.random.default_rng(0)
    runs = runs_of_the_grid()
    return {run.key: row(run, 0.7 + gains.get(run.method, 0.0) + rng.normal(0, 0.001)) for run in runs}


def points(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None
    return float(found[1])


def test_the_page_states_what_was_planted(tmp_path: Path) -> None:
    rows = planted_rows({"ema": 0.05, "epsilon_greedy": 0.05, "ucb": -0.2, "ucb_guarded": 0.05})
    out = findings.write_findings(rows, tmp_path, tmp_path / "docs" / "findings.md")
    text = out.read_text()
    assert "| EMA, ε-greedy and UCB beat random on CIFAR-10 | holds in 6 of 9, does not hold in 3 |" in text
    assert "| The guards help on a short schedule | holds |" in text
    assert "| On downsampled data UCB matches random | does not hold |" in text
    assert "| On downsampled data EMA and ε-greedy are worse than random | does not hold |" in text
    assert points(r"- CIFAR-10, UCB at 0\.8: worse \((\S+) points\)", text) == pytest.approx(-20, abs=0.3)
    better = points(r"- imbalanced, uncertainty with EMA at 0\.7: better \((\S+) points\)", text)
    assert better == pytest.approx(5, abs=0.3)
    assert f"{len(rows)} runs on A, 2 cores" in text
    assert "missing" not in text
    picture = tmp_path / "docs" / "findings" / "findings_accuracy.svg"
    assert picture.exists()
    assert "![](findings/findings_accuracy.svg)" in text
    before = (text, picture.read_bytes())
    findings.write_findings(rows, tmp_path, out)
    assert (out.read_text(), picture.read_bytes()) == before  # the same rows make the same files
    some = dict(list(rows.items())[:-7])
    assert "7 runs of the grid are missing" in findings.write_findings(some, tmp_path, out).read_text()


def plant_run(folder: Path, run: grid.Run, fractions: list[dict[str, float | None]]) -> None:
    """A run folder of a warm-up epoch and one pruned epoch for each of `fractions`, keep 0.5."""
    made = folder / run.config.run.name
    made.mkdir(parents=True)
    (made / "config.yaml").write_text("prune:\n  policy: ucb\n")
    for name in ("machine.json", "result.csv"):
        (made / name).write_text("{}")
    (made / "dataset.json").write_text('{"train_samples": 10}')
    phases = ["random", *["policy"] * len(fractions)]
    shares: list[dict[str, float | None]] = [{"cat": 0.0, "dog": 1.0}, *fractions]
    rows = [
        {"epoch": epoch, "checkpoint": True, "phase": phase, "keep": 0.5, "class_fraction": share}
        for epoch, (phase, share) in enumerate(zip(phases, shares, strict=True))
    ]
    (made / "log.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))


def test_the_balance_of_the_classes_is_that_of_the_policys_selections(tmp_path: Path) -> None:
    runs = [run for run in runs_of_the_grid() if run.method == "ucb"][:2]
    plant_run(tmp_path / "runs", runs[0], [{"cat": 0.5, "dog": 0.5}, {"cat": 0.05, "dog": 0.95, "cow": None}])
    csv_file = tmp_path / "small" / "classes.csv"
    write_balance(runs, tmp_path / "runs", csv_file)
    shutil.rmtree(tmp_path / "runs")
    plant_run(tmp_path / "runs", runs[1], [{"cat": 0.25, "dog": 0.75}])
    write_balance(runs, tmp_path / "runs", csv_file)  # a row stays when its folder is gone
    kept = {key: (row["least_share"], row["starved_checkpoints"]) for key, row in read_rows(csv_file).items()}
    assert kept == {runs[0].key: ("0.55", "1"), runs[1].key: ("0.5", "0")}
    (line,) = balance_table(cells(runs[:1], {runs[0].key: row(runs[0], 0.7)}), csv_file).splitlines()[2:]
    assert line == "| CIFAR-10 | UCB | 0.5 | 55 | 1 of 2 | 70.00 |"


def test_sometimes_samples_are_neither_always_nor_never_selected() -> None:
    assert findings.groups_by_count([2, 1, 0, 0, 0, 4, 0, 0, 0, 2, 1]) == pytest.approx((0.3, 0.4, 0.3))
    split = np.repeat([0, 10], [70, 30])  # the same thirty samples at all ten checkpoints
    text = findings.sometimes_section(split, 10, "ema 0.7", "not fitted")
    assert text.startswith("### Sometimes samples exist: does not hold\n")
    assert "| ema 0.7 | 70.0 % | 0.0 % | 30.0 % |" in text
    assert "| random selections | 14.9 % | 85.1 % | 0.0 % |" in text  # 0.7^10 + 10·0.3·0.7^9, and 0.3^10 + …
    some = findings.sometimes_section(np.arange(1000) % 11, 10, "ema 0.7", "not fitted")
    assert some.startswith("### Sometimes samples exist: holds\n")


def test_without_rows_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of this grid"):
        findings.write_findings({}, tmp_path, tmp_path / "findings.md")
    assert not (tmp_path / "findings.md").exists()


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.title)
def test_every_claim_names_cells_of_the_grid(claim: Claim) -> None:
    runs = runs_of_the_grid()
    found = findings.comparisons(claim, cells(runs, planted_rows({})))
    assert len(found) == len(claim.rates) * len(claim.methods.split()) * len(claim.rivals.split())
