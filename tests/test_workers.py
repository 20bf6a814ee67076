"""The threads that make images, and FFCV's own decoders served by them."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields.decoders import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.transforms import ToTensor
from numpy.typing import NDArray

from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading import kernels, native_code
from ffcv_prune.loading.augment import CentreCrop, PadCropFlip, PlannedDecoder, RandomResizedCrop, StoredImage
from ffcv_prune.loading.pipelines import train_pipelines
from ffcv_prune.loading.workers import NativeWorkers, NumbaWorkers
from tests.betons import Beton, write_images
from tests.native_images import Pixels, job, library, make

SHAPE, SIDE = (40, 60, 3), 24


def stored_image() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def tasks_of(image: Pixels, slots: int, samples: int) -> list[list[native_code.Task]]:
    """For each slot one task: the crop of sample b begins in row b % 10."""
    jobs = np.concatenate([job(image, SHAPE, (b % 10, 3, 30, 50)) for b in range(samples)])
    room = np.zeros((slots, samples, SIDE, SIDE, 3), np.uint8)
    return [[native_code.task(jobs.copy(), room[slot])] for slot in range(slots)]


def test_a_job_is_the_same_everywhere() -> None:
    names = [f"_{name.upper()}" for name in native_code.JOB]
    assert [getattr(kernels, name) for name in names] == list(range(len(names)))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_batches_side_by_side_are_those_of_one_thread(threads: int) -> None:
    image, slots, samples = stored_image(), 3, 50
    expected = np.stack([make(image, SHAPE, (b % 10, 3, 30, 50), (SIDE, SIDE)) for b in range(samples)])
    tasks = tasks_of(image, slots, samples)
    workers = NativeWorkers(library(), tasks, threads)
    for _ in range(20):
        for number in range(9):
            _, images = tasks[number % slots][0].kept
            if number >= slots:
                assert workers.wait(number - slots)
                np.testing.assert_array_equal(images, expected)
            images[:] = 0
            workers.submit(number % slots, np.arange(samples), None)
        workers.clear()  # whatever is in the making


def test_a_wait_ends_when_it_is_woken() -> None:
    for workers in (
        NativeWorkers(library(), tasks_of(stored_image(), 1, 1), 1),
        NumbaWorkers(tasks_of(stored_image(), 1, 1), 1, [stored_image().size]),
    ):
        workers.wake()
        assert not workers.wait(0)  # nothing is submitted: else it would wait for ever
        workers.submit(0, np.arange(1), None)
        assert workers.wait(0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20 + i % 17, 60 - i % 23, 3), dtype=np.uint8) for i in range(90)]
    return write_images(tmp_path_factory.mktemp("workers") / "photographs.beton", images, "jpg")


def images_of(path: Path, pipeline: list[Any], **options: Any) -> dict[int, NDArray[np.uint8]]:
    """By sample, those of epoch 2."""
    own = {"batch_size": 16, "num_workers": 2, "drop_last": False, "seed": 3, "with_ids": True} | options
    loader = PrunedLoader(path, pipelines={"image": [*pipeline, ToTensor()], "label": None}, **own)
    loader.set_epoch(2)
    return {i: image for images, ids in loader for i, image in zip(ids.tolist(), images.numpy().copy(), strict=True)}


def assert_equal(ours: dict[int, NDArray[np.uint8]], others: dict[int, NDArray[np.uint8]], within: int = 0) -> None:
    assert sorted(ours) == sorted(others)
    for i, image in ours.items():
        assert np.abs(image.astype(int) - others[i]).max() <= within, i


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        (CenterCropRGBImageDecoder((16, 20), 0.9), None),
        (CenterCropRGBImageDecoder((16, 16), 0.9), CentreCrop(16, 0.9)),
        (RandomResizedCropRGBImageDecoder((16, 16)), None),
    ],
)
def test_decoders_of_ffcv_are_served_by_ours(photographs: Path, given: Any, ours: Any) -> None:
    first = images_of(photographs, [given])
    assert_equal(first, images_of(photographs, [given], batch_size=7, num_workers=1))  # keyed by the sample
    assert_equal(first, images_of(photographs, [given], shuffle=True, batches_ahead=1))
    if ours is not None:
        assert_equal(first, images_of(photographs, [ours]))
    loader = PrunedLoader(photographs, 16, pipelines={"image": [given, ToTensor()], "label": None})
    assert type(given).__module__.startswith("ffcv.")
    assert [isinstance(operation, PlannedDecoder) for _, operation in loader.graph.operations()] == [True, False]


def test_crops_of_ffcvs_decoder_are_ours_without_the_flip(photographs: Path) -> None:
    flipped = images_of(photographs, [RandomResizedCrop(16)])
    mirrored = 0
    for i, image in images_of(photographs, [RandomResizedCropRGBImageDecoder((16, 16))]).items():
        turn = kernels.uniform(kernels.stream_key(3, 2, i), 40) < 0.5
        np.testing.assert_array_equal(flipped[i], image[:, ::-1] if turn else image)
        mirrored += turn
    assert 20 < mirrored < 70


def test_the_default_decoder_is_ours_and_a_subclass_is_left_alone(beton: Beton) -> None:
    class Own(SimpleRGBImageDecoder):
        pass

    default = PrunedLoader(beton.path, 32)
    assert any(isinstance(operation, StoredImage) for _, operation in default.graph.operations())
    loader = PrunedLoader(beton.path, 32, pipelines={"image": [Own(), ToTensor()]})
    assert not loader.graph.planned
    np.testing.assert_array_equal(next(iter(loader))[0].numpy(), beton.images[:32])


class Identity(SimpleRGBImageDecoder):
    """Somebody's own decoder."""


@pytest.mark.parametrize("alternating", [False, True])
def test_moves_behind_another_decoder_are_the_same(beton: Beton, alternating: bool) -> None:
    def move() -> PadCropFlip:
        return PadCropFlip(3, (1, 2, 3), alternating)

    made_with_the_image = images_of(beton.path, [StoredImage(), move()])
    assert_equal(made_with_the_image, images_of(beton.path, [Identity(), move()]))


def test_moves_behind_a_crop_and_twice(photographs: Path) -> None:
    crops = images_of(photographs, [RandomResizedCrop(16)])
    moved = images_of(photographs, [RandomResizedCrop(16), PadCropFlip(2)])
    for i, crop in crops.items():
        padded = np.zeros((20, 20, 3), np.uint8)
        padded[2:18, 2:18] = crop
        down, right, flip = kernels.random_move(kernels.operation_seed(3, 1), 2, i, 2, False)
        expected = padded[2 + down : 18 + down, 2 + right : 18 + right]
        np.testing.assert_array_equal(moved[i], expected[:, ::-1] if flip else expected)
    twice = images_of(photographs, [RandomResizedCrop(16), PadCropFlip(2), PadCropFlip(0)])
    assert sum((twice[i] != moved[i]).any() for i in moved) > 20  # the second is FFCV's code


def test_a_batch_is_left_alone_while_the_consumer_has_it(photographs: Path) -> None:
    pipelines = {"image": [RandomResizedCrop(16), ToTensor()], "label": None}
    loader = PrunedLoader(photographs, 4, pipelines=pipelines, batches_ahead=2, drop_last=False)
    epoch = iter(loader)
    for (images,) in epoch:
        before = images.clone()
        time.sleep(0.02)  # all other slots are filled meanwhile
        assert (images == before).all()


def test_epochs_that_are_left_at_any_time_do_no_harm(photographs: Path) -> None:
    pipelines = {"image": [RandomResizedCrop(64), ToTensor()], "label": None}
    loader = PrunedLoader(photographs, 4, pipelines=pipelines, batches_ahead=3)
    for taken in range(30):
        epoch = iter(loader)
        for _ in range(taken % 7):
            next(epoch)
        if taken % 3:
            epoch.close()
    loader.set_epoch(5)
    last = [batch[0].clone() for batch in loader]
    loader.set_epoch(5)
    assert all((one[0] == other).all() for one, other in zip(loader, last, strict=True))


@pytest.mark.parametrize("augment", ["none", "pad_crop_flip", "random_resized_crop"])
def test_without_the_native_code_images_are_the_same_to_1_of_255(
    augment: str, photographs: Path, beton: Beton, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = beton.path if augment == "pad_crop_flip" else photographs
    pipeline = train_pipelines(check_beton(path), augment, 16)["image"][:-2]
    native = images_of(path, pipeline)
    monkeypatch.setattr(native_code, "library", lambda: None)
    from ffcv_prune.loading import workers

    workers._notice.cache_clear()
    for threads in (1, 2):
        assert_equal(native, images_of(path, pipeline, num_workers=threads), within=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("notice: ffcv_prune's native code is not built")


def test_a_library_that_was_built_from_other_files_is_left_alone(tmp_path: Path) -> None:
    older = tmp_path / "older.c"
    older.write_text("int ffcv_prune_works(void) { return 1; }")  # and none of the functions that are called now
    compiler = sysconfig.get_config_var("CC").split()[0]
    subprocess.run([compiler, "-shared", "-fPIC", older, "-o", tmp_path / "older.so"], check=True)
    assert native_code.bind(str(tmp_path / "older.so")) is None
    assert native_code.bind(str(older)) is None


FORK = """
import os, sys
from ffcv_prune import PrunedLoader
loader = PrunedLoader(sys.argv[1], 8, num_workers=1)
first = [batch[0].clone() for batch in loader]
child = os.fork()
loader.set_epoch(0)
same = all((one[0] == other).all() for one, other in zip(loader, first, strict=True))
if child == 0:
    sys.exit(0 if same else 1)
sys.exit(0 if same and os.waitpid(child, 0)[1] == 0 else 1)
"""


def test_a_fork_has_threads_of_its_own(beton: Beton) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, str(beton.path)], env=os.environ, timeout=100)
    assert done.returncode == 0
