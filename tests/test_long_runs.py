"""Thousands of checkpoints leave memory, threads and open files as they were."""

from __future__ import annotations

import csv
import gc
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ffcv_prune import PrunedLoader, Pruner, policies
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from tests.betons import write_beton
from tests.nets import SmallNet

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 100  # checkpoints until allocators and thread pools have what they need
ALLOWED_MB = 8  # fragmentation; a leak of the selection alone, 512 bytes, is 5 MB in 10,000 checkpoints


@dataclass(frozen=True)
class Usage:
    memory_mb: float  # anonymous: without the pages of mapped files
    threads: int
    files: int

    @classmethod
    def now(cls) -> Usage:
        gc.collect()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        memory = int(status["RssAnon"].split()[0]) / 1000
        return cls(memory, int(status["Threads"]), len(os.listdir("/proc/self/fd")))


@pytest.mark.parametrize(
    "checkpoints", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_checkpoints_leave_nothing_behind(checkpoints: int, tmp_path: Path) -> None:
    beton = write_beton(tmp_path / "train.beton", n=128, size=8)
    info = check_beton(beton.path)
    loader = PrunedLoader(beton.path, 32, train_pipelines(info, "pad_crop_flip"))
    score_loader = PrunedLoader(beton.path, 128, score_pipelines(info), shuffle=False, drop_last=False)
    epochs = WARM_UP + checkpoints
    pruner = Pruner(loader, score_loader, policies.UCB(), keep=0.5, period=1, epochs=epochs)
    model = SmallNet()
    steps = 0
    for epoch in range(epochs):
        assert pruner.begin_epoch(epoch, model) is not None
        steps += sum(1 for _ in loader)
        if epoch + 1 == WARM_UP:
            before = Usage.now()
    after = Usage.now()
    assert steps == 2 * epochs
    assert after.memory_mb < before.memory_mb + ALLOWED_MB
    assert (after.threads, after.files) == (before.threads, before.files)


def test_the_benchmark_of_a_long_run_reports_every_step(tmp_path: Path) -> None:
    results = tmp_path / "long_run.csv"
    command = [sys.executable, str(ROOT / "benchmarks" / "long_run.py"), "--samples=2000", f"--csv={results}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["write", "check", "load", "score", "select", "swap", "train", "resume"]
    for row in rows:
        assert row["samples"] == "2000"
        assert float(row["seconds"]) >= 0
        assert float(row["peak_mb"]) > 10
        assert row["cpu"] and row["torch"] and row["date"]
        assert f"| {row['step']} |" in done.stdout
    assert list(tmp_path.iterdir()) == [results]
