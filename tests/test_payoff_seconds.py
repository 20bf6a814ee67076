"""Savings in seconds: real pairs of runs side by side, and the arithmetic of their page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.harness.rows import benchmark, read_csv, write_csv
from benchmarks.payoff import grid as grids
from benchmarks.payoff import seconds
from ffcv_prune.errors import UserError
from tests.betons import Beton
from tests.test_payoff import BASE, SMALL, driven_rows


@pytest.fixture
def claimed(tmp_path: Path, beton: Beton, test_beton: Beton) -> Path:
    """A grid with a claim about one method, of two seeds, beside the referee's rows of it."""
    (tmp_path / "base.yaml").write_text(BASE)
    path = tmp_path / "grid.yaml"
    text = SMALL.format(train=beton.path, test=test_beton.path)
    path.write_text(text.replace("methods: []", "methods: [recent]"))
    budgets = {"full 0.5": 0.5, "full 0.7": 0.6, "full 1": 0.7}
    rows = driven_rows(
        grids.load(path), lambda case: budgets.get(case.entry, 0.65) + 0.001 * case.seed * (case.entry == "recent")
    )
    write_csv(path.with_name("payoff.csv"), rows)
    return path


def words_of(path: Path, csv: Path) -> list[str]:
    return [f"--grid={path}", f"--payoff={path.with_name('payoff.csv')}", f"--csv={csv}", "--repeats=2"]


@pytest.mark.usefixtures("unpainted")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two runs are timed side by side")
def test_a_method_and_full_data_for_its_work_are_measured_in_pairs(
    claimed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = claimed.with_name("seconds.csv")
    benchmark(seconds, words=words_of(claimed, csv))
    rows = read_csv(csv)
    pairs = [("recent", repeat, entry) for repeat in "01" for entry in ("recent", "full 0.7")]
    assert [(row["method"], row["repeat"], row["entry"]) for row in rows] == pairs  # 0.7 of the work, as its rows have
    assert all(float(row["seconds"]) > 0 and float(row["work"]) > 0 and row["cores"] == "1" for row in rows)
    before = csv.read_text()
    benchmark(seconds, words=words_of(claimed, csv))  # nothing is repeated
    assert csv.read_text() == before and "2 of 2 cases have their rows" in capsys.readouterr().out


def test_the_highest_ratio_of_a_repeat_scales_the_saving(claimed: Path) -> None:
    grid = grids.load(claimed)
    judged = seconds._judged(str(claimed), str(claimed.with_name("payoff.csv")))
    method, full = seconds._pair(judged, grid.entry("recent"))
    settings = f"grid={claimed} payoff={claimed.with_name('payoff.csv')}"

    def row(repeat: int, own: str, work: float, took: float) -> dict[str, str]:
        case = method if own == "recent" else full
        return {
            "method": "recent",
            "repeat": str(repeat),
            "entry": own,
            "choice": case.choice,
            "seed": "1",
            "key": str(grid.key(case)),
            "work": str(work),
            "seconds": str(took),
            "settings": settings,
            **dict.fromkeys(("cpu", "cores", "memory_gb", "gpus", "os", "python", "torch", "torchvision"), "1"),
            **dict.fromkeys(("ffcv", "numba", "numpy", "commit", "date"), "1"),
        }

    def told(ratio: float) -> list[str]:
        rows = [
            row(0, "recent", 500, 5),
            row(0, "full 0.7", 1000, 10),
            row(1, "recent", 500, 5 * ratio),
            row(1, "full 0.7", 1000, 10),
        ]
        of_other_settings = [own | {"key": "other", "seconds": "99"} for own in rows[:1]]
        (line,) = [
            line for line in seconds.summary([*rows, *of_other_settings]).splitlines() if line.startswith("| recent")
        ]
        return [cell.strip() for cell in line.strip("|").split("|")]

    _, full_data, repeats, ratio, seeds, in_work, in_seconds, _, shown = told(1.1)
    assert (full_data, repeats, ratio, seeds, shown) == ("full 0.7", "2", "1.05 (1–1.1)", "2 of 2", "no")
    assert told(1.0)[6] == in_work
    saving, scaled = (float(words.split()[0]) for words in (in_work, in_seconds))
    assert scaled == pytest.approx(100 - (100 - saving) * 1.1, abs=0.02)
    half, wider = (float(words.split()[2]) for words in (in_work, in_seconds))
    assert wider == pytest.approx(1.1 * half, abs=0.02)


def test_no_rows_of_the_claim_are_an_error(claimed: Path) -> None:
    payoff = claimed.with_name("payoff.csv")
    write_csv(payoff, [row for row in read_csv(payoff) if row["entry"] != "recent"])
    with pytest.raises(UserError, match=r"no method of the claim has been run; run python -m benchmarks.payoff first"):
        benchmark(seconds, words=words_of(claimed, claimed.with_name("seconds.csv")))


def test_one_core_is_an_error(claimed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    with pytest.raises(UserError, match="needs two cores"):
        benchmark(seconds, words=words_of(claimed, claimed.with_name("seconds.csv")))
