"""CRC-32C (Castagnoli; RFC 3720, appendix B.4) of pieces of memory, in numba: it runs in threads, without the GIL.

An x86 processor has an instruction for 8 bytes, which takes three cycles and can begin anew in each. So three blocks
are summed side by side and combined: 26 GB/s of data in the cache. The libraries crc32c and google-crc32c are as fast,
but numba cannot call them. Elsewhere tables do the same, 8 bytes at a time ("slicing by 8").
"""

from __future__ import annotations

import platform
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import config
from numba.extending import intrinsic
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # the bits reversed
_BLOCK = 1024  # bytes of each of the three streams: a raw image of 32 x 32 is one round


def has_instruction() -> bool:
    """Whether numba compiles for a processor with the instruction. Its settings may ask for a lesser one."""
    if platform.machine() != "x86_64":
        return False
    features = vars(config)["CPU_FEATURES"]
    if features is not None:  # also where NUMBA_CPU_NAME=generic
        return "+sse4.2" in features
    return bool(llvmlite.binding.get_host_cpu_features().get("sse4.2"))


def _by_bytes(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """uint64[4, 256] of what becomes of each bit, uint64[32]: an entry for each value of each of a sum's bytes."""
    entries = np.zeros((4, 256), np.uint64)
    for place in range(4):
        for bit in range(8):
            entries[place, 1 << bit : 2 << bit] = entries[place, : 1 << bit] ^ bits[8 * place + bit]
    return entries


def _after_zeros(count: int) -> NDArray[np.uint64]:
    """As `_by_bytes`: what becomes of a sum by `count` zero bytes."""
    bits = np.uint64(1) << np.arange(32, dtype=np.uint64)
    byte = _by_bytes(bits)
    for _ in range(8):
        byte = (byte >> np.uint64(1)) ^ (byte & np.uint64(1)) * np.uint64(_POLYNOMIAL)
    for digit in f"{count:b}":
        bits = _applied(byte, _applied(_by_bytes(bits), bits)) if digit == "1" else _applied(_by_bytes(bits), bits)
    return _by_bytes(bits)


def _applied(entries: NDArray[np.uint64], sums: NDArray[np.uint64]) -> NDArray[np.uint64]:
    parts = [entries[place, sums >> np.uint64(8 * place) & np.uint64(255)] for place in range(4)]
    return np.bitwise_xor.reduce(parts)


# By the number of zero bytes that follow a byte: of a word's byte 7, 6, ..., 0.
_WORD = np.stack([_after_zeros(count)[0] for count in range(1, 9)])
_SHIFT = _after_zeros(_BLOCK)


def _loader(bits: int) -> Any:
    def load(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer()), align=1)

        return getattr(types, f"uint{bits}")(types.uint64), generate

    return intrinsic(load)


def _instruction(typing_context: Any, crc: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name, i64 = "llvm.x86.sse42.crc32.64.64", ir.IntType(64)
        module = builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(i64, [i64, i64]), name)
        return builder.call(function, arguments)

    return types.uint64(types.uint64, types.uint64), generate


_load_word: Any = _loader(64)
_load_byte: Any = _loader(8)


@njit(nogil=True)
def _by_tables(crc, word):
    word ^= crc
    crc = np.uint64(0)
    for place in range(8):
        crc ^= _WORD[7 - place, word & np.uint64(255)]
        word >>= np.uint64(8)
    return crc


_add_word: Any = intrinsic(_instruction) if has_instruction() else _by_tables


@njit(nogil=True)
def _shifted(crc):
    """The sum after _BLOCK zero bytes."""
    low, byte = np.uint64(255), np.uint64(8)
    first, second = _SHIFT[0, crc & low], _SHIFT[1, (crc >> byte) & low]
    return first ^ second ^ _SHIFT[2, (crc >> (byte + byte)) & low] ^ _SHIFT[3, crc >> (byte + byte + byte)]


@njit(nogil=True)
def _extended(crc, address, size):
    """The sum, uint64 and without the final inversion, after `size` more bytes."""
    end, block, word = address + size, np.uint64(_BLOCK), np.uint64(8)
    while end - address >= np.uint64(3) * block:
        second, third = np.uint64(0), np.uint64(0)
        stop = address + block
        while address < stop:
            crc = _add_word(crc, _load_word(address))
            second = _add_word(second, _load_word(address + block))
            third = _add_word(third, _load_word(address + block + block))
            address += word
        crc = _shifted(_shifted(crc) ^ second) ^ third
        address += block + block
    while end - address >= word:
        crc = _add_word(crc, _load_word(address))
        address += word
    while address < end:
        crc = _WORD[0, (crc ^ _load_byte(address)) & np.uint64(255)] ^ (crc >> word)
        address += np.uint64(1)
    return crc


def _sums(addresses, sizes, found):
    for row in prange(len(found)):
        crc = np.uint64(0xFFFFFFFF)
        for piece in range(addresses.shape[1]):
            crc = _extended(crc, addresses[row, piece], sizes[row, piece])
        found[row] = np.uint32(crc ^ np.uint64(0xFFFFFFFF))


_SIGNATURE = "void(uint64[:, ::1], uint64[:, ::1], uint32[::1])"
_in_one_thread: Any = njit(_SIGNATURE, nogil=True, cache=True)(_sums)  # at once: the writer's processes are forked
_in_many_threads: Any = njit(nogil=True, cache=True, parallel=True)(_sums)


def sums(addresses: NDArray[np.uint64], sizes: NDArray[np.uint64], parallel: bool = False) -> NDArray[np.uint32]:
    """uint32[m]: the sum of each row of pieces, one after the other.

    Args:
        addresses, sizes: uint64[m, pieces] each, of memory that the caller holds, in bytes.
        parallel: take as many threads as numba has been given.
    """
    found = np.empty(len(addresses), np.uint32)
    run = _in_many_threads if parallel else _in_one_thread
    run(np.ascontiguousarray(addresses), np.ascontiguousarray(sizes), found)
    return found
