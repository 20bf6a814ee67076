"""Records of a ``.beton`` as they stand in the file: its allocation table, where each sample's data are, and checksums.

FFCV leaves room from the end of the metadata to the next page, where the data begin, and never reads it. There our
writer puts a CRC-32C of each sample, behind a header: in the file itself, so that no copy or crash can part them.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from ffcv.types import ALLOC_TABLE_TYPE

TABLE_PIECE = 65_536  # records read at a time

CHECKSUM = np.dtype("<u4")
CHECKSUMS_HEADER = np.dtype([("magic", "S8"), ("crc32", "<u4")])  # of the checksums themselves; as of zlib
CHECKSUMS_MAGIC = b"CRC-32C1"


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


def checksums_bytes(n: int) -> int:
    """What the checksums of n samples take in the file."""
    return CHECKSUMS_HEADER.itemsize + n * CHECKSUM.itemsize


def write_checksums(path: Path, offset: int, checksums: np.ndarray) -> None:
    """Put the checksums, uint32[n], where `read_checksums` finds them; they replace what is there."""
    content = checksums.astype(CHECKSUM).tobytes()
    header = np.array((CHECKSUMS_MAGIC, zlib.crc32(content)), CHECKSUMS_HEADER)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(header.tobytes() + content)


def read_checksums(file: BinaryIO, n: int, offset: int, end: int) -> np.ndarray | None:
    """The checksums, uint32[n], at byte `offset`; None where there are none before byte `end`."""
    if offset + checksums_bytes(n) > end:
        return None
    header = read_records(file, CHECKSUMS_HEADER, 1, offset)[0]
    if header["magic"] != CHECKSUMS_MAGIC:
        return None
    checksums = read_records(file, CHECKSUM, n, offset + CHECKSUMS_HEADER.itemsize)
    if zlib.crc32(checksums.tobytes()) != header["crc32"]:
        raise DamagedError("is damaged: its checksums are not what was written")
    return checksums


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
        """Require exactly one allocation at each pointer, owned by that sample; return the sizes, uint32[n].

        FFCV finds a size by binary search for the address and does not look whether it was there.
        """
        sound, found = np.empty(len(ptrs), np.bool_), np.empty(len(ptrs), np.uint32)
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
