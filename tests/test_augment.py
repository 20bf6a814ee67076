from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields.decoders import CenterCropRGBImageDecoder
from ffcv.loader import Loader
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import ToTensor, ToTorchImage
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision import transforms

from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.loading.augment import PadCropFlip, RandomResizedCrop, StoredImage
from ffcv_prune.loading.kernels import flip_in_place, random_resized_crop, stream_key, uniform
from ffcv_prune.loading.pipelines import score_pipelines, stored_size, train_pipelines
from tests.betons import Beton, write_beton, write_images
from tests.test_workers import Identity

MASK = (1 << 64) - 1


def mix_twin(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def key_twin(seed: int, epoch: int, sample: int) -> int:
    golden = 0x9E3779B97F4A7C15
    key = mix_twin((seed + golden) & MASK)
    key = mix_twin(((key ^ epoch) + golden) & MASK)
    return mix_twin(((key ^ sample) + golden) & MASK)


def uniform_twin(key: int, draw: int) -> float:
    return float(mix_twin((key + (draw + 1) * 0x9E3779B97F4A7C15) & MASK) >> 11) * 2.0**-53


def randint_twin(key: int, draw: int, low: int, high: int) -> int:
    return low + int(uniform_twin(key, draw) * (high - low))


small = st.integers(0, 2**40)


@given(small, small, small, st.integers(0, 50))
def test_streams_equal_their_twin(seed: int, epoch: int, sample: int, draw: int) -> None:
    key = stream_key(seed, epoch, sample)
    assert int(key) == key_twin(seed, epoch, sample)
    assert uniform(key, draw) == uniform_twin(int(key), draw)


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = np.array([[uniform(stream_key(0, epoch, i), 0) for i in range(5000)] for epoch in range(2)])
    assert 0 <= draws.min() < draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 50  # chi-squared with 19 degrees of freedom: p < 0.0002 above
    assert abs(np.corrcoef(draws)[0, 1]) < 0.06
    assert abs(np.corrcoef(draws[0, 1:], draws[0, :-1])[0, 1]) < 0.06


@given(small, st.integers(1, 500), st.integers(1, 500), st.floats(0.01, 1), st.floats(0.2, 1))
def test_crops_lie_inside_the_image(key: int, height: int, width: int, scale: float, ratio: float) -> None:
    i, j, h, w = random_resized_crop(np.uint64(key), height, width, (scale, 1.0), (ratio, 1 / ratio))
    assert h >= 1
    assert w >= 1
    assert 0 <= i <= height - h
    assert 0 <= j <= width - w


def test_crops_have_the_distribution_of_torchvision() -> None:
    torch.manual_seed(0)
    image = torch.empty(3, 300, 400)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = np.array(
        [random_resized_crop(stream_key(0, 0, i), 300, 400, (0.08, 1.0), (3 / 4, 4 / 3)) for i in range(4000)]
    )
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=4)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=4)


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_flip_in_place(width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, width, 3)).astype(np.uint8)
    expected = image[:, ::-1].copy()
    flip_in_place(image)
    np.testing.assert_array_equal(image, expected)


def test_pad_crop_flip_equals_its_twin(beton: Beton) -> None:
    fill, seed, epoch = (10, 20, 30), 5, 2
    pipelines = train_pipelines(check_beton(beton.path), "pad_crop_flip", fill=fill)
    loader = PrunedLoader(beton.path, 64, pipelines=pipelines, seed=seed, drop_last=False, with_ids=True)
    loader.set_epoch(epoch)
    for images, _, ids in loader:
        for image, i in zip(images.permute(0, 2, 3, 1).numpy(), ids.tolist(), strict=True):
            key = key_twin(seed, epoch, i)
            padded = np.full((24, 24, 3), fill, dtype=np.uint8)
            padded[4:20, 4:20] = beton.images[i]
            down, right = randint_twin(key, 0, -4, 5), randint_twin(key, 1, -4, 5)
            crop = padded[4 + down : 20 + down, 4 + right : 20 + right]
            expected = crop[:, ::-1] if uniform_twin(key, 2) < 0.5 else crop
            np.testing.assert_array_equal(image, expected)


VIEWS: dict[str, Callable[[], list[Any]]] = {
    "moved with the image": lambda: [StoredImage(), PadCropFlip()],
    "moved by FFCV's code": lambda: [Identity(), PadCropFlip()],
    "cropped": lambda: [RandomResizedCrop(16)],
}


@pytest.mark.parametrize("view", VIEWS)
def test_two_views_of_a_sample_are_drawn_apart(beton: Beton, view: str) -> None:
    """The first is as it is alone, the second another one, and both are the same in each epoch of that number."""

    def served(views: int) -> list[torch.Tensor]:
        pipelines: dict[str, Any] = {"image": None, "label": None}
        for number in range(views):
            decoder, *more = VIEWS[view]()
            pipelines[f"view {number}"] = PipelineSpec("image", decoder, [*more, ToTensor()])
        loader = PrunedLoader(beton.path, 64, pipelines=pipelines, seed=5, drop_last=False)
        batches = [[output.clone() for output in batch] for batch in loader]
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    [alone], (first, second), again = served(1), served(2), served(2)
    assert torch.equal(first, alone)
    assert torch.equal(again[0], first) and torch.equal(again[1], second)
    alike = (first == second).flatten(1).all(1).float().mean().item()
    assert alike < 0.1


def test_alternating_flips_mirror_each_sample_in_every_second_epoch(beton: Beton) -> None:
    pipelines = train_pipelines(check_beton(beton.path), "pad_crop_flip", padding=0, flip="alternating")
    loader = PrunedLoader(beton.path, 64, pipelines=pipelines, seed=5, drop_last=False, with_ids=True)
    mirrored = np.zeros((4, len(beton.images)), np.bool_)
    for epoch in range(4):
        for images, _, ids in loader:
            for image, i in zip(images.permute(0, 2, 3, 1).numpy(), ids.tolist(), strict=True):
                mirrored[epoch, i] = not np.array_equal(image, beton.images[i])
                np.testing.assert_array_equal(image[:, ::-1] if mirrored[epoch, i] else image, beton.images[i])
    assert (mirrored[0] != mirrored[1]).all()
    assert (mirrored[:2] == mirrored[2:]).all()
    assert 0.3 < mirrored[0].mean() < 0.7


def test_jpeg_images_decode_near_the_original(jpg_beton: Beton) -> None:
    info = check_beton(jpg_beton.path)
    for pipelines in (score_pipelines(info), score_pipelines(info, size=24, ratio=1.0)):
        loader = PrunedLoader(jpg_beton.path, 50, pipelines=pipelines, drop_last=False)
        images, _ = next(iter(loader))
        error = images.permute(0, 2, 3, 1).numpy().astype(float) - jpg_beton.images
        assert abs(error.mean()) < 2  # quality 90 on noise: single pixels move, the mean does not


@pytest.mark.parametrize("augment", ["none", "random_resized_crop"])
def test_jpeg_images_are_the_same_in_any_batch_on_any_threads(tmp_path: Path, augment: str) -> None:
    """They are decoded into room for one image a thread: nothing of one may show in another."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20 + 3 * i, 50 - 2 * i, 3), dtype=np.uint8) for i in range(11)]
    path = write_images(tmp_path / "mixed.beton", images, "jpg")
    served: list[dict[int, NDArray[np.uint8]]] = []
    for batch_size, workers in ((1, 1), (2, 2), (3, 2), (11, 1), (11, 2)):
        pipelines = train_pipelines(check_beton(path), augment, 16)
        loader = PrunedLoader(
            path, batch_size, min(workers, usable_cores()), pipelines=pipelines, drop_last=False, with_ids=True
        )
        served.append(
            {
                i: image
                for images, _, ids in loader
                for i, image in zip(ids.tolist(), images.clone().numpy(), strict=True)
            }
        )
    for other in served[1:]:
        assert sorted(other) == list(range(len(images)))
        for i, image in served[0].items():
            np.testing.assert_array_equal(other[i], image)
    stock = {"image": [CenterCropRGBImageDecoder((16, 16), 1.0), ToTensor(), ToTorchImage()]}
    batch, *_ = next(iter(Loader(str(path), len(images), 1, os_cache=True, pipelines=stock, drop_last=False)))
    for i, image in served[0].items() if augment == "none" else ():
        assert np.abs(batch.numpy()[i].astype(int) - image).max() <= 1


def test_images_of_several_sizes_need_a_size(tmp_path: Path, beton: Beton) -> None:
    path = write_images(tmp_path / "mixed.beton", [np.full((8 + i, 12, 3), i, dtype=np.uint8) for i in range(5)], "raw")
    info = check_beton(path)
    with pytest.raises(UserError, match=r"differ in size: set data\.size"):
        score_pipelines(info)
    loader = PrunedLoader(path, 5, pipelines=score_pipelines(info, size=8), shuffle=False, drop_last=False)
    assert next(iter(loader))[0].shape == (5, 3, 8, 8)
    assert stored_size(check_beton(beton.path)) == 16


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="padding"):
        PadCropFlip(padding=-1)


def test_unknown_augmentation(beton: Beton) -> None:
    with pytest.raises(UserError, match='did you mean "pad_crop_flip"'):
        train_pipelines(check_beton(beton.path), "pad_crop_flop")


BESIDE_FFCV = """
import sys

import numba
from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from ffcv.loader import Loader

path = sys.argv[1]
info = check_beton(path)
next(iter(PrunedLoader(path, 8, pipelines=score_pipelines(info, 8))))
next(iter(Loader(path, 8, num_workers=1, os_cache=True)))
assert numba.uint8[::1].mutable
next(iter(PrunedLoader(path, 8, pipelines=train_pipelines(info, "random_resized_crop", 8))))
"""


def test_a_loader_of_ffcvs_own_in_the_same_process_does_no_harm(tmp_path: Path) -> None:
    # Its constructor changed a numba type for the whole process: kernels that had compiled for it failed in the next
    # loader. An empty cache, or there would be nothing to compile.
    beton = write_beton(tmp_path / "train.beton", n=16, mode="jpg")
    script = [sys.executable, "-c", BESIDE_FFCV, str(beton.path)]
    done = subprocess.run(script, env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
