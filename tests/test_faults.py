"""Faults that are injected into whole commands and loaders. docs/faults.md says where the others are tested."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import pytest
import torch
from torch import Tensor

from ffcv_prune import PrunedLoader, score_dataset
from ffcv_prune.data import sources
from ffcv_prune.data.encode import _BetonWriter
from ffcv_prune.data.recipe import load_recipe
from ffcv_prune.data.writer import write_dataset
from ffcv_prune.errors import UserError, uninterrupted
from ffcv_prune.loading.bus_errors import Guard
from tests.betons import Beton, write_beton, write_run
from tests.data_helpers import write_images, write_recipe
from tests.faulty_reads import (
    make_loader,
    read_a_file_that_is_not_ours,
    read_where_the_disk_fails,
    read_while_truncated,
)
from tests.nets import SmallNet
from tests.processes import expect_no_leak, shared_memory, wait_for_epochs

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def score_loader(beton: Beton) -> PrunedLoader:
    return make_loader(beton.path, 64)


def start(*command: object) -> subprocess.Popen[str]:
    """Start Python with a command line, in a process that may die without taking the tests with it."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(function: Callable[..., None]) -> tuple[str, str]:
    """The command line that calls a function of a module with the arguments that follow."""
    return "-c", f"import sys; from {function.__module__} import {(name := function.__name__)}; {name}(*sys.argv[1:])"


# ---- the file changes while it is read ---------------------------------------------------------------------


def read_while(change: Callable[[Path], object], path: Path) -> tuple[int, str]:
    """Change the file when the loader's thread waits; return the batches served and what ended the epoch."""
    epoch = iter(make_loader(path))
    next(epoch)
    time.sleep(0.5)  # until the queue is full
    change(path)
    batches = 1
    with pytest.raises(UserError) as caught:
        for _ in epoch:
            batches += 1
    return batches, str(caught.value)


def replace(path: Path) -> None:
    os.replace(shutil.copy(path, path.with_suffix(".new")), path)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")


@pytest.mark.parametrize("change", [Path.unlink, replace, overwrite])
def test_a_file_that_changes_during_an_epoch_ends_it_with_one_line(
    change: Callable[[Path], object], beton: Beton, tmp_path: Path
) -> None:
    path = Path(shutil.copy(beton.path, tmp_path / "train.beton"))
    batches, message = read_while(change, path)
    assert message == f"{path} was replaced, changed or deleted since it was opened: build a new loader"
    assert batches < -(-len(beton) // 8)


@pytest.mark.parametrize(
    ("thread", "served"),
    # With a thread, those that were decoded before; else the batches are looked at when they are asked for.
    [("thread", ["0", "1", "2", "3", "4"]), ("direct", ["0"])],
)
@pytest.mark.parametrize(("mode", "workers"), [("raw", 2), ("jpg", 1)])
def test_a_file_truncated_while_it_is_decoded_ends_the_epoch_with_one_line(
    mode: str, workers: int, thread: str, served: list[str], tmp_path: Path
) -> None:
    """Reading a mapping beyond the file's end raises SIGBUS: in a process of its own."""
    path = write_beton(tmp_path / "train.beton", n=203, size=32, mode=mode).path
    process = start(*call(read_while_truncated), path, workers, thread)
    output, errors = process.communicate(timeout=100)
    expected = f"error: {path} was replaced, changed or deleted since it was opened: build a new loader"
    assert [line for line in errors.splitlines() if not line.startswith("notice: ")] == [expected]
    assert process.returncode == 2
    assert output.split() == served


def test_a_disk_that_fails_ends_the_epoch_with_one_line(beton: Beton, tmp_path: Path) -> None:
    path = shutil.copy(beton.path, tmp_path / "train.beton")
    process = start(*call(read_where_the_disk_fails), path)
    output, errors = process.communicate(timeout=100)
    assert errors == f"error: {path} cannot be read, the disk reports an error: write it again on another one\n"
    assert (process.returncode, output) == (2, "")


@pytest.mark.parametrize("fault_handler", ["before", "after"])
def test_a_bus_error_elsewhere_still_ends_the_process(fault_handler: str, beton: Beton, tmp_path: Path) -> None:
    path = shutil.copy(beton.path, tmp_path / "train.beton")
    process = start(*call(read_a_file_that_is_not_ours), path, fault_handler)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGBUS
    assert output == f"{-(-len(beton) // 8)}\n"
    assert "Fatal Python error: Bus error" in errors


def test_as_many_files_as_are_guarded(beton: Beton) -> None:
    mapped = np.memmap(beton.path, np.uint8, mode="r")
    guards = []
    with pytest.raises(UserError, match=r"1024 \.beton files are open in this process"):
        for _ in range(2000):
            guards.append(Guard(mapped))
    assert 1000 < len(guards) <= 1024
    guards.clear()
    assert not Guard(mapped).failed


# ---- memory ------------------------------------------------------------------------------------------------


class Hungry(SmallNet):
    """Asks the CPU's allocator for more than any address space above `limit` samples: its refusal is genuine."""

    limit = 20
    largest = 0

    def forward(self, images: Tensor) -> Tensor:
        torch.empty(max(0, len(images) - self.limit) << 50, dtype=torch.uint8)
        self.largest = max(self.largest, len(images))
        return super().forward(images)


def test_out_of_memory_on_the_cpu_tries_smaller_batches(score_loader: PrunedLoader) -> None:
    model = Hungry()
    losses = score_dataset(model, score_loader, amp_dtype=None)
    assert model.largest == 16
    np.testing.assert_allclose(losses, score_dataset(SmallNet(), score_loader, amp_dtype=None), rtol=1e-5)
    model.limit = 0
    with pytest.raises(UserError, match="out of memory with a single sample"):
        score_dataset(model, score_loader)


class Broken(SmallNet):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("a defect of the model")


def test_other_errors_of_a_model_keep_their_traceback(score_loader: PrunedLoader) -> None:
    with pytest.raises(RuntimeError, match="a defect of the model"):
        score_dataset(Broken(), score_loader)


# ---- the disk is full --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def write_config(folder: Path, beton: Beton, epochs: int) -> Path:
    return write_run(folder / "small.yaml", beton, epochs=epochs, prune="method: random, keep: 0.5, period: 1")


@pytest.mark.requires_root
def test_a_full_disk_ends_training_with_one_line_and_keeps_the_log(
    beton: Beton, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, beton, epochs=1000)
    log = small_disk / "small" / "log.jsonl"

    def fill_after_two_epochs(*_: object) -> None:
        if not (small_disk / "filler").exists() and log.exists() and log.read_text().count("\n") == 2:
            fill(small_disk)

    monkeypatch.setattr(sys, "argv", ["train_imagenet.py", "--config", str(config), f"--run.out={small_disk}"])
    hook = torch.nn.modules.module.register_module_forward_pre_hook(fill_after_two_epochs)
    with hook, pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "train_imagenet.py"), run_name="__main__")
    assert stop.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    lines = log.read_text().splitlines()
    assert len(lines) >= 2
    assert [json.loads(line)["epoch"] for line in lines[:2]] == [0, 1]


# ---- Ctrl-C, twice -----------------------------------------------------------------------------------------


def test_ctrl_c_while_tidying_up_comes_afterwards() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("tidied up")
    assert done
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def interrupt_twice(process: subprocess.Popen[str], pause: float) -> str:
    """Send SIGINT two times and return what the process said on standard error until its end."""
    process.send_signal(signal.SIGINT)
    time.sleep(pause)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    return errors


def test_ctrl_c_twice_in_training_leaves_a_readable_log(beton: Beton, tmp_path: Path) -> None:
    config = write_config(tmp_path, beton, epochs=1_000_000)
    log = tmp_path / "runs" / "small" / "log.jsonl"
    process = start(ROOT / "train_imagenet.py", "--config", config, f"--run.out={tmp_path / 'runs'}")
    try:
        wait_for_epochs(process, log, 2, seconds=90)
        interrupt_twice(process, pause=0.02)
    finally:
        process.kill()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(len(rows)))


def write_slowly(recipe: str, data_dir: str, out_dir: str) -> None:
    """The command write_datasets.py, with images that take their time."""
    fast = sources.read_file
    sources.read_file = lambda file: (time.sleep(0.05), fast(file))[1]
    sys.argv = ["write_datasets.py", "--dataset", recipe, "--data-dir", data_dir, "--out-dir", out_dir, "--workers=2"]
    runpy.run_path(str(ROOT / "write_datasets.py"), run_name="__main__")


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_ctrl_c_twice_in_the_writer_leaves_nothing(pause: float, tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 300})
    recipe = write_recipe(tmp_path, "source: {folder: small}\n")
    out = tmp_path / "out"
    before = shared_memory()
    process = start(*call(write_slowly), recipe, tmp_path, out)
    try:
        deadline = time.monotonic() + 90
        while not list(out.rglob("*.tmp")):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        errors = interrupt_twice(process, pause)
    finally:
        process.kill()
    assert "leaked" not in errors
    assert not [path for path in out.rglob("*") if path.is_file()]
    expect_no_leak(before)


def test_ctrl_c_before_the_writers_first_process_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shared memory is there by then."""
    write_images(tmp_path / "train", {"cat": 20})
    recipe = write_recipe(tmp_path, "source: {folder: small}\n")
    prepare = _BetonWriter.prepare

    def interrupted(writer: _BetonWriter) -> None:
        prepare(writer)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_BetonWriter, "prepare", interrupted)
    before = shared_memory()
    with pytest.raises(KeyboardInterrupt):
        write_dataset(load_recipe(str(recipe)), tmp_path, tmp_path / "out", 2)
    expect_no_leak(before, seconds=5)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


# ---- one core ----------------------------------------------------------------------------------------------


def test_the_writer_ends_on_a_single_core(tmp_path: Path) -> None:
    """It forks, and numba with TBB would then wait for ever for a thread of its own."""
    write_images(tmp_path / "train", {"cat": 3})
    recipe = write_recipe(tmp_path, "source: {folder: small}\n")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        process = start(ROOT / "write_datasets.py", "--dataset", recipe, "--data-dir", tmp_path, "--out-dir", tmp_path)
        _, errors = process.communicate(timeout=60)
    finally:
        os.sched_setaffinity(0, cores)
        process.kill()
    assert process.returncode == 0, errors
