"""Nets are tried at the sides at which they train, where data.size_ramp has these grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from ffcv_prune import config
from ffcv_prune.errors import UserError
from ffcv_prune.training.static_scores import compute
from ffcv_prune.training.trainer import train
from tests.betons import write_beton, write_run

Settings = Callable[..., config.Config]
pytestmark = pytest.mark.usefixtures("unpainted")


class OfSides(nn.Module):
    """Takes images of some sides only."""

    def __init__(self, classes: int, *sides: int) -> None:
        super().__init__()
        self.sides = sides
        self.head = nn.Linear(3, classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] not in self.sides:
            raise ValueError(f"not of {self.sides}")
        return self.head(images.mean((2, 3)))


def of_32(num_classes: int) -> nn.Module:
    return OfSides(num_classes, 32)


def of_64(num_classes: int) -> nn.Module:
    return OfSides(num_classes, 64)


def of_32_and_64(num_classes: int) -> nn.Module:
    return OfSides(num_classes, 32, 64)


def of_32_64_and_128(num_classes: int) -> nn.Module:
    return OfSides(num_classes, 32, 64, 128)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ramp")
    data = "augment: random_resized_crop, size: 64, size_ramp: [32, 64, 0.25, 0.5], num_workers: 1"
    return write_run(folder / "run.yaml", write_beton(folder / "train.beton", n=96), data=data)


def named(net: Callable[[int], nn.Module]) -> str:
    return f"{__name__}:{net.__name__}"


def test_a_side_between_the_ends_is_tried_before_anything_is_written(settings: Settings, tmp_path: Path) -> None:
    made = settings(model__name=named(of_32_64_and_128), data__size_ramp="32,128,0.25,0.75", train__epochs=8)
    with pytest.raises(UserError, match=r"of_32_64_and_128 cannot take images of 96 x 96 .*: set data\.size_ramp$"):
        train(made)
    assert not (tmp_path / "runs").exists()


def test_the_ends_are_tried_as_they_are_rounded(settings: Settings) -> None:
    result = train(settings(model__name=named(of_32_and_64), data__size_ramp="40,70,0.25,0.5", train__epochs=3))
    assert result.metrics["accuracy"] >= 0


@pytest.mark.parametrize(("size", "side"), [(0, 32), (48, 32), (16, 16)])
def test_a_proxy_is_tried_at_its_sides_before_anything_is_written(
    settings: Settings, tmp_path: Path, size: int, side: int
) -> None:
    proxy = {"prune__method": "proxy_batch", "prune__window": 32, "prune__proxy_model": named(of_64)}
    message = rf"of_64 cannot take images of {side} x {side} .*: set prune\.proxy_size, or data\.size_ramp$"
    with pytest.raises(UserError, match=message):
        train(settings(**proxy, prune__proxy_size=size))
    assert not (tmp_path / "runs").exists()


def test_a_proxy_need_not_take_the_sides_that_are_reduced(settings: Settings) -> None:
    proxy: dict[str, Any] = {"prune__method": "proxy_batch", "prune__window": 32, "prune__proxy_model": named(of_32)}
    result = train(settings(**proxy, prune__proxy_size=32, train__epochs=3))
    assert result.cost["proxy_forwards"] == 3 * 96


def static(scores: Path, **changes: Any) -> dict[str, Any]:
    own = {"prune__method": "static", "prune__scores": scores, "static__models": 1, "static__model": named(of_64)}
    return own | changes


def test_a_model_that_scores_is_tried_at_its_sides_before_anything_is_written(
    settings: Settings, tmp_path: Path
) -> None:
    scores = tmp_path / "scores" / "own.npy"
    with pytest.raises(UserError, match=r"of_64 cannot take images of 32 x 32 .*: set data\.size_ramp$"):
        compute(settings(**static(scores, static__epochs=1)))
    assert not scores.parent.exists()


@pytest.mark.parametrize(("ramp", "epochs"), [("32,64,0.25,0.5", 0), ("64,32,0.5,0.75", 2)])
def test_a_model_that_scores_need_not_take_the_sides_of_epochs_that_it_leaves_out(
    settings: Settings, tmp_path: Path, ramp: str, epochs: int
) -> None:
    found = compute(settings(**static(tmp_path / "own.npy", static__epochs=epochs, data__size_ramp=ramp)))
    assert np.isfinite(found.scores()).all()
