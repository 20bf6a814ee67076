"""The benchmark of prune.save measures each method once, and its table is of its rows."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.rows import benchmark
from benchmarks.speed import saving
from ffcv_prune import config
from ffcv_prune.errors import UserError
from ffcv_prune.training.run_log import RunResult


def test_each_case_is_measured_once_and_the_table_says_how_far_off_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def compare(base: Sequence[str], method: str, share: float) -> dict[str, Any]:
        assert base[-1] == "--train.epochs=6"
        asked.append((method, share))
        seconds = 65.0 if method == "ucb" else 58.0
        times = {"seconds": seconds, "full_seconds": 100.0, "setup_seconds": 5.0}
        return {"method": method, "asked": share, "planned": 0.401, "told": 0.39, "saved": 1 - seconds / 100, **times}

    @contextmanager
    def jobs_here(shares: Sequence[Sequence[int]]) -> Iterator[ThreadPoolExecutor]:
        assert [len(share) for share in shares] == [1] * len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(1) as pool:
            yield pool

    monkeypatch.setattr(saving, "compare", compare)
    monkeypatch.setattr(saving, "jobs_on", jobs_here)
    rows = tmp_path / "saving.csv"
    for methods in (["random"], ["random", "ucb"]):
        benchmark(saving, words=["--methods", *methods, f"--csv={rows}", "--train.epochs=6"])
    assert asked == [("random", 0.4), ("ucb", 0.4)]
    page = rows.with_suffix(".md").read_text()
    assert "| random | 40.0% | 40.1% | 39.0% | 42.0% | +2.0 | 58.0 | 100.0 | 5.0 |" in page
    assert "| 35.0% | -5.0 |" in page
    assert "1 of 2 runs saved what was asked within 3 points; the largest difference is 5.0 points." in page
    with rows.open(newline="") as file:
        assert [row["cores"] for row in csv.DictReader(file)] == ["1", "1"]


def test_the_runs_of_a_case_differ_in_what_is_asked_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained = []

    def train(own: config.Config) -> RunResult:
        trained.append((own.run.name, own.prune.name, own.save, own.prune.values.get("period"), own.train.epochs))
        (tmp_path / "log.jsonl").write_text('{"saving": {"planned": 0.41}}\n')
        seconds = {"setup": 5.0, "total": 55.0 if own.save else 9.5 * own.train.epochs}
        return RunResult(tmp_path, own.prune.name, 1.0, {}, 0, {}, seconds, own.save or None)

    monkeypatch.setattr(saving, "train", train)
    row = saving.compare(["--config", "rn_configs/fashion_full.yaml"], "ema", 0.3)
    assert trained == [
        ("warm_up", "ema", 0.0, 2, 2),
        ("full_before", "full", 0.0, None, 5),
        ("saved", "ema", 0.3, 2, 10),
        ("full_after", "full", 0.0, None, 5),
    ]
    shares = {"asked": 0.3, "planned": 0.41, "told": 0.3, "saved": pytest.approx(0.4)}
    seconds = {"seconds": 60.0, "full_seconds": 100.0, "setup_seconds": 5.0}
    assert row == {"method": "ema", **shares, **seconds}


def test_one_epoch_has_no_halves(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.epochs must be 2 at least"):
        benchmark(saving, words=[f"--csv={tmp_path / 'saving.csv'}", "--train.epochs=1"])


@pytest.mark.parametrize("method", saving.METHODS)
def test_every_method_of_the_benchmark_can_be_planned(method: str) -> None:
    own = ["--config", "rn_configs/fashion_full.yaml", f"--prune.method={method}", *saving.METHODS[method]]
    assert config.load([*own, "--prune.save=0.4"]).save == 0.4
