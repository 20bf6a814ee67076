"""Scoring from a second, smaller .beton of the same samples, and at another size."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from torch import nn

from ffcv_prune import PrunedLoader, config, score_dataset
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.models import build_model
from ffcv_prune.models.dry_run import check_network
from ffcv_prune.training import checkpoint, static_scores
from ffcv_prune.training.dataset import check_score_side, open_dataset
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_beton


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """As many images as `beton`, with its labels, of 8 x 8."""
    return write_beton(tmp_path_factory.mktemp("small") / "train.beton", size=8)


def settings(beton: Beton, **changes: Any) -> config.Config:
    keys = {
        "data.train": beton.path,
        "data.test": beton.path,
        "model.name": "resnet_tiny",
        "train.epochs": 2,
        "train.batch_size": 32,
        "train.device": "cpu",
        "prune.method": "ucb",
    } | {name.replace("__", "."): value for name, value in changes.items()}
    path = beton.path.parent / "run.yaml"
    path.write_text("")
    return config.load(["--config", str(path), *(f"--{name}={value}" for name, value in keys.items())])


def sides(loaders: Loaders) -> list[tuple[int, ...]]:
    return [tuple(next(iter(loader))[0].shape[2:]) for loader in (loaders.train(0), loaders.score, loaders.test)]


def test_only_scoring_reads_the_smaller_file(beton: Beton, small: Beton) -> None:
    loaders = Loaders(settings(beton, data__score=small.path))
    assert sides(loaders) == [(16, 16), (8, 8), (16, 16)]
    assert set(loaders.dataset.fingerprints) == {"train", "test", "score"}
    model = build_model("resnet_tiny", 10, [0.5] * 3, [0.25] * 3)
    losses = score_dataset(model, loaders.score, amp_dtype=None)
    model.eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(small.images.transpose(0, 3, 1, 2).copy()))
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(small.labels), reduction="none")
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-5)
    loaders.close()


def test_scoring_at_another_size_of_the_same_file(beton: Beton) -> None:
    loaders = Loaders(settings(beton, data__score_size=12))
    assert sides(loaders) == [(16, 16), (12, 12), (16, 16)]
    assert set(loaders.dataset.fingerprints) == {"train", "test"}
    loaders.close()


def test_only_scoring_at_a_side_of_its_own_decodes_at_a_scale(jpg_beton: Beton) -> None:
    info = check_beton(jpg_beton.path)

    def images(pipelines: dict[str, Any]) -> torch.Tensor:
        return next(iter(PrunedLoader(jpg_beton.path, 50, pipelines=pipelines, drop_last=False)))[0].clone()

    scaled, whole = (images(score_pipelines(info, 8, scaled=scaled)) for scaled in (True, False))
    assert (scaled != whole).any()
    small, as_stored = (
        Loaders(settings(jpg_beton, data__test_size=8, data__score_batch_size=50, **changes))
        for changes in ({"data__score_size": 8}, {"data__size": 8})
    )
    for loaders, of_scoring in ((small, scaled), (as_stored, whole)):
        assert torch.equal(next(iter(loaders.score))[0], of_scoring)
        assert torch.equal(next(iter(loaders.test))[0], whole)
        loaders.close()


def test_other_samples_are_refused(beton: Beton, tmp_path: Path) -> None:
    fewer = write_beton(tmp_path / "fewer.beton", n=202, size=8)
    with pytest.raises(UserError, match=r"fewer\.beton has 202 samples, not 203"):
        open_dataset(settings(beton, data__score=fewer.path).data, 0)
    permuted = write_beton(tmp_path / "permuted.beton", size=8, seed=1)
    with pytest.raises(UserError, match="other labels, or another order"):
        open_dataset(settings(beton, data__score=permuted.path).data, 0)
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(settings(beton, data__score=tmp_path / "none.beton").data, 0)


def test_a_run_goes_on_with_the_file_it_scored(beton: Beton, small: Beton, tmp_path: Path) -> None:
    configs = {name: settings(beton, data__score=name) for name in ("", str(small.path))}
    data = {name: open_dataset(made.data, 0).fingerprints for name, made in configs.items()}
    for began, now in (("", str(small.path)), (str(small.path), "")):
        checkpoint.save(tmp_path, configs[began], data[began], {})
        assert checkpoint.load(tmp_path, configs[began], data[began]) == {}
        with pytest.raises(UserError, match=r"another data\.score than"):
            checkpoint.load(tmp_path, configs[now], data[now])


def test_static_scores_are_of_the_data_itself(beton: Beton, small: Beton, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"leave out data\.score"):
        static_scores.compute(
            settings(
                beton,
                data__score=small.path,
                static__epochs=1,
                prune__method="static",
                prune__scores=tmp_path / "el2n.npy",
            )
        )


def test_stored_images_of_different_sizes_are_refused(beton: Beton, tmp_path: Path) -> None:
    images = [np.zeros((8, 8 + i % 2, 3), np.uint8) for i in range(203)]
    uneven = tmp_path / "uneven.beton"
    fields = {"image": RGBImageField("raw"), "label": IntField()}
    samples = list(zip(images, beton.labels.tolist(), strict=True))
    DatasetWriter(str(uneven), fields, num_workers=1).from_indexed_dataset(samples)
    made = settings(beton, data__score=uneven)
    with pytest.raises(UserError, match=r"uneven\.beton differ in size: set data\.score_size"):
        check_score_side(made.data, open_dataset(made.data, 0))


CNN = {"model__name": "basic_cnn"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__name": "vgg16"}, r"^vgg16 cannot take images of 16 x 16 \(Given input size.*\): set data\.size$"),
        (
            {"model__name": "basic_cnn", "data__score_size": 13},
            r"^basic_cnn cannot take images of 13 x 13 .*: set data\.score_size$",
        ),
        (
            {"model__name": "basic_cnn", "data__score": "small"},
            r"^basic_cnn cannot take images of 8 x 8 .*: set data\.score_size$",
        ),
        ({"model__name": "vit_b_16"}, r"images of 16 x 16 \(Wrong image height! Expected 224 but got 16!\): set data"),
        (
            {"prune__method": "proxy_batch", "prune__window": 32, "prune__proxy_model": "vgg16"},
            r"^vgg16 cannot take images of 16 x 16 .*: set prune\.proxy_size$",
        ),
        ({"model__name": "tests.test_score_resolution:in_a_tuple"}, "in_a_tuple returns a tuple in training, not a"),
    ],
)
def test_images_that_a_network_cannot_take_are_refused_before_anything_is_written(
    beton: Beton, small: Beton, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    changes = {name: small.path if value == "small" else value for name, value in changes.items()}
    made = settings(beton, run__out=tmp_path / "runs", **changes)
    with pytest.raises(UserError, match=message):
        train(made)
    assert not (tmp_path / "runs").exists()


def in_a_tuple(num_classes: int) -> nn.Module:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, num_classes)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.head(images.mean((2, 3))),)

    return Network()


def test_the_check_leaves_network_and_random_numbers_as_they_were() -> None:
    model = build_model("basic_cnn", 10, [0.5] * 3, [0.25] * 3)  # has dropout
    model.append(nn.BatchNorm1d(10))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    check_network(model, "basic_cnn", (14, 14), "data.size")
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "resnet18_cifar", "resnet_small", "resnet_tiny"])
def test_the_other_models_take_small_images(name: str) -> None:
    model = build_model(name, 10, [0.5] * 3, [0.25] * 3).eval()
    assert model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape == (1, 10)
