"""ScoreTable: what enters it, what is refused, and that its state goes on bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from ffcv_prune.errors import UserError
from ffcv_prune.methods.table import NonFiniteLossError, ScoreTable


def snapshot(table):
    return {name: np.asarray(value) for name, value in table.state_dict().items()}


def assert_unchanged(table, before):
    for name, value in snapshot(table).items():
        np.testing.assert_array_equal(value, before[name])


def test_statistics_by_hand():
    table = ScoreTable(2, alpha=0.8)
    table.update([1.0, 4.0])
    np.testing.assert_array_equal(table.mean, np.float32([1, 4]))
    np.testing.assert_array_equal(table.var, np.float32([0, 0]))
    table.update([2.0, 2.0])
    np.testing.assert_allclose(table.mean, [1.8, 2.4], rtol=1e-6)  # 0.8·ℓ + 0.2·μ
    np.testing.assert_allclose(table.var, [0.8, 3.2], rtol=1e-6)  # 0.8·(ℓ − old μ)²
    table.update([2.8, 2.4])
    np.testing.assert_allclose(table.var, [0.2 * 0.8 + 0.8, 0.2 * 3.2], rtol=1e-6)
    assert table.mean.dtype == table.var.dtype == table.last.dtype == np.float32
    assert table.last_scored.dtype == np.int32 and table.updates == 3


def test_ids_update_only_their_samples_in_any_order():
    table = ScoreTable(4)
    table.update(np.array([7.0, 5.0]), np.array([3, 1]))
    np.testing.assert_array_equal(table.mean, np.float32([np.nan, 5, np.nan, 7]))
    np.testing.assert_array_equal(table.last, table.mean)
    assert table.last_scored.tolist() == [-1, 0, -1, 0]
    table.update(np.ones(4))
    np.testing.assert_array_equal(table.var > 0, [False, True, False, True])
    assert table.last_scored.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_loss_that_is_not_finite_never_enters(bad):
    table = ScoreTable(100)
    table.update(np.full(100, 2.0))
    losses = np.full(100, 3.0)
    losses[17] = bad
    with pytest.warns(RuntimeWarning, match="1 of 100 losses"):
        assert table.update(losses) == 1
    assert (table.mean[17], table.var[17], table.last[17], table.last_scored[17]) == (2, 0, 2, 0)
    assert (np.delete(table.last_scored, 17) == 1).all()


def test_a_sample_whose_first_loss_is_not_finite_stays_unscored():
    table = ScoreTable(100)
    with pytest.warns(RuntimeWarning):
        table.update(np.r_[np.nan, np.ones(99)])
    assert np.isnan(table.mean[0]) and np.isnan(table.last[0]) and table.last_scored[0] == -1


def test_more_than_one_percent_raises_and_changes_nothing():
    table = ScoreTable(200)
    table.update(np.ones(200))
    before = snapshot(table)
    with pytest.raises(NonFiniteLossError, match=r"3 of 200 losses.*diverged"):
        table.update(np.r_[np.full(3, np.nan), np.ones(197)])
    assert_unchanged(table, before)


@pytest.mark.parametrize(
    ("losses", "ids", "message"),
    [
        ([1.0, 2.0], None, "2 losses for 3 samples"),
        ([1.0, 2.0, 3.0], [0, 1], "3 losses for 2 samples"),
        ([[1.0, 2.0, 3.0]], None, "one-dimensional"),
        ([1, 2, 3], None, "int64"),
        (np.ones(3, np.float16), None, "float16"),
        ([1.0, 2.0], [1, 1], "1 twice"),
        ([1.0, 2.0], [1, 3], "0 to 2"),
        ([1.0, 2.0], [-1, 1], "hold -1"),
        ([1.0, 2.0], [0.0, 1.0], "float64"),
        ([1.0, 2.0], np.array([0, 1], np.int32), "int32"),
    ],
)
def test_malformed_updates_are_refused_and_change_nothing(losses, ids, message):
    table = ScoreTable(3)
    before = snapshot(table)
    with pytest.raises(UserError, match=message):
        table.update(losses, ids)
    assert_unchanged(table, before)


@pytest.mark.parametrize(("n", "alpha"), [(0, 0.8), (3, 0.0), (3, 1.1), (3, float("nan"))])
def test_a_table_that_makes_no_sense_is_refused(n, alpha):
    with pytest.raises(UserError):
        ScoreTable(n, alpha)


def test_a_state_continues_bit_for_bit():
    rng = np.random.default_rng(0)
    table, resumed = ScoreTable(50), ScoreTable(50)
    table.update(rng.random(50))
    resumed.load_state_dict(table.state_dict())
    losses = rng.random(50)
    table.update(losses)
    resumed.update(losses)
    assert_unchanged(resumed, snapshot(table))


def test_a_state_is_a_copy():
    table = ScoreTable(2)
    state = snapshot(table)
    assert all(isinstance(value, np.ndarray) for value in state.values())
    table.update([1.0, 2.0])
    assert np.isnan(state["mean"]).all()
    table.load_state_dict(state)
    assert table.updates == 0 and np.isnan(table.mean).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 4}, "n = 4, this run has 3"),
        ({"alpha": 0.5}, "alpha = 0.5"),
        ({"mean": np.zeros(4, np.float32)}, "shape"),
        ({"var": np.zeros(3)}, "float64"),
        ({"surplus": 1}, "not the state of a score table"),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(change, message):
    table = ScoreTable(3)
    table.update([1.0, 2.0, 3.0])
    before = snapshot(table)
    with pytest.raises(UserError, match=message):
        table.load_state_dict({**ScoreTable(3).state_dict(), **change})
    assert_unchanged(table, before)


def test_an_incomplete_state_is_refused():
    state = ScoreTable(3).state_dict()
    del state["var"]
    with pytest.raises(UserError, match="not the state of a score table"):
        ScoreTable(3).load_state_dict(state)
