"""Models: exact normalisation inside, every name builds and trains, the stems are what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ffcv_prune.errors import UserError
from ffcv_prune.models import MODELS, build_model, load_weights, whiten
from ffcv_prune.models.cifar_fast import Whitening
from ffcv_prune.models.normalize import Normalize
from ffcv_prune.models.resnet import BlurredConv
from ffcv_prune.sections import MODEL_NAMES

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
# name: (parameters at 10 classes, side of the images it is made for)
SIZES = {
    "resnet18": (11_181_642, 64),
    "resnet34": (21_289_802, 64),
    "resnet18_cifar": (11_173_962, 32),
    "resnet34_cifar": (21_282_122, 32),
    "vgg16": (14_728_266, 32),
    "basic_cnn": (22_340, 28),
    "resnet_small": (309_738, 32),
    "resnet_tiny": (73_370, 28),
    "cifar_fast": (498_080, 32),
    "cifar_fast_narrow": (33_152, 32),
    "cifar_fast_small": (275_424, 32),
    "cifar_fast_wide": (1_972_768, 32),
    "resnet18_blurpool": (11_181_642, 64),
}


def random_images(batch: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


def test_every_model_is_listed_with_its_size() -> None:
    assert set(SIZES) == {*MODELS, "resnet18", "resnet34"}  # the latter are torchvision's
    assert set(MODEL_NAMES) == set(MODELS)  # what --help lists


# ---------------------------------------------------------------------------------------------- normalisation


def test_normalisation_is_exact_for_all_256_values() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = torch.stack([(images[0, c].double() / 255 - MEAN[c]) / STD[c] for c in range(3)])[None]
    normalised = Normalize(MEAN, STD)(images)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.double(), expected, rtol=0, atol=1e-6)


def test_normalisation_computes_in_float32() -> None:
    normalize, images = Normalize(MEAN, STD), random_images(4, side=33)
    assert torch.equal(normalize(images), torch.addcmul(normalize.shift, images.float(), normalize.scale))


@pytest.mark.parametrize("batch", [1, 4])
def test_normalisation_keeps_the_memory_format(batch: int) -> None:
    normalize = Normalize(MEAN, STD).to(memory_format=torch.channels_last)
    images = random_images(batch, side=8)
    assert normalize(images).is_contiguous(memory_format=torch.channels_last)
    assert normalize(images.contiguous()).is_contiguous()


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ],
    ids=["float", "int64", "one channel", "no batch"],
)
def test_other_images_are_a_type_error(images: Tensor) -> None:
    with pytest.raises(TypeError, match=r"images must be uint8 \[B, 3, H, W\], not torch"):
        build_model("resnet_tiny", 10, MEAN, STD)(images)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5], [0.5]),
        ([0.5] * 3, [0.5] * 2),
        ([0.5] * 3, [0.5, 0.0, 0.5]),
        ([0.5] * 3, [0.5, -0.1, 0.5]),
        ([float("nan"), 0.5, 0.5], [0.5] * 3),
    ],
)
def test_statistics_that_cannot_normalise_are_a_user_error(mean: list[float], std: list[float]) -> None:
    with pytest.raises(UserError, match="std"):
        build_model("resnet_tiny", 10, mean, std)


def test_saved_weights_carry_the_normalisation() -> None:
    saved = build_model("resnet_tiny", 10, MEAN, STD).eval()
    loaded = build_model("resnet_tiny", 10, [0.0] * 3, [1.0] * 3).eval()
    loaded.load_state_dict(saved.state_dict())
    images = random_images(2, side=28)
    assert torch.equal(saved(images), loaded(images))


# ---------------------------------------------------------------------------------------------- every model


@pytest.mark.parametrize("name", SIZES)
def test_parameters_layout_logits_and_gradients(name: str) -> None:
    parameters, side = SIZES[name]
    torch.manual_seed(0)
    model = build_model(name, 10, MEAN, STD)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)

    strayed: list[str] = []

    def check_layout(module: nn.Module, _: object, output: Tensor) -> None:
        if output.ndim == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            strayed.append(type(module).__name__)

    for module in model.modules():
        module.register_forward_hook(check_layout)
    logits = model(random_images(2, side))
    assert strayed == []
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    nn.functional.cross_entropy(logits, torch.arange(2)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", SIZES)
def test_scoring_in_bfloat16_is_close_to_float32(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 10, MEAN, STD).eval()
    images = random_images(2, SIZES[name][1])
    with torch.inference_mode():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            scored = model(images)
    assert scored.dtype == torch.bfloat16
    torch.testing.assert_close(scored.float(), exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


def test_same_seed_gives_the_same_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(7)
        weights.append(build_model("resnet_small", 10, MEAN, STD).state_dict())
    assert all(torch.equal(first, second) for first, second in zip(*(w.values() for w in weights), strict=True))


# ---------------------------------------------------------------------------------------------- architectures


def side_before(module: nn.Module, model: nn.Module, images: Tensor) -> int:
    """Side of the feature map that `module` receives when `model` sees `images`."""
    sides: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    model(images)
    handle.remove()
    return sides[0]


def test_whitened_patches_are_uncorrelated_and_of_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(600, 3, 12, 12, generator=generator) * 255
    batches = torch.nn.functional.interpolate(coarse, 24, mode="bilinear").to(torch.uint8).split(200)  # correlated
    torch.manual_seed(0)
    model = build_model("cifar_fast", 10, MEAN, STD)
    layer = next(module for module in model.modules() if isinstance(module, Whitening))
    before = layer.weight.clone()
    whiten(model, batches)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last) and not layer.weight.requires_grad
    with torch.no_grad():
        maps = layer(model.get_submodule("normalize")(torch.cat(batches)))  # [600, 24, 23, 23]
        found = torch.cov(maps[:, :12].permute(1, 0, 2, 3).flatten(1).double())
    variances = found.diagonal()
    assert (found - torch.diag(variances)).abs().max() < 1e-3
    assert variances.max() <= 1 + 1e-6 and variances[0] == pytest.approx(1, abs=0.01)  # the ridge lowers the least ones
    assert torch.equal(layer.weight[:12], -layer.weight[12:]) and not torch.equal(layer.weight, before)


def test_whitening_takes_no_images_for_a_model_without_it() -> None:
    def images() -> Iterator[Tensor]:
        raise AssertionError("asked for images")
        yield

    whiten(build_model("resnet_tiny", 10, MEAN, STD), images())


def test_blurred_convolutions_are_those_with_a_stride() -> None:
    """Of 16 channels or more, as ffcv-imagenet has it: not the first."""
    modules = dict(build_model("resnet18_blurpool", 10, MEAN, STD).named_modules())
    blurred = {name: module for name, module in modules.items() if isinstance(module, BlurredConv)}
    assert [*blurred] == [f"network.layer{i}.0.{name}" for i in (2, 3, 4) for name in ("conv1", "downsample.0")]
    assert all(module.conv.stride == (2, 2) for module in blurred.values())
    plain = [module for name, module in modules.items() if isinstance(module, nn.Conv2d) and name[:-5] not in blurred]
    assert [module.in_channels for module in plain if max(module.stride) > 1] == [3]


def test_a_blurred_convolution_is_the_convolution_of_binomial_means() -> None:
    """In loops, with zeros around the maps and around their means."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False).double()
    maps = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    weights = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    around = ((0, 0), (0, 0), (1, 1), (1, 1))
    padded, means = np.pad(maps.numpy(), around), np.zeros(maps.shape)
    for row, column in np.ndindex(7, 6):
        means[:, :, row, column] = (padded[:, :, row : row + 3, column : column + 3] * weights).sum((2, 3))
    padded, expected = np.pad(means, around), np.zeros((2, 5, 4, 3))
    for row, column in np.ndindex(4, 3):
        patch = padded[:, None, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]  # [B, 1, C, 3, 3]
        expected[:, :, row, column] = (patch * conv.weight.detach().numpy()).sum((2, 3, 4))
    np.testing.assert_allclose(BlurredConv(conv)(maps).detach().numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "side"), [("resnet18", 8), ("resnet18_cifar", 32), ("resnet34_cifar", 32)])
def test_side_of_the_first_stage_at_32x32(name: str, side: int) -> None:
    model = build_model(name, 10, MEAN, STD)
    assert side_before(model.get_submodule("network.layer1"), model, random_images(2, side=32)) == side


@pytest.mark.parametrize(("name", "side", "maps"), [("resnet_tiny", 28, [14, 7]), ("resnet_small", 32, [32, 16, 8])])
def test_small_residual_nets_halve_the_map_in_each_block(name: str, side: int, maps: list[int]) -> None:
    model = build_model(name, 10, MEAN, STD)
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    assert [side_before(block, model, random_images(2, side)) for block in blocks] == maps


def test_blocks_of_the_small_nets_start_as_their_shortcut() -> None:
    model = build_model("resnet_small", 10, MEAN, STD)
    block = next(module for module in model.modules() if isinstance(module, BasicBlock))
    inputs = torch.randn(2, 32, 8, 8)
    assert torch.equal(block(inputs), block.downsample(inputs).relu())


@pytest.mark.parametrize("side", [28, 32])
def test_basic_cnn_fits_both_sizes(side: int) -> None:
    assert build_model("basic_cnn", 10, MEAN, STD)(random_images(2, side)).shape == (2, 10)


# -------------------------------------------------------------------------------------- bad input, CUDA


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r'"resnet18_cifra".*did you mean "resnet18_cifar"'):
        build_model("resnet18_cifra", 10, MEAN, STD)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet10t", "torchvision.models:squeezenet1_1"])
def test_models_of_other_libraries(name: str) -> None:
    if name == "resnet10t":
        pytest.importorskip("timm")
    assert build_model(name, 7, MEAN, STD).eval()(random_images(2, side=64)).shape == (2, 7)


OWN = """
from torch import nn
def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))
def other(classes, width): ...
def none(num_classes): ...
"""


def test_a_model_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "nets.py").write_text(OWN)
    (tmp_path / "own_package" / "broken.py").write_text("import no_such_thing")
    monkeypatch.chdir(tmp_path)
    assert build_model("own_package.nets:net", 7, MEAN, STD)(random_images(2, side=8)).shape == (2, 7)
    for name, message in [
        ("own_package.nets:nett", 'own_package.nets has no "nett"; did you mean "net"'),
        ("own_package.nots:net", "no module own_package.nots"),
        ("nowhere:net", "no module nowhere"),
        (":net", "write package.module:function"),
        ("own_package.nets:other", "must take num_classes=7 alone"),
        ("own_package.nets:none", "the result of own_package.nets:none is of type NoneType"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            build_model(name, 7, MEAN, STD)
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):  # a defect of theirs, with its traceback
        build_model("own_package.broken:net", 7, MEAN, STD)


def test_weights_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    saved = build_model("resnet_tiny", 10, MEAN, STD)
    images = random_images(2, side=28)
    torch.save(saved.state_dict(), tmp_path / "whole.pt")
    torch.save(saved.network.state_dict(), tmp_path / "network.pt")
    for name in ("whole.pt", "network.pt"):
        model = build_model("resnet_tiny", 10, MEAN, STD)
        load_weights(model, tmp_path / name)
        assert torch.equal(model.eval()(images), saved.eval()(images))
    assert capsys.readouterr().err == ""
    model = build_model("resnet_tiny", 7, MEAN, STD)
    head = model.network[-1].weight.clone()
    load_weights(model, tmp_path / "network.pt")
    assert torch.equal(model.network[0].weight, saved.network[0].weight)
    assert torch.equal(model.network[-1].weight, head)
    (notice,) = capsys.readouterr().err.splitlines()
    last = len(model.network) - 1
    assert f"{last}.weight, {last}.bias" in notice


def test_weights_that_do_not_fit_are_a_user_error(tmp_path: Path) -> None:
    model = build_model("resnet_tiny", 10, MEAN, STD)
    torch.save(build_model("basic_cnn", 10, MEAN, STD).state_dict(), tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name, message in [
        ("none.pt", "does not exist"),
        ("other.pt", "of another network"),
        ("list.pt", "holds no state_dict"),
        ("text.pt", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            load_weights(model, tmp_path / name)


def test_a_model_without_classes_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"model\.classes is 0"):
        build_model("resnet_tiny", 0, MEAN, STD)


@pytest.mark.cuda
def test_forward_on_cuda_never_synchronises() -> None:
    model = build_model("resnet_tiny", 10, MEAN, STD).cuda().eval()
    images = random_images(8, side=28).cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16):
            logits = model(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert logits.shape == (8, 10)
