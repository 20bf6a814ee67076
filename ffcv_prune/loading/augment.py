"""The operations of our pipelines: FFCV's decoders and the paper's augmentations, on the code in `kernels`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from ffcv.fields.decoders import (
    CenterCropRGBImageDecoder,
    IntDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State

from ffcv_prune.errors import UserError
from ffcv_prune.loading import kernels

_SEED_AND_EPOCH = AllocationQuery((2,), np.dtype("<i8"))


class SharedOperation(Operation):
    """An operation whose threads share the samples of a batch as they come (`kernels.next_stretch`).

    Needs a `PrunedLoader`, which adds two parts to its memory: int64[1], how many samples of the batch are taken, and
    uint8[threads, scratch_bytes] to work in, one for all slots of the ring, which stays in the cache.

    Attributes:
        scratch_bytes: of each thread.
    """

    scratch_bytes = 0

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        state, memory = super().declare_state_and_memory(previous_state)
        return state, memory if isinstance(memory, tuple) else (memory,)


class StoredImage(SharedOperation, SimpleRGBImageDecoder):
    """Decoder of images that all have one size: as FFCV's, uint8[B, H, W, 3]."""

    def generate_code(self) -> Callable[..., Any]:
        return kernels.copy_decoder(Compiler.get_iterator())


class CropDecoder(SharedOperation):
    """A decoder that decodes JPEG images whole before it resizes them: one after the other, in each thread.

    FFCV would have it declare room for a whole batch in each slot of the ring, pinned: gigabytes.
    """

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        state, (image, scratch) = super().declare_state_and_memory(previous_state)
        # One instance may decode several fields.
        self.scratch_bytes = max(self.scratch_bytes, int(np.prod(scratch.shape)))
        return state, (image,)


class CentreCrop(CropDecoder, CenterCropRGBImageDecoder):
    """Decoder: as FFCV's, the central square of `ratio` times the shorter side resized (area) to `size` x `size`."""

    def __init__(self, size: int, ratio: float) -> None:
        CenterCropRGBImageDecoder.__init__(self, (size, size), ratio)

    def generate_code(self) -> Callable[..., Any]:
        return kernels.centre_crop_decoder(Compiler.get_iterator(), float(self.ratio))


class Label(IntDecoder):
    """Decoder of an integer field: as FFCV's, int64[B, 1]."""

    def generate_code(self) -> Callable[..., Any]:
        return kernels.label_decoder()


class KeyedOperation(Operation):
    """An operation that draws from keyed streams.

    The loader writes its seed and the epoch into the operation's second allocation, int64[slots, B, 2]: compiled code
    could see neither change otherwise.
    """


class RandomResizedCrop(KeyedOperation, CropDecoder, RandomResizedCropRGBImageDecoder):
    """Decoder: random crop resized to `size` x `size` (area), then a horizontal flip with probability 1/2.

    Args:
        size: side of the output in pixels.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's aspect ratio.
    """

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
        scale, ratio = ((float(low), float(high)) for low, high in (self.scale, self.ratio))
        return kernels.random_crop_decoder(Compiler.get_iterator(), scale, ratio)


class PadCropFlip(KeyedOperation, SharedOperation):
    """Pad with `fill`, crop back to the stored size at a random place, flip horizontally.

    Works on uint8[B, H, W, 3] arrays, before `ToTensor`.

    Args:
        padding: pixels on each side (paper, section 4: 4).
        fill: the padding's colour; the channel mean, as in the paper, which pads after normalising.
        alternating: flip each sample in every second epoch, half of them in the even ones (Jordan, arXiv:2404.00498);
            else with probability 1/2.
    """

    def __init__(self, padding: int = 4, fill: tuple[int, int, int] = (0, 0, 0), alternating: bool = False) -> None:
        super().__init__()
        if padding < 0:
            raise UserError(f"padding is {padding}: it must be at least 0")
        self.padding = padding
        self.fill = fill
        self.alternating = alternating

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        return (
            replace(previous_state, jit_mode=True),
            (AllocationQuery(previous_state.shape, previous_state.dtype), _SEED_AND_EPOCH),
        )

    def generate_code(self) -> Callable[..., Any]:
        red, green, blue = (int(channel) for channel in self.fill)
        return kernels.pad_crop_flip(
            Compiler.get_iterator(), int(self.padding), (red, green, blue), bool(self.alternating)
        )
