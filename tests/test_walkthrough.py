"""The walk-through runs as it stands, from images to a report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_it_goes_from_images_to_a_report(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "walkthrough.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    *epochs, report = done.stdout.splitlines()[-11:]
    assert all(f"epoch {number}: 60 samples" in line for number, line in enumerate(epochs))
    assert float(epochs[-1].split()[-1]) > 0.9  # four classes that a linear model tells apart
    assert (tmp_path / report.removeprefix("report: ")).stat().st_size > 10_000
