"""Reads of a mapped file that fail: the file was cut short, or the disk reports an error.

The kernel answers such a read with SIGBUS, which ends the process. A file may shrink while a batch is decoded, so a
check beforehand does not help. Here a handler takes the signal. If it comes from one of our files, the handler maps
zeros over the rest of that file and marks its guard. The thread then reads on. What it made of the zeros is thrown
away, because the loader looks at the guard after each batch. No thread jumps out of a decoder, no lock stays taken.

The handler is compiled by numba: it runs in the thread that read, without Python and without the GIL. It makes two
kinds of system calls. A signal of another origin goes to the handler that was there before.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import threading
import weakref
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from ffcv_prune.errors import UserError

_FILES = 1024  # guarded at a time; each holds an open file, of which Linux allows that many
_START, _END, _FAILED = 0, 1, 2
_FREE = 2**64 - 1  # the start of a row without a file, beyond all addresses

_SI_ADDR = 16  # of siginfo_t, on 64-bit Linux
_PROT_READ, _MAP_FLAGS = 1, 0x2 | 0x10 | 0x20 | 0x4000  # private, fixed, anonymous, no memory reserved
_SA_SIGINFO, _SA_ONSTACK = 0x4, 0x08000000

# What the handler reads: a head (page size, address of the handler before), then a row a file (start, end, failed).
# Other threads may fail while a row is written. Without its start, or without its end, it matches no address.
_table = np.zeros((1 + _FILES, 3), np.uint64)
_table[1:, _START] = _FREE
_lock = threading.Lock()
llvmlite.binding.add_symbol("ffcv_prune_guarded_files", _table.ctypes.data)


class _Action(ctypes.Structure):
    """struct sigaction of Linux's C libraries."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_before = _Action()
_table[0, :2] = mmap.PAGESIZE, ctypes.addressof(_before)
_mmap: Any = types.ExternalFunction(
    "mmap", types.uint64(types.uint64, types.uint64, types.int32, types.int32, types.int32, types.int64)
)
_sigaction: Any = types.ExternalFunction("sigaction", types.int32(types.int32, types.uint64, types.uint64))


def _address(typing_context: Any) -> Any:
    """The address of `_table`, by name: numba keeps no code on the disk that holds an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = "ffcv_prune_guarded_files"
        kind = ir.FunctionType(ir.VoidType(), [])
        symbol = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.ptrtoint(symbol, ir.IntType(64))

    return types.uint64(), generate


def _read(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))

    return types.uint64(types.uint64), generate


def _write(typing_context: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), generate


_table_address: Any = intrinsic(_address)
_read_word: Any = intrinsic(_read)
_write_word: Any = intrinsic(_write)


def _handle(number, info, context):
    word = np.uint64(8)
    row = _table_address()
    page, before = _read_word(row), _read_word(row + word)
    failed = _read_word(info + np.uint64(_SI_ADDR))
    for _ in range(_FILES):
        row += word + word + word
        start, end = _read_word(row), _read_word(row + word)
        if start <= failed and failed < end:
            _write_word(row + word + word, np.uint64(1))  # first: whoever reads zeros finds the mark
            first = failed - failed % page
            if _mmap(first, end - first, _PROT_READ, _MAP_FLAGS, -1, 0) == first:
                return
    # Not ours: the read is repeated, and then answered by the handler before. Should that one come back here, by
    # what it takes for its predecessor, the default comes next.
    _sigaction(number, before, np.uint64(0))
    _write_word(before, np.uint64(0))


_handler = cfunc("void(int32, uint64, uint64)", cache=True)(_handle)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_handler))  # signals may come until the process has ended
_libc = ctypes.CDLL(None, use_errno=True)


class Guard:
    """Of one mapped file, as long as the guard is held.

    Args:
        mapped: uint8[bytes], all of the file.
    """

    def __init__(self, mapped: NDArray[np.uint8]) -> None:
        with _lock:
            _install()
            free = np.flatnonzero(_table[1:, _START] == _FREE)
            if not len(free):
                raise UserError(f"{_FILES} .beton files are open in this process: close some loaders first")
            self._row = _table[1 + free[0]]
            self._row[_FAILED] = 0
            self._row[_START] = mapped.ctypes.data
            self._row[_END] = mapped.ctypes.data + mapped.size
        weakref.finalize(self, _clear, self._row)

    @property
    def failed(self) -> bool:
        """Whether a read has failed: from then on there are zeros in the file's place."""
        return bool(self._row[_FAILED])


def _clear(row: NDArray[np.uint64]) -> None:
    row[_END] = 0
    row[_START] = _FREE  # last: from then on another file may have the row


def _install() -> None:
    """Make ours the handler of SIGBUS, unless it is."""
    ours = ctypes.c_void_p(_handler.address).value
    current = _Action()
    _libc.sigaction(signal.SIGBUS, None, ctypes.byref(current))
    if current.handler == ours:
        return
    ctypes.memmove(ctypes.addressof(_before), ctypes.addressof(current), ctypes.sizeof(_Action))
    _libc.sigaction(signal.SIGBUS, ctypes.byref(_Action(handler=ours, flags=_SA_SIGINFO | _SA_ONSTACK)), None)
