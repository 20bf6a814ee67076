from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffcv_prune.errors import UserError
from ffcv_prune.loading.order import PrunedOrder, validate_ids


def make_order(
    n: int, rank: int = 0, world_size: int = 1, shuffle: bool = True, drop_last: bool = False
) -> PrunedOrder:
    loader = SimpleNamespace(seed=7)  # all that the order reads of a loader
    return PrunedOrder(loader, n, shuffle, drop_last, rank, world_size)


@st.composite
def selections(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    n = draw(st.integers(1, 60))
    ids = draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    return n, np.array(ids, dtype=np.int64)


@given(selections(), st.integers(0, 5))
def test_an_epoch_serves_exactly_the_selection(selection: tuple[int, np.ndarray], epoch: int) -> None:
    n, ids = selection
    order = make_order(n)
    order.select(validate_ids(ids, n))
    served = order.sample_order(epoch)
    assert sorted(served) == sorted(ids)
    assert served.dtype == np.int64
    assert served.flags["C_CONTIGUOUS"]
    assert served.flags["WRITEABLE"]
    np.testing.assert_array_equal(served, order.sample_order(epoch))


@given(selections())
def test_the_selection_does_not_disturb_the_order(selection: tuple[int, np.ndarray]) -> None:
    n, ids = selection
    order = make_order(n)
    everything = order.sample_order(3)
    order.select(validate_ids(ids, n))
    np.testing.assert_array_equal(order.sample_order(3), everything[np.isin(everything, ids)])


@given(selections(), st.integers(1, 5), st.booleans(), st.booleans())
def test_ranks_share_the_selection(
    selection: tuple[int, np.ndarray], world_size: int, shuffle: bool, drop_last: bool
) -> None:
    n, ids = selection
    orders = [make_order(n, rank, world_size, shuffle, drop_last) for rank in range(world_size)]
    shares = []
    for order in orders:
        order.select(validate_ids(ids, n))
        shares.append(order.sample_order(1))
        assert len(shares[-1]) == order.num_served(order.num_selected)
    served = np.concatenate(shares)
    lengths = [len(share) for share in shares]
    k = len(ids)
    if drop_last:
        assert lengths == [k // world_size] * world_size
        assert len(np.unique(served)) == len(served)
    elif shuffle:
        assert lengths == [-(-k // world_size)] * world_size
        assert set(served) == set(ids)
        assert len(served) - k < world_size
    else:
        assert sorted(served) == sorted(ids)
        assert max(lengths) - min(lengths) <= 1
    assert np.isin(served, ids).all()


def test_epochs_and_seeds_differ() -> None:
    order = make_order(100)
    assert (order.sample_order(0) != order.sample_order(1)).any()
    other = make_order(100)
    other.loader.seed = 8
    assert (order.sample_order(0) != other.sample_order(0)).any()


def test_a_permutation_drawn_ahead_is_that_of_its_seed_and_epoch() -> None:
    ids = np.arange(3, 90, 2)
    drawn, plain = make_order(100, shuffle=True), make_order(100, shuffle=True)
    drawn.draw_ahead(4)
    for epoch in (4, 5, 4):
        for selection in (None, ids):
            np.testing.assert_array_equal(drawn.order_of(epoch, selection), plain.order_of(epoch, selection))
    drawn.order_of(4, None)[:] = 0  # what is served is a copy
    np.testing.assert_array_equal(drawn.order_of(4, None), plain.order_of(4, None))
    drawn.loader.seed = plain.loader.seed = 9
    np.testing.assert_array_equal(drawn.order_of(4, ids), plain.order_of(4, ids))


def test_without_shuffle_the_order_is_that_of_the_file() -> None:
    order = make_order(10, shuffle=False)
    order.select(validate_ids([7, 2, 5], 10))
    assert order.sample_order(4).tolist() == [2, 5, 7]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "non-empty"),
        (np.array([], dtype=np.int64), "non-empty"),
        (np.array([1, 10]), "id 10 is outside"),
        (np.array([-1, 3]), "id -1 is outside"),
        (np.array([3, 1, 3]), "id 3 appears twice"),
        (np.array([1.0, 2.0]), "int64"),
        (np.array([1, 2], dtype=np.uint64), "int64"),
        (np.array([1, 2], dtype=np.int32), "int64"),
        (np.array([True, False]), "flatnonzero"),
        (np.array([[1, 2]]), "one-dimensional"),
        (np.int64(3), "one-dimensional"),
        ("abc", "int64"),
    ],
)
def test_bad_ids_are_refused(ids: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_ids(ids, 10)  # type: ignore[arg-type]


@given(selections())
def test_valid_ids_come_back_sorted_and_copied(selection: tuple[int, np.ndarray]) -> None:
    n, ids = selection
    before = ids.copy()
    checked = validate_ids(ids[::-1], n)
    assert checked.tolist() == sorted(ids)
    checked[:] = 0
    np.testing.assert_array_equal(ids, before)
