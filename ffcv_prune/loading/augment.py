"""Augmentations whose random numbers are keyed by (seed, epoch, sample id).

FFCV's own draw from numba's generator, which cannot be seeded from outside and is shared by the threads of a
batch. Here every number is a hash of what it belongs to, so that a run repeats bit by bit on any number of
threads, from the middle of an epoch, and whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.libffcv import imdecode, resize_crop
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from numba import njit

from ffcv_prune.errors import UserError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SEED_AND_EPOCH = AllocationQuery((2,), np.dtype("<i8"))


@njit("uint64(uint64)", nogil=True, cache=True)
def mix(x):  # type: ignore[no-untyped-def]
    """splitmix64's finaliser (Steele, Lea, Flood 2014): uint64 -> uint64, a bijection without visible structure."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit("uint64(int64, int64, int64)", nogil=True, cache=True)
def stream_key(seed, epoch, sample):  # type: ignore[no-untyped-def]
    """uint64: the key of one sample's stream in one epoch."""
    key = mix(np.uint64(seed) + _GOLDEN)
    key = mix((key ^ np.uint64(epoch)) + _GOLDEN)
    return mix((key ^ np.uint64(sample)) + _GOLDEN)


@njit("float64(uint64, int64)", nogil=True, cache=True)
def uniform(key, draw):  # type: ignore[no-untyped-def]
    """float64 in [0, 1): number `draw` of the stream `key`."""
    bits = mix(key + np.uint64(draw + 1) * _GOLDEN)
    return np.float64(bits >> np.uint64(11)) * 2.0**-53


@njit("int64(uint64, int64, int64, int64)", nogil=True, cache=True)
def randint(key, draw, low, high):  # type: ignore[no-untyped-def]
    """int64 in [low, high), uniform."""
    return low + np.int64(uniform(key, draw) * (high - low))


@njit(
    "UniTuple(int64, 4)(uint64, int64, int64, UniTuple(float64, 2), UniTuple(float64, 2))",
    nogil=True,
    cache=True,
)
def random_resized_crop(key, height, width, scale, ratio):  # type: ignore[no-untyped-def]
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
def flip_in_place(image):  # type: ignore[no-untyped-def]
    """Mirror uint8[H, W, 3] left to right. (Assigning a reversed slice would cost seconds of compilation.)"""
    rows, columns, channels = image.shape
    for row in range(rows):
        for left in range(columns // 2):
            right = columns - 1 - left
            for channel in range(channels):
                kept = image[row, left, channel]
                image[row, left, channel] = image[row, right, channel]
                image[row, right, channel] = kept


class KeyedOperation(Operation):
    """An operation that draws from keyed streams.

    The loader writes its seed and the epoch into the operation's allocation number `key_buffer`,
    int64[slots, B, 2]: compiled code could see neither change otherwise.
    """

    key_buffer: int


class RandomResizedCrop(KeyedOperation, RandomResizedCropRGBImageDecoder):
    """Decoder: random crop resized to `size` x `size` (area), then a horizontal flip with probability 1/2.

    Args:
        size: side of the output in pixels.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's aspect ratio.
    """

    key_buffer = 2

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        RandomResizedCropRGBImageDecoder.__init__(self, (size, size), scale, ratio)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        state, buffers = super().declare_state_and_memory(previous_state)
        return state, (*buffers, _SEED_AND_EPOCH)

    def generate_code(self) -> Callable[..., Any]:
        jpg = IMAGE_MODES["jpg"]
        mem_read = self.memory_read
        my_range = Compiler.get_iterator()
        imdecode_c = Compiler.compile(imdecode)
        resize_crop_c = Compiler.compile(resize_crop)
        scale, ratio = (
            (float(self.scale[0]), float(self.scale[1])),
            (float(self.ratio[0]), float(self.ratio[1])),
        )

        def decode(batch_indices, memory, metadata, storage_state):  # type: ignore[no-untyped-def]
            destination, scratch, seed_and_epoch = memory
            for dst_ix in my_range(len(batch_indices)):
                sample = batch_indices[dst_ix]
                field = metadata[sample]
                stored = mem_read(field["data_ptr"], storage_state)
                height, width = np.uint32(field["height"]), np.uint32(field["width"])
                if field["mode"] == jpg:
                    imdecode_c(stored, scratch[dst_ix], height, width, height, width, 0, 0, 1, 1, False, False)
                    pixels = scratch[dst_ix].reshape(-1)[: 3 * height * width].reshape(height, width, 3)
                else:
                    pixels = stored.reshape(height, width, 3)
                key = stream_key(seed_and_epoch[dst_ix, 0], seed_and_epoch[dst_ix, 1], sample)
                i, j, h, w = random_resized_crop(key, height, width, scale, ratio)
                resize_crop_c(pixels, i, i + h, j, j + w, destination[dst_ix])
                if uniform(key, 40) < 0.5:
                    flip_in_place(destination[dst_ix])
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class PadCropFlip(KeyedOperation):
    """Pad with `fill`, crop back to the stored size at a random place, flip horizontally with probability 1/2.

    Works on uint8[B, H, W, 3] arrays, before `ToTensor`.

    Args:
        padding: pixels on each side (paper, section 4: 4).
        fill: the padding's colour; the channel mean, as in the paper, which pads after normalising.
    """

    key_buffer = 1

    def __init__(self, padding: int = 4, fill: tuple[int, int, int] = (0, 0, 0)) -> None:
        super().__init__()
        if padding < 0:
            raise UserError(f"padding is {padding}: it must be at least 0")
        self.padding = padding
        self.fill = np.array(fill, dtype=np.uint8)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        return (
            replace(previous_state, jit_mode=True),
            (AllocationQuery(previous_state.shape, previous_state.dtype), _SEED_AND_EPOCH),
        )

    def generate_code(self) -> Callable[..., Any]:
        my_range = Compiler.get_iterator()
        padding, fill = self.padding, self.fill

        def pad_crop_flip(images, memory, batch_indices):  # type: ignore[no-untyped-def]
            destination, seed_and_epoch = memory
            rows, columns = images.shape[1], images.shape[2]
            for b in my_range(len(batch_indices)):
                key = stream_key(seed_and_epoch[b, 0], seed_and_epoch[b, 1], batch_indices[b])
                down = randint(key, 0, -padding, padding + 1)
                right = randint(key, 1, -padding, padding + 1)
                flip = uniform(key, 2) < 0.5
                for row in range(rows):
                    for column in range(columns):
                        i = row + down
                        j = (columns - 1 - column if flip else column) + right
                        inside = 0 <= i < rows and 0 <= j < columns
                        for channel in range(3):
                            destination[b, row, column, channel] = images[b, i, j, channel] if inside else fill[channel]
            return destination[: len(batch_indices)]

        pad_crop_flip.is_parallel = True  # type: ignore[attr-defined]
        pad_crop_flip.with_indices = True  # type: ignore[attr-defined]
        return pad_crop_flip
