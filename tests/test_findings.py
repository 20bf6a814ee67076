"""The findings: verdicts follow from the rows, noise is taken into account, and the page says what the table says."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.machine import MACHINE
from benchmarks.harness.tables import Row
from benchmarks.paper import findings, grid, verdicts
from benchmarks.paper.balance import starved_words, write_balance
from benchmarks.paper.cells import RESULTS, Cell, cells, read_rows, table
from benchmarks.paper.selection_counts import groups_in_words
from benchmarks.paper.verdicts import Claim, read_claims
from ffcv_prune.analysis.intervals import LEVEL
from ffcv_prune.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@cache
def runs_of_the_grid() -> list[grid.Run]:
    return grid.load(grid.find("findings"), "small")[1]


def row(run: grid.Run, accuracy: float, seconds: float = 10.0) -> dict[str, str]:
    numbers = {"accuracy": accuracy, "total_seconds": seconds, "eval_seconds": 1.0, "samples_seen": 1000}
    numbers["seed"] = run.seed
    made = {"key": run.key, "run": run.config.run.name, "curve": "1000:0.5"} | dict.fromkeys(MACHINE, "x")
    return made | {name: str(value) for name, value in numbers.items()}


def cell(accuracies: list[float]) -> Cell:
    run = runs_of_the_grid()[0]
    return Cell(run, [row(run, accuracy) | {"seed": f"{seed}"} for seed, accuracy in enumerate(accuracies)], 0)


@pytest.mark.parametrize(
    ("a", "b", "relation", "verdict"),
    [
        ([0.80, 0.81, 0.80], [0.70, 0.71, 0.70], "above", "holds"),
        ([0.70, 0.71, 0.70], [0.80, 0.81, 0.80], "above", "fails"),
        ([0.70, 0.71, 0.70], [0.80, 0.81, 0.80], "below", "holds"),
        ([0.70, 0.80, 0.90], [0.70, 0.79, 0.91], "above", "undecided"),
        ([0.80, 0.60, 0.95], [0.70, 0.71, 0.70], "above", "undecided"),  # better on average, by one lucky seed
        ([0.800, 0.801, 0.802], [0.800, 0.803, 0.801], "level", "holds"),
        ([0.80, 0.82, 0.79], [0.80, 0.79, 0.82], "level", "undecided"),  # a wide interval shows nothing
        ([0.80, 0.81, 0.80], [0.70, 0.71, 0.70], "level", "fails"),
        ([0.70, 0.71, 0.70], [0.80, 0.81, 0.80], "level", "fails"),
        ([0.805, 0.806, 0.807], [0.800, 0.801, 0.802], "level", "holds"),  # different, but by less than a point
        ([0.786, 0.791, 0.789], [0.802, 0.800, 0.801], "level", "undecided"),  # -1.2 ± 0.6: worse, but by a point?
        ([0.802, 0.800, 0.801], [0.786, 0.791, 0.789], "level", "undecided"),
        ([0.80, 0.81, 0.80], [0.70, 0.71, 0.70], "below", "fails"),
        ([0.9], [0.1], "above", "undecided"),  # single runs have no spread
    ],
)
def test_a_verdict_takes_the_noise_into_account(a: list[float], b: list[float], relation: str, verdict: str) -> None:
    made = verdicts.compare(cell(a), cell(b), relation)
    assert made.verdict(LEVEL) == verdict
    assert (made.p <= LEVEL) == (verdict != "undecided")


def test_several_verdicts_make_one() -> None:
    assert verdicts.overall(["holds", "holds"]) == "holds"
    assert verdicts.overall(["undecided", "holds", "undecided"]) == "holds 1, undecided 2"
    assert verdicts.overall([]) == "not measured"


def planted_rows(gains: dict[str, float]) -> dict[str, Row]:
    """Rows for the whole grid: 70 % everywhere but for the gains of single methods, with a little noise."""
    rng = np.random.default_rng(0)
    runs = runs_of_the_grid()
    return {run.key: row(run, 0.7 + gains.get(run.method, 0.0) + rng.normal(0, 0.001)) for run in runs}


def write(rows: dict[str, Row], folder: Path) -> str:
    """The table of these rows, with the committed selection counts."""
    small = folder / "small"
    if not small.exists():
        shutil.copytree(RESULTS / "small", small)
    return findings.write_findings(rows, small, folder / "findings").read_text(encoding="utf-8")


def test_the_table_states_what_was_planted(tmp_path: Path) -> None:
    rows = planted_rows({"ema": 0.05, "epsilon_greedy": 0.05, "ucb": -0.2, "ucb_guarded": 0.05})
    text = write(rows, tmp_path)
    assert claims_in(text)["EMA, ε-greedy and UCB beat random on CIFAR-10"] == "holds 6, fails 3"
    assert claims_in(text)["The guards help on a short schedule"] == "holds"
    assert claims_in(text)["EMA and ε-greedy lose to random on downsampled data"] == "fails"
    (line,) = re.findall(r"\| above \| CIFAR-10 \| 0\.8 \| UCB \| random \| .*", text)
    _, _, _, _, _, _, means, difference, _, verdict, _ = line.split("|")
    assert [float(mean) for mean in means.split(",")] == pytest.approx([50, 70], abs=0.3)
    assert float(difference.split()[0]) == pytest.approx(-20, abs=0.3)
    assert verdict == " fails "
    assert f"{len(rows)} of {len(rows)} runs. Measured on x, " in text
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "findings").glob("*.svg")}
    assert [*pictures] == ["findings_accuracy.svg"]
    assert write(rows, tmp_path) == text  # the same rows make the same files
    assert (tmp_path / "findings" / "findings_accuracy.svg").read_bytes() == pictures["findings_accuracy.svg"]
    some = dict(list(rows.items())[:-7])
    assert f"{len(some)} of {len(rows)} runs" in write(some, tmp_path)


def plant_run(folder: Path, run: grid.Run, fractions: list[dict[str, float | None]]) -> None:
    """A run folder of a warm-up epoch and one pruned epoch for each of `fractions`, keep 0.5."""
    made = folder / run.config.run.name
    made.mkdir(parents=True)
    (made / "config.yaml").write_text("prune:\n  method: ucb\n")
    for name in ("machine.json", "result.csv"):
        (made / name).write_text("{}")
    (made / "dataset.json").write_text('{"train_samples": 10}')
    phases = ["random", *["method"] * len(fractions)]
    shares: list[dict[str, float | None]] = [{"cat": 0.0, "dog": 1.0}, *fractions]
    rows = [
        {"epoch": epoch, "selected": True, "phase": phase, "keep": 0.5, "class_fraction": share}
        for epoch, (phase, share) in enumerate(zip(phases, shares, strict=True))
    ]
    (made / "log.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))


def test_the_balance_of_the_classes_is_that_of_the_methods_selections(tmp_path: Path) -> None:
    runs = [run for run in runs_of_the_grid() if run.method == "ucb"][:2]
    plant_run(tmp_path / "runs", runs[0], [{"cat": 0.5, "dog": 0.5}, {"cat": 0.05, "dog": 0.95, "cow": None}])
    csv_file = tmp_path / "small" / "classes.csv"
    done = {run.key: {**row(run, 0.7), "run": f"another_part_{run.seed}"} for run in runs}  # under that part's name
    (tmp_path / "runs" / runs[0].config.run.name).rename(tmp_path / "runs" / "another_part_0")
    write_balance(runs, done, tmp_path / "runs", csv_file)
    shutil.rmtree(tmp_path / "runs")
    plant_run(tmp_path / "runs", runs[1], [{"cat": 0.25, "dog": 0.75}])
    write_balance(runs, {run.key: row(run, 0.7) for run in runs}, tmp_path / "runs", csv_file)  # a row stays
    kept = {key: (row["least_share"], row["starved"]) for key, row in read_rows(csv_file).items()}
    assert kept == {runs[0].key: ("0.55", "1"), runs[1].key: ("0.5", "0")}
    (one,) = cells(runs[:1], {runs[0].key: row(runs[0], 0.7)})
    assert (starved_words(one, read_rows(csv_file)), starved_words(one, {})) == ("1 of 2", "")


def test_sometimes_samples_are_neither_always_nor_never_selected() -> None:
    text = groups_in_words("ema 0.7", np.repeat([0, 10], [70, 30]), 10)  # the same thirty samples all ten times
    assert "ema 0.7, samples were in: 70.0 % never, 0.0 % sometimes, 30.0 % always." in text
    assert "Drawn at random: 14.9 % never, 85.1 % sometimes, 0.0 % always." in text  # 0.7^10 + 10·0.3·0.7^9, and 0.3^10
    counts = np.repeat(np.arange(11), [2, 1, 0, 0, 0, 4, 0, 0, 0, 2, 1])
    assert "30.0 % never, 40.0 % sometimes, 30.0 % always" in groups_in_words("", counts, 10)


def test_without_rows_there_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of this grid"):
        findings.write_findings({}, tmp_path, tmp_path / "findings")
    assert not (tmp_path / "findings").exists()


@pytest.mark.parametrize("claim", read_claims(), ids=lambda claim: claim.name)
def test_every_claim_names_cells_of_the_grid(claim: Claim) -> None:
    found = verdicts.comparisons(claim, cells(runs_of_the_grid(), planted_rows({})))
    pairs = len(claim.first.split()) * len(claim.second.split())
    assert len(found) == len(claim.data) * len(claim.rates) * pairs > 0
    assert claim.measure in ("accuracy", "seconds")


def test_infobatch_is_told_by_what_it_prunes() -> None:
    rows = {}
    for key, made in planted_rows({}).items():
        rows[key] = {**made, "samples_seen": "730" if "infobatch" in made["run"] else made["samples_seen"]}
    lines = table(cells(runs_of_the_grid(), rows)).splitlines()
    told = [line.split(" | ") for line in lines if "| InfoBatch |" in line]
    assert [line[2] for line in told if line[0] == "| CIFAR-10"] == [
        "0.27 (ratio 0.5)",
        "0.27 (ratio 0.7)",
        "0.27 (ratio 0.8)",
    ]


def test_time_is_compared_with_the_static_scores_in_it() -> None:
    rows = planted_rows({})
    for key, made in rows.items():
        rows[key] = {**made, "static_seconds": "8" if "el2n" in made["run"] else "0"}
    for done in ("ema", "full"):
        for i, run in enumerate(run for run in runs_of_the_grid() if run.method == done):
            rows[run.key] = {**rows[run.key], "total_seconds": str((5 if done == "ema" else 10) + 0.1 * i)}
    claim = Claim("", ["CIFAR-10, static"], "ema el2n", "below", "full", ["0.7"], "seconds")
    faster, slower = verdicts.comparisons(claim, cells(runs_of_the_grid(), rows))
    assert (faster.verdict(LEVEL), slower.verdict(LEVEL)) == ("holds", "fails")
    assert slower.gap.mean == pytest.approx(8, abs=1.5)


# ---- the committed page -------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
TABLE = (ROOT / "docs" / "findings" / "comparisons.md").read_text(encoding="utf-8")


def claims_in(text: str) -> dict[str, str]:
    """The claims of the table, with what all comparisons of each add up to."""
    return dict(re.findall(r"^\| \*\*(.+?)\*\* \|(?: +\|)+ \*\*(.+?)\*\* \|$", text, re.MULTILINE))


def test_the_table_and_the_figure_are_those_of_the_committed_rows(tmp_path: Path) -> None:
    assert write(read_rows(RESULTS / "small.csv"), tmp_path) == TABLE
    made, kept = (folder / "findings_accuracy.svg" for folder in (tmp_path / "findings", ROOT / "docs" / "findings"))
    version = re.compile(r"Matplotlib v[\d.]+,")
    drawn, committed = made.read_text(encoding="utf-8"), kept.read_text(encoding="utf-8")
    if version.findall(drawn) == version.findall(committed):  # another version draws the same numbers otherwise
        assert drawn == committed


def test_the_page_gives_every_claim_the_verdict_of_the_table() -> None:
    told = dict(re.findall(r"^\| (?!claim|---)(.+?) \| (.+?) \|$", PAGE, re.MULTILINE))
    assert told == claims_in(TABLE)
    assert told.keys() == {claim.name for claim in read_claims()}


def test_the_numbers_of_the_page_stand_in_the_table() -> None:
    known = {number.lstrip("-") for number in re.findall(r"-?\d+\.\d+", TABLE)}
    said = re.findall(r"\d+\.\d+", PAGE)
    assert len(said) > 25
    assert not set(said) - known
    for starved in re.findall(r"\d+ of \d+", PAGE):
        assert f"| {starved} |" in TABLE
    (compared,) = re.findall(r"corrected for all (\d+) comparisons", PAGE)
    assert int(compared) == len(re.findall(r"^\| (?:above|below|level) \|", TABLE, re.MULTILINE))


def test_the_page_is_short() -> None:
    assert len(re.findall(r"[^\s|]*\w[^\s|]*", PAGE)) <= 1000
