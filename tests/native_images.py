"""Calls of the native code, one image at a time, and images for it. Imports no FFCV: the fuzz runs without."""

from __future__ import annotations

import ctypes
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ffcv_prune.loading import native_code

ImageFile.MAXBLOCK = 1 << 22  # Pillow's own is too small for noise at a high quality

Pixels = NDArray[np.uint8]
Region = tuple[int, int, int, int]  # row, column, height, width
UNTOUCHED = 77


def library() -> ctypes.CDLL:
    found = native_code.library()
    assert found is not None, "the native code is not built: run python setup.py build_ext --inplace"
    return found


def job(stored: Pixels, shape: tuple[int, ...], region: Region, **more: int) -> NDArray[np.int64]:
    """int64[1, len(JOB)]: raw pixels if `stored` has three dimensions, else a JPEG image of this shape."""
    size = stored.size if stored.ndim == 1 else 0
    values = dict.fromkeys(native_code.JOB, 0) | more
    values |= {"source": stored.ctypes.data, "bytes": size, "rows": shape[0], "columns": shape[1]}
    values |= dict(zip(("top", "left", "height", "width"), region, strict=True))
    return np.array([[values[name] for name in native_code.JOB]], np.int64)


def make(
    stored: Pixels,
    shape: tuple[int, ...],
    region: Region,
    size: tuple[int, int],
    scaled: bool = False,
    fill: tuple[int, int, int] | None = None,
    using: ctypes.CDLL | None = None,
    **more: int,
) -> Pixels:
    """uint8[size, 3]: what a region of an image becomes; a byte behind the image is written by nobody."""
    room = np.full(3 * size[0] * size[1] + 1, UNTOUCHED, np.uint8)
    images = room[:-1].reshape(1, *size, 3)
    task = native_code.task(job(stored, shape, region, **more), images, scaled, fill)
    assert (using or library()).ffcv_prune_make(task, 0, 1) == 0
    assert room[-1] == UNTOUCHED
    return images[0]


def photograph(rng: np.random.Generator, height: int, width: int, feature: int = 24) -> Pixels:
    """Smooth colours with a few edges and a little noise, which JPEG compresses as it does photographs.

    `feature` is the distance in pixels over which colours change.
    """
    coarse = rng.integers(0, 256, (height // feature + 2, width // feature + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    for _ in range(3):
        (top, bottom), (left, right) = np.sort(rng.integers(0, (height, width), (2, 2)).T)
        smooth[top:bottom, left:right] += rng.integers(-90, 91, 3)
    return np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image: Pixels, mode: str = "RGB", **options: int) -> Pixels:
    """uint8[m]: a JPEG image; `options` are Pillow's."""
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "JPEG", **options)
    return np.frombuffer(file.getvalue(), np.uint8)


def random_options(rng: np.random.Generator) -> dict[str, int]:
    """Of `encoded`: any quality and chroma, sometimes with several scans, own Huffman tables, restart markers."""
    options = {
        "quality": int(rng.integers(5, 100)),
        "subsampling": int(rng.integers(3)),
        "optimize": rng.random() < 0.3,
    }
    if rng.random() < 0.2:
        options["progressive"] = True
    if rng.random() < 0.2:
        options["restart_marker_blocks"] = int(rng.integers(1, 9))
    return options


def random_region(rng: np.random.Generator, shape: tuple[int, ...]) -> Region:
    height, width = (int(rng.integers(1, side + 1)) for side in shape[:2])
    top, left = int(rng.integers(0, shape[0] - height + 1)), int(rng.integers(0, shape[1] - width + 1))
    return top, left, height, width


def damaged(rng: np.random.Generator, sound: Pixels) -> Pixels:
    """A copy with bits flipped, bytes overwritten, a piece moved or the end cut off."""
    image = sound.copy()
    kind = rng.integers(4)
    if kind == 0:
        for at in rng.integers(0, len(image), rng.integers(1, 9)):
            image[at] ^= 1 << rng.integers(8)
    elif kind == 1:
        at = rng.integers(0, min(len(image), 700))  # the headers
        image[at : at + 2] = rng.integers(0, 256, len(image[at : at + 2]))
    elif kind == 2:
        length = int(rng.integers(1, min(64, len(image))))
        start, to = rng.integers(0, len(image) - length, 2)
        image[to : to + length] = image[start : start + length].copy()
    else:
        image = image[: rng.integers(0, len(image))].copy()
    return image
