"""Thousands of selections leave memory, threads and open files as they were."""

from __future__ import annotations

import csv
import ctypes
import gc
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ffcv_prune import PrunedLoader, Pruner
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from tests.betons import write_beton
from tests.nets import SmallNet

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 100  # selections until allocators and thread pools have what they need
SAMPLES = 2048
# A leak of the losses alone, the smallest array of a selection, is 8 kB each time; measured growth is 0.1 kB.
ALLOWED_MB, ALLOWED_KB_A_SELECTION = 1, 1
ALLOWED_BLOCKS_A_SELECTION = 20  # of Python's allocator: the epochs' reports stay


class Malloc(ctypes.Structure):
    """The result of glibc's mallinfo2, in bytes and numbers of blocks."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


@dataclass(frozen=True)
class Usage:
    memory_mb: float  # of malloc, in use: the pages of a process also grow by memory that malloc keeps for later
    blocks: int
    threads: int
    files: int

    @classmethod
    def now(cls) -> Usage:
        gc.collect()
        mallinfo = ctypes.CDLL(None).mallinfo2
        mallinfo.restype = Malloc
        malloc = mallinfo()
        memory = (malloc.uordblks + malloc.hblkhd) / 1e6  # in arenas, and in mappings of their own
        return cls(
            memory, sys.getallocatedblocks(), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
        )


@pytest.mark.parametrize("selections", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_selections_leave_nothing_behind(selections: int, tmp_path: Path) -> None:
    """In a process of its own: other tests leave threads behind, whose memory is freed late."""
    code = f"from tests.test_long_runs import select; select({selections}, {str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def select(selections: int, folder: str) -> None:
    """Select so often, with an epoch after each; AssertionError if it leaves something behind."""
    beton = write_beton(Path(folder) / "train.beton", n=SAMPLES, size=8)
    info = check_beton(beton.path)
    loader = PrunedLoader(beton.path, 512, pipelines=train_pipelines(info, "pad_crop_flip"), shuffle=True)
    score_loader = PrunedLoader(beton.path, 1024, pipelines=score_pipelines(info), shuffle=False, drop_last=False)
    epochs = WARM_UP + selections
    pruner = Pruner(loader, score_loader, "ucb", keep=0.5, period=1, epochs=epochs)
    model = SmallNet()
    steps = 0
    for epoch in range(epochs):
        assert pruner.begin_epoch(epoch, model) is not None
        steps += sum(1 for _ in loader)
        if epoch + 1 == WARM_UP:
            before = Usage.now()
    after = Usage.now()
    assert steps == 2 * epochs
    assert after.memory_mb < before.memory_mb + ALLOWED_MB + selections * ALLOWED_KB_A_SELECTION / 1000
    assert after.blocks < before.blocks + selections * ALLOWED_BLOCKS_A_SELECTION
    assert after.threads <= before.threads + (os.cpu_count() or 1)  # a pool may start its workers late
    assert after.files <= before.files


def test_the_benchmark_of_a_long_run_reports_every_step(tmp_path: Path) -> None:
    results = tmp_path / "long_run.csv"
    command = [sys.executable, "-m", "benchmarks.speed.long_run", "--samples=2000", f"--csv={results}"]
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
    assert results.with_suffix(".md").read_text() in done.stdout
