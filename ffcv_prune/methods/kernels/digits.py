"""Scores as integers in the same order, for selection by counting digits."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

KEY_BITS = 32
SIGN = np.uint32(0x8000_0000)
MAGNITUDE = np.uint32(0x7FFF_FFFF)
INFINITY = np.uint32(0x7F80_0000)  # the bits of float32 +inf; larger magnitudes are NaN


@njit(cache=True, nogil=True)
def score_keys(bits: NDArray[np.uint32], keys: NDArray[np.integer]) -> None:
    """Write to keys[:bits.size] integers below 2**KEY_BITS that are in the order of the float32 scores.

    `bits` is uint32[m], the scores' bits; `keys` is of any integer type that holds KEY_BITS bits without a sign. −0
    equals +0; NaN equals +inf. The loop has no branches, so it is compiled to vector instructions. Then it is the
    cheapest part of a pass over the scores. One key at a time, it would be the most expensive part.
    """
    for i in range(bits.size):
        magnitude = min(bits[i] & MAGNITUDE, INFINITY)
        negative = (bits[i] >= SIGN) & (bits[i] <= SIGN + INFINITY)  # as bits, −inf is the last before NaN
        keys[i] = SIGN - magnitude if negative else SIGN + magnitude
