"""The distributed selection against the gathered answer: simulated ranks in threads, and real gloo processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ffcv_prune import distributed_top_k
from ffcv_prune.errors import UserError
from ffcv_prune.methods.distributed_topk import AllReduce
from ffcv_prune.methods.kernels.topk import top_k

FEW_MESSAGES = 7
BYTES_AT_A_BILLION = 99_344

Shard = tuple[np.ndarray, np.ndarray]  # scores, ids


class Ranks:
    """Ranks as threads of this process, which sum their arrays at a barrier. Counts the traffic of one rank."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.messages = self.bytes = 0
        self._parts: list[np.ndarray] = [np.empty(0)] * number
        self._sum = np.empty(0)
        self._barrier = threading.Barrier(number, self._add, timeout=60)

    def _add(self) -> None:
        self._sum = np.sum(self._parts, axis=0)
        self.messages += 1
        self.bytes += self._parts[0].nbytes

    def run(self, work: Callable[[int, AllReduce], np.ndarray]) -> list[np.ndarray | Exception]:
        results: list[np.ndarray | Exception] = [np.empty(0)] * self.number

        def one(rank: int) -> None:
            def all_reduce(counts: np.ndarray) -> np.ndarray:
                self._parts[rank] = counts.copy()
                self._barrier.wait()
                return self._sum  # the next sum needs this rank to arrive again

            try:
                results[rank] = work(rank, all_reduce)
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def select(shards: Sequence[Shard], k: int) -> tuple[np.ndarray, Ranks]:
    """Run distributed_top_k on every shard; return all selected ids and the traffic."""
    ranks = Ranks(len(shards))
    results = ranks.run(lambda rank, all_reduce: distributed_top_k(*shards[rank], k, all_reduce))
    for result, (_, ids) in zip(results, shards, strict=True):
        if isinstance(result, Exception):
            raise result
        assert result.dtype == np.int64
        assert (np.diff(result) > 0).all()
        assert np.isin(result, ids).all()
    return np.sort(np.concatenate(results)), ranks


def split(scores: np.ndarray, ranks: int, seed: int, spread: int = 1) -> list[Shard]:
    """Deal the samples to ranks at random, some maybe empty, in random order; ids are position * spread."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, ranks, scores.size)
    positions = rng.permutation(scores.size)
    return [(scores[mine], mine * spread) for mine in (positions[owner[positions] == rank] for rank in range(ranks))]


TIED = st.sampled_from([0.0, -0.0, 1.0, 1.0000001, np.inf, -np.inf, np.nan, 1e-45, -1e-45, -3.4028235e38])
SCORES = hnp.arrays(np.float32, st.integers(1, 80), elements=TIED | st.floats(width=32))


@settings(max_examples=150, deadline=None)
@given(SCORES, st.sampled_from([1, 2, 3, 7, 64]), st.data(), st.integers(0, 1000))
def test_equals_the_gathered_answer(scores: np.ndarray, ranks: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, scores.size) | st.sampled_from([1, scores.size]))
    spread = data.draw(st.sampled_from([1, 1000, 2**40, 2**56]))
    selected, traffic = select(split(scores, ranks, seed, spread), k)
    np.testing.assert_array_equal(selected, top_k(scores, k) * spread)
    assert traffic.messages <= 1 + 3 + 6
    if spread <= 1000:
        assert traffic.messages <= FEW_MESSAGES


@pytest.mark.parametrize("ranks", [4, 64])
def test_a_hundred_thousand_samples_with_thousands_of_ties(ranks: int) -> None:
    scores = np.random.default_rng(0).gamma(1, 1, 100_003).astype(np.float32).round(2)
    shards = split(scores, ranks, seed=1)
    for k in (1, 30_000, 100_002, 100_003):
        np.testing.assert_array_equal(select(shards, k)[0], top_k(scores, k))


def test_all_equal_scores_are_decided_by_id_alone() -> None:
    scores = np.full(1000, 2.5, np.float32)
    assert select(split(scores, 5, seed=0), 377)[0].tolist() == list(range(377))


def test_empty_shards_and_a_single_sample() -> None:
    empty: Shard = (np.empty(0, np.float32), np.empty(0, np.int64))
    one: Shard = (np.array([-np.inf], np.float32), np.array([7]))
    assert select([empty, one, empty], 1)[0].tolist() == [7]


def test_the_bytes_exchanged_do_not_grow_with_samples_or_ranks() -> None:
    """The traffic that the module states, at its worst: ties among ids of 30 bits, as of a billion samples."""
    for ranks, n in ((2, 100), (64, 100), (2, 50_000)):
        shards = [(scores, 10**9 - ids) for scores, ids in split(np.ones(n, np.float32), ranks, seed=0)]
        _, traffic = select(shards, n // 2)
        assert (traffic.messages, traffic.bytes) == (FEW_MESSAGES, BYTES_AT_A_BILLION)


def test_different_scores_need_no_search_among_ids() -> None:
    scores = np.random.default_rng(0).permutation(1000).astype(np.float32)
    assert select(split(scores, 3, seed=0), 300)[1].messages <= 1 + 3


def some_shards() -> list[Shard]:
    return split(np.arange(30, dtype=np.float32), 3, seed=0)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda scores, ids: (scores.astype(np.float64), ids), "float32"),
        (lambda scores, ids: (scores[:-1], ids), "one id a score"),
        (lambda scores, ids: (scores, ids - 100), "negative"),
        (lambda scores, ids: (scores.tolist(), ids), "scores must be a numpy array, not list"),
        (lambda scores, ids: (scores, torch.from_numpy(ids)), "ids must be a numpy array, not Tensor"),
    ],
)
def test_what_is_wrong_on_one_rank_is_an_error_on_all(damage: Callable[..., Shard], expected: str) -> None:
    shards = some_shards()
    shards[1] = damage(*shards[1])
    results = Ranks(3).run(lambda rank, all_reduce: distributed_top_k(*shards[rank], 5, all_reduce))
    assert all(isinstance(result, UserError) for result in results)
    assert expected in str(results[1])
    assert "1 of 3 ranks" in str(results[0])


@pytest.mark.parametrize(
    ("ks", "expected"), [((5, 5, 4), "disagree about k"), ((0, 0, 0), "k = 0"), ((31, 31, 31), "k = 31 out of 30")]
)
def test_k_that_cannot_be_selected_is_an_error_on_all_ranks(ks: tuple[int, ...], expected: str) -> None:
    shards = some_shards()
    results = Ranks(3).run(lambda rank, all_reduce: distributed_top_k(*shards[rank], ks[rank], all_reduce))
    assert all(isinstance(result, UserError) and expected in str(result) for result in results)


@pytest.mark.parametrize("k", [2.0, "2", None, [2], True])
def test_a_k_that_is_no_integer_on_one_rank_is_an_error_on_all(k: object) -> None:
    shards = some_shards()
    ks = (2, k, np.int64(2))
    results = Ranks(3).run(lambda rank, all_reduce: distributed_top_k(*shards[rank], ks[rank], all_reduce))  # type: ignore[arg-type]
    assert all(isinstance(result, UserError) for result in results)
    assert str(results[1]) == f"k must be an integer, not {type(k).__name__}"


def test_an_id_held_twice_among_ties_is_an_error_on_all_ranks() -> None:
    shard: Shard = (np.zeros(3, np.float32), np.arange(3))
    results = Ranks(2).run(lambda rank, all_reduce: distributed_top_k(*shard, 3, all_reduce))
    assert all(isinstance(result, UserError) and "more than once" in str(result) for result in results)


def gloo_rank(rank: int, folder: Path, scores: np.ndarray, ks: Sequence[int]) -> None:
    """Join groups of 2, 3 and 4 processes in turn; write this rank's share of each selection."""
    for world_size in (2, 3, 4):
        if rank >= world_size:
            continue
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store{world_size}", rank=rank, world_size=world_size
        )
        shard = split(scores, world_size, seed=world_size)[rank]
        for k in ks:
            np.save(folder / f"{world_size}_{k}_{rank}.npy", distributed_top_k(*shard, k))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def test_two_to_four_gloo_processes(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).gamma(1, 1, 5_003).astype(np.float32).round(1)
    ks = (1, 1_500, 5_003)
    torch.multiprocessing.start_processes(gloo_rank, (tmp_path, scores, ks), nprocs=4, start_method="fork")
    for world_size in (2, 3, 4):
        for k in ks:
            parts = [np.load(tmp_path / f"{world_size}_{k}_{rank}.npy") for rank in range(world_size)]
            np.testing.assert_array_equal(np.sort(np.concatenate(parts)), top_k(scores, k))
