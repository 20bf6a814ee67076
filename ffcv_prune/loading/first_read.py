"""The check of each sample when it is read for the first time: is it what was written?"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.data.beton import BetonTables
from ffcv_prune.data.checksums import sample_name, sample_sums
from ffcv_prune.errors import WRITE, UserError, write_command
from ffcv_prune.loading.native_code import StoredField, StoredSamples


class FirstRead:
    """Of one open file, for all its loaders in this process. A later read of a sample is not checked again.

    Args:
        tables: of a file with checksums.
        mapped: uint8[bytes], all of the file; it is held.
    """

    def __init__(self, tables: BetonTables, mapped: NDArray[np.uint8]) -> None:
        assert tables.checksums is not None
        self._tables, self._mapped, self._checksums = tables, mapped, tables.checksums
        self._unread = np.ones(tables.info.num_samples, np.bool_)
        fields = [
            StoredField(pointers.ctypes.data, pointers.strides[0], tables.lengths[name].ctypes.data)
            for name, pointers in tables.pointers.items()
        ]
        self._stored = StoredSamples(
            *(array.ctypes.data for array in (mapped, tables.metadata, tables.checksums, self._unread)),
            (StoredField * len(fields))(*fields),
            len(fields),
            tables.metadata.dtype.itemsize,
        )

    def stored_samples(self, fields: Collection[str]) -> StoredSamples | None:
        """For the native code: it checks each sample right before decoding, and marks the sound ones as read."""
        return self._stored if self._covers(fields) else None

    def _covers(self, fields: Collection[str]) -> bool:
        """Whether these are all that lie outside the metadata: reading the rest may cost more than all else."""
        return self._tables.pointers.keys() <= set(fields)

    def check(self, ids: NDArray[np.int64], fields: Collection[str], parallel: bool) -> None:
        """To be called with the samples of a batch, int64[m], once they are decoded: then they lie in the cache.

        Samples of which not all `fields` outside the metadata were decoded are left for another time.

        Raises UserError that names file and sample.
        """
        if not self._covers(fields):
            return
        new = ids[self._unread[ids]]
        if not len(new):
            return
        found = sample_sums(self._tables, new, self._mapped.ctypes.data, parallel=parallel)
        damaged = new[found != self._checksums[new]]
        if len(damaged):
            path = self._tables.info.path
            name = sample_name(path, int(damaged.min()), len(self._checksums))
            raise UserError(
                f"{path} is damaged: {name} is not what was written; write it again with {write_command(path)}; "
                f"{WRITE} --verify {path} names all such samples"
            )
        self._unread[new] = False
