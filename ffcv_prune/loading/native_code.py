"""The native code of `native/`: what it is given, and how its library is found.

setup.py builds it where there is a C compiler and libjpeg-turbo's headers. Elsewhere `library` is None.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache

import numpy as np

# One stored image and what to make of it; `native/images.h` has the same. All int64, so that compiled code can fill
# them as rows of an array.
JOB = (
    *("source", "bytes"),  # address; bytes of a JPEG image, 0 for raw pixels
    *("rows", "columns"),  # of the stored image
    *("top", "left", "height", "width"),  # of the region that is resized
    "flip",  # mirrored
    *("down", "right", "turned"),  # moved and then mirrored, where the task moves images
)


class StoredImages(ctypes.Structure):
    """Where a field's images are stored, see `native/images.h`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("file", "records")),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("places", "sizes")),
        ("count", ctypes.c_int64),
    )


class Task(ctypes.Structure):
    """What to make of the images of a batch, see `native/images.h`."""

    _fields_ = (
        ("jobs", ctypes.c_void_p),
        ("stored", ctypes.POINTER(StoredImages)),
        ("destination", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "scaled", "moved", "fill")),
    )


class NumberTask(ctypes.Structure):
    """Numbers to copy, see `native/images.h`."""

    _fields_ = (("records", ctypes.c_void_p), ("stride", ctypes.c_int64), ("destination", ctypes.c_void_p))


class BatchTasks(ctypes.Structure):
    """What to make of the samples of a batch, see `native/images.h`."""

    _fields_ = (
        ("images", ctypes.POINTER(Task)),
        ("numbers", ctypes.POINTER(NumberTask)),
        *((name, ctypes.c_int64) for name in ("image_count", "number_count", "piece")),
    )


class StoredField(ctypes.Structure):
    """Where a field has stored the samples, see `native/checksum.h`."""

    _fields_ = (("place", ctypes.c_void_p), ("stride", ctypes.c_int64), ("size", ctypes.c_void_p))


class StoredSamples(ctypes.Structure):
    """The samples of a file and their checksums, see `native/checksum.h`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("file", "records", "checksums", "unread")),
        ("fields", ctypes.POINTER(StoredField)),
        *((name, ctypes.c_int64) for name in ("field_count", "record_bytes")),
    )


def task(
    jobs: np.ndarray,
    images: np.ndarray,
    scaled: bool = False,
    fill: tuple[int, int, int] | None = None,
    stored: StoredImages | None = None,
) -> Task:
    """Make uint8[B, rows, columns, 3] of int64[B, len(JOB)], both C-contiguous. The task keeps both, but not what the
    jobs point to.

    Args:
        scaled: JPEG images may be decoded at a scale (1/8, 1/4, 1/2) that leaves the pixels that are wanted.
        fill: colour of where a moved image has nothing; None: images are not moved.
        stored: where the images of the samples are, of which the whole is wanted: the jobs are not filled up to "flip".
    """
    red, green, blue = fill or (0, 0, 0)
    rows, columns = images.shape[1:3]
    colour = red | green << 8 | blue << 16
    place = None if stored is None else ctypes.pointer(stored)
    made = Task(jobs.ctypes.data, place, images.ctypes.data, rows, columns, scaled, fill is not None, colour)
    made.kept = jobs, images
    return made


def number_task(column: np.ndarray, numbers: np.ndarray) -> NumberTask:
    """Copy the samples of a column of 8 bytes, at any stride, to `numbers`, C-contiguous; both are to be held."""
    return NumberTask(column.ctypes.data, column.strides[0], numbers.ctypes.data)


@cache
def library() -> ctypes.CDLL | None:
    """The library; None where it was not built or does not work, see `bind`."""
    found = importlib.util.find_spec("ffcv_prune.loading._native")
    return None if found is None or found.origin is None else bind(found.origin)


def bind(path: str) -> ctypes.CDLL | None:
    """The library in a file; None if it cannot be loaded, or is of another version of these files or of libjpeg."""
    pool, tasks, number = ctypes.c_void_p, ctypes.POINTER(Task), ctypes.c_int64
    stored = ctypes.POINTER(StoredSamples)
    types = {
        "works": (ctypes.c_int, (ctypes.POINTER(number),)),
        "make": (ctypes.c_int, (tasks, number, number)),
        "begin": (pool, (ctypes.c_int, number)),
        "submit": (None, (pool, ctypes.POINTER(BatchTasks), number, ctypes.c_void_p, stored)),
        "submitted": (number, (pool,)),
        "taken": (number, (pool,)),
        "wait": (ctypes.c_int, (pool, number)),
        "wake": (None, (pool,)),
        "clear": (None, (pool,)),
        "end": (None, (pool,)),
        "crc32c": (ctypes.c_int, (ctypes.c_int, ctypes.c_void_p, number, ctypes.POINTER(ctypes.c_uint32))),
    }
    try:
        library = ctypes.CDLL(path)
        for name, (result, arguments) in types.items():
            function = getattr(library, f"ffcv_prune_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    structures = StoredImages, Task, NumberTask, BatchTasks, StoredField, StoredSamples
    sizes = 8 * len(JOB), *map(ctypes.sizeof, structures)
    return library if library.ffcv_prune_works((number * len(sizes))(*sizes)) else None
