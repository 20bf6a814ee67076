from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import loader_cold, loader_swap
from benchmarks.tables import against, median_and_range, read_table
from ffcv_prune.errors import UserError


def arguments(module: object, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    return parser.parse_args(words)


def test_swap_and_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_swap, "CONSTRUCTORS", ("PrunedLoader",))
    csv = str(tmp_path / "swap.csv")
    loader_swap.run(arguments(loader_swap, "--samples=400", "--large=100", "--repeats=1", f"--csv={csv}"))
    printed = capsys.readouterr().out
    rows = read_table(Path(csv))
    assert [row["compiled"] for row in rows if row["measured"] != "PrunedLoader"] == ["0"] * 2
    assert printed.count("| 8 x 8 | 400 |") == 1
    loader_swap.run(arguments(loader_swap, f"--table={csv}"))
    assert table_lines(capsys.readouterr().out) == table_lines(printed)


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_cold_and_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photographs / f"{i}.jpg")
    csv = tmp_path / "cold.csv"
    words = [f"--photographs={photographs}", f"--folder={tmp_path}", f"--csv={csv}", "--only=32 raw", "--scale=0.02"]
    loader_cold.run(arguments(loader_cold, *words, "--repeats=1", "--batches=1"))
    printed = capsys.readouterr().out
    assert printed.count("| 32 raw |") == 2 * 3 * 3  # keeps, situations, loaders
    loader_cold.run(arguments(loader_cold, f"--table={csv}"))
    assert table_lines(capsys.readouterr().out) == table_lines(printed)


def test_cold_without_photographs() -> None:
    with pytest.raises(UserError, match="--photographs: name a folder"):
        loader_cold.run(arguments(loader_cold))


def test_ratios_and_ranges() -> None:
    assert against({"0": 6.0, "1": 8.0, "2": 1.0}, {"0": 3.0, "1": 2.0}) == [2.0, 4.0]
    assert median_and_range([3.0, 1.0, 2.0], 1) == "2.0 [1.0, 3.0]"
    assert median_and_range([1234.5], 0) == "1,234"
