"""Training on a GPU: no step waits, nothing is lost at an overflow, it agrees with the CPU, and it is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ffcv_prune import PrunedLoader, Pruner, collectives, config, score_dataset, tasks
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from ffcv_prune.models import MODELS, build_model
from ffcv_prune.scoring.folding import agrees, fold_batch_norm
from ffcv_prune.scoring.training_losses import TrainingLosses
from ffcv_prune.training.epoch import Stepper, evaluate, mean_loss
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_run
from tests.devices import BOTH, OneOfMany, Unwaited, never_waiting, without_tf32
from tests.nets import SmallNet
from tests.test_resume import Killed

pytestmark = pytest.mark.usefixtures("unpainted")

MEAN, STD = [0.5] * 3, [0.25] * 3
SETTINGS = config.Train(epochs=2, lr=0.01)


@pytest.fixture(scope="module", params=BOTH)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def loader(device: str, beton: Beton) -> PrunedLoader:
    pipelines = train_pipelines(check_beton(beton.path), "pad_crop_flip", device=device)
    return PrunedLoader(beton.path, 16, 1, pipelines=pipelines, shuffle=True, with_ids=True, seed=0)


def make_stepper(device: str, amp_dtype: torch.dtype | None = None, ema: float = 0.0) -> Stepper:
    torch.manual_seed(0)
    return Stepper(build_model("resnet_tiny", 10, MEAN, STD).to(device), replace(SETTINGS, ema=ema), amp_dtype)


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16, torch.float16], ids=["off", "bf16", "fp16"])
@pytest.mark.parametrize(("method", "ema"), [("full", 0.0), ("full", 0.9), ("infobatch", 0.0)])
def test_a_step_never_waits_for_the_device(
    method: str, ema: float, amp_dtype: torch.dtype | None, device: str, loader: PrunedLoader
) -> None:
    """But for the step before the last, which `RunAhead` waits for by an event."""
    stepper = make_stepper(device, amp_dtype, ema)
    loader.set_selection(None)
    pruner = Pruner(loader, None, method, epochs=2, amp_dtype=None)
    for epoch in range(2):  # in the second, infobatch has weights
        pruner.begin_epoch(epoch, stepper.model)
        batches = iter(loader)
        for step, (images, labels, ids) in enumerate(batches):
            if step < 2:  # moves the weights and the buffer of losses, and lets cuDNN choose
                stepper.step(images, labels, ids, pruner.batch_loss, lr=0.01)
            elif step < 5:
                with never_waiting(device):
                    stepper.step(images, labels, ids, pruner.batch_loss, lr=0.01)
        batches.close()


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_step_that_waits_would_be_found(device: str, loader: PrunedLoader) -> None:
    """The test above can fail."""
    stepper = make_stepper(device)

    def looked_at(losses: Tensor, *_: object) -> Tensor:
        return losses.mean() + losses.mean().item()

    with iter_of(loader) as (images, labels, ids), pytest.raises(RuntimeError, match="synchroniz"):
        stepper.step(images, labels, ids, mean_loss, lr=0.01)
        with never_waiting(device):
            stepper.step(images, labels, ids, looked_at, lr=0.01)


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_moving_mean_that_waits_would_be_found(
    device: str, loader: PrunedLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own sends its count to the device."""
    stepper = make_stepper(device, ema=0.9)
    waiting = AveragedModel(stepper.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    monkeypatch.setattr(stepper.averaged, "update", lambda: waiting.update_parameters(stepper.model))
    with iter_of(loader) as (images, labels, ids):
        for _ in range(2):
            stepper.step(images, labels, ids, mean_loss, lr=0.01)
        with pytest.raises(RuntimeError, match="synchroniz"), never_waiting(device):
            stepper.step(images, labels, ids, mean_loss, lr=0.01)


def test_no_batch_of_a_test_waits_for_the_device(device: str, beton: Beton) -> None:
    pipelines = score_pipelines(check_beton(beton.path), device=device)
    test_loader = PrunedLoader(beton.path, 32, 1, pipelines=pipelines, drop_last=False)
    model, task = SmallNet().to(device), tasks.Classification()
    expected = evaluate(model, test_loader, task, None, classes=10, flip=True)
    assert evaluate(model, Unwaited(test_loader, device), task, None, classes=10, flip=True) == expected


class Looking(tasks.Classification):
    """Looks at a value in each batch."""

    def counts(self, outputs: Any, targets: Tensor) -> Tensor:
        return super().counts(outputs, targets) + 0 * outputs.sum().item()


def test_a_test_that_waits_would_be_found(device: str, beton: Beton) -> None:
    pipelines = score_pipelines(check_beton(beton.path), device=device)
    test_loader = PrunedLoader(beton.path, 32, 1, pipelines=pipelines, drop_last=False)
    with pytest.raises(RuntimeError, match="synchroniz"):
        evaluate(SmallNet().to(device), Unwaited(test_loader, device), Looking(), None)


def test_an_overflow_in_the_first_step_changes_nothing(device: str, loader: PrunedLoader) -> None:
    stepper = make_stepper(device, torch.float16)
    weights = {name: value.clone() for name, value in stepper.model.named_parameters()}
    scale = stepper.scaler.get_scale()
    with iter_of(loader) as (images, labels, ids):
        stepper.step(images, labels, ids, lambda losses, *_: losses.mean() * 1e30, lr=0.01)
        assert stepper.scaler.get_scale() == scale / 2
        for name, value in stepper.model.named_parameters():
            assert torch.equal(value, weights[name]), name
            assert not stepper.optimizer.state[value]["momentum_buffer"].any(), name
        stepper.step(images, labels, ids, mean_loss, lr=0.01)
    assert all(value.isfinite().all() for value in stepper.model.parameters())
    assert any(not torch.equal(value, weights[name]) for name, value in stepper.model.named_parameters())


class iter_of:
    """A context with the first batch of a loader, whose epoch ends with it."""

    def __init__(self, loader: PrunedLoader) -> None:
        loader.set_selection(None)
        self._epoch = iter(loader)

    def __enter__(self) -> tuple[Tensor, Tensor, Tensor]:
        images, labels, ids = next(self._epoch)
        return images, labels, ids

    def __exit__(self, *_: object) -> None:
        self._epoch.close()


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_every_folded_model_agrees_under_the_default_of_tf32(name: str, device: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 10, MEAN, STD).to(device).eval()
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, device=device)
    folded = fold_batch_norm(model)
    assert folded is None or agrees(folded, model, images)


# ---- whole runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, beton: Beton, test_beton: Beton) -> Path:
    path, more = tmp_path_factory.mktemp("cuda") / "small.yaml", "augment: pad_crop_flip, num_workers: 1"
    # basic_cnn has dropout: the random state of the device matters
    return write_run(path, beton, test_beton, 2, data=more, prune="method: epsilon_greedy, keep: 0.5, period: 1")


@pytest.fixture(scope="module")
def whole(device: str, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Loaders]]:
    """The folder of a run that was not stopped, and its loaders."""
    out = tmp_path_factory.mktemp("whole")
    own = config.load(["--config", str(config_file), f"--run.out={out}", f"--train.device={device}"])
    with without_tf32():
        loaders = Loaders(own)
        yield train(own, loaders).folder, loaders
        loaders.close()


def losses_of(run: Path) -> list[float]:
    return [json.loads(line)["train_loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def weights_of(run: Path) -> dict[str, Tensor]:
    return torch.load(run / "weights.pt", weights_only=True)


def test_losses_are_those_of_the_cpu(device: str, config_file: Path, tmp_path: Path) -> None:
    """Of a net without dropout, whose draws differ from device to device."""
    runs = []
    for where in ("cpu", device):
        options = [f"--run.out={tmp_path / where}", f"--train.device={where}", "--model.name=resnet_tiny"]
        with without_tf32():
            runs.append(train(config.load(["--config", str(config_file), *options])).folder)
    expected, found = (losses_of(run) for run in runs)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def killed_in_the_second_epoch(
    device: str, config_file: Path, loaders: Loaders, out: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of a run that saves after each step, and is killed in the fifth, of three an epoch."""
    options = [f"--run.out={out}", f"--train.device={device}", "--run.save_every=0"]
    step, steps = Stepper.step, []

    def count(self: Stepper, *arguments: Any, **more: Any) -> None:
        steps.append(1)
        if len(steps) == 5:
            raise Killed
        step(self, *arguments, **more)

    with monkeypatch.context() as patch, pytest.raises(Killed), without_tf32():
        patch.setattr(Stepper, "step", count)
        train(config.load(["--config", str(config_file), *options]), loaders)
    run = out / config_file.stem
    state = torch.load(run / "checkpoint.pt", weights_only=True, map_location="cpu")["state"]
    assert state["pruning"]["loader"]["epoch"] == 1 and state["pruning"]["loader"]["batch"] == 1
    return run


def test_a_run_killed_in_an_epoch_is_resumed(
    device: str, config_file: Path, whole: tuple[Path, Loaders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, loaders = whole
    run = killed_in_the_second_epoch(device, config_file, loaders, tmp_path, monkeypatch)
    torch.manual_seed(1)  # whatever the process drew before does not matter
    again, folder = config.read_command(["--resume", str(run)])
    with without_tf32():
        train(again, loaders, resume=folder)
    own_weights = weights_of(run)
    for name, value in weights_of(expected).items():
        torch.testing.assert_close(own_weights[name], value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses_of(run), losses_of(expected), rtol=1e-5)


def test_a_checkpoint_of_one_device_goes_on_on_the_cpu(
    device: str, config_file: Path, whole: tuple[Path, Loaders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed_in_the_second_epoch(device, config_file, whole[1], tmp_path, monkeypatch)
    again, folder = config.read_command(["--resume", str(run), "--train.device=cpu"])
    train(again, resume=folder)
    assert len(losses_of(run)) == 2 and np.isfinite(losses_of(run)).all()
    assert all(value.device.type == "cpu" for value in weights_of(run).values())


# ---- a group of one rank -----------------------------------------------------------------------------------


@pytest.fixture
def group(device: str, tmp_path: Path) -> Iterator[None]:
    """As `world.join` makes it: NCCL on a GPU, which WORLD_SIZE=1 would leave out."""
    options: dict[str, Any] = {"device_id": torch.device("cuda", 0)} if device == "cuda" else {}
    backend, method = "nccl" if device == "cuda" else "gloo", f"file://{tmp_path / 'group'}"
    dist.init_process_group(backend, init_method=method, rank=0, world_size=1, **options)
    yield
    dist.destroy_process_group()


def test_a_group_of_one_rank_does_all_that_ranks_do(group: None, device: str, loader: PrunedLoader) -> None:
    stepper = make_stepper(device)
    alone = make_stepper(device)
    stepper.distribute()
    assert isinstance(stepper.forward, nn.parallel.DistributedDataParallel)
    assert not stepper.forward.broadcast_buffers
    losses = []
    for one in (stepper, alone):
        loader.set_epoch(0)
        loader.set_selection(None)
        with tqdm(disable=True) as bar, without_tf32():
            losses.append(one.train_epoch(loader, 0, mean_loss, bar, lambda: None))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    collectives.share_buffers(stepper.model)

    values = torch.arange(5.0, device=device)
    assert torch.equal(collectives.total(values), values) and collectives.total(values).device == values.device
    assert torch.equal(collectives.maximum(values), values)
    assert torch.equal(collectives.interleaved(values, 5), values)
    assert collectives.gather("own") == ["own"] and collectives.share("main") == "main"
    collectives.check_same("all", "rank {} differs")
    gloo = dist.new_group(backend="gloo")
    assert collectives.gather("own", gloo) == ["own"]
    assert int(collectives.maximum(torch.tensor(3), gloo)) == 3

    recorded = TrainingLosses(10, distributed=True, facts=1)
    ids = torch.tensor([7, 2])
    recorded.record(torch.tensor([[0.5, 1.5], [1.0, 0.0]], device=device), ids)
    found, rows = recorded.latest()
    assert found.tolist() == [2, 7] and rows.tolist() == [[1.5, 0.5], [0.0, 1.0]]


def test_a_group_of_one_rank_tests_and_scores_as_ranks_do(
    group: None, device: str, beton: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("total", "interleaved"):
        act = getattr(collectives, name)
        monkeypatch.setattr(collectives, name, lambda *a, act=act, name=name: (done.append(name), act(*a))[1])
    pipelines = score_pipelines(check_beton(beton.path), device=device)
    alone = PrunedLoader(beton.path, 32, 1, pipelines=pipelines, drop_last=False, distributed=True)
    model, task, shared = SmallNet().to(device), tasks.Classification(), OneOfMany(alone)
    expected = evaluate(model, alone, task, None, classes=10)
    values = score_dataset(model, alone, amp_dtype=None, certainty=True, gradients=True)
    assert not done
    assert evaluate(model, shared, task, None, classes=10) == expected
    found = score_dataset(model, shared, amp_dtype=None, certainty=True, gradients=True)
    np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5)
    assert done == ["total", *["interleaved"] * 5]  # positions, losses, two facts, norms
