"""The k highest of millions of scores: radix select, then one collecting pass.

Three passes over the scores. Each makes the keys of one block at a time by vector instructions, in a buffer that stays
in the first-level cache. The rest is integer work without unpredictable branches. Threads, order and memory are as in
`selectors.py`.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.methods.kernels.digits import score_keys
from ffcv_prune.methods.kernels.samples import Counts, Floats, Ids, check_k, default_threads, run_in_chunks, ucb

Bits = NDArray[np.uint32]
Tables = NDArray[np.uint32]  # [threads, DIGITS]: how many scores of a thread have a digit; less than 2**32 of them

DIGIT_BITS = 16
DIGITS = 1 << DIGIT_BITS
BLOCK = 1024


@njit(cache=True, nogil=True)
def _keys(scores: Floats, var: Floats, c: np.float32, start: int, sums: Floats, keys: Bits) -> int:
    """Fill `keys` with those of the block at `start`, of scores + c·var, or of scores where var is empty; its size."""
    block = scores[start : start + BLOCK]
    if var.size:
        ucb(block, var[start : start + BLOCK], c, sums)
        block = sums[: block.size]
    score_keys(block.view(np.uint32), keys)
    return block.size


@njit(cache=True, nogil=True)
def _count_high_digits(scores: Floats, var: Floats, c: np.float32, counts: Bits) -> None:
    """Count the upper half of each key in counts[DIGITS]."""
    keys, sums = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.float32)
    for start in range(0, scores.size, BLOCK):
        for i in range(_keys(scores, var, c, start, sums, keys)):
            counts[keys[i] >> DIGIT_BITS] += 1


@njit(cache=True, nogil=True)
def _count_low_digits(scores: Floats, var: Floats, c: np.float32, high: int, counts: Bits) -> None:
    """Count the lower half of each key whose upper half is `high` in counts[DIGITS]."""
    keys, sums = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.float32)
    lowest = np.uint32(high << DIGIT_BITS)
    for start in range(0, scores.size, BLOCK):
        for i in range(_keys(scores, var, c, start, sums, keys)):
            low = np.uint32(keys[i] - lowest)  # of a lower key: it wraps round to more than any digit
            if low < DIGITS:
                counts[low] += 1


@njit(cache=True, nogil=True)
def _digit_of_rank(tables: Tables, rank: int, above: Counts) -> tuple[int, int]:
    """Return the digit of the rank-th highest key (from 1), and the rank of that key within the digit.

    Adds to above[threads] how many keys of each thread have a higher digit.
    """
    digit = DIGITS
    while rank > 0:
        digit -= 1
        for t in range(above.size):
            above[t] += tables[t, digit]
            rank -= tables[t, digit]
    for t in range(above.size):
        above[t] -= tables[t, digit]
        rank += tables[t, digit]
    return digit, rank


@njit(cache=True, nogil=True)
def _count_equal(keys: Bits, key: int) -> int:
    equal = 0
    for i in range(keys.size):
        equal += keys[i] == key
    return equal


@njit(cache=True, nogil=True)
def _lift_first(keys: Bits, key: int, ties: int) -> None:
    """Add 1 to the first `ties` of the keys that equal `key`, which are more than that."""
    i = 0
    while ties > 0:
        if keys[i] == key:
            keys[i] += 1
            ties -= 1
        i += 1


@njit(cache=True, nogil=True)
def _collect(scores: Floats, var: Floats, c: np.float32, first_id: int, threshold: int, ties: int, ids: Ids) -> None:
    """Fill `ids`, ascending, with the keys above the threshold and the first `ties` of those equal to it.

    Free of unpredictable branches: each id is written, and the position moves on only past the chosen ones.
    """
    keys, sums = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.float32)
    position, end = np.uint64(0), np.uint64(ids.size)  # unsigned: no index is counted from the end
    for start in range(0, scores.size, BLOCK):
        size = _keys(scores, var, c, start, sums, keys)
        equal = _count_equal(keys[:size], threshold)
        taken = min(equal, ties)
        if 0 < taken < equal:
            _lift_first(keys, threshold, taken)
        ties -= taken
        bar = np.uint32(threshold - (taken == equal))  # all of the block's ties, or only those lifted
        base = first_id + start
        if position + np.uint64(size) <= end:
            for i in range(size):
                ids[position] = base + i
                position += np.uint64(keys[i] > bar)
            continue
        for i in range(size):  # there may be room for those chosen only
            if position == end:
                return
            ids[position] = base + i
            position += np.uint64(keys[i] > bar)


def top_k(scores: Floats, k: int, threads: int | None = None, var: Floats | None = None, c: float = 0.0) -> Ids:
    """Return the positions of the k highest scores, int64[k], ascending. Ties go to the lower position.

    `scores` is float32[n]; NaN, which stands for a sample never scored, counts as +inf: what is unknown is
    explored first. With `var`, float32[n], they are scores + c·var (paper, Eq. 4), computed where they are looked
    at and never stored. Extra memory: the result, and 512 KB of counts a thread. Raises `UserError` unless 1 ≤ k ≤ n.

    Each score is a 32-bit key in the same order. It counts the upper halves of the keys, then the lower halves of the
    keys that share the k-th upper half. This gives the k-th highest key, and how many equal keys are chosen.
    """
    n = scores.size
    check_k(k, n)
    threads = min(threads or default_threads(n), n)
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    if var is not None and var.size != n:
        raise UserError(f"{var.size} variances for {n} scores: pass one a score")
    var = np.empty(0, np.float32) if var is None else np.ascontiguousarray(var, dtype=np.float32)
    weight = np.float32(c)
    high_counts, low_counts = np.zeros((2, threads, DIGITS), np.uint32)
    above = np.zeros(threads, np.int64)  # keys of each thread above the k-th

    run_in_chunks(lambda t, part: _count_high_digits(scores[part], var[part], weight, high_counts[t]), n, threads)
    high, rank = _digit_of_rank(high_counts, k, above)
    run_in_chunks(lambda t, part: _count_low_digits(scores[part], var[part], weight, high, low_counts[t]), n, threads)
    low, rank = _digit_of_rank(low_counts, rank, above)

    # What each thread will find, known beforehand: equals are handed out from the lowest position upwards.
    equal = low_counts[:, low].astype(np.int64)
    ties = np.clip(rank - (np.cumsum(equal) - equal), 0, equal)
    stops = np.cumsum(above + ties)
    ids = np.empty(k, np.int64)

    def collect(t: int, part: slice) -> None:
        found = slice(stops[t] - above[t] - ties[t], stops[t])
        _collect(scores[part], var[part], weight, part.start, (high << DIGIT_BITS) | low, ties[t], ids[found])

    run_in_chunks(collect, n, threads)
    return ids
