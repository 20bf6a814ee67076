"""The `.beton` behind the loaders: checked, read and mapped once, and handed to FFCV when it builds a loader."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import ffcv.loader.loader as ffcv_loader
import numba
import numpy as np
import torch
from ffcv.fields.base import Field
from ffcv.memory_managers import OSCacheManager
from ffcv.memory_managers.os_cache import OSCacheContext
from ffcv.pipeline.compiler import Compiler
from ffcv.reader import Reader
from ffcv.types import ALLOC_TABLE_TYPE
from numpy.typing import NDArray

from ffcv_prune.data.beton import BetonTables, CustomFields, read_tables
from ffcv_prune.errors import UserError
from ffcv_prune.loading import kernels
from ffcv_prune.loading.augment import made_images
from ffcv_prune.loading.bus_errors import Guard
from ffcv_prune.loading.graph import PipelineGraph, nothing
from ffcv_prune.loading.native_code import StoredSamples

FileState = tuple[int, ...] | None


class _Reader(Reader):
    """FFCV's reader of a file whose tables were read by the check."""

    def __init__(self, path: Path, tables: BetonTables, custom_fields: CustomFields) -> None:
        self.metadata = tables.metadata
        super().__init__(str(path), custom_fields)

    def read_metadata(self) -> None:
        self.metadata.setflags(write=False)

    def read_allocation_table(self) -> None:
        """Nothing of ours asks for it: the memory manager has the tables that were checked."""

    @cached_property
    def alloc_table(self) -> NDArray[np.void]:
        """FFCV's records, one an allocation, in the order of the file; read when a user asks for them."""
        return np.fromfile(self.file_name, ALLOC_TABLE_TYPE, offset=int(self.header["alloc_table_ptr"]))


class _LeanOSCache(OSCacheManager):
    """FFCV's page-cache reader without the dictionaries over all samples, which it never reads.

    At 1.28 million samples they take seconds and half a gigabyte in each loader.
    """

    def __init__(self, path: Path, tables: BetonTables, custom_fields: CustomFields) -> None:
        self.reader = _Reader(path, tables, custom_fields)
        self.ptrs, self.sizes = tables.addresses, tables.sizes
        self.context = OSCacheContext(self)
        self.context.__enter__()  # maps the file

    def compile_reader(self) -> Callable[..., Any]:
        return kernels.read


class OpenFile:
    """What all loaders of one file share.

    Attributes:
        info: what `check_beton` found.
        pointers: of each field outside the metadata, uint64[n]: the address of each sample's data.
        sample_bytes: mean size of a sample.
        memory_manager: FFCV's, with its tables of addresses and sizes, and the mapping.
    """

    def __init__(self, path: Path, state: FileState, custom_fields: CustomFields) -> None:
        tables = read_tables(path, custom_fields)
        self.info = tables.info
        self.memory_manager = _LeanOSCache(path, tables, custom_fields)
        self.pointers = tables.pointers
        self.sample_bytes = int(tables.sizes.sum()) / self.info.num_samples
        mapped = self.memory_manager.context.mmap
        self._guard = Guard(mapped)
        self._first_read = None
        if tables.checksums is not None:
            from ffcv_prune.loading.first_read import FirstRead  # compiled at the first import on a machine

            self._first_read = FirstRead(tables, mapped)
        self.path = path
        self._state = state
        self._file = path.open("rb", buffering=0)
        # A probe for what is in memory (`read_ahead`) shall not fetch the surroundings.
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    @property
    def descriptor(self) -> int:
        """For advice on what will be read."""
        return self._file.fileno()

    def check_unchanged(self) -> None:
        """Raise UserError if the file is not the one that was opened, or can no longer be read."""
        if _file_state(self.path) != self._state:
            raise UserError(f"{self.path} was replaced, changed or deleted since it was opened: build a new loader")
        if self._guard.failed:
            raise UserError(f"{self.path} cannot be read, the disk reports an error: write it again on another one")

    def column(self, field: int) -> NDArray[Any]:
        """What the metadata have of each sample for a field, by its number."""
        return self.memory_manager.reader.metadata[f"f{field}"]

    def stored_samples(self, fields: Collection[str]) -> StoredSamples | None:
        """What the native code checks the samples by, if these are the fields that are decoded; None: it does not."""
        return None if self._first_read is None else self._first_read.stored_samples(fields)

    def check_decoded(
        self, ids: NDArray[np.int64], fields: Collection[str], parallel: bool, sound: bool = False
    ) -> None:
        """Raise UserError unless what was decoded of the samples `ids`, int64[m], is what was written to the file.

        Afterwards, because the file may change while it is read. `fields` are those that were decoded; `parallel`
        allows as many threads as numba has been given. `sound`: by `stored_samples` they are.
        """
        self.check_unchanged()
        if self._first_read is not None and not sound:
            self._first_read.check(ids, fields, parallel)


Key = tuple[Path, FileState, frozenset[tuple[str, type[Field]]]]
_open_files: weakref.WeakValueDictionary[Key, OpenFile] = weakref.WeakValueDictionary()
_lock = threading.RLock()


def open_file(path: Path, custom_fields: CustomFields | None = None) -> OpenFile:
    """Return the file as a living loader opened it, or open it. UserError for a missing or damaged one."""
    custom_fields = dict(custom_fields or {})
    path = path.absolute()  # the process may change its directory
    with _lock:
        state = _file_state(path)  # before the check: what changes after it is noticed
        key = path, state, frozenset(custom_fields.items())
        opened = _open_files.get(key)
        if opened is None:
            opened = _open_files[key] = OpenFile(path, state, custom_fields)
        return opened


@contextmanager
def ffcv_constructor(opened: OpenFile) -> Iterator[None]:
    """Build an FFCV loader on an open file, leaving torch's and numba's thread counts alone."""
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    with _lock:
        originals = ffcv_loader.Reader, ffcv_loader.OSCacheManager, ffcv_loader.Graph, Compiler.compile
        ffcv_loader.Reader = lambda *_: opened.memory_manager.reader
        ffcv_loader.OSCacheManager = lambda _: opened.memory_manager
        ffcv_loader.Graph = PipelineGraph
        Compiler.compile = _compile
        try:
            yield
        finally:
            ffcv_loader.Reader, ffcv_loader.OSCacheManager, ffcv_loader.Graph, Compiler.compile = originals
            torch.set_num_threads(torch_threads)
            numba.set_num_threads(numba_threads)


_ffcv_compile = Compiler.compile


def _compile(code: Callable[..., Any], signature: Any = None) -> Callable[..., Any]:
    """FFCV's `Compiler.compile`, but that numba keeps our own kernels on the disk, and leaves what is no kernel alone.

    It cannot keep FFCV's: they hold addresses of C functions. The functions that they call are part of numba's key, by
    an identity that is new in each process.
    """
    if code in (made_images, nothing):
        return code
    if code.__module__ != kernels.__name__ or not Compiler.is_enabled:
        return _ffcv_compile(code, signature)
    parallel = getattr(code, "is_parallel", False) and Compiler.num_threads > 1
    return numba.njit(fastmath=True, nogil=True, error_model="numpy", parallel=parallel, cache=True)(code)


def _file_state(path: Path) -> FileState:
    try:
        stat = path.stat()
    except (OSError, ValueError):  # which the check of the file explains
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
