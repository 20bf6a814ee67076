"""The claim on fresh seeds: which runs are made, and when it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.machine import MACHINE
from benchmarks.harness.rows import benchmark, read_csv, write_csv
from benchmarks.payoff import confirm, pair
from benchmarks.payoff import grid as grids
from benchmarks.payoff.grid import Case
from ffcv_prune.errors import UserError
from tests.test_payoff_seconds import claimed, needs_two_cores  # noqa: F401  the fixture of a grid with a claim

CONFIRM = "confirm: {method: recent, budget: 0.7, seeds: 4}\n"


@pytest.fixture
def confirmed(claimed: Path) -> Path:  # noqa: F811
    """A grid that confirms `recent` by the seeds 4 to 7, beside the referee's rows of it."""
    claimed.write_text(claimed.read_text() + CONFIRM)
    return claimed


def words_of(path: Path) -> list[str]:
    return [f"--grid={path}", f"--payoff={path.with_name('payoff.csv')}", f"--csv={path.with_name('confirm.csv')}"]


def line_of(path: Path) -> list[str]:
    page = path.with_name("confirm.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| recent")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def fake(case: Case, path: Path, accuracy: float = 0.02, work: float = 600.0, seconds: float = 7.0) -> dict[str, Any]:
    """In place of a run: full data has 0.5, 800 and 10, the method these, varied a little by the seed."""
    if case.entry != "recent":
        return {"entry": case.entry, "accuracy": 0.5, "work": 800.0, "seconds": 10.0}
    vary = 1 + 0.01 * (case.seed % 3)
    return {"entry": "recent", "accuracy": 0.5 + accuracy * vary, "work": work, "seconds": seconds * vary**0.01}


@needs_two_cores
def test_seeds_after_the_claim_decide_in_pairs(confirmed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "measure", fake)
    benchmark(confirm, words=words_of(confirmed))
    rows = read_csv(confirmed.with_name("confirm.csv"))
    assert [row["seed"] for row in rows] == ["4", "5", "6", "7"]
    assert {(row["method"], row["full"], row["work"], row["full_work"]) for row in rows} == {
        ("recent", "full 0.7", "600.0", "800.0")
    }
    line = line_of(confirmed)
    assert (line[2], line[7], line[-1]) == ("4 of 4", "0.750", "yes")
    benchmark(confirm, words=words_of(confirmed))  # nothing is repeated
    assert read_csv(confirmed.with_name("confirm.csv")) == rows


def line_without_runs(path: Path, seeds: int = 4, **side: float) -> list[str]:
    """The line of the page by rows that no process has made."""
    payoff = path.with_name("payoff.csv")
    judged, pairs = confirm._pairs(str(path), str(payoff))
    rows = []
    for seed, pair_of_runs in list(pairs.items())[:seeds]:
        own, full = (fake(case, path, **side) for case in pair_of_runs)
        row = {"method": own["entry"], "full": full["entry"], "seed": seed, "key": pair.key_of(judged, pair_of_runs)}
        row |= {name: own[name] for name in confirm.SIDE} | {f"full_{name}": full[name] for name in confirm.SIDE}
        rows.append(
            row | {"settings": f"grid={path} payoff={payoff}"} | dict.fromkeys((*MACHINE, "os", "torchvision"), "1")
        )
    write_csv(path.with_name("confirm.csv"), rows)
    benchmark(confirm, words=[*words_of(path), "--redraw"])
    return line_of(path)


def test_the_claim_holds_by_the_rows_alone(confirmed: Path) -> None:
    assert line_without_runs(confirmed)[-1] == "yes"


@pytest.mark.parametrize(
    "side",
    [{"accuracy": 0.0}, {"accuracy": -0.02}, {"work": 601.0}, {"seconds": 8.0}, {"seconds": 8.5}],
    ids=["as-accurate", "less-accurate", "more-work", "as-many-seconds", "more-seconds"],
)
def test_each_part_of_the_claim_can_fail(confirmed: Path, side: dict[str, float]) -> None:
    assert line_without_runs(confirmed, **side)[-1] == "no"


def test_nothing_is_judged_before_the_last_seed(confirmed: Path) -> None:
    line = line_without_runs(confirmed, seeds=3)
    assert (line[2], line[6], line[9], line[-1]) == ("3 of 4", "", "", "no")


def test_a_grid_that_confirms_nothing_is_refused(claimed: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="no key confirm"):
        benchmark(confirm, words=words_of(claimed))


def test_the_grid_of_cifar10_confirms_by_seeds_of_its_own() -> None:
    grid = grids.load()
    assert grid.confirm is not None and grid.confirm.method in grid.claim.methods
    assert grid.entry(f"full {grid.confirm.budget:g}") in grid.budgets
    assert confirm.seeds_of(grid, grid.confirm)[0] > grid.most_seeds
