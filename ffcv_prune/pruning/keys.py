"""Scores as integers in the same order, for selection by counting digits."""

from __future__ import annotations

import numpy as np
from numba import njit

KEY_BITS = 32
SIGN = 0x8000_0000
INFINITY = 0x7F80_0000  # the bits of float32 +inf; larger magnitudes are NaN


@njit(cache=True, nogil=True)
def score_key(bits: np.uint32) -> np.int64:
    """Map the bits of a float32 to an integer below 2**KEY_BITS in the same order. −0 equals +0; NaN equals +inf."""
    magnitude = min(np.int64(bits) & 0x7FFF_FFFF, INFINITY)
    if bits >= SIGN and np.int64(bits) - SIGN <= INFINITY:
        return SIGN - magnitude
    return SIGN + magnitude
