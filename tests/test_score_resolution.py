"""Scoring from a second, smaller .beton of the same samples, and at another size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ffcv_prune import config, score_dataset
from ffcv_prune.errors import UserError
from ffcv_prune.models import MIN_SIDES, build_model
from ffcv_prune.training import checkpoint, static_scores
from ffcv_prune.training.loaders import Loaders, check_score_side, open_dataset
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


@pytest.mark.parametrize(("name", "least"), MIN_SIDES.items())
def test_the_smallest_side_of_a_model(name: str, least: int, beton: Beton, small: Beton) -> None:
    model = build_model(name, 10, [0.5] * 3, [0.25] * 3).eval()
    assert model(torch.zeros(1, 3, least, least, dtype=torch.uint8)).shape == (1, 10)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 3, least - 1, least - 1, dtype=torch.uint8))
    for changes in ({"data__score": small.path}, {"data__score_size": least - 1}):
        made = settings(beton, model__name=name, **changes)
        with pytest.raises(UserError, match=rf"{name} needs images of {least} x {least}, scoring has"):
            check_score_side(made, open_dataset(made.data, 0))


@pytest.mark.parametrize("name", ["resnet18", "resnet18_cifar", "resnet_small", "resnet_tiny"])
def test_the_other_models_take_small_images(name: str) -> None:
    model = build_model(name, 10, [0.5] * 3, [0.25] * 3).eval()
    assert model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape == (1, 10)
