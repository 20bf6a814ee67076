"""Folding changes how fast a model is, never what it says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ffcv_prune.models import MODELS, build_model
from ffcv_prune.scoring.folding import agrees, fold_batch_norm
from tests.nets import SmallNet

IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module) -> nn.Module:
    """In evaluation mode, with batch norms that are no identities."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                nn.init.uniform_(values, low, high)
    return model.eval()


def batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


# Batch norms that stay: behind a max-pooling, or behind a convolution inside a module of its own.
LEFT = {"cifar_fast": 3, "cifar_fast_narrow": 3, "cifar_fast_small": 3, "cifar_fast_wide": 3, "resnet18_blurpool": 6}


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_every_model_says_the_same_without_its_batch_norms(name: str) -> None:
    model = trained(build_model(name, 10, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batch_norm(model)
    if batch_norms(model) == 0:
        assert folded is None
        return
    assert folded is not None and agrees(folded, model, IMAGES)
    torch.testing.assert_close(folded(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
    assert batch_norms(folded) == LEFT.get(name, 0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


class Branching(SmallNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if images.float().mean() > 0 else images


class Island(SmallNet):
    """Computes in float32 whatever the precision of the pass."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(images)


class NormTwice(SmallNet):
    """Whoever folds the second use folds the first one again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.stem = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.float() / 255)
        for _ in range(2):
            x = self.norm(self.conv(x)).relu()
        return self.head(x.mean((2, 3)))


class Drawing(SmallNet):
    """Takes another way where a tracer looks."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1 if isinstance(images, Tensor) else 2)


class Faint(Drawing):
    """As a regression of small numbers may be."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * 1e-4


def compiled() -> nn.Module:
    return torch.compile(SmallNet(), backend="eager")


def compiled_in_place() -> nn.Module:
    model = SmallNet()
    model.compile(backend="eager")
    return model


def hooked() -> nn.Module:
    model = SmallNet()
    model.norm.register_forward_hook(lambda module, inputs, output: None)
    return model


@pytest.mark.parametrize("build", [Branching, Island, NormTwice, compiled, compiled_in_place, hooked, nn.Flatten])
@torch.inference_mode()
def test_what_cannot_be_folded_is_not(build: Callable[[], nn.Module]) -> None:
    assert fold_batch_norm(trained(build())) is None


@pytest.mark.parametrize("build", [Faint, Drawing])
@torch.inference_mode()
def test_a_model_traced_wrongly_is_found_out(build: Callable[[], nn.Module]) -> None:
    model = trained(build())
    folded = fold_batch_norm(model)
    assert folded is not None
    assert not agrees(folded, model, IMAGES)


@torch.inference_mode()
def test_a_model_with_one_output_traced_wrongly_is_found_out() -> None:
    """Of a single output the softmax is 1, whatever it is."""
    model = trained(Drawing(classes=1))
    folded = fold_batch_norm(model)
    assert folded is not None
    assert not agrees(folded, model, IMAGES)


@torch.inference_mode()
def test_logits_that_are_not_finite_agree_with_nothing() -> None:
    model = trained(SmallNet())
    model.head.weight.fill_(torch.nan)
    folded = fold_batch_norm(model)
    assert folded is not None and not agrees(folded, model, IMAGES)
