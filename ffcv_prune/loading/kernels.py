"""All compiled code of our pipelines: reading, decoding, cropping, and the random numbers of the augmentations.

Numba keeps what it compiles here on the disk (in `__pycache__`, or in the user's cache folder where that is not
writable), so that only the first run on a machine compiles. It notices a change of this file, not one of a file
that this one calls: hence everything in one file, which calls nothing but FFCV's C library. What differs between
pipelines (`prange` or `range`, sizes, scales) are plain values closed over, which numba makes part of the key.

No argument is a writeable uint8[::1]: building a loader of FFCV's own changes numba's type of that name for the whole
process, and what was compiled for it before is then not found.

Random numbers are a hash of what they belong to, (seed, epoch, sample id): FFCV's own come from numba's generator,
which cannot be seeded from outside and is shared by the threads of a batch. So a run repeats bit by bit on any
number of threads, from the middle of an epoch, and whatever else is in the batch.
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
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_JPG = int(IMAGE_MODES["jpg"])

# Stretches of a batch for each thread, in the mean: few enough to cost nothing, enough to even out what delays one.
_STRETCHES = 16


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
        h = np.int64(round(width / ratio[0]))
    elif width > ratio[1] * height:
        w = np.int64(round(height * ratio[1]))
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
def decode_jpeg(stored, destination, height, width):
    """Decode a whole JPEG image to the address `destination`, where height x width x 3 bytes are free."""
    size = np.uint64(stored.size)
    _imdecode(stored.ctypes.data, size, height, width, destination, height, width, 0, 0, 1, 1, 0, 0)


@njit(nogil=True, cache=True)
def resized_crop(image, i, j, h, w, destination):
    """Resize (area) the crop of uint8[H, W, 3] at (i, j) of h x w to the shape of `destination`."""
    rows, columns = destination.shape[0], destination.shape[1]
    data = image.ctypes.data, destination.ctypes.data
    _resize(0, data[0], image.shape[0], image.shape[1], i, i + h, j, j + w, data[1], rows, columns)


@njit(nogil=True, cache=True)
def centre_crop(height, width, ratio):
    """(row, column, height, width) of the central square of `ratio` times the shorter side."""
    side = np.int64(ratio * min(height, width))
    return (height - side) // 2, (width - side) // 2, side, side


def _parallel(code: Any) -> Callable[..., Any]:
    code.is_parallel = True  # FFCV's way to ask for threads
    return code


@njit(nogil=True, cache=True)
def _pixels(field, scratch, part, storage_state):
    """uint8[H, W, 3]: the stored image; a JPEG is decoded into scratch[part], of uint8[threads, largest H x W x 3]."""
    address, height, width = field["data_ptr"], np.uint32(field["height"]), np.uint32(field["width"])
    size = 3 * np.uint64(height) * np.uint64(width)
    if field["mode"] == _JPG:
        decode_jpeg(read(address, storage_state), scratch[part].ctypes.data, height, width)
        return scratch[part][:size].reshape(height, width, 3)
    return storage_state[0][address : address + size].reshape(height, width, 3)  # nothing to search for


def _add(typing_context, address, amount):
    """Add to the int64 at the address, in one step that no other thread comes between; what it was before."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return types.int64(types.uintp, types.int64), generate


_fetch_add: Any = intrinsic(_add)


@njit(nogil=True, cache=True)
def next_stretch(taken, threads, samples):
    """(first, end): samples of a batch that no thread has taken yet; equal where none are left.

    `taken` is int64[1], 0 before the batch. Numba would give each thread an equal share beforehand, and all would wait
    for the one whose core has something else to do: there is one beside every training loop.
    """
    step = max(1, samples // (_STRETCHES * threads))
    first = min(_fetch_add(taken.ctypes.data, step), samples)
    return first, min(first + step, samples)


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


def copy_decoder(my_range: Any) -> Callable[..., Any]:
    """Images of one size, as they are stored."""

    def decode(batch_indices, memory, metadata, storage_state):
        destination, taken, scratch = memory
        size, threads, samples = destination[0].size, len(scratch), len(batch_indices)
        for _ in my_range(threads):
            first, end = next_stretch(taken, threads, samples)
            while first < end:
                for b in range(first, end):
                    field = metadata[batch_indices[b]]
                    if field["mode"] == _JPG:
                        stored = read(field["data_ptr"], storage_state)
                        decode_jpeg(stored, destination[b].ctypes.data, field["height"], field["width"])
                    else:
                        source = storage_state[0].ctypes.data + field["data_ptr"]
                        _memcpy(source, destination.ctypes.data + b * size, size)
                first, end = next_stretch(taken, threads, samples)
        return destination[:samples]

    return _parallel(decode)


def centre_crop_decoder(my_range: Any, ratio: float) -> Callable[..., Any]:
    """The central square of `ratio` times the shorter side, resized."""

    def decode(batch_indices, memory, metadata, storage_state):
        destination, taken, scratch = memory
        threads, samples = len(scratch), len(batch_indices)
        for part in my_range(threads):
            first, end = next_stretch(taken, threads, samples)
            while first < end:
                for b in range(first, end):
                    pixels = _pixels(metadata[batch_indices[b]], scratch, part, storage_state)
                    i, j, h, w = centre_crop(pixels.shape[0], pixels.shape[1], ratio)
                    resized_crop(pixels, i, j, h, w, destination[b])
                first, end = next_stretch(taken, threads, samples)
        return destination[:samples]

    return _parallel(decode)


def random_crop_decoder(my_range: Any, scale: tuple[float, float], ratio: tuple[float, float]) -> Callable[..., Any]:
    """A random crop, resized, and a flip with probability 1/2, by the sample's keyed stream."""

    def decode(batch_indices, memory, metadata, storage_state):
        destination, seed_and_epoch, taken, scratch = memory
        threads, samples = len(scratch), len(batch_indices)
        for part in my_range(threads):
            first, end = next_stretch(taken, threads, samples)
            while first < end:
                for b in range(first, end):
                    sample = batch_indices[b]
                    pixels = _pixels(metadata[sample], scratch, part, storage_state)
                    key = stream_key(seed_and_epoch[b, 0], seed_and_epoch[b, 1], sample)
                    i, j, h, w = random_resized_crop(key, pixels.shape[0], pixels.shape[1], scale, ratio)
                    resized_crop(pixels, i, j, h, w, destination[b])
                    if uniform(key, 40) < 0.5:
                        flip_in_place(destination[b])
                first, end = next_stretch(taken, threads, samples)
        return destination[:samples]

    return _parallel(decode)


def pad_crop_flip(
    my_range: Any, padding: int, fill: tuple[int, int, int], alternating: bool = False
) -> Callable[..., Any]:
    """Pad, crop back to the same size at a random place, flip with probability 1/2, by the sample's keyed stream.

    `alternating`: half the samples are flipped in even epochs and the others in odd ones.
    """

    def augment(images, memory, batch_indices):
        destination, seed_and_epoch, taken, scratch = memory
        threads, samples = len(scratch), len(batch_indices)
        for _ in my_range(threads):
            first, end = next_stretch(taken, threads, samples)
            while first < end:
                for b in range(first, end):
                    key = stream_key(seed_and_epoch[b, 0], seed_and_epoch[b, 1], batch_indices[b])
                    down = randint(key, 0, -padding, padding + 1)
                    right = randint(key, 1, -padding, padding + 1)
                    flip = uniform(key, 2) < 0.5
                    if alternating:
                        of_sample = stream_key(seed_and_epoch[b, 0], 0, batch_indices[b])
                        flip = (uniform(of_sample, 2) < 0.5) == (seed_and_epoch[b, 1] % 2 == 0)
                    crop_padded(images[b], down, right, flip, fill, destination[b])
                first, end = next_stretch(taken, threads, samples)
        return destination[:samples]

    augment.with_indices = True  # type: ignore[attr-defined]
    return _parallel(augment)


def label_decoder() -> Callable[..., Any]:
    """int64 of an IntField, as stored."""

    def decode(batch_indices, destination, metadata, storage_state):
        for b in range(len(batch_indices)):
            destination[b] = metadata[batch_indices[b]]
        return destination[: len(batch_indices)]

    return decode
