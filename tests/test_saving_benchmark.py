"""The benchmark of prune.save measures each method once, beside full data, and its table is of its rows."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.harness.rows import benchmark
from benchmarks.speed import saving
from benchmarks.speed.saving import Run, compared, passed
from ffcv_prune import config
from ffcv_prune.errors import UserError
from ffcv_prune.training.run_log import RunResult

CONFIG = "rn_configs/fashion_full.yaml"


def full(start: float, pace: float = 1.0) -> Run:
    """A set-up of 5 s and three epochs of 10, 10 and 15 s; `pace`: how many of these a second has."""
    return Run("full", 0.0, [start + after / pace for after in (0.0, 5.0, 15.0, 25.0, 40.0)])


def test_each_case_is_measured_once_and_the_table_says_how_far_off_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    clocks: dict[bool, float] = defaultdict(float)  # of the two cores

    def trained(base: Sequence[str], method: str, share: float) -> Run:
        assert base[-1] == "--train.epochs=6"
        start, took = clocks[method == "full"], {"full": 100.0, "ucb": 65.0, "random": 58.0}[method]
        clocks[method == "full"] += took
        if method == "full":
            return Run(method, 0.0, [start, start + 5, start + took])
        asked.append((method, share))
        return Run(method, share, [start, start + 5, start + took], planned=0.401, told=0.39)

    @contextmanager
    def jobs_here(shares: Sequence[Sequence[int]]) -> Iterator[ThreadPoolExecutor]:
        assert [len(share) for share in shares] == [1, 1]
        with ThreadPoolExecutor(1) as pool:
            yield pool

    monkeypatch.setattr(saving, "trained", trained)
    monkeypatch.setattr(saving, "jobs_on", jobs_here)
    rows = tmp_path / "saving.csv"
    for methods in (["random"], ["random", "ucb"]):
        clocks.clear()
        benchmark(saving, words=["--methods", *methods, f"--csv={rows}", "--train.epochs=6"])
    assert asked == [("random", 0.4), ("ucb", 0.4)]
    page = rows.with_suffix(".md").read_text()
    assert "| random | 40.0% | 40.1% | 39.0% | 42.0% | +2.0 | 58.0 | 100.0 | 5.0 |" in page
    assert "| 35.0% | -5.0 |" in page
    assert "1 of 2 runs saved what was asked within 3 points; the largest difference is 5.0 points." in page
    with rows.open(newline="") as file:
        assert [row["cores"] for row in csv.DictReader(file)] == ["1", "1"]


def test_full_data_are_trained_on_until_the_last_run_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of the methods are all done before the first on full data has ended."""
    clocks: dict[bool, float] = defaultdict(float)

    def trained(base: Sequence[str], method: str, share: float) -> Run:
        start = clocks[not share]
        clocks[not share] += 60.0 if share else 100.0
        return Run(method, share, [start, start + 5, clocks[not share]], *((0.4, 0.4) if share else ()))

    @contextmanager
    def jobs_here(shares: Sequence[Sequence[int]]) -> Iterator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(1) as pool:
            yield pool

    monkeypatch.setattr(saving, "trained", trained)
    monkeypatch.setattr(saving, "jobs_on", jobs_here)
    benchmark(saving, words=[f"--csv={tmp_path / 'saving.csv'}"])
    with (tmp_path / "saving.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [*saving.METHODS]
    assert [float(row["saved"]) for row in rows] == pytest.approx([0.4] * len(rows))
    assert clocks == {False: 600.0, True: 600.0}


def test_a_run_is_timed_by_its_phases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = []

    def train(own: config.Config) -> RunResult:
        runs.append((own.run.name, own.prune.name, own.save, own.prune.values.get("period"), own.train.epochs))
        planned = '"saving": {"planned": 0.41}, ' if own.save else ""
        row = f'{{{planned}"seconds": {{"total": 2.0}}}}\n'
        (tmp_path / "log.jsonl").write_text(row * own.train.epochs)
        seconds = {"setup": 5.0, "total": 2.0 * own.train.epochs + 0.5}
        return RunResult(tmp_path, own.prune.name, 1.0, {}, 0, {}, seconds, own.save or None)

    monkeypatch.setattr(saving, "train", train)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    base = ("--config", CONFIG, "--train.epochs=3")
    made = saving.trained(base, "ema", 0.3)
    assert made == Run("ema", 0.3, [100.0, 105.0, 107.0, 109.0, 111.5], planned=0.41, told=0.3)
    assert saving.trained(base, "full", 0.0) == Run("full", 0.0, [100.0, 105.0, 107.0, 109.0, 111.5])
    saving.trained(base, "full", 0.0)
    assert runs == [
        ("warm_up", "ema", 0.0, 2, 2),
        ("timed", "ema", 0.3, 2, 3),
        ("warm_up", "full", 0.0, None, 2),
        ("timed", "full", 0.0, None, 3),
        ("timed", "full", 0.0, None, 3),
    ]


def test_full_data_pass_at_their_own_pace() -> None:
    runs = [full(100.0), full(142.0, pace=0.5)]
    assert passed(runs[:1], 100.0) == 0.0 and passed(runs[:1], 125.0) == 25 / 40
    assert passed(runs, 140.0) == 1.0
    between = 2 / 60  # the runs took 40 and 80 s
    assert passed(runs, 142.0) == pytest.approx(1 + between)
    assert passed(runs, 142.0 + 2 * 15) == pytest.approx(1 + between + 15 / 40)
    assert passed(runs, 222.0) == pytest.approx(2 + between)
    assert passed(runs, 94.0) == pytest.approx(-6 / 60), "before the first run"


def test_a_slower_machine_changes_no_saving() -> None:
    """The machine becomes half as fast after 95 s: the clock of a steady one, stretched from there on."""

    def stretched(run: Run) -> Run:
        times = [when if when < 95 else 95 + 2 * (when - 95) for when in run.times]
        return Run(run.method, run.asked, times, run.planned, run.told)

    steady = [full(40.0 * number) for number in range(6)]
    own = Run("ucb", 0.4, [82.0, 87.0, 106.0], 0.4, 0.4)
    assert compared(own, steady)["saved"] == pytest.approx(0.4)
    slower = compared(stretched(own), [stretched(run) for run in steady])
    assert slower["saved"] == pytest.approx(0.4)
    assert (slower["seconds"], slower["full_seconds"]) == (35.0, pytest.approx(35 / 0.6))


def test_one_core_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    with pytest.raises(UserError, match=r"two cores are needed"):
        benchmark(saving, words=[f"--csv={tmp_path / 'saving.csv'}"])


@pytest.mark.parametrize("method", saving.METHODS)
def test_every_method_of_the_benchmark_can_be_planned(method: str) -> None:
    own = ["--config", CONFIG, f"--prune.method={method}", *saving.METHODS[method]]
    assert config.load([*own, "--prune.save=0.4"]).save == 0.4
