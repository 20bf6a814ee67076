"""What torch, SPDL and Grain call to fill a batch, by the fastest functions that Python has for it.

simplejpeg is libjpeg-turbo, called as FFCV calls it (fast DCT, smooth upsampling). Resizing is OpenCV's INTER_AREA, as
in FFCV. So the pixels are equal. Both release Python's lock, as np.take does. An image is decoded at a reduced size,
which libjpeg can do and which gives other pixels, only where ours does so, too (`Data.reduced`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from benchmarks.loading.rivals.data import Buffers, Data

cv2.setNumThreads(0)  # the loaders bring the threads


def read_batch(data: Data, ids: NDArray[np.int64], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill `out`, uint8[>= B, side, side, 3], with the images `ids`, int64[B]; return the part filled."""
    out = out[: len(ids)]
    if data.dense is not None:
        np.take(data.dense, ids, axis=0, out=out, mode="clip")  # the default mode would go through a copy of `out`
    elif not data.is_resized:
        for image, i in zip(out, ids.tolist(), strict=True):
            simplejpeg.decode_jpeg(data.stored(i), "RGB", fastdct=True, buffer=image)
    else:
        for image, i in zip(out, ids.tolist(), strict=True):
            top, left, height, width = data.regions[i].tolist()
            pixels, scale = _decoded(data, i, min(height, width)) if data.is_jpeg else (data.pixels(i), 1.0)
            top, left, bottom, right = (round(scale * edge) for edge in (top, left, top + height, left + width))
            crop = pixels[top:bottom, left:right]
            cv2.resize(crop, (data.side, data.side), dst=image, interpolation=cv2.INTER_AREA)
    return out


def _decoded(data: Data, i: int, crop_side: int) -> tuple[NDArray[np.uint8], float]:
    """JPEG image `i`, at a scale that leaves a crop of this side large enough; and the scale."""
    least = round(1.5 * data.side * min(data.heights[i], data.widths[i]) / crop_side) if data.reduced else 0
    pixels = simplejpeg.decode_jpeg(data.stored(i), "RGB", fastdct=True, min_height=least, min_width=least)
    return pixels, pixels.shape[0] / data.heights[i]


class BatchReader:
    """Fills buffers that are used again, on threads of SPDL's or Grain's; at most `buffers` batches are in use."""

    def __init__(self, data: Data, batch_size: int, buffers: int) -> None:
        self.data = data
        self.buffers = Buffers(data, batch_size, buffers)

    def read(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """A buffer whose first B images are those of `ids`, int64[B], and `ids`. Waits for a free buffer."""
        buffer = self.buffers.take()
        read_batch(self.data, ids, buffer)
        return buffer, ids

    def serve(
        self, read: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]]
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Hand out what was read, uint8[B, side, side, 3] and int64[B], and take each buffer back after its use."""
        for buffer, ids in read:
            yield buffer[: len(ids)], ids
            self.buffers.give_back(buffer)
