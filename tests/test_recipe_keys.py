"""The keys of training recipes: decay, moving mean of weights, test by mirror images, sides that grow, compilation."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ffcv_prune import config, tasks
from ffcv_prune.errors import UserError
from ffcv_prune.sections import Train
from ffcv_prune.training import clock
from ffcv_prune.training.epoch import Stepper, evaluate, mean_loss
from ffcv_prune.training.loaders import Loaders, ramp_side
from ffcv_prune.training.pruning import build_proxy
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_run
from tests.nets import SmallNet

Settings = Callable[..., config.Config]
PLAIN = Train(epochs=1, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.5)
pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, beton: Beton, test_beton: Beton) -> Path:
    return write_run(tmp_path_factory.mktemp("config") / "small.yaml", beton, test_beton, 4, data="augment: none")


def step(stepper: Stepper, images: Tensor, labels: Tensor) -> None:
    stepper.step(images, labels, torch.arange(len(labels)), mean_loss, 0.1)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator), torch.arange(8) % 10


def test_without_norm_decay_only_weights_decay(batch: tuple[Tensor, Tensor]) -> None:
    """The gradients are equal: what differs is the decay of one step, lr times decay times the parameter."""
    models = [SmallNet(), SmallNet()]
    models[1].load_state_dict(models[0].state_dict())
    for norm_decay, model in zip((True, False), models, strict=True):
        step(Stepper(model, replace(PLAIN, norm_decay=norm_decay), None), *batch)
    start = SmallNet()
    start.load_state_dict(models[0].state_dict())
    flat = 0
    for (name, decayed), spared in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        if decayed.ndim > 1:
            assert torch.equal(decayed, spared), name
        elif spared.abs().max() > 0:
            flat += not torch.equal(decayed, spared)
    assert flat  # a norm's scale begins at 1


def test_a_proxy_is_trained_as_its_main_net_is(settings: Settings, loaders: Loaders) -> None:
    """With all of its keys but the learning rate: here, no decay on norms and biases."""
    keys = {"prune__method": "proxy_batch", "prune__proxy_model": "resnet_tiny", "prune__window": 64}
    made = settings(**keys, prune__proxy_lr=0.3, train__norm_decay="no", train__weight_decay=0.01)
    proxy = build_proxy(made, loaders, None, tasks.Classification())
    groups = proxy.optimizer.param_groups
    assert [(group["weight_decay"], group["lr"]) for group in groups] == [(0.01, 0.3), (0.0, 0.3)]
    assert all(parameter.ndim > 1 for parameter in groups[0]["params"])
    assert all(parameter.ndim <= 1 for parameter in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(proxy.model.parameters()))


def test_a_proxy_sees_images_of_the_side_that_its_main_net_sees(settings: Settings) -> None:
    made = settings(data__augment="random_resized_crop", data__size=64, data__size_ramp="32,64,0.25,0.5")
    with closing(Loaders(made)) as own:
        train_loader, proxy_loader = own.train(0), own.proxy(0, 64)
        for epoch, side in ((0, 32), (3, 64)):
            own.resize(epoch, 4)
            for loader in (train_loader, proxy_loader):
                with closing(loader.batches(epoch)) as batches:
                    assert next(batches).inputs.shape[2:] == (side, side)


def test_parameters_that_are_not_trained_stay(batch: tuple[Tensor, Tensor]) -> None:
    model = SmallNet()
    frozen = next(model.parameters()).requires_grad_(False)
    before = frozen.clone()
    step(Stepper(model, Train(epochs=1), None), *batch)
    assert torch.equal(frozen, before)


def test_the_moving_mean_is_of_all_steps(batch: tuple[Tensor, Tensor]) -> None:
    stepper = Stepper(SmallNet(), Train(epochs=1, lr=0.1, ema=0.75), None)
    assert stepper.tested is not stepper.model
    mean: dict[str, Tensor] = {}
    for _ in range(3):
        step(stepper, *batch)
        for name, value in stepper.model.named_parameters():
            now = value.detach().clone()
            mean[name] = 0.75 * mean[name] + 0.25 * now if name in mean else now
    for name, value in stepper.tested.named_parameters():
        torch.testing.assert_close(value, mean[name])
    other = Stepper(SmallNet(), Train(epochs=1, lr=0.1, ema=0.75), None)
    other.load_state_dict(copy.deepcopy(stepper.state_dict()))
    for one in (stepper, other):
        step(one, *batch)
    for own, same in zip(stepper.tested.state_dict().values(), other.tested.state_dict().values(), strict=True):
        assert torch.equal(own, same)
    assert Stepper(SmallNet(), Train(epochs=1), None).averaged is None


def test_what_counts_is_copied_into_the_moving_mean(batch: tuple[Tensor, Tensor]) -> None:
    """Half of a count would be no count; the running statistics are numbers like the weights."""
    stepper = Stepper(SmallNet(), Train(epochs=1, lr=0.1, ema=0.75), None)
    assert stepper.averaged is not None
    expected: Tensor | None = None
    for number in range(1, 4):
        step(stepper, *batch)
        norm, mean = stepper.model.norm, stepper.tested.norm
        assert mean.num_batches_tracked == norm.num_batches_tracked == number
        variance = norm.running_var.clone()
        expected = variance if expected is None else 0.75 * expected + 0.25 * variance
        torch.testing.assert_close(mean.running_var, expected)


def test_the_state_of_the_moving_mean_is_that_of_torch_s(batch: tuple[Tensor, Tensor]) -> None:
    """So checkpoints of earlier versions go on, and the updates are the same."""
    stepper = Stepper(SmallNet(), Train(epochs=1, lr=0.1, ema=0.75), None)
    own, theirs = stepper.averaged, AveragedModel(stepper.model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    assert own is not None
    for _ in range(3):
        step(stepper, *batch)
        theirs.update_parameters(stepper.model)
    found, expected = own.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys() and found["n_averaged"] == expected["n_averaged"] == 3
    for name, value in theirs.module.named_parameters():
        assert torch.equal(found[f"module.{name}"], value), name
    other = Stepper(SmallNet(), Train(epochs=1, lr=0.1, ema=0.75), None)
    other.load_state_dict(copy.deepcopy(stepper.state_dict()) | {"averaged": copy.deepcopy(expected)})
    for one in (stepper, other):
        step(one, *batch)
    for value, same in zip(stepper.tested.parameters(), other.tested.parameters(), strict=True):
        assert torch.equal(value, same)


class RightHalf(nn.Module):
    """Says 1 where the right half of an image is the brighter one, by how much."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        left, right = images.float().mean(dim=(1, 2)).chunk(2, dim=-1)
        difference = (right - left).mean(dim=-1)
        return torch.stack([-difference - 1, difference], dim=-1)


def test_mirror_images_are_tested_too(loaders: Loaders) -> None:
    """The mean of both directions is the same for all images: class 1, by the constant."""
    model, loader = RightHalf(), loaders.test
    _, one_way = evaluate(model, loader, tasks.Classification(), None, 10)
    found, both = evaluate(model, loader, tasks.Classification(), None, 10, flip=True)
    assert one_way != both
    assert both == [0.0 if label != 1 else 1.0 for label in range(10)]
    assert found["accuracy"] < 1


@pytest.mark.parametrize(
    ("ramp", "sides"),
    [
        ((160, 192, 0.5, 0.75), [160, 160, 160, 160, 160, 192, 192, 192]),
        ((32, 128, 0.0, 1.0), [32, 32, 64, 64, 96, 96, 96, 128]),
        ((128, 64, 0.0, 0.5), [128, 128, 96, 64, 64, 64, 64, 64]),
    ],
)
def test_sides_grow_in_steps_of_32(ramp: tuple[float, ...], sides: list[int]) -> None:
    found = [ramp_side(ramp, epoch, 8) for epoch in range(8)]
    assert found[0] == ramp[0] and found[-1] == sides[-1]
    assert all(side % 32 == 0 for side in found)
    assert found == sorted(found, reverse=ramp[0] > ramp[1])


def test_a_run_trains_on_images_of_growing_side(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    original = Stepper.step

    def watched(self: Stepper, inputs: Tensor, *rest: object) -> None:
        seen.append(tuple(inputs.shape[2:]))
        original(self, inputs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Stepper, "step", watched)
    ramp = {"data__augment": "random_resized_crop", "data__size": 64, "data__size_ramp": "32,64,0.25,0.5"}
    result = train(settings(**ramp, data__test_size=32, data__test_flip="true", train__ema=0.5, train__norm_decay="no"))
    assert [side for i, side in enumerate(seen) if side != seen[i - 1] or i == 0] == [(32, 32), (64, 64)]
    assert len(seen) == 4 * 6 and seen.count((32, 32)) == 2 * 6
    assert 0 <= result.metrics["accuracy"] <= 1


def test_a_run_of_cifar_fast_whitens_and_resumes(settings: Settings, loaders: Loaders) -> None:
    keys = {"model__name": "cifar_fast", "train__lr_schedule": "linear", "train__ema": 0.9}
    first, second = (train(settings(**keys, run__name=name), loaders).folder for name in ("a", "b"))
    weights = [torch.load(folder / "weights.pt") for folder in (first, second)]
    assert all(torch.equal(own, weights[1][name]) for name, own in weights[0].items())
    stem = weights[0]["network.0.weight"]
    assert not torch.allclose(stem[:12].flatten(1) @ stem[:12].flatten(1).T, torch.eye(12), atol=0.1)  # not as made


def test_a_compiled_step_computes_the_same(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    images = batch[0].float() / 255
    for mode, model in zip(("off", "default"), models, strict=True):
        stepper = Stepper(model, Train(epochs=1, compile=mode), None)
        for _ in range(2):
            step(stepper, images, batch[1])
        assert (stepper.forward is stepper.model) == (mode == "off")
    for eager, compiled in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.parametrize("model", ["basic_cnn", "resnet_tiny"], ids=["dropout", "batch norms"])
def test_compiling_before_the_first_epoch_changes_nothing(
    model: str, settings: Settings, loaders: Loaders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The net is not compiled here, or the last bits would differ."""
    passes: list[bool] = []

    def compiled(net: nn.Module, mode: str) -> nn.Module:
        net.register_forward_pre_hook(lambda *_: passes.append(net.training))
        return net

    monkeypatch.setattr(torch, "compile", compiled)
    own = settings(run__name="eager", model__name=model)
    expected = train(own, loaders)
    assert not passes
    own = settings(run__name="compiled", model__name=model, train__compile="default")
    found = train(own, loaders)
    assert sum(passes) == 3 + 4 * 6  # six steps an epoch
    assert found.metrics == expected.metrics
    weights = [torch.load(run.folder / "weights.pt", weights_only=True) for run in (expected, found)]
    assert all(torch.equal(own, weights[1][name]) for name, own in weights[0].items())


def test_compiling_for_another_side_is_charged_to_no_epoch(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """To compile takes a hundred seconds here, by the clock of the run."""
    sides: list[int] = []

    def compiled(net: nn.Module, mode: str) -> nn.Module:
        def compile_once(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if net.training and inputs[0].shape[-1] not in sides:
                sides.append(inputs[0].shape[-1])

        net.register_forward_pre_hook(compile_once)
        return net

    late = SimpleNamespace(perf_counter=lambda: time.perf_counter() + 100 * len(sides))
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(clock, "time", late)
    ramp = {"data__augment": "random_resized_crop", "data__size": 64, "data__size_ramp": "32,64,0.25,0.5"}
    folder = train(settings(**ramp, data__test_size=32, train__compile="default")).folder
    seconds = [json.loads(line)["seconds"]["total"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert sides == [32, 64]
    assert len(seconds) == 4 and max(seconds) < 100


@pytest.mark.parametrize(
    ("ramp", "augment", "complaint"),
    [
        ("160,192,0.5", "random_resized_crop", "expected two sides in pixels and two rising fractions"),
        ("160,192,0.8,0.5", "random_resized_crop", "expected two sides"),
        ("160.5,192,0.2,0.5", "random_resized_crop", "expected two sides"),
        ("160,192,0.2,0.5", "none", "needs data.augment=random_resized_crop"),
    ],
)
def test_a_ramp_that_cannot_be(settings: Settings, ramp: str, augment: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        settings(data__size_ramp=ramp, data__augment=augment)
