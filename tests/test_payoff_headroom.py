"""The page of headroom: real passes in two conditions, beside rows of the referee."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness.rows import benchmark, read_csv, write_csv
from benchmarks.payoff import grid as grids
from benchmarks.payoff import headroom
from ffcv_prune.errors import UserError
from tests.betons import Beton
from tests.test_payoff import BASE, SMALL, TWO, driven_rows


@pytest.fixture
def two(tmp_path: Path, beton: Beton, test_beton: Beton) -> Path:
    """A grid of two conditions, whose claim is about one method."""
    (tmp_path / "base.yaml").write_text(BASE)
    start, end = SMALL.index("conditions:"), SMALL.index("methods:")
    text = (SMALL[:start] + TWO + SMALL[end:]).format(train=beton.path, test=test_beton.path)
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("methods: []", "methods: [recent]"))
    return path


def referees_rows(path: Path) -> list[dict[str, str]]:
    """All runs of the grid; recent gains 2 points in the second condition."""
    return driven_rows(
        grids.load(path), lambda case: 0.6 + 0.02 * (case.entry == "recent" and case.condition == "again")
    )


@pytest.mark.usefixtures("unpainted")
def test_each_pass_is_a_row_and_the_page_has_the_gains(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payoff, csv = two.with_name("payoff.csv"), two.with_name("headroom.csv")
    write_csv(payoff, referees_rows(two))
    words = [f"--grid={two}", f"--payoff={payoff}", f"--csv={csv}"]
    benchmark(headroom, words=words)
    rows = read_csv(csv)
    assert [(r["condition"], r["epoch"]) for r in rows] == [("small", str(e)) for e in range(4)] + [
        ("again", str(e)) for e in range(3)
    ]
    for own in rows:
        assert 0.3 < float(own["highest_30"]) < float(own["highest_50"]) <= 1
        assert 0 <= float(own["variance_reduction"]) < 1
    small, again = (line for line in csv.with_suffix(".md").read_text().splitlines() if line[:4] in ("| sm", "| ag"))
    assert "+0.00 ± 0.00" in small and "+2.00 ± 0.00" in again and "at least" in again
    others = [own | {"key": "of other settings", "variance_reduction": "0.9"} for own in rows]
    untrained = [own | {"variance_reduction": "0.9"} if own["epoch"] == "0" else own for own in rows]
    assert headroom.summary([*rows, *others]) == headroom.summary(untrained) == headroom.summary(rows)
    before = csv.read_text()
    benchmark(headroom, words=words)  # nothing is repeated
    assert csv.read_text() == before and "2 of 2 cases have their rows" in capsys.readouterr().out


def test_a_grid_without_a_claim_is_an_error(two: Path) -> None:
    two.write_text(two.read_text().replace("methods: [recent]", "methods: []"))
    write_csv(two.with_name("payoff.csv"), referees_rows(two))
    with pytest.raises(UserError, match="the claim names no method"):
        benchmark(headroom, words=[f"--grid={two}", f"--payoff={two.with_name('payoff.csv')}", f"--csv={two}.csv"])


def test_untuned_full_data_is_an_error(two: Path) -> None:
    payoff = two.with_name("payoff.csv")
    write_csv(payoff, referees_rows(two)[:1])
    with pytest.raises(UserError, match=r"full data is not tuned yet; run python -m benchmarks.payoff first"):
        benchmark(headroom, words=[f"--grid={two}", f"--payoff={payoff}", f"--csv={two.with_name('headroom.csv')}"])


def test_the_correlation_is_that_of_ranks_over_all_orders() -> None:
    words = headroom._agreement([1.1, 1.5, 1.3, 1.2], [0.0, 9.0, 0.5, -1.0])
    assert "over 4 conditions: +0.80, p = 0.33." in words
    assert "correlation" not in headroom._agreement([1.0, 1.2], [0.0, 1.0])
    assert "correlation" not in headroom._agreement([1.0, 1.2, 1.1], [0.0, 0.0, 0.0])
