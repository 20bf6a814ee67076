"""The end-to-end benchmark runs at a tiny size, goes on where it was stopped, and its table comes from its rows."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from benchmarks.harness.machine import MACHINE
from benchmarks.harness.rows import benchmark
from benchmarks.speed import speedup
from ffcv_prune.errors import UserError
from tests.betons import Beton, write_run

TIMES = {"load": 0.5, "score": 2.0, "select": 0.0, "swap": 0.0, "train": 5.0, "other": 0.5}


def row(method: str, keep: float, repeat: int, samples: int, factor: float) -> dict[str, str]:
    """A row whose charged seconds are 8 · factor, in a period of ten epochs."""
    seconds = {f"{name}_seconds": f"{factor * value}" for name, value in TIMES.items()}
    made = {"eval_seconds": "10", "save_seconds": "5", "samples": f"{samples}", "epochs": "10"}
    facts = {"compile_seconds": "7", "setup_seconds": "0.1"} | dict.fromkeys(("settings", *MACHINE), "x")
    return {"method": method, "keep": f"{keep}", "repeat": f"{repeat}", **seconds, **made, **facts}


def test_each_run_is_compared_with_the_full_data_of_its_own_repeat(tmp_path: Path) -> None:
    rows = [
        row("full", 0.1, 0, 1000, 10.0),
        row("ucb", 0.1, 0, 125, 2.5),  # 4 times as fast, of 8 possible
        row("ucb", 0.1, 1, 125, 8.0),  # 5 times
        row("full", 0.1, 1, 1000, 40.0),
        row("full", 0.5, 2, 1000, 1.0),  # beside another keep
        row("ucb", 0.1, 2, 125, 1.0),  # has nothing to be compared with
    ]
    full, ucb = speedup.lines_of(rows)
    assert (full.speedups, full.shares) == ([1.0] * 3, [1.0] * 3)
    assert ucb.speedups == pytest.approx([4.0, 5.0])
    assert ucb.ideals == [8.0, 8.0]
    assert ucb.seconds("train") == pytest.approx((1.25 + 4.0) / 2)
    picture = speedup.draw(rows, tmp_path / "plot.svg")
    line = next(line for line in speedup.summary(rows).splitlines() if line.startswith("| UCB "))
    assert line.split("|")[-7:-5] == [" 10.000 ", " 0.500 "]  # a test, and a save after each of ten epochs
    assert line.split("|")[-5:-1] == [" 4.5 (4–5) ", " 8.00 ", " 0.562 (0.5–0.625) ", " 0.625 (0.625–0.625) "]
    assert picture.read_text().startswith("<?xml")
    with pytest.raises(UserError, match="no repeat has a run on full data"):
        speedup.lines_of(rows[1:3])


def test_the_side_of_smaller_images_is_that_of_the_rows(tmp_path: Path) -> None:
    """Rows that do not name it, as those of our page, were scored at 16 pixels."""
    rows = [row("full", 0.1, 0, 1000, 10.0), row("ucb_small", 0.1, 0, 125, 2.5)]
    rows += [row("ucb_budget_small", 0.1, 0, 125, 2.5)]
    for settings, side in (("config=a threads=1", 16), ("config=a score_size=80 --data.score_size=7", 80)):
        text = speedup.summary([own | {"settings": settings} for own in rows])
        assert f"| UCB, scored at {side} px |" in text
        assert f"| UCB, a budget of 0.3, scored at {side} px |" in text
    for method in ("ucb_small", "ucb_budget_small"):
        assert "--data.score_size=80" in speedup.Case(method, 0.1, 0).options(10, tmp_path, 80)


@pytest.mark.usefixtures("unpainted")
def test_a_tiny_benchmark_measures_once_and_goes_on(
    beton: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path / "tiny.yaml", beton, epochs=9)
    results = tmp_path / "results.csv"

    def run(*options: str) -> str:
        files = [f"--config={config}", f"--csv={results}", f"--out={tmp_path / 'runs'}"]
        monkeypatch.setattr(sys, "argv", ["speedup", *files, "--period=2", "--keeps", "0.5", *options])
        capsys.readouterr()
        benchmark(speedup)
        return capsys.readouterr().out

    methods = [method for method in speedup.VARIANTS if method != "full"]
    every = ["--methods", "random", "--cheaper", *methods[1:], "--cheaper-keeps=0.5"]
    first = run(*every, "--repeats=1")
    assert f"run 1 of {len(speedup.VARIANTS)}: full 0.5 #0" in first
    threads = "--threads=1" if "threads=1" in first else "--threads=2"
    again = run("--methods", "random", "--cheaper", "--repeats=2", threads)
    assert "run 1 of 2: random 0.5 #1" in again
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [*((method, "0") for method in speedup.VARIANTS), ("full", "1"), ("random", "1")]
    assert sorted((row["method"], row["repeat"]) for row in rows) == sorted(expected)
    for row in rows:
        assert int(row["samples"]) == 2 * 32 * (6 if row["method"] == "full" else 3)  # 203 samples, batches of 32
        assert (float(row["score_seconds"]) > 0.001) == (row["method"] not in ("full", "random", "ucb_training"))
        assert float(row["train_seconds"]) > 0 and float(row["compile_seconds"]) > 0
        assert row["cpu"] and row["ffcv"] and row["commit"] is not None
    page = results.with_suffix(".md").read_text()
    assert page in again
    results.with_suffix(".md").unlink()
    assert page in run("--redraw")
    assert results.with_suffix(".md").read_text() == page
    assert len(results.read_text().splitlines()) == 1 + len(rows)
    with pytest.raises(UserError, match=r"not `config=.*lr=0.01`; remove it or name another --csv"):
        run(*every, "--train.lr=0.01")
