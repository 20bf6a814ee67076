"""The benchmark of the proxy net runs at a tiny size, goes on where it was stopped, and its table is of its rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.harness.rows import benchmark
from benchmarks.speed import proxy
from ffcv_prune.errors import UserError
from ffcv_prune.models import build_model
from tests.betons import write_beton


def test_it_measures_each_side_once_and_its_table_comes_from_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, n in (("train", 600), ("test", 40)):
        write_beton(tmp_path / f"{split}.beton", n=n, size=16)
    results = tmp_path / "proxy.csv"
    options = [f"--data={tmp_path}", "--main=resnet_small", "--sides=0,8", "--threads=1", f"--csv={results}"]
    for repeats in (1, 2):
        benchmark(proxy, words=[*options, f"--repeats={repeats}"])
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["repeat"], row["side"]) for row in rows] == [("0", "0"), ("0", "8"), ("1", "8"), ("1", "0")]
    for row in rows:
        assert row["selected"] == "300" and row["epochs"] == "1"  # half of two windows of 256, and of 88
        assert all(float(row[f"{name}_seconds"]) > 0 for name in ("score", "train", "decode", "again", "copy"))
    full, reduced = (float(rows[i]["main_flops"]) / float(rows[i]["proxy_flops"]) for i in (0, 1))
    assert reduced == pytest.approx(4 * full, rel=0.01)
    page = results.with_suffix(".md").read_text()
    assert page in capsys.readouterr().out and f"| resnet_small | resnet_tiny, 8 px | {reduced:.1f} x |" in page
    told = rows[0] | {"score_seconds": "3", "train_seconds": "9", "load_seconds": "1"}
    assert "| 0.3 |" in proxy.summary([told])
    with pytest.raises(UserError, match="--sides=0;8: whole numbers"):
        benchmark(proxy, words=[*options, "--sides=0;8"])


def test_arithmetic_is_counted() -> None:
    """Twice the products of a convolution and of a linear layer."""
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(5 * 64, 7))

    class Taking(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return net(images.float())

    assert proxy.flops(Taking(), 8) == 2 * (5 * 64 * 27 + 5 * 64 * 7)
    one, other = (proxy.flops(build_model("resnet_tiny", 10, [0.5] * 3, [0.25] * 3), side) for side in (16, 32))
    assert other == pytest.approx(4 * one, rel=0.01)
