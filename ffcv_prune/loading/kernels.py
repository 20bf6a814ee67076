"""All code of our pipelines that numba compiles: the jobs of each batch (`native_code.JOB`) and the random numbers of
the augmentations. Where the native code was not built, it makes the images too.

Numba keeps the compiled code on the disk: in `__pycache__`, or in the user's cache folder where that is not writable.
So only the first run on a machine compiles. Numba notices a change of this file, but not of a file that this file
calls. Hence everything is in one file, which calls only FFCV's C library. What differs between pipelines (`prange` or
`range`, sizes, scales) are plain values closed over, which numba makes part of the key.

No argument is a writeable uint8[::1]. Building one of FFCV's own loaders changes numba's type of that name for the
whole process. Code compiled for it before is then not found.

Random numbers are a hash of (seed, epoch, sample id), and each operation has a seed of its own. FFCV's own come from
numba's generator, which cannot be seeded from outside and is shared by the threads of a batch. So a run repeats bit by
bit on any number of threads, from the middle of an epoch, and whatever else is in the batch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import ffcv.libffcv
import llvmlite.binding
import numpy as np
from ffcv.fields.rgb_image import IMAGE_MODES
from numba import njit, prange, types

_JPG = int(IMAGE_MODES["jpg"])
# A job's columns, in the order of `native_code.JOB`.
_SOURCE, _BYTES, _ROWS, _COLUMNS, _TOP, _LEFT, _HEIGHT, _WIDTH, _FLIP, _DOWN, _RIGHT, _TURNED = range(12)


def _external(name: str, signature: Any) -> Any:
    """A function of FFCV's library, called by name: numba keeps no code that holds an address, as ctypes' does."""
    address = ctypes.cast(getattr(ffcv.libffcv.lib, name), ctypes.c_void_p).value
    llvmlite.binding.add_symbol(f"ffcv_{name}", address)
    return types.ExternalFunction(f"ffcv_{name}", signature)


_resize = _external("resize", types.int32(*[types.int64] * 11))
_imdecode = _external(
    "imdecode",
    types.int32(
        types.uintp, types.uint64, types.uint32, types.uint32, types.uintp, *[types.uint32] * 6, *[types.uint8] * 2
    ),
)
_memcpy = _external("my_memcpy", types.int32(types.uintp, types.uintp, types.uint64))

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit("uint64(uint64)", nogil=True, cache=True)
def mix(x):
    """splitmix64's finaliser (Steele, Lea, Flood 2014): uint64 -> uint64, a bijection without visible structure."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit("uint64(int64, int64, int64)", nogil=True, cache=True)
def stream_key(seed, epoch, sample):
    """uint64: the key of one sample's stream in one epoch."""
    key = mix(np.uint64(seed) + _GOLDEN)
    key = mix((key ^ np.uint64(epoch)) + _GOLDEN)
    return mix((key ^ np.uint64(sample)) + _GOLDEN)


@njit("int64(int64, int64)", nogil=True, cache=True)
def operation_seed(seed, number):
    """int64: the seed of the random operation `number` of a loader: two views of a sample are not drawn alike.

    The first has the loader's own seed.
    """
    return seed if number == 0 else np.int64(mix(np.uint64(seed) + np.uint64(number) * _GOLDEN))


@njit("float64(uint64, int64)", nogil=True, cache=True)
def uniform(key, draw):
    """float64 in [0, 1): number `draw` of the stream `key`."""
    bits = mix(key + np.uint64(draw + 1) * _GOLDEN)
    return np.float64(bits >> np.uint64(11)) * 2.0**-53


@njit("int64(uint64, int64, int64, int64)", nogil=True, cache=True)
def randint(key, draw, low, high):
    """int64 in [low, high), uniform."""
    return low + np.int64(uniform(key, draw) * (high - low))


@njit(
    "UniTuple(int64, 4)(uint64, int64, int64, UniTuple(float64, 2), UniTuple(float64, 2))",
    nogil=True,
    cache=True,
)
def random_resized_crop(key, height, width, scale, ratio):
    """(row, column, height, width) of a random crop, by torchvision's rule for RandomResizedCrop.

    Uses the draws 0 to 39 of the stream: ten tries of area, aspect ratio, row and column.
    """
    area = height * width
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    for attempt in range(10):
        target = area * (scale[0] + uniform(key, 4 * attempt) * (scale[1] - scale[0]))
        aspect = np.exp(log_low + uniform(key, 4 * attempt + 1) * (log_high - log_low))
        w = np.int64(round(np.sqrt(target * aspect)))
        h = np.int64(round(np.sqrt(target / aspect)))
        if 0 < w <= width and 0 < h <= height:
            i = randint(key, 4 * attempt + 2, 0, height - h + 1)
            j = randint(key, 4 * attempt + 3, 0, width - w + 1)
            return i, j, h, w
    # As torchvision: the largest central crop whose aspect ratio is allowed.
    w, h = np.int64(width), np.int64(height)
    if width < ratio[0] * height:
        h = max(1, np.int64(round(width / ratio[0])))
    elif width > ratio[1] * height:
        w = max(1, np.int64(round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


@njit("void(uint8[:, :, ::1])", nogil=True, cache=True)
def flip_in_place(image):
    """Mirror uint8[H, W, 3] left to right. (Assigning a reversed slice would cost seconds of compilation.)"""
    rows, columns, channels = image.shape
    for row in range(rows):
        for left in range(columns // 2):
            right = columns - 1 - left
            for channel in range(channels):
                kept = image[row, left, channel]
                image[row, left, channel] = image[row, right, channel]
                image[row, right, channel] = kept


@njit(nogil=True, cache=True)
def read(address, storage_state):
    """uint8[size]: the bytes allocated at `address`, of (file, addresses in ascending order, their sizes)."""
    file, addresses, sizes = storage_state
    return file[address : address + sizes[np.searchsorted(addresses, address)]]


@njit(nogil=True, cache=True)
def centre_crop(height, width, ratio):
    """(row, column, height, width) of the central square of `ratio` times the shorter side."""
    side = max(1, np.int64(ratio * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side


@njit(nogil=True, cache=True)
def stored_bytes(field, storage_state):
    """(address in memory, bytes of a JPEG image or 0 for raw pixels): where the image of a sample is stored."""
    address, size = field["data_ptr"], np.int64(0)
    if field["mode"] == _JPG:
        size = np.int64(read(address, storage_state).size)
    return np.int64(storage_state[0].ctypes.data + address), size  # of raw pixels there is nothing to search for


@njit(nogil=True, cache=True)
def plan_images(jobs, ids, metadata, storage_state):
    """Fill int64[B, len(JOB)]: the images `ids`, int64[B], as they are stored."""
    for b in range(len(ids)):
        field, job = metadata[ids[b]], jobs[b]
        job[_SOURCE], job[_BYTES] = stored_bytes(field, storage_state)
        job[_ROWS] = job[_HEIGHT] = field["height"]
        job[_COLUMNS] = job[_WIDTH] = field["width"]
        job[_TOP] = job[_LEFT] = job[_FLIP] = job[_DOWN] = job[_RIGHT] = job[_TURNED] = 0


@njit(nogil=True, cache=True)
def plan_centre_crops(jobs, ratio):
    """Of each image the central square of `ratio` times the shorter side."""
    for job in jobs:
        job[_TOP], job[_LEFT], job[_HEIGHT], job[_WIDTH] = centre_crop(job[_ROWS], job[_COLUMNS], ratio)


@njit(nogil=True, cache=True)
def plan_random_crops(jobs, ids, seed, epoch, scale, ratio, flips):
    """Of each image a random crop and, if `flips`, a flip with probability 1/2, by the sample's keyed stream."""
    for b in range(len(ids)):
        job, key = jobs[b], stream_key(seed, epoch, ids[b])
        crop = random_resized_crop(key, job[_ROWS], job[_COLUMNS], scale, ratio)
        job[_TOP], job[_LEFT], job[_HEIGHT], job[_WIDTH] = crop
        job[_FLIP] = flips and uniform(key, 40) < 0.5


@njit(nogil=True, cache=True)
def random_move(seed, epoch, sample, padding, alternating):
    """(down, right, flip) of a crop of the padded image, by the sample's keyed stream.

    `alternating`: half the samples are flipped in even epochs and the others in odd ones; else with probability 1/2.
    """
    key = stream_key(seed, epoch, sample)
    down = randint(key, 0, -padding, padding + 1)
    right = randint(key, 1, -padding, padding + 1)
    if alternating:
        return down, right, (uniform(stream_key(seed, 0, sample), 2) < 0.5) == (epoch % 2 == 0)
    return down, right, uniform(key, 2) < 0.5


@njit(nogil=True, cache=True)
def plan_moves(jobs, ids, seed, epoch, padding, alternating):
    """Of each image, once it is cropped and resized, a random crop of what padding makes of it, and a flip."""
    for b in range(len(ids)):
        job = jobs[b]
        job[_DOWN], job[_RIGHT], job[_TURNED] = random_move(seed, epoch, ids[b], padding, alternating)


@njit(nogil=True, cache=True)
def crop_padded(image, down, right, flip, fill, destination):
    """Copy uint8[H, W, 3], moved and then flipped or not, to `destination`; `fill` where it has nothing."""
    rows, columns = image.shape[0], image.shape[1]
    for row in range(rows):
        for column in range(columns):
            i = row + down
            j = (columns - 1 - column if flip else column) + right
            inside = 0 <= i < rows and 0 <= j < columns
            for channel in range(3):
                destination[row, column, channel] = image[i, j, channel] if inside else np.uint8(fill[channel])


@njit(nogil=True, cache=True)
def _make_image(job, room, destination):
    """What `native/images.c` makes of a job before it is moved, by FFCV's library."""
    source, (rows, columns) = job[_SOURCE], (job[_ROWS], job[_COLUMNS])
    if job[_BYTES]:
        height, width, size = np.uint32(rows), np.uint32(columns), np.uint64(job[_BYTES])
        _imdecode(source, size, height, width, room.ctypes.data, height, width, 0, 0, 1, 1, 0, 0)
        source = room.ctypes.data
    top, left, height, width = job[_TOP], job[_LEFT], job[_HEIGHT], job[_WIDTH]
    to, shape = destination.ctypes.data, destination.shape
    if (rows, columns) == (height, width) == (shape[0], shape[1]):
        _memcpy(source, to, destination.size)
    else:
        _resize(0, source, rows, columns, top, top + height, left, left + width, to, shape[0], shape[1])
    if job[_FLIP]:
        flip_in_place(destination)


@njit(nogil=True, parallel=True, cache=True)
def make_images(jobs, images, moved, fill, rooms, kept):
    """Make uint8[B, rows, columns, 3] of their jobs by FFCV's decoder and resize, on numba's threads.

    Each thread has uint8[largest stored image] of `rooms` and uint8[rows, columns, 3] of `kept` to work in.
    """
    threads, samples = len(rooms), len(jobs)
    for thread in prange(threads):
        for b in range(thread, samples, threads):
            _make_image(jobs[b], rooms[thread], kept[thread] if moved else images[b])
            if moved:
                down, right, turned = jobs[b, _DOWN], jobs[b, _RIGHT], jobs[b, _TURNED] != 0
                crop_padded(kept[thread], down, right, turned, fill, images[b])


def pad_crop_flip(my_range: Any, padding: int, fill: tuple[int, int, int], alternating: bool) -> Callable[..., Any]:
    """FFCV's code for `PadCropFlip` behind operations that are not ours: else `plan_moves` does it."""

    def augment(images, memory, batch_indices):
        destination, seed_and_epoch = memory
        for b in my_range(len(batch_indices)):
            seed, epoch = seed_and_epoch[b, 0], seed_and_epoch[b, 1]
            down, right, flip = random_move(seed, epoch, batch_indices[b], padding, alternating)
            crop_padded(images[b], down, right, flip, fill, destination[b])
        return destination[: len(batch_indices)]

    augment.with_indices = True  # type: ignore[attr-defined]
    augment.is_parallel = True  # type: ignore[attr-defined]  # FFCV's way to ask for threads
    return augment


def label_decoder() -> Callable[..., Any]:
    """int64 of an IntField, as stored."""

    def decode(batch_indices, destination, metadata, storage_state):
        for b in range(len(batch_indices)):
            destination[b] = metadata[batch_indices[b]]
        return destination[: len(batch_indices)]

    return decode
