"""Methods on values that are missing, equal, negative or not finite, and parameters and states that do not fit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune import methods
from ffcv_prune.errors import UserError
from ffcv_prune.methods.presets.seta import groups_of
from ffcv_prune.methods.table import NonFiniteLossError

INF, NAN = float("inf"), float("nan")
N = 1000


def mean_id(state: methods.State, epoch: int) -> float:
    """Of the selected ones: near (N − 1)/2 for a draw at random, far below for the lowest ids."""
    selection = state.select(epoch)
    assert selection is not None
    return float(selection.ids.mean())


def trained(name: str, losses: Any, epochs: int = 20, **parameters: Any) -> methods.State:
    """A run before its second epoch, with these losses of all samples."""
    losses = np.asarray(losses, np.float32)
    state = methods.build(name, **parameters).start(losses.size, epochs=epochs)
    state.select(0)
    state.record(None, losses, epoch=0)
    return state


@pytest.mark.parametrize(
    ("name", "epochs"), [("evolved", 4), ("recent_loss", 2), ("orderdp", 20), ("p_sgd", 20), ("glws", 20)]
)
def test_before_any_loss_a_selection_is_random(name: str, epochs: int) -> None:
    """As on a file sorted by class: the lowest ids would be the first classes alone."""
    state = methods.build(name).start(N, epochs=epochs)
    assert mean_id(state, 0) == pytest.approx((N - 1) / 2, abs=40)
    if name == "evolved":  # a pruned epoch without any recorded loss
        assert mean_id(state, 1) == pytest.approx((N - 1) / 2, abs=40)


def test_a_share_of_a_run_above_0_is_an_epoch_at_least() -> None:
    phases = methods.build("evolved", warmup=0.05, final=0.05).phases
    assert [phases.phase(epoch, 4) for epoch in range(4)] == ["full", "method", "method", "full"]
    assert methods.build("ucb", warmup=0).phases.phase(0, 4) == "method"


@pytest.mark.parametrize("name", ["p_sgd", "c_sgd", "glws", "evolved"])
def test_odds_that_are_all_0_draw_at_random(name: str) -> None:
    state = trained(name, np.zeros(N), keep=0.2)
    state.table.columns.get("two_speeds", np.zeros(1))[:] = 0
    assert mean_id(state, 1) == pytest.approx((N - 1) / 2, abs=75)


def test_samples_without_odds_come_last_and_negative_losses_have_none() -> None:
    losses = np.where(np.arange(N) < 400, -1.0, 1.0)
    selection = trained("evolved", losses, keep=0.5).select(1)
    assert selection is not None and (selection.ids >= 400).all()
    selection = trained("evolved", losses, keep=0.8).select(1)
    assert selection is not None and (selection.ids >= 400).sum() == 600
    assert selection.ids[:200].mean() == pytest.approx(199.5, abs=30)  # of the others, a random part


def test_orderdp_keeps_its_probabilities() -> None:
    """They are of the losses at the selection, whatever is recorded later, and also where some have none yet."""
    losses = np.random.default_rng(0).random(10).astype(np.float32)
    state = methods.build("orderdp", pool=0.5, top=0.6).start(10, epochs=20)
    first = state.select(0)
    assert first is not None and first.probability == pytest.approx(np.full(3, 0.3))
    state.record([0, 1, 2, 3], losses[:4], epoch=0)
    selection = state.select(1)
    assert selection is not None
    state.record(None, losses[::-1].copy(), epoch=1)
    again = methods.build("orderdp", pool=0.5, top=0.6).start(10, epochs=20)
    again.select(0)
    again.record([0, 1, 2, 3], losses[:4], epoch=0)
    before = again.select(1)
    assert before is not None and selection.probability is not None
    assert before.probability == pytest.approx(selection.probability)


def test_orderdp_probabilities_are_its_frequencies_while_some_have_no_loss() -> None:
    counts, told, draws = np.zeros(8), np.zeros(8), 4000
    for seed in range(draws):
        state = methods.build("orderdp", pool=0.75, top=0.5).start(8, epochs=20, seed=seed)
        state.record([1, 4, 6], np.array([0.5, 2, 1], np.float32), epoch=0)
        selection = state.select(1)
        assert selection is not None and selection.probability is not None
        counts[selection.ids] += 1
        told[selection.ids] = selection.probability
    assert counts / draws == pytest.approx(told, abs=0.03)


@pytest.mark.parametrize("name", ["bls", "repb"])
def test_a_batch_mean_that_is_not_finite_is_left_out(name: str) -> None:
    state = methods.build(name).start(4, epochs=20)
    state.select(0)
    with np.errstate(over="ignore"):
        state.record(None, np.array([1, 2, 3, 4], np.float32), epoch=0, batch_means=[INF, NAN, 2.5, 2.5])
    assert np.isnan(state.scores()).tolist() == [True, True, False, False]


def test_a_loss_that_is_not_finite_does_not_move_the_windows() -> None:
    losses = np.array([5, 1, NAN, 2, 3, 4] * 100, np.float32)[:200]
    state = methods.build("proxy_batch", keep=0.5, window=2).start(200, epochs=20)
    clean = np.nan_to_num(losses, nan=9)
    state.record(None, clean, epoch=0)
    state.select(0)
    with pytest.warns(RuntimeWarning, match="left out"):
        state.record(None, np.where(np.arange(200) == 2, NAN, clean).astype(np.float32), epoch=1)
    selection = state.select(1)
    assert selection is not None and selection.ids.size == 100
    assert (np.bincount(selection.ids // 2, minlength=100) == 1).all()


def test_one_loss_of_a_small_batch_may_be_infinite_but_not_most() -> None:
    state = methods.build("selective_backprop").start(8, epochs=10)
    state.select(0)
    with pytest.warns(RuntimeWarning, match="left out"):
        assert state.choose(np.arange(8), np.array([INF, *range(7)], np.float32), epoch=5, batch=0).size == 4
    with pytest.raises(NonFiniteLossError):
        state.choose(np.arange(8), np.full(8, NAN, np.float32), epoch=5, batch=2)


def test_an_outlier_leaves_the_other_losses_their_groups() -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(centre, 0.05, 1000) for centre in (1, 2, 3)]).astype(np.float32)
    found = groups_of(np.append(losses, np.float32(1e6)), 4)
    assert (np.repeat([0, 1, 2], 1000) != found[:-1]).mean() < 0.01 and found[-1] == 3  # bins at the edges are of both


def test_the_null_twin_of_ies_does_not_see_true_losses() -> None:
    """Of two classes alike but for the order of their losses, the twin excludes others than the method."""
    losses = np.linspace(1, 2, 40, dtype=np.float32)
    excluded = []
    for null in (False, True):
        state = methods.build("ies", below_median=True, null=null).start(40, epochs=20, groups=np.zeros(40, int))
        for epoch in range(6):
            state.select(epoch)
            state.record(None, losses, epoch=epoch)
        selection = state.select(6)
        assert selection is not None and selection.ids.size == 20
        excluded.append(set(range(40)) - set(selection.ids.tolist()))
    assert excluded[0] == set(range(20)) != excluded[1]


@pytest.mark.parametrize(
    ("name", "parameters", "complaint"),
    [
        ("ucb", {"keep": [0.3]}, "keep=.*expected a number"),
        ("ucb", {"keep": (0.3, 0.4)}, "keep=.*expected a number"),
        ("ucb", {"keep": "0.3"}, "keep='0.3': expected a number"),
        ("ucb", {"keep": True}, "keep=True: expected a number"),
        ("ucb", {"period": 2.5}, "period=2.5: expected an integer"),
        ("ucb", {"null": "yes"}, "null='yes': expected True or False"),
        ("infobatch", {"quantiles": 0.2}, "quantiles=0.2: expected numbers"),
        ("infobatch", {"quantiles": "0.2"}, "quantiles='0.2': expected numbers"),
        ("p_sgd", {"transform": ["p"]}, "transform=.*expected a text"),
        ("selective_backprop", {"start": 0.8, "end": 0.4}, "start=0.8 lies after end=0.4"),
        ("proxy_batch", {"window": 1}, "window=1 selects no sample"),
    ],
)
def test_parameters_of_another_kind_are_refused(name: str, parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        methods.build(name, **parameters)


def test_numbers_of_numpy_and_whole_floats_are_numbers() -> None:
    method = methods.build("ucb", keep=np.float32(0.25), period=1e9, warmup=np.int64(2))
    assert method == methods.build("ucb", keep=0.25, period=10**9, warmup=2)
    assert [type(method.values[name]) for name in ("keep", "period", "warmup")] == [float, int, int]
    assert method.start(8, epochs=5).is_due(2)


def test_a_state_of_another_method_is_refused() -> None:
    state = trained("orderdp", np.ones(8)).state_dict()
    other = methods.build("recent_loss").start(8, epochs=20)
    with pytest.raises(UserError, match="the state has method orderdp, but this run has method recent_loss"):
        other.load_state_dict(state)


def test_an_earlier_epoch_is_not_selected_for() -> None:
    state = trained("repb", np.ones(8))
    state.select(3)
    with pytest.raises(UserError, match="epoch 2 comes before the last selection, for epoch 3"):
        state.select(2)


def test_classes_are_asked_for_by_what_needs_them() -> None:
    with pytest.raises(UserError, match="below_median"):
        methods.build("ies", below_median=True).start(8, epochs=20)


GUARDS: dict[str, dict[str, Any]] = {
    "none": {},
    "null": {"null": True},
    "random_share": {"random_share": 0.5},
    "class_floor": {"class_floor": 0.5},
    "loss_cap": {"loss_cap": 0.2},
    "max_age": {"max_age": 2},
}
LOSSES = np.array([0.0, 0.5, 1.0, 1.0, 2.5, 1e30, -1.0], np.float32)


def drawn(data: st.DataObject, n: int) -> np.ndarray:
    """int64[n] below 256; in one draw, of which a list of numbers would take n."""
    return np.frombuffer(data.draw(st.binary(min_size=n, max_size=n)), np.uint8).astype(np.int64)


def built(name: str, guard: str) -> methods.Method | None:
    """The preset under the guard; None where that is refused."""
    small = {"window": 3} if name == "proxy_batch" else {"start": 0.0, "end": 1.0} if name.startswith("sel") else {}
    try:
        return methods.build(name, **small, **GUARDS[guard])
    except UserError:
        return None


DRIVEN = [
    (name, guard)
    for name, method in methods.PRESETS.items()
    for guard in GUARDS
    if not method.statistic.is_fixed and method.prunes and built(name, guard) is not None
]


@pytest.mark.parametrize(("name", "guard"), DRIVEN)
@settings(max_examples=4, deadline=None)
@given(data=st.data(), n=st.integers(4, 24), epochs=st.integers(3, 8))
def test_any_losses_give_a_sound_selection(name: str, guard: str, data: st.DataObject, n: int, epochs: int) -> None:
    """Whatever the losses: sorted ids, finite weights, probabilities; the same again, and from a stored state."""
    method = built(name, guard)
    assert method is not None
    groups = drawn(data, n) % 3
    try:
        states = [method.start(n, epochs=epochs, groups=groups, seed=3) for _ in range(2)]
    except UserError as error:  # phases that do not fit, or a keep that leaves none
        assert "do not fit into" in str(error) or "leaves none" in str(error)
        return
    facts: dict[str, Any] = {}
    if method.needs_certainty:
        facts = {"correct": np.arange(n) % 2 == 0, "confidence": np.full(n, 0.9, np.float32)}
    for epoch in range(epochs):
        losses = LOSSES[drawn(data, n) % LOSSES.size]
        made = []
        for state in states:
            wanted = state.wanted(epoch)
            if wanted is not None:
                own = {fact: values[wanted] for fact, values in facts.items()}
                state.record(wanted, losses[wanted], epoch=epoch, **own)
            made.append(state.select(epoch))
        first, second = made
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert np.array_equal(first.ids, second.ids)
            assert first.ids.dtype == np.int64 and (np.diff(first.ids) > 0).all()
            assert first.ids.size == 0 or (first.ids[0] >= 0 and first.ids[-1] < n)
            assert first.ids.size <= method.samples_in(epoch, epochs, n)
            least = method.selector.least(method.kept(n, epoch, epochs), n) if first.phase == "method" else None
            if method.selector.has_fixed_size and first.phase == "method":
                assert first.ids.size == least
            if first.weights is not None:
                assert np.isfinite(first.weights).all() and (first.weights > 0).all()
            if first.probability is not None:
                assert ((first.probability > 0) & (first.probability <= 1 + 1e-6)).all()
        if method.chooses_in_batches:
            ids = np.arange(n - 1, -1, -1)
            chosen = [state.choose(ids, losses[ids], epoch=epoch, batch=0) for state in states]
            assert np.array_equal(*chosen) and (np.diff(chosen[0]) > 0).all()
        elif method.records_losses:
            for state in states:
                assert state.selection is not None
                ids = state.selection.ids
                if ids.size:
                    own = {fact: values[ids] for fact, values in facts.items()}
                    state.record(ids, losses[ids], epoch=epoch, **own)
        moved = method.start(n, epochs=epochs, groups=groups, seed=3)
        moved.load_state_dict(states[1].state_dict())
        states[1] = moved


def test_a_diverged_run_leaves_the_state_as_it_was() -> None:
    state = trained("orderdp", np.ones(8))
    before = state.state_dict()
    with pytest.raises(NonFiniteLossError), warnings.catch_warnings():
        state.record(None, np.full(8, NAN, np.float32), epoch=1)
    assert all(
        np.array_equal(before["table"][name], own, equal_nan=True) for name, own in state.table._arrays().items()
    )
