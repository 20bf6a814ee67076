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
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.loading import kernels

Ids = NDArray[np.int64]
Jobs = NDArray[np.int64]


class PlannedDecoder(Operation):
    """A decoder whose images the loader's `workers` make: it says what to make of each sample, in its jobs.

    Needs a `PrunedLoader`. FFCV's own code for it finds the images made.

    Attributes:
        scaled: whether JPEG images may be decoded at a scale, see `native_code.task`.
        random: whether `plan` draws random numbers: `seed` is then another one for each such operation of a loader.
    """

    scaled = False
    random = False

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        state, memory = super().declare_state_and_memory(previous_state)
        # FFCV would have room for a whole JPEG image of each sample in each slot of the ring, pinned: gigabytes.
        return state, (memory[0] if isinstance(memory, tuple) else memory,)

    def generate_code(self) -> Callable[..., Any]:
        return made_images

    def plan(self, jobs: Jobs, ids: Ids, metadata: Any, storage_state: Any, seed: int, epoch: int) -> None:
        """Fill int64[B, len(native_code.JOB)] for the samples `ids`, int64[B], of a field with this metadata."""
        kernels.plan_images(jobs, ids, metadata, storage_state)


def made_images(_: Any, memory: Any, *__: Any) -> Any:
    """Code of an operation whose images the workers have made, as many as there are samples."""
    return memory[0]


class StoredImage(PlannedDecoder, SimpleRGBImageDecoder):
    """Decoder of images that all have one size: as FFCV's, uint8[B, H, W, 3]."""


class CropDecoder(PlannedDecoder):
    """A decoder that resizes. Its `output_size`, (rows, columns), may be set between epochs."""

    output_size: tuple[int, int]


class CentreCrop(CropDecoder, CenterCropRGBImageDecoder):
    """Decoder: as FFCV's, the central square of `ratio` times the shorter side resized (area) to `size` x `size`.

    Args:
        scaled: decode JPEG images at 1/8, 1/4 or 1/2 where that leaves half as many pixels again as `size` in both
            directions: less time, and pixels that differ a little (docs/cheaper_scores.md).
    """

    def __init__(self, size: int, ratio: float, scaled: bool = False) -> None:
        CenterCropRGBImageDecoder.__init__(self, (size, size), ratio)
        self.scaled = scaled

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        if not 0 < self.ratio <= 1:
            raise UserError(f"the ratio of a centre crop is {self.ratio}: it must be above 0, and at most 1")
        return super().declare_state_and_memory(previous_state)

    def plan(self, jobs: Jobs, ids: Ids, metadata: Any, storage_state: Any, seed: int, epoch: int) -> None:
        super().plan(jobs, ids, metadata, storage_state, seed, epoch)
        kernels.plan_centre_crops(jobs, float(self.ratio))


class RandomResizedCrop(CropDecoder, RandomResizedCropRGBImageDecoder):
    """Decoder: random crop resized to `size` x `size` (area), then a horizontal flip with probability 1/2.

    Args:
        size: side of the output in pixels.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's aspect ratio.
    """

    random = True
    flips = True

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        RandomResizedCropRGBImageDecoder.__init__(self, (size, size), scale, ratio)

    def plan(self, jobs: Jobs, ids: Ids, metadata: Any, storage_state: Any, seed: int, epoch: int) -> None:
        super().plan(jobs, ids, metadata, storage_state, seed, epoch)
        scale, ratio = ((float(low), float(high)) for low, high in (self.scale, self.ratio))
        kernels.plan_random_crops(jobs, ids, seed, epoch, scale, ratio, self.flips)


class _RandomResizedCropOnly(RandomResizedCrop):
    """As FFCV's, which flips by an operation of its own."""

    flips = False


_OF_FFCV: dict[type[Operation], type[PlannedDecoder]] = {
    SimpleRGBImageDecoder: StoredImage,
    CenterCropRGBImageDecoder: CentreCrop,
    RandomResizedCropRGBImageDecoder: _RandomResizedCropOnly,
}


def planned(decoder: Operation) -> Operation:
    """Our decoder in the place of one of FFCV's; any other one, and what a user made of FFCV's, as it is."""
    kind = _OF_FFCV.get(type(decoder))
    if kind is None:
        return decoder
    ours: Operation = kind.__new__(kind)
    ours.__dict__ = decoder.__dict__  # what is set on the user's, `output_size` say, is then set on ours
    return ours


class Label(IntDecoder):
    """Decoder of an integer field: as FFCV's, int64[B, 1]."""

    def generate_code(self) -> Callable[..., Any]:
        return kernels.label_decoder()


class PadCropFlip(Operation):
    """Pad with `fill`, crop back to the stored size at a random place, flip horizontally.

    Works on uint8[B, H, W, 3] arrays, before `ToTensor`. Right behind one of our decoders it costs least.

    Args:
        padding: pixels on each side (paper, section 4: 4).
        fill: the padding's colour; the channel mean, as in the paper, which pads after normalising.
        alternating: flip each sample in every second epoch, half of them in the even ones (Jordan, arXiv:2404.00498);
            else with probability 1/2.
    """

    random = True

    def __init__(self, padding: int = 4, fill: tuple[int, int, int] = (0, 0, 0), alternating: bool = False) -> None:
        super().__init__()
        if padding < 0:
            raise UserError(f"padding is {padding}: it must be at least 0")
        self.padding = padding
        self.fill = fill
        self.alternating = alternating

    @property
    def colour(self) -> tuple[int, int, int]:
        red, green, blue = (int(channel) for channel in self.fill)
        return red, green, blue

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        # The loader writes its seed and the epoch into the second one, int64[slots, B, 2]: compiled code could see
        # neither change otherwise.
        return (
            replace(previous_state, jit_mode=True),
            (AllocationQuery(previous_state.shape, previous_state.dtype), AllocationQuery((2,), np.dtype("<i8"))),
        )

    def generate_code(self) -> Callable[..., Any]:
        own = int(self.padding), self.colour, bool(self.alternating)
        return kernels.pad_crop_flip(Compiler.get_iterator(), *own)

    def plan(self, jobs: Jobs, ids: Ids, seed: int, epoch: int) -> None:
        """Add to int64[B, len(native_code.JOB)] where the images `ids` go, int64[B]: in place of the code."""
        kernels.plan_moves(jobs, ids, seed, epoch, int(self.padding), bool(self.alternating))
