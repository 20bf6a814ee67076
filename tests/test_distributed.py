"""Several processes with gloo on the CPU: what they share, where they agree, and how they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from ffcv_prune import config
from ffcv_prune.errors import UserError
from ffcv_prune.training import world
from ffcv_prune.training.loaders import Loaders, settings_of
from ffcv_prune.training.loop import Trainer
from ffcv_prune.training.stop import StopSignals
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_beton

ROOT = Path(__file__).resolve().parent.parent
RANKS = str(ROOT / "tests" / "ranks.py")

pytestmark = pytest.mark.timeout(300)  # each process imports and compiles for itself


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run([*command, *arguments], env=environment(), capture_output=True, text=True, timeout=280)


ONE_RANK = """
import os, sys
from ffcv_prune import Pruner
import torch

def train():
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    assert threads()
    torch.distributed.destroy_process_group()

def threads():
    names = [open(f"/proc/self/task/{thread}/comm").read().strip() for thread in os.listdir("/proc/self/task")]
    return [name for name in names if "gloo" in name]

train()
print(*threads())
"""


def test_no_thread_of_the_process_group_outlives_the_training(tmp_path: Path) -> None:
    """One that releases a tensor while Python exits aborts the process."""
    command = [sys.executable, "-c", ONE_RANK, str(tmp_path / "store")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.stdout == "\n", done.stdout + done.stderr


def start_ranks(processes: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """As torchrun would, but nobody ends the others when one dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, RANKS, *arguments],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, beton: Beton) -> list[str]:
    folder = tmp_path_factory.mktemp("config")
    test = write_beton(folder / "test.beton", n=83, seed=1)
    path = folder / "small.yaml"
    path.write_text(
        f"""
data: {{train: {beton.path}, test: {test.path}, augment: pad_crop_flip, num_workers: 1}}
model: {{name: resnet_tiny}}
train: {{epochs: 4, batch_size: 32, lr: 0.02, device: cpu, amp: "off"}}
prune: {{method: epsilon_greedy, keep: 0.5, period: 2}}
"""
    )
    return ["--config", str(path)]


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_three_ranks_serve_score_train_and_agree(beton: Beton) -> None:
    done = torchrun(3, RANKS, "checks", str(beton.path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all checks passed\n"


@pytest.mark.cuda
def test_two_ranks_on_one_gpu_serve_score_train_and_agree(beton: Beton) -> None:
    done = torchrun(2, RANKS, "checks on one gpu", str(beton.path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all checks passed\n"


def test_two_ranks_train_one_model(options: list[str], tmp_path: Path) -> None:
    done = torchrun(2, RANKS, "train", *options, f"--run.out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch ") == 4  # the main rank's lines only
    run = tmp_path / "small"
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in range(2))
    saved = torch.load(run / "weights.pt", weights_only=True)
    for name, tensor in saved.items():
        assert torch.equal(first[name], tensor)
        assert torch.equal(second[name], tensor)
    alone = train(config.load([*options, f"--run.out={tmp_path / 'alone'}"])).folder
    for own, other in zip(read_log(run), read_log(alone), strict=True):
        assert [own[key] for key in ("steps", "samples_seen", "keep", "lr", "selected")] == [
            other[key] for key in ("steps", "samples_seen", "keep", "lr", "selected")
        ]
        assert round(own["test_accuracy"] * 83, 4) == round(own["test_accuracy"] * 83)  # each test sample once
    # The first scores come from the same weights: the same selection.
    np.testing.assert_array_equal(*(np.load(folder / "selections" / "epoch_0000.npy") for folder in (run, alone)))


def test_the_others_wait_for_a_slow_disk_of_the_main_rank(options: list[str], tmp_path: Path) -> None:
    done = torchrun(2, RANKS, "slow disk", *options, f"--run.out={tmp_path}", "--train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert len(read_log(tmp_path / "small")) == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_rank_that_never_comes_is_a_lost_one(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the words are those that PyTorch has for a store that nobody writes to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**shared, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(world, "SILENCE", timedelta(seconds=2))
    if device == "cuda":

        def nobody(*_: Any, **__: Any) -> None:
            raise torch.distributed.DistBackendError(
                "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by "
                "key '0', but store->get('0') got error: wait timeout after 600000ms, keys: /default_pg/0//cuda//0/0"
            )

        monkeypatch.setattr(world, "choose_device", lambda *_: torch.device("cuda", 0))
        monkeypatch.setattr(world, "prepare", lambda _: None)
        monkeypatch.setattr(torch.distributed, "init_process_group", nobody)
    with pytest.raises(UserError, match="another rank ended or cannot be reached"), world.join(device):
        pass
    assert not torch.distributed.is_initialized()


def test_what_is_wrong_with_this_rank_is_no_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for name, value in {**shared, "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(torch.distributed.DistNetworkError, match="EADDRINUSE"), world.join("cpu"):
            pass


def test_sigterm_at_one_rank_stops_all_and_another_number_goes_on(options: list[str], tmp_path: Path) -> None:
    ranks = start_ranks(2, "train", *options, f"--run.out={tmp_path}", "--train.epochs=40", "--prune.period=20")
    run = tmp_path / "small"
    try:
        deadline = time.monotonic() + 200
        while not (run / "log.jsonl").exists() or not read_log(run):
            assert all(rank.poll() is None for rank in ranks)
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ranks[1].send_signal(signal.SIGTERM)
        errors = [rank.communicate(timeout=60)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [75, 75]
    assert f"--resume {run}" in errors[0]
    assert "--resume" not in errors[1]
    assert json.loads((run / "status.json").read_text())["status"] == "interrupted"
    done, selection = len(read_log(run)), np.load(run / "selections" / "epoch_0000.npy")
    assert 0 < done < 20  # the selection of epoch 0 is still in use
    own, folder = config.read_command(["--resume", str(run)])
    assert train(own, resume=folder).folder == run
    rows = read_log(run)
    assert [row["epoch"] for row in rows] == list(range(40))
    assert len({str(row["class_fraction"]) for row in rows[:20]}) == 1
    np.testing.assert_array_equal(np.load(run / "selections" / "epoch_0000.npy"), selection)


@pytest.mark.parametrize("mode", ["die", "stuck"], ids=["in an exchange", "whatever they wait for"])
def test_when_a_rank_dies_the_others_stop(mode: str, options: list[str], tmp_path: Path) -> None:
    ranks = start_ranks(3, mode, *options, f"--run.out={tmp_path}", "--train.batch_size=30")
    try:
        assert ranks[1].wait(timeout=200) == 3
        died = time.monotonic()
        errors = [ranks[rank].communicate(timeout=90)[1] for rank in (0, 2)]
        assert time.monotonic() - died < 60
    finally:
        for rank in ranks:
            rank.kill()
    assert [ranks[rank].returncode for rank in (0, 2)] == [2, 2], errors
    assert all("error: another rank ended or cannot be reached; see its output" in error for error in errors)
    assert not any("Traceback" in error for error in errors)
    run = tmp_path / "small"
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "failed"
    assert status["reason"].startswith("another rank ended")
    assert (run / "checkpoint.pt").exists()


def test_what_several_processes_cannot_share_is_refused(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match=r"batch_size=32 is over all processes and does not divide by 3; use 30"):
        settings_of(config.load(options), world.World(cpu, 2, 3, 2, 3))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert world.choose_device("cuda", 1, 2) == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"3 processes on a machine with 2 CUDA devices"):
        world.choose_device("cuda", 1, 3)
    with pytest.raises(UserError, match=r"takes a GPU of its own; use cuda"):
        world.choose_device("cuda:1", 1, 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="start several processes with torchrun"), world.join("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match=r"not a number.*'two'"), world.join("cpu"):
        pass


class Counting(world.World):
    """A rank of two, of which the other has nothing to say; `questions` counts how often it was asked."""

    questions: ClassVar[list[int]] = []

    def agree(self, number: int) -> int:
        self.questions.append(number)
        return number


@pytest.mark.parametrize(("asks", "questions"), [(1, 20), (8, 2)])
def test_a_step_on_a_gpu_does_not_always_ask_the_other_ranks(asks: int, questions: int, options: list[str]) -> None:
    own = config.load(options)
    loaders = Loaders(own)
    trainer = Trainer(own, loaders)
    trainer.world, trainer._ask_every = Counting(torch.device("cpu"), 1, 2, 1, 2), asks
    Counting.questions.clear()
    with StopSignals(announce=False) as stop:
        for _ in range(20):
            trainer._save_if_asked(None, stop, training=True)
        assert len(Counting.questions) == questions
        trainer._save_if_asked(None, stop)  # between two epochs it always does
        assert len(Counting.questions) == questions + 1
    loaders.close()


def test_loaders_fit_another_world_of_the_same_shape(options: list[str]) -> None:
    first, second = (world.World(torch.device("cpu"), 0, 2, 0, 2, object(), object()) for _ in range(2))
    own = config.load(options)
    assert settings_of(own, first) == settings_of(own, second)
    assert settings_of(own, first) != settings_of(own, world.World(torch.device("cpu"), 1, 2, 1, 2))
