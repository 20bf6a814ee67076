"""Whole runs in processes of their own: how near training comes to its limits, scoring, learning, a stop, a resume."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import CIFAR_STEP, CIFAR_TRAINING, LOADER, SAVE, SMALL_PASS, TRAINING, of_card
from benchmarks.gpu.data import CIFAR, CIFAR_TEST, MIX, SMALL, VAL, beton
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from benchmarks.harness.machine import ROOT, fresh_python
from ffcv_prune.errors import EXIT_TERMINATED

TRAIN = str(ROOT / "train_imagenet.py")
LIMIT = 120.0  # seconds until a run must have come so far
SHARE = 0.95  # of the slower of loader and model that training must reach
BUDGET = 0.3  # prune.score_budget of rn18_ucb_fast


def run(setting: Setting, report: Report) -> None:
    for part in (train_full, train_ucb, train_cifar, stop_and_resume, train_compiled):
        with report.going_on(part.__name__):
            part(setting, report)


def _imagenet(setting: Setting, config: str) -> list[str]:
    scale = setting.scale
    words = [*_words(setting, config, MIX, VAL), "--train.epochs=4", "--train.eval_every=5"]
    if setting.small:
        words += [f"--model.name={scale.model}", f"--data.size={scale.side}", f"--train.batch_size={scale.batch}"]
    return words


def _cifar(setting: Setting, config: str) -> list[str]:
    scale = setting.scale
    words = [*_words(setting, config, CIFAR, CIFAR_TEST), "--prune.random_share=0.5", "--train.eval_every=10"]
    if setting.small:
        words += [f"--model.name={scale.cifar_model}", f"--train.batch_size={scale.cifar_batch}"]
    return words


def _words(setting: Setting, config: str, train: str, test: str) -> list[str]:
    config = str(ROOT / "rn_configs" / f"{config}.yaml")
    words = [f"--config={config}", f"--data.train={beton(setting, train)}", f"--data.test={beton(setting, test)}"]
    return [*words, f"--train.device={setting.device}", f"--run.out={setting.out / 'runs'}"]


def trained(setting: Setting, name: str, words: list[str]) -> Path:
    """The folder of a run that has ended. RuntimeError where it failed."""
    folder = _unused(setting, name)
    fresh_python([TRAIN, *words, f"--run.name={folder.name}"])
    return folder


def _unused(setting: Setting, name: str) -> Path:
    number = 1
    while (folder := setting.out / "runs" / f"{name}_{number}").exists():
        number += 1
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    log = folder / "log.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def train_full(setting: Setting, report: Report) -> None:
    """Training on all data: reached, of the slower of loader and model alone; what a test and a save take."""
    rows = _reached(setting, report, "full", [], "bf16")
    expected = setting.test_samples / (LOADER["mix"] * setting.spare) if setting.expects else None
    report.figure("full: a test", rows[-1]["seconds"]["eval"], "s", expected, judge=False, lower=True)
    save = max(row["seconds"]["save"] for row in rows)
    report.figure("full: a save", save, "s", SAVE if setting.expects else None, lower=True)


def train_compiled(setting: Setting, report: Report) -> None:
    """The same, compiled: on a GPU in fp16, the faster by what is expected."""
    amp = ["--train.amp=fp16"] if setting.cuda else []
    _reached(setting, report, "full, compiled", ["--train.compile=default", *amp], "fp16, compiled")


def _reached(setting: Setting, report: Report, name: str, more: list[str], mode: str) -> list[dict[str, Any]]:
    """The log of a run on all data; adds what it has reached."""
    words = [*_imagenet(setting, "rn18_full"), "--profile", *more]
    folder = trained(setting, name.replace(", ", "_"), words)
    profile = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    loader, model = profile["loader_alone"], profile["model_alone"]
    rows = rows_of(folder)
    reached = reached_after_first(rows, profile["first_batch_seconds"])
    note = f"from the second epoch on; alone: loader {loader:,.0f}, model {model:,.0f}"
    expected = of_card(TRAINING, setting).get(mode)
    if expected is not None:
        expected = SHARE * min(expected, LOADER["mix"] * setting.spare)
    # Not judged: the loader's part depends on the processor. Its share of the slower is.
    report.figure(f"{name}: reached", reached, "images/s", expected, note, judge=False)
    share = reached / min(loader, model)
    # An epoch of a small run is too short for the share to mean anything.
    report.check(f"{name}: {share:.2f} of the slower", share >= SHARE or setting.small, f"expected {SHARE}")
    return rows


def reached_after_first(rows: list[dict[str, Any]], first_batch: float) -> float:
    """Images/s of training from the second epoch on: in the first, cuDNN tries its algorithms and files are read.

    The wait for the first batch of an epoch, in seconds, is left out: here epochs are much shorter than ImageNet's.
    """
    later = rows[1:]
    seconds = sum(row["seconds"]["load"] + row["seconds"]["train"] - first_batch for row in later)
    return (later[-1]["samples_seen"] - rows[0]["samples_seen"]) / seconds


def train_ucb(setting: Setting, report: Report) -> None:
    """Pruned training by UCB: scored by full passes, in a small raw file, and there within rn18_ucb_fast's budget."""
    small = [f"--data.score={beton(setting, SMALL)}", f"--data.score_size={setting.scale.score_side}"]
    wanted = setting.scale.samples / (LOADER["mix"] * setting.spare)
    seconds = {}
    for name, config, more, share, faster in (
        ("ucb", "rn18_ucb", [], 1.0, 1.0),
        ("ucb_small", "rn18_ucb", small, 1.0, SMALL_PASS),
        ("ucb_fast", "rn18_ucb_fast", small, BUDGET, SMALL_PASS),
    ):
        folder = trained(setting, name, [*_imagenet(setting, config), "--prune.period=2", *more])
        # The first is over all samples whatever the budget, and cuDNN tries its algorithms in it.
        seconds[name] = [row["seconds"]["score"] for row in rows_of(folder) if row["selected"]][-1]
        scored = share * setting.scale.samples
        note = f"{scored:,.0f} samples, {scored / seconds[name]:,.0f} images/s"
        expected = share * wanted / faster if setting.expects else None
        # Not judged: it depends on the processor.
        report.figure(f"{name}: a scoring pass", seconds[name], "s", expected, note, judge=False, lower=True)
    expected = SMALL_PASS if setting.expects else None
    report.figure("ucb: pass over pass in the small file", seconds["ucb"] / seconds["ucb_small"], "", expected)


def train_cifar(setting: Setting, report: Report) -> None:
    """Pruned CIFAR-10: that it learns, and milliseconds a step; on a GPU in fp16 too."""
    phases = ["--prune.period=2", "--prune.warmup=1"] if setting.small else ["--prune.period=5", "--prune.warmup=2"]
    words = [*_cifar(setting, "cifar10_ucb"), *phases, f"--train.epochs={setting.scale.cifar_epochs}"]
    fp16 = {"cifar, fp16": ["--train.amp=fp16"]} if setting.cuda else {}
    least = setting.scale.accuracy
    for name, more in ({"cifar": []} | fp16).items():
        last = rows_of(trained(setting, name.replace(", ", "_"), [*words, *more]))[-1]
        accuracy = last["test_accuracy"]
        report.check(f"{name}: test accuracy {accuracy:.3f}", accuracy > least, f"expected above {least}")
        training = 1000 * (last["seconds"]["load"] + last["seconds"]["train"]) / last["steps"]
        expected = CIFAR_STEP if of_card(CIFAR_TRAINING, setting) else None
        report.figure(f"{name}: a step, with waiting for batches", training, "ms", expected, lower=True)


def stop_and_resume(setting: Setting, report: Report) -> None:
    """SIGTERM within an epoch; then the run goes on, for two epochs."""
    folder = _unused(setting, "stopped")
    words = [*_cifar(setting, "cifar10_ucb"), "--prune.warmup=1", "--train.epochs=200", f"--run.name={folder.name}"]
    code = stopped_after(2, words, folder)
    before = len(rows_of(folder))
    report.check("SIGTERM: exit code 75, saved", code == EXIT_TERMINATED and (folder / "checkpoint.pt").exists())
    code = stopped_after(before + 2, ["--resume", str(folder)], folder)
    epochs = [row["epoch"] for row in rows_of(folder)]
    went_on = code == EXIT_TERMINATED and len(epochs) >= before + 2 and epochs == list(range(len(epochs)))
    report.check("resume: went on", went_on, f"from epoch {before} to {len(epochs)}")


def stopped_after(epochs: int, words: list[str], folder: Path) -> int:
    """The exit code of a run that gets a SIGTERM when it has logged so many epochs, or takes too long for that."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, TRAIN, *words], cwd=ROOT, stdout=quiet, stderr=quiet) as process:
        try:
            deadline = time.monotonic() + LIMIT
            while len(rows_of(folder)) < epochs and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.terminate()
            return process.wait(LIMIT)
        finally:
            process.send_signal(signal.SIGKILL)
