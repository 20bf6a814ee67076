"""The parts `runs` and `scoring` of the benchmark of a GPU, small, on the CPU, and within this process.

`test_all_runs_to_its_end` has them in processes of their own, and compiles.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.gpu import card, runs, scoring
from benchmarks.gpu.__main__ import run_part
from benchmarks.gpu.report import FAIL, PASS, Line, Report
from benchmarks.gpu.setting import FULL, Setting
from benchmarks.harness.rows import benchmark
from benchmarks.speed import scoring as scoring_benchmark
from ffcv_prune import config
from ffcv_prune.errors import EXIT_TERMINATED, Terminated
from ffcv_prune.training import profile
from ffcv_prune.training.trainer import train
from tests.test_gpu_benchmark import ABOUT, read, setting

__all__ = ["setting"]  # a fixture

pytestmark = pytest.mark.usefixtures("unpainted")


def run_here(words: Sequence[str], **_: str) -> str:
    """In place of a fresh process."""
    if words[0] == runs.TRAIN:
        own, folder = config.read_command(list(words[1:]))
        train(own, resume=folder)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", list(words[1:]))
            benchmark(scoring_benchmark)
    return ""


def stopped_here(epochs: int, words: list[str], folder: Path) -> int:
    """As `runs.stopped_after`: this process gets the SIGTERM."""
    ended = threading.Event()

    def stop() -> None:
        while len(runs.rows_of(folder)) < epochs and not ended.wait(0.01):
            pass
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    watch = threading.Thread(target=stop)
    watch.start()
    try:
        run_here([runs.TRAIN, *words])
    except Terminated:
        return EXIT_TERMINATED
    finally:
        ended.set()
        watch.join()
    return 0


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs in this process, none compiled; the modes in which one would be."""
    modes: list[str] = []

    def compiled(net: nn.Module, mode: str) -> nn.Module:
        modes.append(mode)
        return net

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(profile, "SECONDS", 0.05)
    for module, name, act in (
        (runs, "fresh_python", run_here),
        (scoring, "fresh_python", run_here),
        (runs, "stopped_after", stopped_here),
    ):
        monkeypatch.setattr(module, name, act)
    return modes


def test_runs_go_to_their_end(setting: Setting, within: list[str]) -> None:
    run_part("runs", setting, Report(setting.out, ABOUT))
    lines = read(setting.out)
    assert [line for line in lines if line.verdict == FAIL] == []
    found = {line.name: line for line in lines if line.part == "runs"}
    for name in ("full: reached", "full, compiled: reached", "cifar: a step, with waiting for batches"):
        assert found[name].value > 0 and found[name].expected is None
    assert {*within} == {"default"}
    passes = {name: found[f"{name}: a scoring pass"] for name in ("ucb", "ucb_small", "ucb_fast")}
    assert all(line.value > 0 and line.lower for line in passes.values())
    assert passes["ucb"].note.startswith("256 samples")
    assert passes["ucb_fast"].note.startswith("77 samples")
    fast = config.read_command(["--resume", str(setting.out / "runs" / "ucb_fast_1")])[0]
    assert fast.prune.source.score_budget == runs.BUDGET and fast.data.score.endswith("imagenet_like_small.beton")
    assert "resume: went on" in found and "SIGTERM: exit code 75, saved" in found


def test_the_scoring_benchmark_goes_to_its_end(setting: Setting, within: list[str]) -> None:
    run_part("scoring", setting, Report(setting.out, ABOUT))
    lines = [line for line in read(setting.out) if line.part == "scoring"]
    assert [line.name for line in lines] == [
        "resnet_tiny x 32: forward passes alone",
        "resnet_tiny x 32: folded of bare",
        "resnet_tiny x 32: score_dataset of bare",
    ]
    assert all(line.value > 0 and not line.verdict for line in lines)


@pytest.fixture
def h100(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Setting]:
    """A full-size setting on a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    return lambda out: Setting(FULL, torch.device("cuda"), out, setting.photographs, setting.cifar)


def test_what_is_expected_stands_beside_what_was_seen(
    h100: Callable[[Path], Setting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of runs whose logs are made up: each has a figure far worse than expected."""
    own = h100(tmp_path)
    rows = [
        {"samples_seen": 30_000 * (i + 1), "selected": i % 2 == 0, "steps": 117, "test_accuracy": 0.9, "epoch": i}
        | {"seconds": {"load": 1.0, "train": 4.0, "eval": 1.0, "save": 2.0, "score": 4.0}}
        for i in range(4)
    ]
    made = tmp_path / "made"
    made.mkdir()
    (made / "profile.json").write_text('{"loader_alone": 17000, "model_alone": 12000, "first_batch_seconds": 0.1}')
    commands: dict[str, list[str]] = {}
    monkeypatch.setattr(runs, "trained", lambda _, name, words: (commands.update({name: words}), made)[1])
    monkeypatch.setattr(runs, "rows_of", lambda _: rows)
    monkeypatch.setattr(runs, "beton", lambda _, name: Path(name))
    report = Report(tmp_path, ABOUT)
    for part in (runs.train_full, runs.train_compiled, runs.train_ucb, runs.train_cifar):
        part(own, report)
    found: dict[str, Line] = {line.name: line for line in report.lines}
    assert found["full: a save"].verdict == FAIL and found["full: a save"].expected == card.SAVE
    assert found["full: a save"].awaited == "at most 0.6"
    for name in ("cifar", "cifar, fp16"):
        line = found[f"{name}: a step, with waiting for batches"]
        assert line.verdict == FAIL and line.expected == 5
        assert found[f"{name}: test accuracy 0.900"].verdict == PASS
    one = own.spare * card.LOADER["mix"]
    assert found["ucb: a scoring pass"].expected == pytest.approx(30_000 / one)
    assert found["ucb_small: a scoring pass"].expected == pytest.approx(30_000 / one / 8)
    assert found["ucb_fast: a scoring pass"].expected == pytest.approx(9_000 / one / 8)
    assert found["full: reached"].expected == pytest.approx(0.95 * min(12_000, one))
    assert found["full, compiled: reached"].expected == pytest.approx(0.95 * min(16_000, one))
    assert {"--train.compile=default", "--train.amp=fp16"} <= {*commands["full_compiled"]}
    assert "--train.amp=fp16" in commands["cifar_fp16"] and "--train.amp=fp16" not in commands["cifar"]


def test_an_unknown_card_and_a_small_run_expect_nothing(
    h100: Callable[[Path], Setting], setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = h100(tmp_path)
    assert card.of_card(card.TRAINING, own)["bf16"] == 12_000
    assert card.of_card(card.TRAINING, setting) == {}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    assert card.of_card(card.TRAINING, own) == {}
