"""The page of findings: verdicts follow from the rows, noise is taken into account, nothing is typed by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks import findings, grid, verdicts
from benchmarks.balance import balance_table, write_balance
from benchmarks.claims import CLAIMS, Claim
from benchmarks.conclusions import explanation, opening
from benchmarks.conditions import conditions
from benchmarks.costs import cost_section, scoring_passes
from benchmarks.results import RESULTS, Cell, Row, cells, distinct, read_rows, table
from benchmarks.sometimes import groups_by_count, sometimes_section
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
    made = {"key": run.key, "run": run.config.run.name, "curve": "1000:0.5", **MADE}
    return made | {name: str(value) for name, value in numbers.items()}


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
        ([0.70, 0.71, 0.70], [0.80, 0.81, 0.80], "level with", "does not hold"),
        ([0.805, 0.806, 0.807], [0.800, 0.801, 0.802], "level with", "holds"),  # different, but by less than a point
        ([0.786, 0.791, 0.789], [0.802, 0.800, 0.801], "level with", "undecided"),  # -1.2 ± 0.6: worse, but by a point?
        ([0.802, 0.800, 0.801], [0.786, 0.791, 0.789], "level with", "undecided"),
        ([0.80, 0.81, 0.80], [0.70, 0.71, 0.70], "below", "does not hold"),
        ([0.9], [0.1], "above", "undecided"),  # single runs have no spread
    ],
)
def test_a_verdict_takes_the_noise_into_account(a: list[float], b: list[float], relation: str, verdict: str) -> None:
    assert verdicts.compare(cell(a), cell(b), relation).verdict == verdict


def test_several_verdicts_make_one() -> None:
    assert verdicts.overall(["holds", "holds"]) == "holds"
    assert verdicts.overall(["holds", "undecided"]) == "holds in 1 of 2, undecided in 1"
    assert verdicts.overall(["undecided", "does not hold", "undecided"]) == "does not hold in 1 of 3, undecided in 2"
    assert verdicts.overall([]) == "not measured"


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
    worse = "On downsampled data EMA and ε-greedy are worse than random"
    assert f"| {worse} | does not hold; the same on CIFAR-10: does not hold |" in text
    assert points(r"\| CIFAR-10 \| UCB \| 0\.8 \| (\S+) ± \S+ \| worse \|", text) == pytest.approx(-20, abs=0.3)
    better = points(r"\| imbalanced \| uncertainty with EMA \| 0\.7 \| (\S+) ± \S+ \| better \|", text)
    assert better == pytest.approx(5, abs=0.3)
    assert "- EMA runs as written beat static pruning: better in 3 of 3, worse in 0, undecided in 0" in text
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
        {"epoch": epoch, "selected": True, "phase": phase, "keep": 0.5, "class_fraction": share}
        for epoch, (phase, share) in enumerate(zip(phases, shares, strict=True))
    ]
    (made / "log.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))


def test_the_balance_of_the_classes_is_that_of_the_policys_selections(tmp_path: Path) -> None:
    runs = [run for run in runs_of_the_grid() if run.method == "ucb"][:2]
    plant_run(tmp_path / "runs", runs[0], [{"cat": 0.5, "dog": 0.5}, {"cat": 0.05, "dog": 0.95, "cow": None}])
    csv_file = tmp_path / "small" / "classes.csv"
    done = {run.key: {**row(run, 0.7), "run": f"another_part_{run.seed}"} for run in runs}  # under that part's name
    (tmp_path / "runs" / runs[0].config.run.name).rename(tmp_path / "runs" / "another_part_0")
    write_balance(runs, done, tmp_path / "runs", csv_file)
    shutil.rmtree(tmp_path / "runs")
    plant_run(tmp_path / "runs", runs[1], [{"cat": 0.25, "dog": 0.75}])
    write_balance(runs, {run.key: row(run, 0.7) for run in runs}, tmp_path / "runs", csv_file)  # a row stays
    kept = {key: (row["least_share"], row["starved_checkpoints"]) for key, row in read_rows(csv_file).items()}
    assert kept == {runs[0].key: ("0.55", "1"), runs[1].key: ("0.5", "0")}
    (line,) = balance_table(cells(runs[:1], {runs[0].key: row(runs[0], 0.7)}), read_rows(csv_file)).splitlines()[2:]
    assert line == "| CIFAR-10 | UCB | 0.5 | 1 of 1 | 55 | 1 of 2 | 70.00 |"


def test_sometimes_samples_are_neither_always_nor_never_selected() -> None:
    assert groups_by_count([2, 1, 0, 0, 0, 4, 0, 0, 0, 2, 1]) == pytest.approx((0.3, 0.4, 0.3))
    split = np.repeat([0, 10], [70, 30])  # the same thirty samples at all ten checkpoints
    text = sometimes_section(split, 10, "ema 0.7", "not fitted")
    assert text.startswith("### Always, sometimes and never samples exist: does not hold\n")
    assert "| ema 0.7 | 70.0 % | 0.0 % | 30.0 % |" in text
    assert "| random selections | 14.9 % | 85.1 % | 0.0 % |" in text  # 0.7^10 + 10·0.3·0.7^9, and 0.3^10 + …
    some = sometimes_section(np.arange(1000) % 11, 10, "ema 0.7", "not fitted")
    assert some.startswith("### Always, sometimes and never samples exist: holds\n")
    chance = sometimes_section(np.random.default_rng(0).binomial(10, 0.3, 5000), 10, "random 0.7", "not fitted")
    assert chance.startswith("### Always, sometimes and never samples exist: does not hold\n")


def test_without_rows_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of this grid"):
        findings.write_findings({}, tmp_path, tmp_path / "findings.md")
    assert not (tmp_path / "findings.md").exists()


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.title)
def test_every_claim_names_cells_of_the_grid(claim: Claim) -> None:
    runs = runs_of_the_grid()
    found = verdicts.comparisons(claim, cells(runs, planted_rows({})))
    assert len(found) == math.prod(
        len(many) for many in (claim.parts, claim.rates, claim.methods.split(), claim.rivals.split())
    )


@cache
def committed() -> Sequence[Cell]:
    return cells(runs_of_the_grid(), read_rows(RESULTS / "small.csv"))


def test_the_passes_that_a_page_counts_are_those_that_took_time() -> None:
    for cell in committed():
        for done in cell.rows:  # keeping the losses of training takes InfoBatch a moment
            assert (scoring_passes(cell.run.config) > 0) == (float(done["score_seconds"]) > 1), str(cell.run)


def test_what_several_parts_have_is_told_once_and_where_it_stands_first() -> None:
    grouped = distinct(committed())
    keys = [row["key"] for cell in grouped for row in cell.rows]
    assert sorted(keys) == sorted({row["key"] for cell in committed() for row in cell.rows})
    order = {id(cell): i for i, cell in enumerate(committed())}
    assert [order[id(cell)] for cell in grouped] == sorted(order[id(cell)] for cell in grouped)
    assert ("CIFAR-10, static", "random") not in {(cell.run.part, cell.run.method) for cell in grouped}


def test_infobatch_is_told_by_what_it_prunes_and_not_compared_at_other_samples() -> None:
    rows = {}
    for key, made in planted_rows({}).items():
        rows[key] = {**made, "samples_seen": "730" if "infobatch" in made["run"] else made["samples_seen"]}
    grouped = cells(runs_of_the_grid(), rows)
    told = [line.split(" | ") for line in table(grouped).splitlines() if "| InfoBatch |" in line]
    assert [line[2] for line in told if line[0] == "| CIFAR-10"] == [
        "0.27 (ratio 0.5)",
        "0.27 (ratio 0.7)",
        "0.27 (ratio 0.8)",
    ]
    body, left_out = cost_section(grouped).split("\n\n")
    assert "InfoBatch" not in body
    assert left_out.count("InfoBatch") == len(told)
    assert "CIFAR-10, InfoBatch at 0.27 (ratio 0.7), 0.73 times the samples" in left_out


def test_a_collapse_and_an_unsteady_machine_are_marked() -> None:
    run = runs_of_the_grid()[0]
    steady, shaken = ([row(run, 0.19, seconds) for seconds in made] for made in ([10.0, 10.5], [10.0, 13.0]))
    (line,) = table([Cell(run, steady, 0)], marked=True).splitlines()[2:]
    assert "19.00 ± 0.00 † |" in line
    assert "‡" not in line
    (line,) = table([Cell(run, shaken, 0)], marked=True).splitlines()[2:]
    assert "10 ± 2 ‡ |" in line
    assert "up to 1.33 times" in conditions([Cell(run, shaken, 0)])
    claim = Claim("", "", ("downsampled",), "ucb", "level with", "random", elsewhere="CIFAR-10")
    grouped = cells(runs_of_the_grid(), planted_rows({"ucb": -0.55}))
    assert findings.verdict_words(claim, grouped) == (
        "does not hold; the same on CIFAR-10: does not hold; with a collapsed method (†) in 1 of 1"
    )


def test_time_is_compared_with_the_static_scores_in_it() -> None:
    rows = planted_rows({})
    for key, made in rows.items():
        rows[key] = {**made, "static_seconds": "8" if "el2n" in made["run"] else "0"}
    for done in ("ema", "full"):
        for i, run in enumerate(run for run in runs_of_the_grid() if run.method == done):
            rows[run.key] = {**rows[run.key], "total_seconds": str((5 if done == "ema" else 10) + 0.1 * i)}
    claim = Claim("", "", ("CIFAR-10, static",), "ema el2n", "below", "full", measure="seconds")
    faster, slower = verdicts.comparisons(claim, cells(runs_of_the_grid(), rows))
    assert (faster.verdict, slower.verdict) == ("holds", "does not hold")
    assert slower.gap == pytest.approx(8, abs=1.5)


def test_the_conclusions_follow_from_the_rows() -> None:
    grouped = cells(runs_of_the_grid(), planted_rows({"random": 0.03, "ucb_guarded": 0.05, "ema_guarded": 0.05}))
    text = opening(grouped)
    assert "- As written, EMA, ε-greedy and UCB lose to random on CIFAR-10: better in 0 of 9, worse in 9," in text
    assert "- Guarded, EMA and UCB beat random on Fashion-MNIST data: better in 2 of 2," in text
    assert "Where a method is better than random: uncertainty with EMA, guarded at 0.5, CIFAR-10 (+2." in text
    assert "Collapsed to within 10 points of chance: none." in text
    assert "cannot be told from full data" in opening(cells(runs_of_the_grid(), planted_rows({})))


def test_the_explanation_tells_starved_classes_from_what_they_do_not_explain() -> None:
    grouped = cells(runs_of_the_grid(), planted_rows({"ema": -0.3, "ucb_class_floor": -0.1}))
    classes = {}
    for cell in grouped:
        for done in cell.rows:
            starved = "9" if cell.run.method == "ema" else "0"
            classes[done["key"]] = {"checkpoints": "10", "starved_checkpoints": starved, "least_share": "1.0"}
    first, second, third = explanation(grouped, classes).splitlines()
    assert re.search(r"the 6 cells .* starve a class differ from random by -30\.\d+ to -29\.\d+ points", first)
    assert re.search(
        r"UCB, only a class floor at 0\.7, CIFAR-10, each guard \(least class 100 ± 0 %, -(9|10)\.", second
    )
    assert "uncertainty with EMA at" not in second
    assert third.rindex("UCB, only a class floor") > third.rindex("UCB, only half random")
