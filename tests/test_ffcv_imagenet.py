"""The diff of docs/ffcv_imagenet.md, applied to a script on FFCV's loader: its whole training loop prunes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.betons import Beton, write_beton
from tests.pages import ROOT, code, patched

EPOCHS, BATCH, N = 12, 10, 120
SCRIPT = (ROOT / "tests" / "ffcv_imagenet_script.py").read_text(encoding="utf-8")
COUNTS = "    print(trainer.pruner.total_steps(), trainer.pruner.state.table.updates)\n"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    return write_beton(tmp_path_factory.mktemp("imagenet") / "train.beton", n=N, size=72, mode="jpg")


def run(script: str, beton: Beton, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """(what the script logs after each epoch, what it prints)."""
    (folder / "train_imagenet.py").write_text(script)
    settings = {
        "data.train_dataset": beton.path,
        "data.val_dataset": beton.path,
        "logging.folder": folder,
        "training.epochs": EPOCHS,
        "resolution.end_ramp": 8,
    }
    done = subprocess.run(
        [sys.executable, "train_imagenet.py", *(f"--{key}={value}" for key, value in settings.items())],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()], done.stdout


@pytest.mark.parametrize("pruned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_with_the_lines_of_the_page_its_training_loop_prunes(pruned: bool, photographs: Beton, tmp_path: Path) -> None:
    """All else is as before: the resolutions, a rate for each step of an epoch, the validation of all samples."""
    script = patched(SCRIPT, code("ffcv_imagenet", "diff")) + COUNTS if pruned else SCRIPT
    log, printed = run(script, photographs, tmp_path)
    steps = (36 if pruned else N) // BATCH
    sizes = [32] * 4 + [64] * 8  # a ramp of 8 epochs from 32 to 64, to the nearest 32; its middle to the even multiple
    assert [row["shapes"] for row in log] == [[[BATCH, 3, size, size]] * steps for size in sizes]
    begin, end = log[1]["lrs"][0], log[2]["lrs"][0]
    assert end == pytest.approx(0.1)
    assert log[1]["lrs"] == pytest.approx([begin + i * (end - begin) / steps for i in range(steps)])
    for row in log:
        assert row["validated"] == N and 0 <= row["top_1"] <= row["top_5"] <= 1 and math.isfinite(row["train_loss"])
    assert printed.split() == ([str(EPOCHS * steps), "2"] if pruned else [])  # selections at epochs 0 and 10
