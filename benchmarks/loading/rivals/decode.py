"""What torch, SPDL and Grain call to fill a batch, by the fastest functions that Python has for it.

simplejpeg is libjpeg-turbo, called as FFCV calls it (fast DCT, smooth upsampling), and resizing is OpenCV's INTER_AREA,
as in FFCV: the pixels come out equal. They let go of Python's lock, as np.take does. No image is decoded at a reduced
size, which libjpeg can do and which would be faster for everybody: it gives other pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from benchmarks.loading.rivals.data import Data

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
            pixels = simplejpeg.decode_jpeg(data.stored(i), "RGB", fastdct=True) if data.is_jpeg else data.pixels(i)
            height, width, _ = pixels.shape
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            crop = pixels[top : top + side, left : left + side]
            cv2.resize(crop, (data.side, data.side), dst=image, interpolation=cv2.INTER_AREA)
    return out
