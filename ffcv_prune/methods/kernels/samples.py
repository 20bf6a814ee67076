"""Statistics and sets of millions of samples: numba kernels and the functions that drive them.

Everything here is linear in the number of samples. Every kernel is serial, takes C-contiguous arrays of the dtypes it
states, and releases the GIL. Several threads are plain Python threads: each runs the same kernel on its own range of
the samples. Numba's own `prange` is avoided on purpose. Its "workqueue" threading layer aborts the process when two
threads enter it, and FFCV's loader thread may be inside at any time. Results are the same, bit for bit, for every
number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.methods.kernels.digits import INFINITY, MAGNITUDE

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Counts = NDArray[np.int64]
# mean, var, last: float32[n]; last_scored: int32[n]
Statistics = tuple[Floats, Floats, Floats, NDArray[np.int32]]

# Below about a million samples a thread costs more to start than it saves.
SAMPLES_PER_THREAD = 1_000_000


def default_threads(n: int) -> int:
    """Threads for `n` samples: one below two million, then one a million, at most the cores we may use."""
    return max(1, min(len(os.sched_getaffinity(0)), n // SAMPLES_PER_THREAD))


def run_in_chunks(work: Callable[[int, slice], None], n: int, threads: int) -> None:
    """Call ``work(t, stretch)`` for `threads` stretches that tile 0..n, each in a thread of its own."""
    edges = [n * t // threads for t in range(threads + 1)]
    stretches = [slice(start, stop) for start, stop in pairwise(edges)]
    if threads == 1:
        work(0, stretches[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads), stretches))


# ---- statistics (paper, Eq. 2 and 3) -----------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _blend(
    mean: np.float32, var: np.float32, loss: np.float32, alpha: np.float32, beta: np.float32
) -> tuple[np.float32, np.float32]:
    """New (mean, var) of one sample; a NaN mean is that of a sample never scored."""
    first = np.isnan(mean)
    surprise = loss - mean
    new_mean = loss if first else alpha * loss + beta * mean
    return new_mean, np.float32(0) if first else beta * var + alpha * (surprise * surprise)


@njit(cache=True, nogil=True)
def _update_all(statistics: Statistics, losses: Floats, alpha: np.float32, beta: np.float32, update: np.int32) -> None:
    """Blend losses[i] into sample i, for every i. Free of branches: vector instructions, and one way through memory."""
    mean, var, last, last_scored = statistics
    for i in range(losses.size):
        mean[i], var[i] = _blend(mean[i], var[i], losses[i], alpha, beta)
        last[i] = losses[i]
        last_scored[i] = update


@njit(cache=True, nogil=True)
def _update_some(
    statistics: Statistics, losses: Floats, ids: Ids, alpha: np.float32, beta: np.float32, update: np.int32
) -> None:
    """Blend losses[j] into sample ids[j], for every j."""
    mean, var, last, last_scored = statistics
    for j in range(ids.size):
        i = ids[j]
        mean[i], var[i] = _blend(mean[i], var[i], losses[j], alpha, beta)
        last[i] = losses[j]
        last_scored[i] = update


@njit(cache=True, nogil=True)
def count_nonfinite(losses: Floats) -> int:
    """How many of the losses, float32[m], are NaN or infinite."""
    bits = losses.view(np.uint32)
    count = 0
    for i in range(losses.size):
        count += (bits[i] & MAGNITUDE) >= INFINITY
    return count


def update_statistics(
    statistics: Statistics,
    losses: Floats,
    ids: Ids | None,
    alpha: float,
    update: int,
    threads: int | None = None,
) -> None:
    """Bring the statistics of the scored samples up to date, in place, in float32 (paper, Eq. 2 and 3).

        v ← (1−α)·v + α·(ℓ−μ)²   with the old μ;  0 at the first loss
        μ ← α·ℓ + (1−α)·μ                         ℓ at the first loss

    `statistics` are the arrays mean, var, last (float32[n]) and last_scored (int32[n]) of a `ScoreTable`; `losses`
    float32[m] are finite. They belong to the samples `ids` int64[m] (unique and in range: the caller checks), or to
    all n when `ids` is None. `update` is written to last_scored.
    """
    alpha32, beta32, update32 = np.float32(alpha), np.float32(1.0 - alpha), np.int32(update)

    def work(_: int, part: slice) -> None:
        if ids is None:
            mean, var, last, last_scored = statistics
            own = mean[part], var[part], last[part], last_scored[part]
            _update_all(own, losses[part], alpha32, beta32, update32)
        else:
            _update_some(statistics, losses[part], ids[part], alpha32, beta32, update32)

    run_in_chunks(work, losses.size, threads or default_threads(losses.size))


@njit(cache=True, nogil=True)
def ucb(mean: Floats, var: Floats, c: np.float32, scores: Floats) -> None:
    """Write μ + c·v to the first of `scores`."""
    for i in range(mean.size):
        scores[i] = mean[i] + c * var[i]


def ucb_scores(mean: Floats, var: Floats, c: float, threads: int | None = None) -> Floats:
    """Return μ + c·v, float32[n] (paper, Eq. 4). NaN where μ is: never scored."""
    scores = np.empty_like(mean)

    def work(_: int, part: slice) -> None:
        ucb(mean[part], var[part], np.float32(c), scores[part])

    run_in_chunks(work, mean.size, threads or default_threads(mean.size))
    return scores


# ---- sets of sample ids ------------------------------------------------------------------------------------


def check_k(k: int, n: int) -> None:
    """Raise `UserError` unless k samples can be chosen out of n."""
    if not 1 <= k <= n:
        raise UserError(f"cannot select k = {k} out of {n} samples: k must be between 1 and {n}")


def random_subset(candidates: int | Ids, k: int, rng: np.random.Generator) -> Ids:
    """Return k different candidates, each set of k equally likely: int64[k], ascending.

    `candidates` is a number n, for 0..n−1, or sorted ids int64[m]. Raises `UserError` unless k of them exist.
    """
    if isinstance(candidates, int):
        check_k(k, candidates)
        return np.sort(rng.choice(candidates, k, replace=False, shuffle=False))
    check_k(k, candidates.size)
    return candidates[random_subset(candidates.size, k, rng)]


@njit(cache=True, nogil=True)
def _difference(candidates: Ids, chosen: Ids, rest: Ids) -> None:
    j = 0
    position = 0
    for i in range(candidates.size):
        if j < chosen.size and chosen[j] == candidates[i]:
            j += 1
        else:
            rest[position] = candidates[i]
            position += 1


def difference(candidates: Ids, chosen: Ids) -> Ids:
    """Return the candidates that are not chosen. Both int64, ascending and unique; chosen ⊆ candidates."""
    rest = np.empty(candidates.size - chosen.size, np.int64)
    _difference(candidates, chosen, rest)
    return rest


@njit(cache=True, nogil=True)
def _group(ids: Ids, labels: NDArray[np.int64], next_position: Counts, grouped: Ids) -> None:
    for i in range(ids.size):
        label = labels[ids[i]]
        grouped[next_position[label]] = ids[i]
        next_position[label] += 1


def group_by_label(ids: Ids, labels: NDArray[np.int64]) -> list[Ids]:
    """Split ids int64[m] by labels[id] (int64[n], ≥ 0): one array a class, maybe empty, in the old order."""
    counts = np.bincount(labels[ids], minlength=int(labels.max()) + 1)
    stops = np.cumsum(counts)
    grouped = np.empty_like(ids)
    _group(ids, labels, stops - counts, grouped)
    return np.split(grouped, stops[:-1])


@njit(cache=True, nogil=True)
def _first_invalid(ids: Ids, seen: NDArray[np.bool_]) -> int:
    """Return the position of the first id out of range or repeated, else len(ids). `seen`: n times False."""
    for j in range(ids.size):
        i = ids[j]
        if i < 0 or i >= seen.size or seen[i]:
            return j
        seen[i] = True
    return ids.size


def check_ids(ids: Ids, n: int, what: str) -> None:
    """Raise `UserError` unless `ids` is a one-dimensional int64 array of different positions in 0..n−1."""
    if ids.ndim != 1 or ids.dtype != np.int64:
        raise UserError(f"{what} must be a one-dimensional int64 array, not {ids.dtype} of shape {ids.shape}")
    bad = _first_invalid(np.ascontiguousarray(ids), np.zeros(n, np.bool_))
    if bad == ids.size:
        return
    if 0 <= ids[bad] < n:
        raise UserError(f"{what} hold {ids[bad]} twice: pass each sample once")
    raise UserError(f"{what} hold {ids[bad]}, but the samples are 0 to {n - 1}")
