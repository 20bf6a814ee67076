"""The exact k highest scores of samples that lie on several ranks, without gathering the scores.

Each rank counts the digits of its own scores' keys, the counts are summed over the ranks, and everybody reads
the same next digit of the k-th highest key off the sum: a radix select whose histograms travel instead of the
samples. Ties at the k-th score are broken by a second such search, for the highest id that is still chosen.

What a rank hands to `all_reduce` is one message of 1,040 bytes and then one of 16,384 bytes for each 11-bit
digit: at most 3 digits of the score and, only if there are ties to break, b/11 of ids of b bits. With ids up to
a billion that is at most 7 messages and 99,344 bytes, whatever the number of samples or ranks, where gathering
the scores would bring 4 GB to every rank.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.methods.kernels.digits import KEY_BITS, score_keys
from ffcv_prune.methods.kernels.samples import Counts, Floats, Ids, check_k

DIGIT_BITS = 11
DIGITS = 1 << DIGIT_BITS
ID_BITS = 63

AllReduce = Callable[[Counts], Counts]


def torch_all_reduce(counts: Counts) -> Counts:
    """Return the sum of `counts`, int64, over the ranks of `torch.distributed`'s default group."""
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.from_numpy(counts).to(device)
    torch.distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


def distributed_top_k(scores: Floats, ids: Ids, k: int, all_reduce: AllReduce = torch_all_reduce) -> Ids:
    """Return those of this rank's samples that are among the k highest of all ranks: int64, ascending.

    The ranks' results together are exactly what `topk.top_k` chooses from the gathered scores: ties go to
    the lower id, NaN counts as +inf.

    Args:
        scores: float32[m], of the samples that this rank holds; m may differ between ranks and be 0.
        ids: int64[m], their global ids ≥ 0, in any order. No two ranks may hold the same id.
        k: how many are selected over all ranks; the same number on each.
        all_reduce: returns the elementwise sum of int64 arrays over the ranks. Every rank calls it equally often.

    Raises:
        UserError: on every rank alike, so that none is left waiting: malformed arrays or k on any rank, ranks that
            disagree about k, k outside 1 … number of samples, ids held twice (seen only among ties).
    """
    id_bits = _introduce(scores, ids, k, all_reduce)
    keys = np.empty(scores.size, np.int64)
    score_keys(np.ascontiguousarray(scores).view(np.uint32), keys)
    threshold, ties = _kth_highest(keys, KEY_BITS, k, all_reduce)
    chosen = keys > threshold
    if ties:
        equal = np.flatnonzero(keys == threshold)
        descending = (1 << id_bits) - 1 - ids[equal]  # lower ids are higher keys
        threshold, ties = _kth_highest(descending, id_bits, ties, all_reduce)
        if ties:
            raise UserError("an id is held more than once: give each rank samples of its own, and each only once")
        chosen[equal[descending > threshold]] = True
    return np.sort(ids[chosen])


def _introduce(scores: Floats, ids: Ids, k: int, all_reduce: AllReduce) -> int:
    """Let the ranks agree that all is well; return the bits of the highest id."""
    problem = _problem(scores, ids, k)
    message = np.zeros(3 + ID_BITS + ID_BITS + 1, np.int64)
    ranks, problems, samples = message[:1], message[1:2], message[2:3]
    bits_of_k, id_bits = message[3 : 3 + ID_BITS], message[3 + ID_BITS :]
    ranks[0], problems[0] = 1, bool(problem)
    if not problem:
        samples[0] = ids.size
        bits_of_k[:] = [int(k) >> bit & 1 for bit in range(ID_BITS)]
        id_bits[int(ids.max(initial=0)).bit_length()] = 1
    message[:] = all_reduce(message)
    if problems[0]:
        raise UserError(problem or f"{problems[0]} of {ranks[0]} ranks were given malformed scores, ids or k")
    if not np.isin(bits_of_k, (0, ranks[0])).all():
        raise UserError(f"the ranks disagree about k, which is {k} on this one: pass the same k on each")
    check_k(k, int(samples[0]))
    return int(np.flatnonzero(id_bits)[-1])


def _problem(scores: Floats, ids: Ids, k: int) -> str:
    """Say what is wrong with the arguments of this rank; empty if nothing is. Raises nothing, whatever they are."""
    for name, array in (("scores", scores), ("ids", ids)):
        if not isinstance(array, np.ndarray):
            return f"{name} must be a numpy array, not {type(array).__name__}"
    if not isinstance(k, int | np.integer) or isinstance(k, bool):
        return f"k must be an integer, not {type(k).__name__}"
    if scores.ndim != 1 or scores.dtype != np.float32:
        return f"scores must be a one-dimensional float32 array, not {scores.dtype} of shape {scores.shape}"
    if ids.shape != scores.shape or ids.dtype != np.int64:
        return f"ids must be int64 of shape {scores.shape}, not {ids.dtype} of shape {ids.shape}: one id a score"
    if ids.size and ids.min() < 0:
        return f"the id {ids.min()} is negative"
    if not 0 < k < 1 << ID_BITS:
        return f"cannot select k = {k} samples: k must be at least 1"
    return ""


@njit(cache=True, nogil=True)
def _count_digits(keys: NDArray[np.int64], prefix: int, low: int, width: int, counts: Counts) -> None:
    """Count the `width` bits above bit `low` of each key whose higher bits are `prefix`."""
    mask = (1 << width) - 1
    for i in range(keys.size):
        if keys[i] >> (low + width) == prefix:
            counts[(keys[i] >> low) & mask] += 1


def _kth_highest(keys: NDArray[np.int64], bits: int, k: int, all_reduce: AllReduce) -> tuple[int, int]:
    """Return (t, ties): of all ranks' keys below 2**bits, the k highest are those above t and `ties` of those at t.

    Stops at the first digit below which nothing is left to decide; ties is then 0.
    """
    prefix, low = 0, bits
    while low > 0:
        width = min(DIGIT_BITS, low)
        low -= width
        counts = np.zeros(DIGITS, np.int64)
        _count_digits(keys, prefix, low, width, counts)
        counts = all_reduce(counts)
        at_least = np.cumsum(counts[::-1])[::-1]  # keys whose digit is this one or a higher one
        digit = int(np.flatnonzero(at_least >= k)[-1])
        k -= int(at_least[digit] - counts[digit])
        prefix = prefix << width | digit
        if counts[digit] == k:
            return (prefix << low) - 1, 0
    return prefix, k
