"""The native code against naive twins and against FFCV's own decoder and resize."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import ffcv.libffcv
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.native_images import (
    Pixels,
    damaged,
    encoded,
    make,
    photograph,
    random_options,
    random_region,
)

ROOT = Path(__file__).resolve().parent.parent

side = st.integers(1, 600)
seeds = st.integers(0, 2**32)


def area_weights(inputs: int, outputs: int) -> NDArray[np.float64]:
    """float64[outputs, inputs]: how much of each output's stretch of the inputs each input is."""
    edges = np.arange(outputs + 1) * inputs / outputs
    low, high = edges[:-1, None], edges[1:, None]
    overlap = np.minimum(high, np.arange(1, inputs + 1)) - np.maximum(low, np.arange(inputs))
    return np.maximum(overlap, 0) / (high - low)


def linear_weights(inputs: int, outputs: int) -> NDArray[np.float64]:
    """float64[outputs, inputs]: OpenCV's INTER_AREA where a side grows. An output that lies across the border of two
    inputs is a mean of them, by its parts; any other one is its input. With OpenCV's rounding: where an output ends at
    a border, another expression would now and then be a whole input away."""
    weights = np.zeros((outputs, inputs))
    inverse = outputs / inputs
    for o in range(outputs):
        at = int(np.floor(o * (1 / inverse)))
        share = max(np.float32((o + 1) - (at + 1) * inverse), np.float32(0)) % 1
        if at >= inputs - 1:
            at, share = inputs - 1, 0
        weights[o, at] = 1 - share
        if share:
            weights[o, at + 1] = share
    return weights


def resize_twin(image: Pixels, rows: int, columns: int) -> NDArray[np.float64]:
    weights = area_weights if image.shape[0] >= rows and image.shape[1] >= columns else linear_weights
    down, right = weights(image.shape[0], rows), weights(image.shape[1], columns)
    return np.einsum("oi,ijc,pj->opc", down, image.astype(float), right, optimize=True)


def by_ffcv(image: Pixels, rows: int, columns: int) -> Pixels:
    resized = np.empty((rows, columns, 3), np.uint8)
    ffcv.libffcv.resize_crop(image, 0, image.shape[0], 0, image.shape[1], resized)
    return resized


def decoded_by_ffcv(stored: Pixels, shape: tuple[int, ...], before: int = 0) -> Pixels:
    """What FFCV makes of a JPEG image in memory that was filled with `before`; that stays where it gives up.

    In a thread of its own: its decoder has no tables of other images, which it would use where this one lacks them.
    """
    pixels = np.full(shape, before, np.uint8)
    height, width = shape[:2]
    thread = threading.Thread(target=lambda: ffcv.libffcv.imdecode(stored, pixels, height, width, height, width))
    thread.start()
    thread.join()
    return pixels


def check_resize(image: Pixels, rows: int, columns: int) -> None:
    whole = (0, 0, *image.shape[:2])
    ours = make(image, image.shape, whole, (rows, columns))
    assert (
        np.abs(ours - resize_twin(image, rows, columns)).max() <= 0.65
    )  # half of 1 of 255, and what is rounded before
    assert np.abs(ours.astype(int) - by_ffcv(image, rows, columns)).max() <= 1
    np.testing.assert_array_equal(make(image, image.shape, whole, (rows, columns), flip=1), ours[:, ::-1])


@settings(max_examples=60, deadline=None)
@given(side, side, side, side, seeds)
def test_resize_equals_its_twin_and_inter_area(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    check_resize(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8), rows, columns)


@pytest.mark.parametrize(
    ("size", "to"),
    [
        *[((h, w), (224, 224)) for h, w in [(1, 1), (1, 600), (600, 1), (224, 224), (223, 225), (448, 448)]],
        *[((600, 600), (rows, columns)) for rows, columns in [(1, 1), (1, 600), (600, 1), (80, 80), (300, 7)]],
        *[((2, 2), (600, 600)), ((11, 10), (10, 11)), ((30, 3000), (30, 20))],
    ],
)
@pytest.mark.parametrize("kind", ["noise", "white", "checks"])
def test_resize_of_extremes(size: tuple[int, int], to: tuple[int, int], kind: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    if kind == "white":
        image[:] = 255
    if kind == "checks":
        image[:] = 255 * (np.indices(size).sum(axis=0) % 2)[..., None]
    check_resize(image, *to)


@settings(max_examples=60, deadline=None)
@given(side, side, st.integers(1, 300), st.integers(1, 300), seeds)
@example(222, 272, 74, 15, 507031)  # bounds that were rounded elsewhere than those of the image
def test_a_crop_is_resized_as_if_it_were_the_image(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left, h, w = random_region(rng, image.shape)
    crop = np.ascontiguousarray(image[top : top + h, left : left + w])
    ours = make(image, image.shape, (top, left, h, w), (rows, columns))
    np.testing.assert_array_equal(ours, make(crop, crop.shape, (0, 0, h, w), (rows, columns)))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), seeds)
def test_a_region_of_a_jpeg_image_equals_that_of_the_whole(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = photograph(rng, height, width) if seed % 2 else rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    stored = encoded(image, "L" if seed % 7 == 0 else "RGB", **random_options(rng))
    whole = decoded_by_ffcv(stored, image.shape)
    np.testing.assert_array_equal(make(stored, image.shape, (0, 0, height, width), (height, width)), whole)
    top, left, h, w = random_region(rng, image.shape)
    crop = make(stored, image.shape, (top, left, h, w), (h, w))
    np.testing.assert_array_equal(crop, whole[top : top + h, left : left + w])
    size = (int(rng.integers(1, 100)), int(rng.integers(1, 100)))
    resized = make(stored, image.shape, (top, left, h, w), size, flip=1)
    np.testing.assert_array_equal(resized, make(whole, image.shape, (top, left, h, w), size, flip=1))


@pytest.mark.parametrize("sampling", [0x11, 0x12, 0x14, 0x21, 0x22, 0x24, 0x41, 0x42])
def test_regions_at_any_chroma(sampling: int) -> None:
    """Other factors in the header of an image: it shows something else then, but a region of just that."""
    rng = np.random.default_rng(sampling)
    stored = encoded(photograph(rng, 150, 200), subsampling=0, quality=90).copy()
    (frame,) = [at for at in range(len(stored) - 1) if stored[at] == 0xFF and stored[at + 1] == 0xC0]
    assert stored[frame + 11] == 0x11
    stored[frame + 11] = sampling
    whole = decoded_by_ffcv(stored, (150, 200, 3))
    assert len(np.unique(whole)) > 100
    for _ in range(40):
        top, left, h, w = random_region(rng, whole.shape)
        crop = make(stored, whole.shape, (top, left, h, w), (h, w))
        np.testing.assert_array_equal(crop, whole[top : top + h, left : left + w])


def test_what_cannot_be_decoded_is_black() -> None:
    rng = np.random.default_rng(0)
    image = photograph(rng, 60, 80)
    sound = encoded(image)
    others = {
        "cmyk": encoded(image, "CMYK"),
        "of another size": encoded(image[:-1]),
        "no JPEG": rng.integers(0, 255, 500, dtype=np.uint8),
        "headers alone": sound[:100],
        "one byte": sound[:1],
    }
    for stored in others.values():
        assert not make(stored, image.shape, (0, 0, 60, 80), (60, 80)).any()
        assert not make(stored, image.shape, (5, 5, 30, 30), (20, 20), flip=1).any()


def test_a_truncated_image_is_what_ffcv_makes_of_it() -> None:
    image = photograph(np.random.default_rng(0), 60, 80)
    for options in ({}, {"progressive": True}):
        sound = encoded(image, **options)
        for share in (0.5, 0.9, 0.99):
            stored = sound[: int(share * len(sound))]
            whole = decoded_by_ffcv(stored, image.shape)
            np.testing.assert_array_equal(make(stored, image.shape, (0, 0, 60, 80), (60, 80)), whole)
            crop = make(stored, image.shape, (30, 20, 25, 40), (25, 40))
            np.testing.assert_array_equal(crop, whole[30:55, 20:60])


def test_damaged_images_are_what_ffcv_makes_of_them() -> None:
    rng = np.random.default_rng(1)
    same = 0
    for _ in range(300):
        image = photograph(rng, int(rng.integers(1, 120)), int(rng.integers(1, 120)))
        stored = damaged(rng, encoded(image, **random_options(rng)))
        whole, other = (decoded_by_ffcv(stored, image.shape, before) for before in (0, 255))
        if not (whole == other).all():  # FFCV gave up, and what was in the memory before is seen
            continue
        ours = make(stored, image.shape, (0, 0, *image.shape[:2]), image.shape[:2])
        if not ours.any() and whole.any():  # the header is of another size, to which FFCV scales the image
            continue
        same += 1
        np.testing.assert_array_equal(ours, whole)
        top, left, h, w = random_region(rng, image.shape)
        crop = make(stored, image.shape, (top, left, h, w), (h, w))
        np.testing.assert_array_equal(crop, whole[top : top + h, left : left + w])
    assert same > 100


@pytest.mark.parametrize("to", [20, 50, 80, 112, 150])
def test_at_a_scale_an_image_is_nearly_the_same(to: int) -> None:
    rng = np.random.default_rng(to)
    for _ in range(10):
        image = photograph(rng, int(rng.integers(150, 400)), int(rng.integers(150, 400)), feature=100)
        stored = encoded(image, quality=90, subsampling=int(rng.integers(3)))
        short = min(image.shape[:2])
        region = ((image.shape[0] - short) // 2, (image.shape[1] - short) // 2, short, short)
        whole = make(stored, image.shape, region, (to, to)).astype(int)
        scaled = make(stored, image.shape, region, (to, to), scaled=True)
        assert np.abs(scaled - whole).mean() < 4
        # libjpeg's fast DCT cuts numbers off, which its scaled ones do not: about 1.2 in red and 1.4 in blue.
        assert np.abs((scaled - whole).mean(axis=(0, 1))).max() < 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(-45, 45), st.integers(-45, 45), st.booleans(), seeds)
def test_a_moved_image_equals_its_twin(height: int, width: int, down: int, right: int, flip: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    fill = tuple(rng.integers(0, 256, 3).tolist())
    padded = np.full((height + 90, width + 90, 3), fill, np.uint8)
    padded[45 : 45 + height, 45 : 45 + width] = image
    expected = padded[45 + down : 45 + down + height, 45 + right : 45 + right + width]
    more = {"turned": flip, "down": down, "right": right}
    ours = make(image, image.shape, (0, 0, height, width), (height, width), fill=fill, **more)
    np.testing.assert_array_equal(ours, expected[:, ::-1] if flip else expected)
    stored = encoded(image)
    whole = decoded_by_ffcv(stored, image.shape)
    np.testing.assert_array_equal(
        make(stored, image.shape, (0, 0, height, width), (height, width), fill=fill, **more),
        make(whole, image.shape, (0, 0, height, width), (height, width), fill=fill, **more),
    )


def test_a_few_hundred_mutants_under_address_sanitizer() -> None:
    command = [sys.executable, "-m", "tests.fuzz_native", "300"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
