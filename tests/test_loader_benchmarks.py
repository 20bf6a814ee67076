from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import loader
from benchmarks.loading import swap
from benchmarks.tables import Results
from ffcv_prune.errors import UserError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["loader", *words])
        loader.main()
        return capsys.readouterr().out

    return run


def test_swap_and_its_table(tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "CONSTRUCTORS", ("PrunedLoader",))
    csv = tmp_path / "swap.csv"
    words = ["swap", "--samples=400", "--large=100", "--repeats=1", f"--csv={csv}"]
    run(*words)
    rows = Results(csv, swap.COLUMNS, "").read()
    assert [row["measured"] for row in rows] == ["8 x 8", "256 x 256", "PrunedLoader"]
    assert [row["compiled"] for row in rows] == ["0", "0", ""]
    page = csv.with_suffix(".md").read_text()
    assert page.count("| 8 x 8 | 400 |") == 1 and page.count("| PrunedLoader | 400 |") == 1
    assert page in run("swap", "--redraw", f"--csv={csv}")
    assert "3 of 3 cases" in run(*words) and Results(csv, swap.COLUMNS, "").read() == rows


def test_cold_and_its_table(tmp_path: Path, run: Callable[..., str]) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photographs / f"{i}.jpg")
    csv = tmp_path / "cold.csv"
    words = ["cold", f"--photographs={photographs}", f"--folder={tmp_path}", f"--csv={csv}", "--repeats=1"]
    words += ["--scale=0.02", "--batches=1"]
    run(*words, "--only=32 raw")
    page = csv.with_suffix(".md").read_text()
    assert page.count("| 32 raw |") == 2 * 3 * 3  # keeps, situations, loaders
    assert "The disk delivered 32 raw (" in page
    assert page in run("cold", "--redraw", f"--csv={csv}")
    with pytest.raises(UserError, match=r"scale=0.02 .* not .*scale=1.0 "):
        run(*words, "--only=32 raw", "--scale=1.0")


def test_cold_without_photographs(tmp_path: Path, run: Callable[..., str]) -> None:
    with pytest.raises(UserError, match="--photographs: name a folder"):
        run("cold", f"--csv={tmp_path / 'cold.csv'}")
