"""`--profile`: its numbers follow from the log, and it says what it has when a run ends or is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ffcv_prune import config
from ffcv_prune.errors import UserError
from ffcv_prune.training.clock import PHASES
from ffcv_prune.training.profile import profile, profile_text, speedup_limits
from tests.betons import Beton, write_run
from tests.processes import wait_for_epochs

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def config_file(tmp_path: Path, beton: Beton) -> Path:
    prune, out = "method: ucb, keep: 0.5, period: 2, warmup: 1", f"out: {tmp_path / 'runs'}"
    return write_run(tmp_path / "small.yaml", beton, epochs=3, run=out, prune=prune)


def test_the_highest_speedup_counts_each_cost_once() -> None:
    """10 s of full training, 2 s at keep 0.2; a pass of 4 s and a swap of 1 s every 10 epochs; 0.3 s each epoch."""
    limits = speedup_limits(keep=0.2, full=10.0, score=0.4, swap=0.1, fixed=0.3)
    assert limits == pytest.approx(
        {"ideal": 5.0, "scoring": 10 / 2.4, "swap": 10 / 2.5, "fixed": 10.3 / 2.8}, rel=1e-12
    )
    assert set(speedup_limits(0.25, 8.0, 0.0, 0.0, 0.0).values()) == {4.0}


def log_row(seen: int, selected: bool, **seconds: float) -> dict[str, Any]:
    every = dict.fromkeys(PHASES, 0.0) | seconds
    every["total"] = sum(every.values()) + 0.5
    return {"phase": "method", "keep": 0.25, "selected": selected, "samples_seen": seen, "seconds": every}


def test_a_profile_follows_from_the_log(config_file: Path) -> None:
    own = config.load(["--config", str(config_file), "--train.epochs=9", "--prune.period=4"])
    rows = [
        log_row(250, True, load=1.0, train=4.0, score=8.0, select=1.0, swap=1.0, eval=2.0),
        log_row(500, False, load=1.0, train=4.0, save=2.0),
    ]
    made = profile(own, rows, 1000, {"loader_alone": 400.0, "model_alone": 900.0, "first_batch_seconds": 0.5})
    assert made["seconds"] == pytest.approx(
        {"load": 1, "train": 4, "score": 4, "select": 0.5, "swap": 0.5, "eval": 1, "save": 1, "other": 0.5}
        | {"total": 12.5}
    )
    assert (made["reached"], made["waiting"], made["bottleneck"]) == (50.0, 0.2, "loader")
    # A sample takes 9 s / 500, the waits for two first batches apart; 0.5 s in no phase and 0.5 s of waiting are
    # fixed; a pass of 8 s and 2 s of selecting and swapping come every 4 epochs.
    assert made["speedup"] == pytest.approx(
        {"ideal": 4.0, "scoring": 18 / 6.5, "swap": 18 / 7, "fixed": 19 / 8}, rel=1e-9
    )
    words = profile_text(made)
    assert "score       4.000   32.0%" in words
    assert "the loader is the bottleneck" in words
    assert "keep 0.25: an epoch can here be at most 2.38 times as fast" in words
    interrupted = profile_text(profile(own, rows, 1000, {}))
    assert "bottleneck" not in interrupted and "at most" in interrupted
    full = profile(own, [row | {"phase": "full"} for row in rows], 1000, {})
    assert "speedup" not in full and "at most" not in profile_text(full)


def test_a_method_that_chooses_in_batches_has_no_highest_speedup(config_file: Path) -> None:
    own = config.load(["--config", str(config_file), "--prune.method=selective_backprop"])
    rows = [log_row(250, True, train=4.0) | {"phase": "full"}, log_row(500, False, train=4.0)]
    made = profile(own, rows, 1000, {})
    assert made["reached"] == 62.5 and "speedup" not in made and "keep" not in made
    assert "times as fast" not in profile_text(made)


def test_profile_is_short_for_its_key_and_takes_no_value(config_file: Path) -> None:
    assert config.load(["--config", str(config_file), "--profile"]).run.profile
    assert not config.load(["--config", str(config_file)]).run.profile
    with pytest.raises(UserError, match="--profile takes no value; write --profile"):
        config.load(["--config", str(config_file), "--profile=true"])
    with pytest.raises(UserError, match="profile"):
        config.load(["--config", str(config_file), "--profil=1"])


def start(config_file: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train_imagenet.py"), "--config", str(config_file), "--profile", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_profile_of_a_finished_run(config_file: Path, tmp_path: Path) -> None:
    words, errors = start(config_file).communicate(timeout=200)
    assert "profile: seconds of an epoch, mean of 3" in words, errors
    made = json.loads((tmp_path / "runs/small/profile.json").read_text())
    assert made["bottleneck"] == ("loader" if made["loader_alone"] < made["model_alone"] else "model")
    assert f"the {made['bottleneck']} is the bottleneck" in words
    assert made["keep"] == pytest.approx(0.5, abs=0.01)
    assert 0 <= made["waiting"] <= 1
    assert all(value > 0 for value in made["speedup"].values())
    assert json.loads((tmp_path / "runs/small/status.json").read_text())["status"] == "finished"


def test_ctrl_c_prints_the_profile_so_far(config_file: Path, tmp_path: Path) -> None:
    process = start(config_file, "--train.epochs=1000000")
    folder = tmp_path / "runs" / "small"
    try:
        wait_for_epochs(process, folder / "log.jsonl", 3, seconds=150)
        process.send_signal(signal.SIGINT)
        words, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    made = json.loads((folder / "profile.json").read_text())
    assert f"profile: seconds of an epoch, mean of {made['epochs']}" in words
    assert "waited for batches" in words and made["bottleneck"] is None
    assert made["keep"] == pytest.approx(0.5, abs=0.01)
