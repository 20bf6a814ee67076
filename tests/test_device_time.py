"""What a GPU would be spared, as far as that shows without one: cuDNN's searches, steps far ahead, all of the cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ffcv_prune import PrunedLoader, config, score_dataset, tasks
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.models import build_model
from ffcv_prune.scoring import forward
from ffcv_prune.training import world
from ffcv_prune.training.epoch import RunAhead, Stepper, evaluate, mean_loss
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.moving_mean import MovingMean
from tests import late_device
from tests.betons import Beton, write_run
from tests.late_device import Device
from tests.nets import SmallNet


@pytest.fixture
def searching() -> Iterator[None]:
    """cuDNN's search for the fastest algorithms is on; without a GPU it is but a flag."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    yield
    torch.backends.cudnn.benchmark = before


@pytest.fixture(scope="module")
def score_loader(beton: Beton) -> PrunedLoader:
    return PrunedLoader(beton.path, 64, 1, pipelines=score_pipelines(check_beton(beton.path)), drop_last=False)


@pytest.mark.parametrize("ids", [None, range(50)], ids=["all", "less than a batch"])
def test_only_whole_batches_are_worth_a_search(searching: None, ids: range | None, score_loader: PrunedLoader) -> None:
    seen: list[tuple[int, bool]] = []
    model = SmallNet()

    def look(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen.append((len(inputs[0]), torch.backends.cudnn.benchmark))

    model.register_forward_pre_hook(look)
    wanted = None if ids is None else torch.tensor(list(ids)).numpy()
    score_dataset(model, score_loader, amp_dtype=None, ids=wanted)
    assert {size for size, _ in seen} == ({64, 203 % 64} if ids is None else {50})
    assert all(search == (size == 64) for size, search in seen)
    seen.clear()
    evaluate(model, score_loader, tasks.Classification(), None)
    assert seen == [(64, True)] * 3 + [(11, False)]
    assert torch.backends.cudnn.benchmark


def test_a_batch_that_runs_out_of_memory_makes_smaller_ones_worth_a_search(
    searching: None, score_loader: PrunedLoader
) -> None:
    seen: list[tuple[int, bool]] = []

    class Small(SmallNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 40:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            seen.append((len(images), torch.backends.cudnn.benchmark))
            return super().forward(images)

    score_dataset(Small(), score_loader, amp_dtype=None, fold=False)
    assert seen == [(32, True)] * 6 + [(11, False)]


@pytest.mark.parametrize(("fold", "folds"), [(None, True), (True, True), (False, False)])
def test_batch_norms_are_folded_if_asked(
    fold: bool | None, folds: bool, score_loader: PrunedLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded: list[nn.Module] = []
    real: Callable[[nn.Module], nn.Module | None] = forward.fold_batch_norm
    monkeypatch.setattr(forward, "fold_batch_norm", lambda model: (folded.append(model), real(model))[1])
    score_dataset(SmallNet(), score_loader, amp_dtype=None, fold=fold)
    assert bool(folded) == folds


def test_a_step_waits_for_the_one_before_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    late_device.install(monkeypatch, device)
    stepper = Stepper(SmallNet(), config.Train(epochs=1, lr=0.01), None)
    stepper.run_ahead = RunAhead(torch.device("cuda"))
    done: list[int] = []
    ids = torch.arange(8)
    for step in range(6):
        device.current_stream().submit(lambda step=step: done.append(step))  # in place of the step's kernels
        stepper.step(torch.zeros(8, 3, 16, 16, dtype=torch.uint8), ids % 10, ids, mean_loss, lr=0.01)
        assert done == list(range(max(0, step + 1 - RunAhead.STEPS)))  # these are done, and no other was waited for


def test_on_the_cpu_no_step_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    late_device.install(monkeypatch, device)
    stepper = Stepper(SmallNet(), config.Train(epochs=1, lr=0.01), None)
    ids = torch.arange(8)
    for _ in range(4):
        stepper.step(torch.zeros(8, 3, 16, 16, dtype=torch.uint8), ids % 10, ids, mean_loss, lr=0.01)
    assert device.waits == 0 and len(device.streams) == 1


def test_prepare_makes_a_gpu_this_process_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    world.prepare(torch.device("cpu"))
    assert not chosen and not torch.backends.cudnn.benchmark
    world.prepare(torch.device("cuda", 1))
    assert chosen == [torch.device("cuda", 1)] and torch.backends.cudnn.benchmark


def test_a_gpu_leaves_a_core_to_the_process_that_feeds_it(
    beton: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ffcv_prune.training.loaders.usable_cores", lambda: 16)
    own = config.load(["--config", str(write_run(tmp_path / "small.yaml", beton))])
    for device, size, expected in (("cpu", 1, 16), ("cuda:0", 1, 15), ("cuda:0", 8, 1), ("cpu", 32, 1)):
        loaders = Loaders(own, world.World(torch.device(device), 0, size, 0, size))
        assert loaders._num_workers() == expected
    assert usable_cores() > 0


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16], ids=["off", "bf16"])
def test_no_step_looks_at_a_value(amp_dtype: torch.dtype | None) -> None:
    """Fake tensors have none: what would make the host wait for a GPU is an error."""
    net = build_model("resnet_tiny", 10, [0.5] * 3, [0.25] * 3).to("meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        stepper = Stepper(net.to_empty(device="cpu"), config.Train(epochs=1, ema=0.9), amp_dtype)
        images, ids = torch.empty(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8)
        for _ in range(2):
            stepper.step(images, ids, ids, mean_loss, lr=0.1)
        with pytest.raises(DataDependentOutputException):
            stepper.step(images, ids, ids, lambda losses, *_: losses.mean() + losses.mean().item(), lr=0.1)


class Crossings(TorchDispatchMode):
    """The names of what was sent from host to device or back: from memory that is not pinned, the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        devices |= {leaf.type for leaf in leaves if isinstance(leaf, torch.device)}
        if len(devices) > 1:
            self.found.append(str(func))
        return func(*args, **kwargs)


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "torch's"])
def test_our_moving_mean_sends_nothing_to_the_device_and_torch_s_does(ours: bool) -> None:
    if not torch.backends.cuda.is_built():
        pytest.skip("needs a PyTorch that was built for CUDA")
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to("meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = net.to_empty(device="cuda")
        mean = MovingMean(model, 0.9)
        theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        with Crossings() as crossings:
            for _ in range(3):
                if ours:
                    mean.update()
                else:
                    theirs.update_parameters(model)
    assert bool(crossings.found) != ours, crossings.found


@pytest.mark.parametrize(("dtype", "backend"), [(torch.float16, "Cudnn"), (torch.bfloat16, "Native")])
def test_pytorch_gives_batch_norms_in_bf16_to_its_own_kernels(dtype: torch.dtype, backend: str) -> None:
    """What docs/gpu.md says of train.amp; asked of fake tensors on a GPU."""
    if not torch.backends.cuda.is_built() or not hasattr(torch._C, "_select_batch_norm_backend"):
        pytest.skip("needs a PyTorch that was built for CUDA, and says what it does")
    with FakeTensorMode():
        images = torch.empty(8, 64, 16, 16, device="cuda", dtype=dtype).contiguous(memory_format=torch.channels_last)
        scale = torch.empty(64, device="cuda")
        chosen = torch._C._select_batch_norm_backend(images, scale, scale, scale, scale, True, 1e-5)
    assert chosen == getattr(torch._C._BatchNormBackend, backend)
