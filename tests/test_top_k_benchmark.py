"""The benchmark of update and top k: it runs, refuses a method that is wrong, and its table is that of its rows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.machine import MACHINE
from benchmarks.harness.rows import Results, benchmark
from benchmarks.speed import top_k
from ffcv_prune.errors import UserError

MADE = dict.fromkeys(("settings", *MACHINE), "x")


def row(method: str, threads: int, repeat: int, seconds: float, arrays: str = "") -> dict[str, str]:
    own = {"losses": "lognormal", "samples": "1000000", "method": method, "threads": str(threads)}
    return MADE | own | {"repeat": str(repeat), "seconds": str(seconds), "arrays": arrays}


def test_it_measures_every_method_and_redraws_its_own_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "top_k.csv"
    monkeypatch.setattr(sys, "argv", ["top_k", "--samples=3000", "--repeats=2", f"--csv={results}"])
    benchmark(top_k)
    first = capsys.readouterr().out
    rows = Results(results, top_k.COLUMNS, "").read()
    assert {row["method"] for row in rows} == set(top_k.METHODS)
    assert {row["losses"] for row in rows} == {"lognormal", "ties"}
    assert {row["repeat"] for row in rows} == {"0", "1"}
    assert all(float(row["seconds"]) > 0 and row["cpu"] and row["commit"] is not None for row in rows)
    plot = results.with_suffix(".svg")
    drawn = plot.read_bytes()
    plot.unlink()
    monkeypatch.setattr(sys, "argv", ["top_k", "--redraw", f"--csv={results}"])
    benchmark(top_k)
    again = capsys.readouterr().out
    assert first.endswith(again) and again.count("| ties |") == again.count("| lognormal |") >= len(top_k.METHODS)
    assert plot.read_bytes() == drawn
    monkeypatch.setattr(sys, "argv", ["top_k", "--samples=3000", f"--csv={results}"])
    with pytest.raises(UserError, match=r"repeats=2 .* not .*repeats=5 "):
        benchmark(top_k)


def test_ratios_are_taken_within_a_repeat() -> None:
    ours = [row("ours", 1, 0, 0.001), row("ours", 1, 1, 0.002), row("ours", 2, 0, 0.0005), row("ours", 2, 1, 0.0005)]
    rival = [row("rival", 1, 0, 0.004, "1.25"), row("rival", 1, 1, 0.004, "1.5")]
    lines = [line for line in top_k.summary([*ours, *rival]).splitlines() if "rival" in line]
    assert lines == ["| lognormal | 1,000,000 | rival | 1 | 4 (4–4) | 4.00 | 3 (2–4) | 8 (8–8) | 1.50 |"]


@pytest.mark.parametrize("kind", ["lognormal", "ties"])
def test_losses_are_as_described(kind: str) -> None:
    first, *_, last = top_k.loss_passes(20_000, kind)
    assert first.dtype == last.dtype == np.float32
    correlation = np.corrcoef(np.argsort(np.argsort(first)), np.argsort(np.argsort(last)))[0, 1]
    assert 0.3 < correlation < 0.95  # of the ranks, SELECTIONS passes apart
    assert (np.count_nonzero(last == 0) > 0.7 * last.size) == (kind == "ties")


def test_a_method_that_chooses_or_updates_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lowest(table: top_k.ScoreTable, losses: top_k.Floats, k: int) -> top_k.Ids:
        return np.argsort(top_k._numpy_scores(table, losses))[:k]

    def twice(table: top_k.ScoreTable, losses: top_k.Floats, k: int) -> top_k.Ids:
        table.update(losses)
        return top_k.ours(table, losses, k)

    def repeated(table: top_k.ScoreTable, losses: top_k.Floats, k: int) -> top_k.Ids:
        ids = top_k.ours(table, losses, k)
        return np.where(np.arange(k) < 5, ids[-1], ids)

    bench = top_k.Bench(1000, "lognormal")
    bench.check()
    for wrong, message in ((lowest, "did not choose"), (twice, "do not agree"), (repeated, "did not choose")):
        monkeypatch.setattr(top_k, "METHODS", {"ours": (top_k.ours, (1,)), "wrong": (wrong, (1,))})
        with pytest.raises(AssertionError, match=message):
            bench.check()


@pytest.mark.parametrize("arguments", [["--samples=a"], ["--samples=0"], ["--redraw"]])
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["top_k", *arguments, f"--csv={tmp_path / 'missing.csv'}"])
    with pytest.raises(UserError):
        benchmark(top_k)
    assert not [*tmp_path.iterdir()]
