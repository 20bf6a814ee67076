"""Savings in seconds: pairs of runs side by side, and the arithmetic of their page."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.rows import benchmark, read_csv, write_csv
from benchmarks.payoff import grid as grids
from benchmarks.payoff import pair, seconds
from benchmarks.payoff.curve import Payoff
from benchmarks.payoff.grid import Case
from benchmarks.payoff.judge import first_condition
from ffcv_prune.analysis.intervals import Difference
from ffcv_prune.errors import UserError
from tests.betons import Beton
from tests.test_payoff import BASE, SMALL, driven_rows

PATIENCE = 60.0  # s, far above what a job needs to begin

needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two runs are timed side by side")


@pytest.fixture
def claimed(tmp_path: Path, beton: Beton, test_beton: Beton) -> Path:
    """A grid with a claim about one method, of three seeds, beside the referee's rows of it."""
    (tmp_path / "base.yaml").write_text(BASE)
    path = tmp_path / "grid.yaml"
    text = SMALL.format(train=beton.path, test=test_beton.path)
    path.write_text(text.replace("claim: {methods: [], seeds: 2}", "claim: {methods: [recent], seeds: 3}"))
    budgets = {"full 0.5": 0.5, "full 0.7": 0.6, "full 1": 0.7}
    rows = driven_rows(
        grids.load(path), lambda case: budgets.get(case.entry, 0.69) + 0.001 * case.seed * (case.entry == "recent")
    )
    write_csv(
        path.with_name("payoff.csv"), [row | {"work": "500"} if row["entry"] == "recent" else row for row in rows]
    )
    return path


def words_of(path: Path) -> list[str]:
    payoff, csv = path.with_name("payoff.csv"), path.with_name("seconds.csv")
    return [f"--grid={path}", f"--payoff={payoff}", f"--csv={csv}", "--repeats=2"]


def meet(case: Case, path: Path) -> dict[str, Any]:
    """In place of a run: waits until the other side has begun too, and leaves a file that names its core."""
    (core,) = os.sched_getaffinity(0)
    repeat = len(list(path.parent.glob(f"{case.entry}.*")))
    (path.parent / f"{case.entry}.{repeat}").write_text(str(core))
    end = time.monotonic() + PATIENCE
    while len(list(path.parent.glob(f"*.{repeat}"))) < 2:
        assert time.monotonic() < end, "the other side has not begun"
        time.sleep(0.01)
    return {"entry": case.entry, "work": 500.0, "seconds": 10.0 if case.entry == "recent" else 8.0}


@needs_two_cores
def test_both_sides_run_at_the_same_time_and_change_cores(claimed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "measure", meet)
    benchmark(seconds, words=words_of(claimed))
    cores = [
        [(claimed.parent / f"{entry}.{repeat}").read_text() for entry in ("recent", "full 0.5")] for repeat in range(2)
    ]
    assert cores[0][0] != cores[0][1] and cores[1] == cores[0][::-1]
    rows = read_csv(claimed.with_name("seconds.csv"))
    assert [(row["repeat"], row["seconds"], row["full_seconds"], row["cores"]) for row in rows] == [
        (str(repeat), "10.0", "8.0", "1") for repeat in range(2)
    ]
    assert "| recent | full 0.5 | 1 | 1.25 | 3 of 3 |" in claimed.with_name("seconds.md").read_text()
    benchmark(seconds, words=words_of(claimed))  # nothing is repeated
    assert read_csv(claimed.with_name("seconds.csv")) == rows


def fail(case: Case, path: Path) -> dict[str, Any]:
    if case.entry != "recent":
        raise UserError("full data cannot be read")
    time.sleep(PATIENCE)
    raise AssertionError("it was not ended")


@needs_two_cores
def test_a_side_that_fails_ends_the_other(claimed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "measure", fail)
    with pytest.raises(UserError, match="full data cannot be read"):
        benchmark(seconds, words=words_of(claimed))
    assert not claimed.with_name("seconds.csv").exists()


@needs_two_cores
@pytest.mark.usefixtures("unpainted")
def test_the_runs_are_those_of_the_grid(claimed: Path) -> None:
    benchmark(seconds, words=words_of(claimed))
    row, _ = read_csv(claimed.with_name("seconds.csv"))
    assert float(row["seconds"]) > 0 and float(row["full_seconds"]) > 0
    assert (float(row["work"]), float(row["full_work"])) == (4 * 96, 2 * 192)  # of 203 samples in batches of 32


@pytest.fixture
def page(claimed: Path) -> Any:
    """The page of ratios, as the cells of its line."""
    judged = first_condition(str(claimed), str(claimed.with_name("payoff.csv")))
    key = pair.key_of(judged, seconds._pair(judged, judged.grid.entry("recent")))
    machine = ("cpu", "cores", "memory_gb", "gpus", "os", "python", "torch", "torchvision", "ffcv", "numba", "numpy")
    shared = {"method": "recent", "key": key, "work": "500", "full_work": "500", "full_seconds": "10"}
    shared |= {"settings": f"grid={claimed} payoff={claimed.with_name('payoff.csv')}"}
    shared |= dict.fromkeys((*machine, "commit", "date"), "1")

    def made(ratios: list[float], others: tuple[dict[str, str], ...] = ()) -> list[str]:
        rows = [shared | {"repeat": str(i), "seconds": str(10 * ratio)} for i, ratio in enumerate(ratios)]
        text = seconds.summary([*rows, *(shared | {"repeat": "9", "seconds": "90"} | other for other in others)])
        (line,) = [line for line in text.splitlines() if line.startswith("| recent")]
        return [cell.strip() for cell in line.strip("|").split("|")]

    return made


def test_a_saving_in_seconds_needs_ratios_that_agree(page: Any) -> None:
    _, beside, ratios, ratio, seeds, in_work, in_seconds, p, shown, single = page([1.0] * 6)
    assert (beside, ratios, ratio, seeds, shown) == ("full 0.5", "3", "1 (1–1)", "3 of 3", "yes")
    assert in_seconds == in_work and 40 < float(in_work.split()[0]) < 55 and float(single) == float(p) < 0.01
    steady, swinging = page([1.1] * 6), page([0.8, 0.8, 1.0, 1.0, 1.5, 1.5])
    assert steady[3] == "1.1 (1.1–1.1)" and swinging[3] == "1 (0.8–1.5)"
    left = 100 - float(in_work.split()[0])
    assert float(steady[6].split()[0]) == pytest.approx(100 - 1.1 * left, abs=0.02)
    assert (steady[8], swinging[8], page([1.0] * 2)[8], page([2.0] * 4)[8]) == ("yes", "no", "no", "no")
    assert page([1.0] * 3)[6].endswith(", one run") and page([1.0] * 2)[7] == ""


def test_a_slower_core_is_no_spread(page: Any) -> None:
    slower, steady = page([0.8, 1.25] * 3), page([1.0] * 6)
    assert slower[:-1] == steady[:-1] and float(slower[-1]) > float(steady[-1])  # by single repeats it is


def test_rows_of_other_settings_do_not_count(page: Any) -> None:
    assert page([1.0, 1.1] * 2, others=({"key": "other"},)) == page([1.0, 1.1] * 2)
    with pytest.raises(
        UserError, match=r"no two rows are of the present rules and choices of .*: name another --csv, or go on"
    ):
        page([], others=({"key": "other"},))


def test_the_error_is_that_of_a_product() -> None:
    """By simulation: 1 − (1 − saving) · ratio of means of 10 seeds and 6 repeats."""
    rng = np.random.default_rng(7)
    savings, ratios = rng.normal(0.35, 0.03, (100_000, 10)).mean(1), rng.normal(1.05, 0.05, (100_000, 6)).mean(1)
    spread = float(np.std(1 - (1 - savings) * ratios))
    step = 0.05 / math.sqrt(0.8)  # so that the six have a standard deviation of 0.05
    around = [1.05 - step, 1.05, 1.05 + step] * 2
    found = Payoff(Difference(0.35, 0.03 / math.sqrt(10), 9), Difference(0.0, 1.0), 0, 0, 0.3)
    left = seconds._in_seconds(found, around)
    assert left.saving.mean == pytest.approx(1 - 0.65 * 1.05) and left.least == pytest.approx(1 - 0.7 * 1.05)
    assert left.saving.error == pytest.approx(spread, rel=0.02)
    assert 5 < left.saving.freedom < 9 + 5


def test_what_cannot_be_measured_is_one_line(claimed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payoff, rows = claimed.with_name("payoff.csv"), read_csv(claimed.with_name("payoff.csv"))
    with monkeypatch.context() as only_one:
        only_one.setattr(os, "sched_getaffinity", lambda pid: {0})
        with pytest.raises(UserError, match="needs two cores"):
            benchmark(seconds, words=words_of(claimed))
    with pytest.raises(UserError, match="--methods full: the claim has rows of recent"):
        benchmark(seconds, words=[*words_of(claimed), "--methods", "full"])
    write_csv(payoff, [row for row in rows if row["entry"] != "recent"])
    with pytest.raises(UserError, match=r"no method of the claim has been run; run python -m benchmarks.payoff first"):
        benchmark(seconds, words=words_of(claimed))
    write_csv(payoff, [{"method": "ucb"}])
    with pytest.raises(UserError, match=r"has no rows of python -m benchmarks.payoff: name another --payoff"):
        benchmark(seconds, words=words_of(claimed))
    write_csv(payoff, rows)
    claimed.write_text(claimed.read_text().replace("methods: [recent]", "methods: []"))
    with pytest.raises(UserError, match="the claim of the grid names no method"):
        benchmark(seconds, words=words_of(claimed))
