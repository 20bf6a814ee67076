"""Records of a ``.beton`` as they stand in the file, and its allocation table: where each sample's data are."""

from __future__ import annotations

from typing import BinaryIO

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from ffcv.types import ALLOC_TABLE_TYPE

TABLE_PIECE = 65_536  # records read at a time


class DamagedError(Exception):
    """What is wrong with the file, without its name."""


def read_records(file: BinaryIO, dtype: np.dtype, count: int, offset: int) -> np.ndarray:
    """`count` records of `dtype` from byte `offset` on."""
    file.seek(offset)
    found = np.fromfile(file, dtype=dtype, count=count)
    if len(found) != count:  # the file shrank after its size was taken
        raise DamagedError("changed while it was read")
    return found


def read_allocations(file: BinaryIO, count: int, offset: int) -> dict[str, np.ndarray]:
    """Return the columns, uint64[count] each, in ascending order of the addresses. No second copy is ever made."""
    columns = {name: np.empty(count, dtype=np.uint64) for name in ALLOC_TABLE_TYPE.names or ()}
    for start in range(0, count, TABLE_PIECE):
        piece = slice(start, min(start + TABLE_PIECE, count))
        records = read_records(file, ALLOC_TABLE_TYPE, piece.stop - start, offset + start * ALLOC_TABLE_TYPE.itemsize)
        for name, column in columns.items():
            column[piece] = records[name]
    order = np.argsort(columns["ptr"], kind="stable")
    for column in columns.values():
        column[:] = column[order]
    return columns


class Allocations:
    """The allocation table, sorted by address as FFCV's memory managers sort it, and sound by itself."""

    def __init__(self, table: dict[str, np.ndarray], n: int, page_size: int, data_start: int, data_end: int) -> None:
        self.samples, self.ptrs, self.sizes = table["sample_id"], table["ptr"], table["size"]
        differs = np.concatenate([[True], self.ptrs[1:] != self.ptrs[:-1], [True]])
        self.once = differs[1:] & differs[:-1]  # whether no other allocation has this address
        page = np.uint64(page_size)
        sound = (self.samples < n) & (self.ptrs >= data_start) & (self.ptrs < data_end)
        # The first two terms bound the sum of the third, which therefore cannot wrap around.
        sound &= (self.sizes <= page) & (self.ptrs % page + self.sizes <= page)
        if not sound.all():
            wrong = int(np.argmin(sound))
            raise DamagedError(
                f"is damaged: {np.count_nonzero(~sound)} of {len(sound)} allocations fit no page, such as "
                f"{self.sizes[wrong]} bytes at {self.ptrs[wrong]} for sample {self.samples[wrong]}"
            )

    def check(self, field: str, ptrs: np.ndarray, sizes: np.ndarray | np.integer | None = None) -> np.ndarray:
        """Require exactly one allocation at each pointer, owned by that sample; return the sizes, uint64[n].

        FFCV finds a size by binary search for the address and does not look whether it was there.
        """
        sound, found = np.empty(len(ptrs), np.bool_), np.empty(len(ptrs), np.uint64)
        for start in range(0, len(ptrs), TABLE_PIECE):  # whole columns would take 40 bytes a sample
            piece = slice(start, start + TABLE_PIECE)
            own = ptrs[piece]
            first = np.searchsorted(self.ptrs, own)
            first[first == len(self.ptrs)] = 0
            sound[piece] = self.once[first] & (self.ptrs[first] == own)
            sound[piece] &= self.samples[first] == np.arange(start, start + len(own))
            found[piece] = self.sizes[first]
        if sizes is not None:
            sound &= found == sizes
        if not sound.all():
            raise DamagedError(
                f"is damaged: field {field!r} of sample {np.argmin(sound)} points to no data of its own "
                f"({np.count_nonzero(~sound)} of {len(sound)} samples are wrong)"
            )
        return found
