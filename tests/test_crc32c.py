"""The checksums, against a naive twin, with and without the processor's instruction."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ffcv_prune.data import crc32c
from ffcv_prune.loading import native_code
from tests.native_images import library

NATIVE_WAYS = (0, 1, 2)  # tables, the instruction, vectors

KNOWN = {  # RFC 3720, appendix B.4, and the check value of the catalogues
    b"123456789": 0xE3069283,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
    b"": 0,
}


def twin(content: bytes) -> int:
    """Bit by bit."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sum_of(*contents: bytes, parallel: bool = False) -> int:
    """The sum of pieces that lie wherever."""
    held = [np.frombuffer(content, np.uint8) for content in contents]
    addresses = np.array([[piece.ctypes.data for piece in held]], np.uint64)
    sizes = np.array([[piece.size for piece in held]], np.uint64)
    return int(crc32c.sums(addresses, sizes, parallel)[0])


def native_sum(way: int, content: bytes, before: int = 0) -> int | None:
    """By the native code; None where this processor has no such way."""
    held, crc = np.frombuffer(content, np.uint8), ctypes.c_uint32(before)
    return crc.value if library().ffcv_prune_crc32c(way, held.ctypes.data, held.size, crc) else None


def random_bytes(size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng([size, seed]).integers(0, 256, size, dtype=np.uint8)


@pytest.mark.parametrize("content", KNOWN)
def test_known_sums(content: bytes) -> None:
    assert sum_of(content) == twin(content) == KNOWN[content]


@settings(deadline=None)  # the first call compiles
@given(size=st.integers(0, 7000), cuts=st.lists(st.integers(0, 7000), max_size=3), parallel=st.booleans())
def test_any_bytes_in_any_pieces(size: int, cuts: list[int], parallel: bool) -> None:
    content = random_bytes(size).tobytes()
    places = [0, *sorted(min(cut, size) for cut in cuts), size]
    pieces = [content[start:end] for start, end in pairwise(places)]
    assert sum_of(*pieces, parallel=parallel) == twin(content)


@settings(deadline=None)
@given(size=st.integers(0, 9000), cut=st.integers(0, 9000), skipped=st.integers(0, 63))
def test_the_native_code_takes_the_same_sums(size: int, cut: int, skipped: int) -> None:
    content = random_bytes(size).tobytes()[skipped:]  # at an odd address, too
    expected = sum_of(content)
    for way in NATIVE_WAYS:
        first = native_sum(way, content[:cut])
        assert first is None or native_sum(way, content[cut:], first) == expected, way
        assert native_sum(way, content) in (None, expected), way
    assert native_sum(0, content) == expected  # which every processor has


def remainder(power: int) -> int:
    """x**power modulo the polynomial, the bits reversed, as the native code writes its constants."""
    bits = 1
    for _ in range(power):
        bits <<= 1
        bits ^= 0x11EDC6F41 * (bits >> 32)
    return int(f"{bits:032b}"[::-1], 2)


def test_constants_of_the_native_code() -> None:
    source = (Path(native_code.__file__).parent / "native" / "checksum.c").read_text()
    after = re.findall(r"#define AFTER_(\d+) (\w+)", source)
    by = re.findall(r"#define BY_(\d+)_BITS _mm_setr_epi32\((?:\(int\))?(\w+), 0, (?:\(int\))?(\w+), 0\)", source)
    assert len(after) == 4 and len(by) == 3
    for count, constant in after:  # a product of reversed bits comes out one place on, and the instruction adds 32
        assert remainder(8 * int(count) - 33) == int(constant, 16)
    for count, low, high in by:  # the first eight bytes of a register are 64 places before the others
        assert (remainder(int(count) + 31), remainder(int(count) - 33)) == (int(low, 16), int(high, 16))


def test_many_rows_at_odd_addresses() -> None:
    content = random_bytes(40_000)
    starts = np.random.default_rng(1).integers(0, 30_000, (200, 2)).astype(np.uint64)
    sizes = np.random.default_rng(2).integers(0, 9_000, (200, 2)).astype(np.uint64)
    expected = [
        sum_of(*(content[start : start + size].tobytes() for start, size in zip(*row, strict=True)))
        for row in zip(starts.tolist(), sizes.tolist(), strict=True)
    ]
    for parallel in (False, True):
        found = crc32c.sums(starts + np.uint64(content.ctypes.data), sizes, parallel)
        np.testing.assert_array_equal(found, expected)


def test_every_flipped_bit_is_noticed() -> None:
    content = random_bytes(3100)
    before = sum_of(content.tobytes())
    for place in np.random.default_rng(0).integers(0, 8 * len(content), 300).tolist():
        content[place // 8] ^= 1 << place % 8
        assert sum_of(content.tobytes()) != before
        content[place // 8] ^= 1 << place % 8


def test_without_the_instruction(tmp_path: Path) -> None:
    """The tables, on a processor that numba takes for a lesser one."""
    check = (
        "from tests.test_crc32c import *\n"
        "assert not crc32c.has_instruction()\n"
        "for content, known in KNOWN.items(): assert sum_of(content) == known\n"
        "for size in (3072, 3080, 6500):\n"
        "    content = random_bytes(size).tobytes(); assert sum_of(content) == twin(content)\n"
    )
    own = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", check], env=os.environ | own, check=True, timeout=100)
