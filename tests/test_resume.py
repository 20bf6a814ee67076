"""A run that was killed, wherever that was, and resumed ends as one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ffcv_prune import config
from ffcv_prune.analysis import report
from ffcv_prune.errors import Terminated, UserError
from ffcv_prune.pruner import Pruner
from ffcv_prune.scoring.values import Values
from ffcv_prune.training import run_folder
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_run
from tests.nets import in_a_step

pytestmark = pytest.mark.usefixtures("unpainted")

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 4

Settings = Callable[..., config.Config]


@dataclass(frozen=True)
class Outcome:
    """What a run left, without its seconds."""

    rows: list[dict[str, Any]]
    selections: dict[str, list[int]]
    weights: dict[str, torch.Tensor]

    @classmethod
    def of(cls, folder: Path) -> Outcome:
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for row in rows:
            assert row.pop("seconds")["total"] > 0
        files = sorted((folder / "selections").iterdir())
        assert is_finished(folder)
        assert len((folder / "result.csv").read_text().splitlines()) == 2
        weights = torch.load(folder / "weights.pt", weights_only=True)
        return cls(rows, {file.name: np.load(file).tolist() for file in files}, weights)

    def check_equal(self, other: Outcome) -> None:
        assert self.selections == other.selections
        assert self.rows == other.rows
        assert self.weights.keys() == other.weights.keys()
        for name, tensor in self.weights.items():
            assert torch.equal(tensor, other.weights[name]), name


def is_finished(folder: Path) -> bool:
    status = folder / "status.json"
    return status.exists() and json.loads(status.read_text())["status"] == "finished"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads in their last bits; `start` gives the processes one, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, beton: Beton, test_beton: Beton) -> Path:
    path, more = tmp_path_factory.mktemp("resume") / "small.yaml", "augment: pad_crop_flip, num_workers: 1"
    # basic_cnn has dropout: the random states matter
    return write_run(path, beton, test_beton, EPOCHS, data=more, prune="method: epsilon_greedy, keep: 0.5, period: 2")


@pytest.fixture(scope="module")
def uninterrupted(config_file: Path, loaders: Loaders, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("uninterrupted")
    return Outcome.of(train(config.load(["--config", str(config_file), f"--run.out={out}"]), loaders).folder)


def resume(folder: Path, loaders: Loaders) -> Outcome:
    torch.manual_seed(int(time.time()))  # whatever the process did before does not matter
    own, run = config.read_command(["--resume", str(folder)])
    return Outcome.of(train(own, loaders, resume=run).folder)


class Killed(BaseException):
    """In place of SIGKILL, so that one process can die often and at chosen moments."""


class Killer:
    """Dies at the n-th event that is reported to it, and at each later one: the dead write nothing."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.events = 0

    def event(self, *_: Any) -> None:
        self.events += 1
        if self.events >= self.at:
            raise Killed


def run_and_kill(own: config.Config, loaders: Loaders, killer: Killer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train until the killer strikes, at a forward pass of the model or at a moment of writing a file."""

    def before_forward(module: torch.nn.Module, _: Any) -> None:
        if "normalize" in dict(module.named_children()) and (in_a_step(module) or not module.training):
            killer.event()

    real = {name: getattr(os, name) for name in ("replace", "fsync")}
    with (
        torch.nn.modules.module.register_module_forward_pre_hook(before_forward),
        monkeypatch.context() as patch,
        pytest.raises(Killed),
    ):
        for name, function in real.items():
            patch.setattr(run_folder.os, name, lambda *args, f=function: (killer.event(), f(*args)))
        train(own, loaders)
    return Path(own.run.out) / own.run.name


def moments(own: config.Config, loaders: Loaders, monkeypatch: pytest.MonkeyPatch) -> int:
    """Events of a run after its first checkpoint is written."""
    counter = Killer(sys.maxsize)
    with pytest.raises(pytest.fail.Exception):
        run_and_kill(own, loaders, counter, monkeypatch)
    return counter.events


def kill_and_resume_everywhere(
    settings: Settings, loaders: Loaders, expected: Outcome, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    rng = random.Random(int(time.time()))
    for save_every in (0, 1000):
        total = moments(settings(run__save_every=save_every, run__name="count"), loaders, monkeypatch)
        assert total > 60
        chosen = sorted(rng.sample(range(1, total + 1), round(share * total)))
        for at in chosen:
            own = settings(run__save_every=save_every, run__name=f"run_{save_every}_{at}")
            folder = run_and_kill(own, loaders, Killer(at), monkeypatch)
            if is_finished(folder) or not (folder / "checkpoint.pt").exists():
                with pytest.raises(UserError, match=r"config\.yaml|status\.json|nothing was saved|already finished"):
                    resume(folder, loaders)
                continue
            with (folder / "log.jsonl").open("a") as log:
                log.write('{"epoch": 3, "pha')  # a line that was being written
            resume(folder, loaders).check_equal(expected)


def test_killed_at_random_moments(
    settings: Settings, loaders: Loaders, uninterrupted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_and_resume_everywhere(settings, loaders, uninterrupted, monkeypatch, share=0.2)


@pytest.mark.slow
def test_killed_at_every_moment(
    settings: Settings, loaders: Loaders, uninterrupted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_and_resume_everywhere(settings, loaders, uninterrupted, monkeypatch, share=1)


def start(*options: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train_imagenet.py"), *map(str, options)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not happened():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_process_killed_by_sigkill_is_resumed(
    config_file: Path, tmp_path: Path, loaders: Loaders, uninterrupted: Outcome
) -> None:
    run = tmp_path / "small"
    process = start("--config", config_file, f"--run.out={tmp_path}", "--run.save_every=0")
    try:
        wait_for((run / "checkpoint.pt").exists, process)
        time.sleep(random.uniform(0, 0.4))
    finally:
        process.kill()
        process.communicate()
    if not is_finished(run):  # it may have been quick
        assert process.returncode == -signal.SIGKILL
        resume(run, loaders)
    Outcome.of(run).check_equal(uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_killed_again_and_again(config_file: Path, tmp_path: Path, uninterrupted: Outcome) -> None:
    run = tmp_path / "small"

    def saved() -> int:
        with suppress(FileNotFoundError):  # before the first, and once the run is finished
            return (run / "checkpoint.pt").stat().st_mtime_ns
        return 0

    command: tuple[str | Path, ...] = ("--config", config_file, f"--run.out={tmp_path}", "--run.save_every=0")
    starts = 0
    while starts == 0 or not is_finished(run):
        before = saved()
        process = start(*command)
        starts += 1
        try:
            wait_for(lambda before=before: saved() != before, process)
            process.communicate(timeout=random.uniform(0, 0.15) if starts <= 5 else 90)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.communicate()
        command = ("--resume", run)
    assert starts > 1
    Outcome.of(run).check_equal(uninterrupted)


@pytest.mark.parametrize(("number", "code", "word"), [("SIGTERM", 75, "terminated"), ("SIGINT", 130, "interrupted")])
def test_a_signal_saves_and_says_how_to_go_on(
    number: str, code: int, word: str, config_file: Path, tmp_path: Path, loaders: Loaders, uninterrupted: Outcome
) -> None:
    run = tmp_path / "small"
    process = start("--config", config_file, f"--run.out={tmp_path}")
    try:
        wait_for((run / "checkpoint.pt").exists, process)
        process.send_signal(getattr(signal, number))
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert errors.splitlines()[-1] == word
    assert f"python train_imagenet.py --resume {run}" in errors
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("interrupted", number)
    resume(run, loaders).check_equal(uninterrupted)


def test_sigterm_breaks_a_scoring_pass_off(settings: Settings, loaders: Loaders, uninterrupted: Outcome) -> None:
    scored = 0

    def terminate(module: torch.nn.Module, _: Any) -> None:
        nonlocal scored
        if not module.training:  # the first pass of all is one of scoring
            scored += 1
            signal.raise_signal(signal.SIGTERM)

    own = settings()
    with torch.nn.modules.module.register_module_forward_pre_hook(terminate), pytest.raises(Terminated):
        train(own, loaders)
    assert scored == 1
    resume(Path(own.run.out) / own.run.name, loaders).check_equal(uninterrupted)


@pytest.mark.parametrize(
    "method", [{"method": "epsilon_greedy"}, {"method": "proxy_batch", "window": 64, "proxy_model": "basic_cnn"}]
)
def test_a_signal_in_a_later_pass_loses_no_epoch(
    method: dict[str, Any], settings: Settings, loaders: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last save may be many epochs ago; wherever in the selection the signal comes, all before it is saved."""
    keys = {f"prune__{name}": value for name, value in method.items()} | {"run__save_every": 1000}
    whole = Outcome.of(train(settings(**keys, run__name="whole"), loaders).folder)
    began, clear = Pruner.begin_epoch, Values.clear
    for late in (False, True):  # before the pass, and when the method has already selected
        with monkeypatch.context() as patch:

            def begin(self: Pruner, epoch: int, model: Any, late: bool = late) -> Any:
                if epoch == 2 and not late:
                    signal.raise_signal(signal.SIGTERM)
                return began(self, epoch, model)

            def at_the_end(self: Values, late: bool = late) -> None:
                clear(self)
                if late and self.state.selection is not None and self.state.selection.epoch == 2:
                    signal.raise_signal(signal.SIGTERM)

            patch.setattr(Pruner, "begin_epoch", begin)
            patch.setattr(Values, "clear", at_the_end)
            own = settings(**keys, run__name=f"stopped_{late}")
            with pytest.raises(Terminated):
                train(own, loaders)
        run = Path(own.run.out) / own.run.name
        state = torch.load(run / "checkpoint.pt", weights_only=True)["state"]
        assert state["pruning"]["loader"]["epoch"] == 2
        resume(run, loaders).check_equal(whole)


def test_a_second_ctrl_c_ends_at_once(settings: Settings, loaders: Loaders, uninterrupted: Outcome) -> None:
    pressed = 0

    def press(module: torch.nn.Module, _: Any) -> None:
        nonlocal pressed
        if in_a_step(module) and pressed < 2:
            pressed += 1
            signal.raise_signal(signal.SIGINT)

    own = settings(run__save_every=1000)
    with torch.nn.modules.module.register_module_forward_pre_hook(press), pytest.raises(KeyboardInterrupt):
        train(own, loaders)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run = Path(own.run.out) / own.run.name
    resume(run, loaders).check_equal(uninterrupted)


def test_a_finished_run_stays_finished(
    settings: Settings, loaders: Loaders, uninterrupted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the last two acts, again and again: the status and the removal of the checkpoint go together."""
    written = run_folder.RunFolder.set_status

    def press(self: run_folder.RunFolder, status: str, reason: str = "") -> None:
        written(self, status, reason)
        if status == "finished":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run_folder.RunFolder, "set_status", press)
    own = settings()
    with suppress(KeyboardInterrupt):
        train(own, loaders)
    run = Path(own.run.out) / own.run.name
    assert not (run / "checkpoint.pt").exists()
    Outcome.of(run).check_equal(uninterrupted)


def test_sigterm_in_set_up_changes_nothing(
    settings: Settings, loaders: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Loaders.build_model

    def build(*arguments: Any) -> torch.nn.Module:
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(Loaders, "build_model", build)
    own = settings()
    with pytest.raises(Terminated):
        train(own, loaders)
    assert not Path(own.run.out).exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_while_the_result_is_written_does_not_stop_that(
    settings: Settings, loaders: Loaders, uninterrupted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = report.write_report

    def write(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        real(*arguments)

    monkeypatch.setattr(report, "write_report", write)
    Outcome.of(train(settings(), loaders).folder).check_equal(uninterrupted)


KINDS: list[tuple[dict[str, Any], tuple[float, ...]]] = [  # prune, and the parts of the run at which it is killed
    ({"method": "full"}, (1 / 3, 1 / 2, 4 / 5)),
    ({"method": "infobatch"}, (1 / 3, 1 / 2, 4 / 5)),
    ({"method": "ucb", "warmup": 1, "warmup_mode": "full", "score_source": "training"}, (1 / 3, 1 / 2, 4 / 5)),
    ({"method": "ema", "score_source": "both", "loss_cap": 0.1, "class_floor": 0.5}, (1 / 3, 1 / 2, 4 / 5)),
    ({"method": "ucb", "score_source": "both", "period": 1, "score_budget": 0.4, "score_revisit": 3}, (1 / 3, 4 / 5)),
    ({"method": "kakurenbo", "confidence": 0.1}, (0.6,)),
    ({"method": "repb", "ratio": 0.3}, (0.6,)),
    ({"method": "selective_backprop", "start": 0.25, "interrupt": 0}, (0.6,)),
    ({"method": "selective_backprop", "form": "jiang", "start": 0.25, "interrupt": 3}, (0.6,)),
    ({"method": "proxy_batch", "window": 64, "stride": 2, "proxy_model": "basic_cnn"}, (0.6,)),
]


@pytest.mark.parametrize(("method", "parts"), KINDS, ids=["-".join(map(str, method.values())) for method, _ in KINDS])
def test_runs_of_every_kind_are_resumed(
    method: dict[str, Any],
    parts: tuple[float, ...],
    settings: Settings,
    loaders: Loaders,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {f"prune__{name}": value for name, value in method.items()} | {"run__save_every": 0}
    own = settings(**keys, run__name="whole")
    total = moments(own, loaders, monkeypatch)
    whole = Outcome.of(Path(own.run.out) / "whole")
    for part in parts:
        killer = Killer(round(part * total))
        run = run_and_kill(settings(**keys, run__name=f"killed_{killer.at}"), loaders, killer, monkeypatch)
        resume(run, loaders).check_equal(whole)
