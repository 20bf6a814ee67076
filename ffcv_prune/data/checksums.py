"""What the checksum of a sample is made of, and the check of a whole file.

It is a CRC-32C of every byte that belongs to the sample alone. First come the bytes that FFCV's fields have stored
outside the metadata, field by field in the order of the file. The sample's record of the metadata follows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ffcv_prune.data import crc32c
from ffcv_prune.data.beton import BetonTables, read_tables
from ffcv_prune.data.manifest import read_sources
from ffcv_prune.errors import UserError, write_command

WINDOW_BYTES = 32 << 20  # of the file, read at a time
NAMED = 20  # damaged samples that one message names


def sample_sums(
    tables: BetonTables, ids: NDArray[np.int64], memory: int, start: int = 0, parallel: bool = False
) -> NDArray[np.uint32]:
    """uint32[m]: the checksums of the samples `ids`, int64[m], as their bytes are now.

    Args:
        memory: the address where the file's bytes from `start` on can be read.
        parallel: take as many threads as numba has been given.
    """
    record = tables.metadata.dtype.itemsize
    columns = [pointers[ids] + np.uint64(memory) - np.uint64(start) for pointers in tables.pointers.values()]
    sizes = [lengths[ids].astype(np.uint64) for lengths in tables.lengths.values()]
    columns.append(np.uint64(tables.metadata.ctypes.data) + ids.astype(np.uint64) * np.uint64(record))
    sizes.append(np.full(len(ids), record, np.uint64))
    return crc32c.sums(np.stack(columns, axis=1), np.stack(sizes, axis=1), parallel)


def sample_name(path: Path, sample: int, num_samples: int) -> str:
    """``sample 17 (cat/0017.jpg)``, where it is on record what it was made from."""
    sources = read_sources(path, num_samples)
    return f"sample {sample} ({sources[sample]})" if sources else f"sample {sample}"


def verify(path: str | os.PathLike[str]) -> None:
    """Read all of a file, with a progress bar, and print what was found: one line, or one for each damaged sample.

    Raises UserError for damaged samples, a missing file, one that `check_beton` refuses, and one without checksums.
    """
    tables = read_tables(path)
    if tables.checksums is None:
        raise UserError(f"{path} has no checksums: write it again with {write_command(path)}, which adds them")
    n = tables.info.num_samples
    damaged = damaged_samples(tables, tables.checksums).tolist()
    if not damaged:
        print(f"{path}: {n:,} samples are as they were written")
        return
    for sample in damaged:
        print(sample_name(tables.info.path, sample, n))
    named = ", ".join(map(str, damaged[:NAMED]))
    more = f" and {len(damaged) - NAMED:,} more" if len(damaged) > NAMED else ""
    raise UserError(
        f"{path}: {len(damaged):,} of {n:,} samples are damaged: {named}{more}; "
        f"write it again with {write_command(path)}"
    )


def damaged_samples(tables: BetonTables, checksums: NDArray[np.uint32]) -> NDArray[np.int64]:
    """int64[k], ascending: the samples that are not what their checksums, uint32[n], say. Reads the whole file."""
    path = tables.info.path
    damaged = []
    with path.open("rb", buffering=0) as file, tqdm(total=len(checksums), unit="sample", disable=None) as progress:
        for ids, start, end in _windows(tables):
            content = np.empty(end - start, np.uint8)
            try:
                read = os.preadv(file.fileno(), [content.data], start)
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror or error}") from error
            if read != len(content):
                raise UserError(f"{path} was cut short while it was read; write it again with {write_command(path)}")
            damaged.append(ids[sample_sums(tables, ids, content.ctypes.data, start) != checksums[ids]])
            progress.update(len(ids))
    return np.sort(np.concatenate(damaged))


def _windows(tables: BetonTables) -> Iterator[tuple[NDArray[np.int64], int, int]]:
    """(ids, first byte, end) of pieces of the file in its order, with every sample in one of them."""
    firsts = np.minimum.reduce(list(tables.pointers.values()))
    ends = np.maximum.reduce([own + tables.lengths[name] for name, own in tables.pointers.items()])
    order = np.argsort(firsts, kind="stable")
    window = firsts[order] // np.uint64(WINDOW_BYTES)
    for ids in np.split(order, np.flatnonzero(window[1:] != window[:-1]) + 1):
        yield ids, int(firsts[ids].min()), int(ends[ids].max())
