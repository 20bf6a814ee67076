"""python -m ffcv_prune.static_scores: what works, and the one line that bad input gets."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ffcv_prune import config
from ffcv_prune.errors import UserError
from tests.betons import Beton, write_run


@pytest.fixture
def config_file(tmp_path: Path, beton: Beton) -> Path:
    static = "method: el2n, models: 2, epochs: 1"
    return write_run(tmp_path / "small.yaml", beton, epochs=3, prune="method: static", static=static)


@pytest.fixture
def command(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["static_scores", "--config", str(config_file), *options])
        runpy.run_module("ffcv_prune.static_scores", run_name="__main__")

    return call


def test_the_command_writes_and_reports(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a" / "b" / "scores.npy"
    command(f"--prune.scores={path}", "--static.epochs=0")
    assert f"static scores {path}: el2n by basic_cnn, computed in" in capsys.readouterr().out
    assert sorted(file.name for file in path.parent.iterdir()) == ["scores.json", "scores.npy"]
    description = json.loads(path.with_suffix(".json").read_text())
    assert description["samples"] == 203 and np.load(path).shape == (config.load(sys.argv[1:]).static.models, 203)
    assert torch.__version__.startswith(description["machine"]["torch"])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], "needs prune.scores=FILE.npy"),
        (["--prune.scores=scores.txt"], "prune.scores"),
        (["--prune.scores=s.npy", "--static.method=el2m"], "el2n"),
        (["--prune.scores=s.npy", "--static.epochs=4"], "train.epochs=3"),
        (["--prune.scores=s.npy", "--static.method=forget"], "static.epochs=2 or more"),
        (["--prune.scores=s.npy", "--static.model=resnet19"], "resnet18"),
        (["--prune.scores=/proc/none/s.npy"], "cannot create"),
        (["--prune.scores=s.npy", "--model.weights=w.pt"], "not from model.weights=w.pt; leave out --init-from, or"),
    ],
)
def test_the_command_refuses_in_one_line(
    command: Callable[..., None],
    options: list[str],
    names: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command(*options)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("notice: ")]
    assert len(lines) == 1 and names in lines[0]
    assert not list(tmp_path.glob("**/*.npy"))


def test_the_weights_of_a_run_are_not_scored(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Defect: they were passed over without a word, and the scores were those of random weights."""
    path = tmp_path / "scores.npy"
    config_file.rename(tmp_path / "config.yaml")
    weights = tmp_path / "weights.pt"
    weights.touch()
    command = ["static_scores", "--init-from", str(tmp_path), f"--prune.scores={path}", "--static.epochs=0"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("ffcv_prune.static_scores", run_name="__main__")
    assert stop.value.code == 2 and not path.exists()
    expected = f"error: static scores are made from random weights, not from model.weights={weights}; "
    assert capsys.readouterr().err.startswith(expected)
    monkeypatch.setattr(sys, "argv", [*command, "--model.weights="])  # the remedy
    runpy.run_module("ffcv_prune.static_scores", run_name="__main__")
    assert path.exists()


@pytest.mark.parametrize("method", ["static", "static_epsilon_greedy", "static_ucb"])
def test_static_methods_need_their_scores(config_file: Path, method: str) -> None:
    with pytest.raises(UserError, match=r"needs prune\.scores=FILE\.npy"):
        config.load(["--config", str(config_file), f"--prune.method={method}"])
