"""The benchmarks of scoring run at a tiny size, and their tables come from their rows."""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.harness.machine import MACHINE
from benchmarks.harness.rows import Results
from benchmarks.harness.training import Images
from benchmarks.speed import agreement, scoring
from ffcv_prune import methods, score_dataset
from ffcv_prune.methods.table import ScoreTable
from ffcv_prune.models import build_model
from tests.betons import Beton, write_beton

ROOT = Path(__file__).resolve().parent.parent


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_module(name: str, *arguments: object) -> str:
    command = [sys.executable, "-m", f"benchmarks.speed.{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scoring_measures_each_variant_and_its_table_comes_from_the_rows(beton: Beton, tmp_path: Path) -> None:
    results = tmp_path / "scoring.csv"
    arguments = [f"--beton={beton.path}", "--models=resnet_tiny", "--batch-sizes=16,100", "--samples=64"]
    printed = run_module("scoring", *arguments, "--repeats=2", "--threads=1", "--skip-compile", f"--csv={results}")
    rows = read(results)
    assert sorted((row["repeat"], row["batch_size"], row["variant"]) for row in rows) == [
        (repeat, size, variant)
        for repeat in "01"
        for size in ("16", "64")  # no batch is larger than the samples
        for variant in ("bare model", "folded model", "naive loop", "score_dataset")
        if (size, variant) != ("16", "naive loop")
    ]
    assert all(float(row["seconds"]) > 0 and row["cpu"] and row["torch"] and row["date"] for row in rows)
    assert all(f" device={row['device']} " in row["settings"] for row in rows)  # not "auto", which is another elsewhere
    page = results.with_suffix(".md").read_text()
    assert scoring.summary(rows) in page and page in printed
    slower = [row | {"seconds": "2"} if row["variant"] == "score_dataset" else row | {"seconds": "1"} for row in rows]
    assert "| 0.5 (0.5–0.5) |" in scoring.summary(slower)
    assert page in run_module("scoring", "--redraw", f"--csv={results}")


def test_the_naive_loop_scores_the_same(beton: Beton) -> None:
    """It must do the same work: losses agree where precision and normalisation do."""
    setting = scoring.Setting(beton.path, 50, torch.device("cpu"), 1)
    model = build_model("resnet_tiny", 10, scoring.MEAN, scoring.STD).eval()
    images = Images(beton.images[:50], beton.labels[:50], scoring.TRANSFORM)
    plain = scoring.naive_scores(model.network, images, 16, setting)
    ours = score_dataset(model, scoring.make_loader(setting, 16), amp_dtype=None)
    np.testing.assert_allclose(ours[:50], plain, rtol=1e-4, atol=1e-5)


# ---- agreement ----------------------------------------------------------------------------------------------


def test_agreement_trains_each_option_once_and_its_table_comes_from_the_rows(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_beton(tmp_path / f"{split}.beton", n=600, size=24)
    options = ["full pass", "both", "budget 0.3", "16 px"]
    args = argparse.Namespace(data=tmp_path, methods="ucb_guarded", options=";".join(options[:3]), epochs=5, seeds=1)
    args.keep, args.period = 0.3, 2
    results = Results(tmp_path / "agreement.csv", agreement.COLUMNS, "")
    agreement.run(args, results)
    args.options = ";".join(options)
    agreement.run(args, results)  # the first three have their rows
    rows = results.read()
    assert [row["option"] for row in rows] == options
    made = {row["option"]: row for row in rows}
    # Five epochs: one of warm-up, three by the method with selections before epochs 1 and 3, one at the end.
    assert made["full pass"]["overlaps"] == "1.0000 1.0000"
    assert float(made["full pass"]["scored"]) == 1
    assert float(made["budget 0.3"]["scored"]) == pytest.approx((1 + 0.3) / 2)
    assert 0 < float(made["both"]["scored"]) < 1
    assert all(0 <= float(row["overlap"]) <= 1 and float(row["score_seconds"]) > 0 for row in rows)
    table = agreement.summary(rows)
    assert "| UCB, guarded | full pass | 1.000 |" in table
    assert "16 px" in table and "one run" in table


def test_what_is_safe_follows_from_the_rows() -> None:
    facts = dict.fromkeys(("overlap", "overlap_min", "scored", "score_seconds", "total_seconds"), "1")
    facts |= dict.fromkeys(("settings", *MACHINE), "1")
    accuracies = {"full pass": (0.8, 0.801, 0.802), "both": (0.8, 0.802, 0.801), "budget 0.3": (0.7, 0.701, 0.702)}
    rows = [
        {"method": "ucb_guarded", "option": option, "seed": str(seed), "accuracy": str(accuracy), **facts}
        for option, runs in accuracies.items()
        for seed, accuracy in enumerate(runs)
    ]
    assert agreement.summary(rows).endswith("95 % interval, corrected for 2 comparisons: both (UCB, guarded).")


def test_the_random_share_does_not_enter_the_overlap() -> None:
    table = ScoreTable(100)
    table.update(np.arange(100, dtype=np.float32))
    chosen = agreement.by_score(methods.build("ucb", random_share=0.5), table, 20)
    assert chosen.tolist() == list(range(90, 100))
    assert agreement.overlap(chosen, chosen - 2) == 0.8
