"""The benchmark of threads that wait measures each policy in a process of its own, and its table is of its rows."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.machine import ROOT
from benchmarks.harness.rows import benchmark
from benchmarks.speed import waiting
from ffcv_prune.errors import UserError


def test_each_policy_is_measured_and_the_table_comes_from_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "POLICIES", {name: waiting.POLICIES[name] for name in (waiting.SPINNING, "passive")})
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")  # OpenMP says what it took, on standard error
    monkeypatch.setattr(waiting, "fresh_python", told := Told())
    results = tmp_path / "waiting.csv"
    options = ["--threads=1", "--seconds=1", "--busy=1", "--repeats=1", "--batch-size=2", f"--csv={results}"]
    benchmark(waiting, words=options)
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], row["busy"]) for row in rows] == [(waiting.SPINNING, "1"), ("passive", "1")]
    spins = [re.findall(r"GOMP_SPINCOUNT = '(\d+)'", text) for text in told.texts]
    assert spins == [["300000"], ["0"]]
    for row in rows:
        assert int(row["steps"]) * float(row["seconds"]) >= 0.99
        assert float(row["slowest_seconds"]) >= float(row["seconds"]) > 0
    halved = [row | {"seconds": "0.2" if row["policy"] == waiting.SPINNING else "0.1"} for row in rows]
    assert "| 1 | passive | 100 | " in waiting.summary(halved) and waiting.summary(halved).count("| 0.5 |") == 1
    with pytest.raises(UserError, match="--busy=x: whole numbers"):
        benchmark(waiting, words=[*options, "--busy=x"])


class Told:
    """`fresh_python`, which keeps what OpenMP says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, words: list[str]) -> str:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.texts.append(done.stderr)
        return done.stdout
