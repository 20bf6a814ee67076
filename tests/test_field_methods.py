"""The methods of the field do what their authors wrote: each lettered property is a figure worked out by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune import config, methods
from ffcv_prune.errors import UserError
from ffcv_prune.methods.presets.evolved import TwoSpeeds
from ffcv_prune.methods.presets.ies import Curvature
from ffcv_prune.methods.presets.orderdp import chance_by_rank
from ffcv_prune.methods.presets.p_sgd import RunningError
from ffcv_prune.methods.presets.seta import BINS, groups_of
from ffcv_prune.methods.table import ScoreTable
from ffcv_prune.training.pruning import check_batches

ROOT = Path(__file__).parents[1]


def begin(name: str, losses: Any, seed: int = 0, epochs: int = 100, **parameters: Any) -> methods.State:
    """A run after its first epoch, on all data, with these losses."""
    losses = np.asarray(losses, np.float32)
    certainty = {key: parameters.pop(key) for key in ("correct", "confidence") if key in parameters}
    groups = parameters.pop("groups", None)
    state = methods.build(name, **parameters).start(losses.size, epochs=epochs, seed=seed, groups=groups)
    assert chosen(state, 0).size == losses.size
    state.record(None, losses, epoch=0, **certainty)
    return state


def chosen(state: methods.State, epoch: int) -> Any:
    selection = state.select(epoch)
    assert selection is not None
    return selection.ids


def frequencies(name: str, losses: Any, draws: int = 3000, epoch: int = 0, **parameters: Any) -> Any:
    """How often each sample is selected over many seeds, with these losses."""
    losses = np.asarray(losses, np.float32)
    method, counts = methods.build(name, **parameters), np.zeros(losses.size)
    for seed in range(draws):
        state = method.start(losses.size, epochs=2 * epoch + 2, seed=seed)
        state.record(None, losses, epoch=0)
        counts[chosen(state, epoch)] += 1
    return counts / draws


class TestInfoBatch:
    def test_weights_add_up_to_n_over_all_draws(self) -> None:
        """(a): the mean of the losses is 1, three are below it."""
        for ratio in (0.25, 0.5):
            expected = 0.0
            for dropped in itertools.product((False, True), repeat=3):
                chance = math.prod(ratio if one else 1 - ratio for one in dropped)
                expected += chance * (1 + sum(1 / (1 - ratio) for one in dropped if not one))
            assert expected == pytest.approx(4)
            state = begin("infobatch", [0.1, 0.2, 0.3, 3.4], ratio=ratio)
            selection = state.select(1)
            assert selection is not None and selection.weights is not None
            assert dict(zip(selection.ids.tolist(), selection.weights.tolist(), strict=True))[3] == 1
            assert {w for i, w in zip(selection.ids, selection.weights, strict=True) if i < 3} <= {
                np.float32(1 / (1 - ratio))
            }

    def test_equal_losses_drop_nothing(self) -> None:
        for quantiles in ((), (0.2, 0.85)):
            assert chosen(begin("infobatch", [1.7] * 9, quantiles=quantiles), 1).size == 9

    def test_the_quantile_form_keeps_what_its_authors_keep(self) -> None:
        """(c): a quarter below the 20th percentile, half up to the 85th, all above: 52.5 %."""
        losses = np.random.default_rng(3).permutation(1000).astype(np.float32)
        sizes = []
        for seed in range(60):
            selection = begin("infobatch", losses, seed=seed, quantiles=[0.2, 0.85]).select(1)
            assert selection is not None and selection.weights is not None
            own = losses[selection.ids]
            assert (selection.weights == np.select([own < 200, own < 850], [4, 2], 1)).all()
            sizes.append(selection.ids.size)
        assert np.mean(sizes) == pytest.approx(525, abs=10)

    @pytest.mark.parametrize(("epochs", "pruned"), [(20, 17), (90, 78), (100, 87), (200, 175)])
    def test_it_ends_on_all_data_with_weight_1(self, epochs: int, pruned: int) -> None:
        """(d) and (e): as many pruned epochs as the authors have, and no weight is left over."""
        state = begin("infobatch", np.arange(50), epochs=epochs)
        for epoch in range(1, epochs):
            selection = state.select(epoch)
            assert selection is not None or epoch > pruned
            if selection is not None:
                assert (selection.phase == "method") == (epoch < pruned)
                assert (selection.weights is None) == (epoch >= pruned)


class TestOrderDP:
    @pytest.mark.parametrize(
        ("n", "pool", "top", "expected"),
        [(10, 8, 3, [0.8, 0.8, 0.8, 0.4667, 0.1333, 0, 0, 0, 0, 0]), (5, 3, 2, [0.6, 0.6, 0.5, 0.3, 0])],
    )
    def test_chances_by_rank(self, n: int, pool: int, top: int, expected: list[float]) -> None:
        """(a) and (b), in closed form, in the reported probability, and in the frequencies."""
        assert chance_by_rank(n, pool, top) == pytest.approx(expected, abs=1e-4)
        losses = np.arange(n, 0, -1)
        parameters = {"pool": pool / n, "top": top / pool}
        assert frequencies("orderdp", losses, **parameters) == pytest.approx(expected, abs=0.03)
        selection = begin("orderdp", losses, pool=1.0, top=1.0).method.replace(**parameters).start(n)
        selection.record(None, losses.astype(np.float32), epoch=0)
        drawn = selection.select(0)
        assert drawn is not None and drawn.probability == pytest.approx(np.array(expected)[drawn.ids], abs=1e-4)

    @settings(max_examples=80, deadline=None)
    @given(st.integers(1, 40), st.data())
    def test_chances_are_the_sum_of_the_paper(self, n: int, data: st.DataObject) -> None:
        pool = data.draw(st.integers(1, n))
        top = data.draw(st.integers(1, pool))
        expected = [
            sum(
                math.comb(j - 1, one - 1) * math.comb(n - j, pool - one)
                for one in range(max(1, pool - n + j), min(top, j) + 1)
            )
            / math.comb(n, pool)
            for j in range(1, n + 1)
        ]
        assert chance_by_rank(n, pool, top) == pytest.approx(expected, abs=1e-9)

    def test_its_ends_are_random_and_the_highest_losses(self) -> None:
        """(c): the whole pool is Random; a pool of all is Uncertainty on training losses."""
        losses = np.random.default_rng(0).random(60).astype(np.float32)
        for seed in range(5):
            state = methods.build("orderdp", pool=0.5, top=1.0).start(60, seed=seed)
            state.record(None, losses, epoch=0)
            assert (chosen(state, 0) == chosen(methods.build("random", keep=0.5).start(60, seed=seed), 0)).all()
        state = methods.build("orderdp", pool=1.0, top=0.3).start(60)
        state.record(None, losses, epoch=0)
        assert (chosen(state, 0) == np.sort(np.argsort(-losses)[:18])).all()

    def test_low_ranks_are_out_of_reach_and_an_age_brings_them_back(self) -> None:
        """(d) and (e): size is exact for every seed."""
        losses = np.arange(20, 0, -1)
        state = methods.build("orderdp", pool=0.8, top=0.5).start(20, epochs=200, seed=5)
        aged = methods.build("orderdp", pool=0.8, top=0.5, max_age=10).start(20, epochs=200, seed=5)
        seen, last = np.zeros(20), np.full(20, -1)
        for epoch in range(200):
            for run in (state, aged):
                run.record(None, losses.astype(np.float32), epoch=epoch)
            seen[chosen(state, epoch)] += 1
            ids = chosen(aged, epoch)
            unseen = epoch - 1 - last
            due = np.flatnonzero(unseen >= 10)
            assert ids.size == 8 and np.isin(due, ids).sum() == min(due.size, 8)
            assert unseen[np.setdiff1d(due, ids)].max(initial=0) <= unseen[ids].max()
            last[ids] = epoch
        assert (seen[12:] == 0).all() and (seen[:12] > 0).all()


class TestRePB:
    def test_below_is_strictly_below_the_mean_of_the_batch(self) -> None:
        """(a) and (e): a global mean cannot tell a sample from its batch."""
        for batches, below in (
            ([[1, 2, 3, 6]], [1, 1, 0, 0]),
            ([[1, 1, 1, 9], [5, 5, 5, 5]], [1, 1, 1, 0, 0, 0, 0, 0]),
            ([[1, 1, 1, 1], [5, 5, 5, 5]], [0] * 8),
        ):
            n = sum(map(len, batches))
            state = methods.build("repb").start(n, epochs=9)
            assert chosen(state, 0).size == n
            first = 0
            for batch in batches:
                state.record(np.arange(first, first + len(batch)), np.array(batch, np.float32), epoch=0)
                first += len(batch)
            selection = state.select(1)
            assert selection is not None and selection.probability is not None
            probability = np.ones(n)
            probability[selection.ids] = selection.probability
            assert set(np.flatnonzero(probability < 1)) <= set(np.flatnonzero(below))
            assert set(np.setdiff1d(np.arange(n), selection.ids)) <= set(np.flatnonzero(below))

    def test_batches_can_be_recorded_at_once(self) -> None:
        losses, means = np.array([1, 1, 1, 9, 5, 5, 5, 5], np.float32), np.repeat([3.0, 5.0], 4)
        one = begin("repb", losses)
        one.record(None, losses, epoch=0, batch_means=means)
        other = methods.build("repb").start(8, epochs=100)
        chosen(other, 0)
        other.record(np.arange(4), losses[:4], epoch=0)
        other.record(np.arange(4, 8), losses[4:], epoch=0)
        assert (chosen(one, 1) == chosen(other, 1)).all()

    def test_weights_are_epochs_over_count(self) -> None:
        """(b): counted by hand from the selections; at most max_weight."""
        state = methods.build("repb", ratio=0.7, max_weight=3.0).start(40, epochs=30)
        counts, rng = np.zeros(40), np.random.default_rng(0)
        largest = 0.0
        for epoch in range(30):
            selection = state.select(epoch)
            assert selection is not None and selection.weights is not None
            counts[selection.ids] += 1
            expected = np.minimum((epoch + 1) / counts[selection.ids], 3)
            assert selection.weights == pytest.approx(expected)
            largest = max(largest, float(expected.max()))
            state.record(selection.ids, rng.random(selection.ids.size, np.float32), epoch=epoch)
        assert largest == 3

    def test_ratio_0_is_all_data_with_weight_1(self) -> None:
        state = methods.build("repb", ratio=0.0).start(10, epochs=6)
        for epoch in range(6):
            selection = state.select(epoch)
            assert selection is not None and selection.ids.size == 10 and selection.weights is not None
            assert (selection.weights == 1).all()
            state.record(None, np.arange(10, dtype=np.float32), epoch=epoch)

    def test_a_sample_that_is_always_below_is_trained_on_in_1_minus_ratio_of_the_epochs(self) -> None:
        """(d)."""
        state = methods.build("repb", ratio=0.6).start(400, epochs=300)
        losses = np.r_[np.zeros(200), np.ones(200)].astype(np.float32)
        seen = 0
        for epoch in range(300):
            ids = chosen(state, epoch)
            seen += int((ids < 200).sum()) if epoch >= 20 else 0
            state.record(None, losses, epoch=epoch)
        assert seen / 200 / 280 == pytest.approx(0.4, abs=0.01)


class TestSeTa:
    LOSSES = (0, 0.1, 0.2, 1, 1.1, 2, 2.1, 3, 3.1, 5)

    def test_groups_are_the_clusters(self) -> None:
        """(a)."""
        assert groups_of(np.array(self.LOSSES, np.float32), 5).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]

    @pytest.mark.parametrize(
        ("window", "expected"),
        [
            (0.6, [range(10), range(3, 9), range(5, 10), range(7), range(3, 9)]),
            (0.9, [range(10), range(3, 10), range(9), range(3, 10), range(9)]),
            (1.0, [range(10)] * 5),
        ],
    )
    def test_the_window_moves_on_by_one_group_an_epoch(self, window: float, expected: list[range]) -> None:
        """(b) and (c), and half to even: 4.5 groups are 4."""
        run = methods.build("seta", groups=5, window=window).start(10, epochs=100)
        run.record(None, np.array(self.LOSSES, np.float32), epoch=0)
        assert [chosen(run, epoch).tolist() for epoch in range(5)] == [list(ids) for ids in expected]

    def test_equal_losses_are_split_into_chunks(self) -> None:
        """(d)."""
        run = methods.build("seta", groups=5, window=0.4).start(10, epochs=100)
        run.record(None, np.ones(10, np.float32), epoch=0)
        assert [chosen(run, epoch).tolist() for epoch in (0, 1)] == [list(range(10)), [2, 3, 4, 5]]

    def test_one_group_is_random(self) -> None:
        """(e)."""
        for parameters in ({"groups": 1}, {"window": 1.0}):
            run = methods.build("seta", ratio=0.5, **parameters).start(30, epochs=100, seed=3)
            run.record(None, np.random.default_rng(0).random(30).astype(np.float32), epoch=0)
            rival = methods.build("random", keep=0.5, period=1).start(30, epochs=100, seed=3)
            assert all((chosen(run, epoch) == chosen(rival, epoch)).all() for epoch in range(6))

    def test_it_ends_on_random_pools(self) -> None:
        run = methods.build("seta", ratio=0.2, delta=0.5).start(20, epochs=10)
        for epoch in range(10):
            selection = run.select(epoch)
            assert selection is not None and selection.phase == ("method" if epoch < 5 else "random")
            assert epoch < 5 or selection.ids.size == 16
            run.record(selection.ids, np.ones(selection.ids.size, np.float32), epoch=epoch)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 5))
    def test_no_other_ranges_have_a_smaller_sum_of_squares(self, losses: list[int], groups: int) -> None:
        values = np.array(losses, np.float32)
        found = groups_of(values, groups)
        assert (np.diff(found[np.argsort(values, kind="stable")]) >= 0).all() and found.max() < groups
        if np.unique(values).size < groups:
            return
        ordered = np.sort(values)

        def cost(cuts: tuple[int, ...]) -> float:
            return sum(float(part.var() * part.size) for part in np.split(ordered, cuts) if part.size)

        best = min(cost(cuts) for cuts in itertools.combinations(range(1, values.size), groups - 1))
        sizes = np.bincount(found, minlength=groups)
        assert cost(tuple(np.cumsum(sizes)[:-1])) == pytest.approx(best, abs=1e-4)

    def test_many_losses_are_grouped_by_their_histogram(self) -> None:
        losses = np.random.default_rng(0).exponential(size=20_000).astype(np.float32)
        found = groups_of(losses, 5)
        width = (losses.max() - losses.min()) / BINS
        bounds = [(losses[found == g].min(), losses[found == g].max()) for g in range(5)]
        assert all(low[1] <= high[0] + width for low, high in itertools.pairwise(bounds))
        assert np.bincount(found).argmax() == 0


class TestKakurenbo:
    LOSSES = (0.01, 0.02, 0.03, 0.5, 0.9, 1.5, 2, 3, 0.04, 0.05)
    CORRECT = tuple(c == "1" for c in "1101100011")
    CONFIDENCE = (0.99, 0.6, 0.9, 0.7, 0.5, 0.4, 0.4, 0.3, 0.95, 0.8)

    def begin(self, **parameters: Any) -> methods.State:
        return begin(
            "kakurenbo", self.LOSSES, correct=self.CORRECT, confidence=self.CONFIDENCE, epochs=200, **parameters
        )

    def test_confident_easy_samples_are_hidden(self) -> None:
        """(a) and (b): `begin` sees that epoch 0 hides none."""
        for of_hidden, factor in ((False, 10 / 6), (True, 1.25)):
            state = self.begin(fraction=0.4, of_hidden=of_hidden)
            selection = state.select(1)
            assert selection is not None and selection.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 9]
            assert selection.lr_factor == pytest.approx(factor) and selection.weights is None

    def test_a_pass_renews_what_was_hidden(self) -> None:
        state = self.begin(fraction=0.4)
        assert state.wanted(1) is None  # all were trained on
        ids = chosen(state, 1)
        state.record(ids, np.ones(8, np.float32), epoch=1, correct=np.ones(8, bool), confidence=np.ones(8))
        wanted = state.wanted(2)
        assert wanted is not None and wanted.tolist() == [0, 8]
        state.record(wanted, np.full(2, 9, np.float32), epoch=2, correct=np.zeros(2, bool), confidence=np.ones(2))
        assert {0, 8} <= set(chosen(state, 2).tolist())

    def test_without_a_threshold_exactly_the_share_is_hidden(self) -> None:
        """(c)."""
        losses = np.random.default_rng(0).random(50)
        state = methods.build("kakurenbo", fraction=0.3, confidence=0.0).start(50, epochs=200)
        assert chosen(state, 0).size == 50
        state.record(None, losses.astype(np.float32), epoch=0, correct=np.ones(50, bool), confidence=np.full(50, 0.1))
        assert (chosen(state, 1) == np.sort(np.argsort(losses)[15:])).all()

    def test_the_share_falls_in_steps(self) -> None:
        """(e)."""
        method = methods.build("kakurenbo", fraction=0.5)
        hidden = [1000 - method.kept(1000, epoch, 200) for epoch in range(200)]
        assert hidden == [500] * 60 + [400] * 60 + [300] * 40 + [200] * 40

    def test_losses_without_certainty_are_refused(self) -> None:
        state = methods.build("kakurenbo").start(4, epochs=9)
        chosen(state, 0)
        with pytest.raises(UserError, match="needs correct and confidence"):
            state.record(None, np.ones(4, np.float32), epoch=0)
        with pytest.raises(UserError, match="one value a loss"):
            state.record(None, np.ones(4, np.float32), epoch=0, correct=np.ones(3, bool), confidence=np.ones(4))
        assert state.table.updates == 0


class TestIES:
    @pytest.mark.parametrize(
        ("losses", "parameters", "excluded"),
        [
            ((2, 1.8, 1.6, 1.4, 1.2, 1.0), {}, True),
            ((2, 1.8, 1.6, 1.4, 1.2), {}, False),
            ((4, 4, 4, 4, 4, 4), {}, True),
            ((4, 4, 4, 4, 4, 4), {"below_median": True}, False),
            ((1.6, 0.8, 0.4, 0.2, 0.1, 0.05), {"threshold": 0.1166}, False),
            ((1.6, 0.8, 0.4, 0.2, 0.1, 0.05), {"threshold": 0.1167}, True),
            ((0.01, 0.02, 0.01, 0.02, 0.01, 0.02), {}, False),
            ((4, 4, 4, 4, 4, 4), {"threshold": 0.0}, False),
        ],
    )
    def test_mastered_samples_leave(self, losses: Any, parameters: dict[str, Any], excluded: bool) -> None:
        """(a) to (e). A second sample, of changing and lower loss, stays."""
        state = methods.build("ies", **parameters).start(2, epochs=50, groups=[0, 0])
        for epoch, loss in enumerate(losses):
            assert chosen(state, epoch).tolist() == [0, 1]
            state.record(None, np.array([loss, 0.1 * (epoch % 2)], np.float32), epoch=epoch)
        assert chosen(state, len(losses)).tolist() == ([1] if excluded else [0, 1])

    def test_it_comes_back_as_soon_as_its_loss_moves(self) -> None:
        state = methods.build("ies").start(2, epochs=50)
        for epoch in range(6):
            chosen(state, epoch)
            state.record(None, np.array([1, epoch % 2], np.float32), epoch=epoch)
        assert chosen(state, 6).tolist() == [1]
        state.record([1], np.ones(1, np.float32), epoch=6)
        wanted = state.wanted(7)
        assert wanted is not None and wanted.tolist() == [0]
        state.record(wanted, np.full(1, 3, np.float32), epoch=7)
        assert chosen(state, 7).tolist() == [0, 1]

    def test_the_curvature_is_that_of_numpy(self) -> None:
        rng, table = np.random.default_rng(0), ScoreTable(30)
        table.add(*Curvature.columns)
        seen = rng.random((9, 30)).astype(np.float32)
        for losses in seen:
            Curvature().take(table, np.arange(30), losses, losses)
        expected = np.abs(np.diff(seen, 2, axis=0))[-3:].mean(axis=0)
        assert Curvature().score(table, None) == pytest.approx(expected, rel=1e-5)


class TestEvolved:
    def scores(self, losses: list[list[float]], **parameters: float) -> tuple[Any, Any]:
        statistic = TwoSpeeds(**parameters)
        table = ScoreTable(4)
        table.add(*statistic.columns)
        for own in losses:
            ids = np.flatnonzero(~np.isnan(own))
            statistic.take(table, ids, np.array(own, np.float32)[ids], np.zeros(ids.size, np.float32))
        return table.columns["two_speeds"], table.columns["slow_mean"]

    def test_two_speeds(self) -> None:
        """(a), with s(0) = 1/4: losses of 1, 0.5 and 2, one after the other; samples that miss some, and one unseen."""
        seen = [[1, 1, np.nan, np.nan], [0.5, np.nan, 0.5, np.nan], [2, np.nan, np.nan, np.nan]]
        for losses, slow, both in zip(seen, (0.4, 0.42, 0.736), (0.85, 0.48, 1.684), strict=True):
            w, s = self.scores(seen[: seen.index(losses) + 1], beta1=0.2, beta2=0.8)
            assert w[0] == pytest.approx(both) and s[0] == pytest.approx(slow)
        assert w[1:] == pytest.approx([0.85, 0.45, np.nan], nan_ok=True)

    def test_one_speed_is_a_moving_mean(self) -> None:
        """(b), (c)."""
        losses = np.random.default_rng(0).random((5, 4)).tolist()
        w, s = self.scores(losses, beta1=0.3, beta2=0.3)
        assert w == pytest.approx(s)
        w, _ = self.scores(losses, beta1=0.0, beta2=0.8)
        assert w == pytest.approx(np.array(losses[-1]))

    def test_the_slow_mean_is_the_projects_but_for_its_start(self) -> None:
        """(e): β2 = 0.2 is α = 0.8; s starts at 1/n and not at the first loss, which fades with β2^t."""
        losses = np.random.default_rng(1).random((6, 4)).astype(np.float32)
        table = ScoreTable(4, alpha=0.8)
        for step, own in enumerate(losses, 1):
            table.update(own)
            _, slow = self.scores(losses[:step].tolist(), beta1=0.2, beta2=0.2)
            assert slow - table.mean == pytest.approx(0.2**step * (1 / 4 - losses[0]), abs=1e-6)

    def test_equal_scores_draw_as_random_does_and_the_ends_are_on_all_data(self) -> None:
        """(d)."""
        found = frequencies("evolved", [1.0] * 8, epoch=5, keep=0.25)
        assert found == pytest.approx([0.25] * 8, abs=0.03)
        method = methods.build("evolved")
        assert [method.phases.phase(epoch, 100) for epoch in (0, 4, 5, 94, 95)] == [
            "full",
            "full",
            "method",
            "method",
            "full",
        ]


class TestPSGD:
    LOSSES = tuple(-np.log1p(-np.array([0, 0.1, 0.3, 0.8])))

    @pytest.mark.parametrize(
        ("name", "losses", "expected"),
        [
            ("p_sgd", LOSSES, [0.125, 0.1667, 0.25, 0.4583]),
            ("c_sgd", LOSSES, [0.125, 0.2228, 0.3533, 0.2989]),
            ("glws", (0.1, 0.5, 1, 2, 6), [0.016, 0.0922, 0.2095, 0.4595, 0.2228]),
        ],
    )
    def test_odds_and_first_draws(self, name: str, losses: Any, expected: list[float]) -> None:
        """(a), (d), (e)."""
        method = methods.PRESETS[name]
        table = ScoreTable(len(losses))
        table.add(*method.statistic.columns)
        values = np.array(losses, np.float32)
        method.statistic.take(table, np.arange(values.size), values, values)
        odds = method.statistic.score(table, None)
        assert odds / odds.sum() == pytest.approx(expected, abs=1e-4)
        assert frequencies(name, losses, keep=1 / len(losses)) == pytest.approx(expected, abs=0.03)

    def test_equal_errors_draw_as_random_does(self) -> None:
        """(b)."""
        for parameters in ({}, {"transform": "c"}, {"transform": "gaussian"}, {"transform": "uniform"}):
            assert frequencies("p_sgd", [0.7] * 6, keep=0.5, **parameters) == pytest.approx([0.5] * 6, abs=0.04)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=30))
    def test_nobody_is_out_of_reach(self, losses: list[float]) -> None:
        """(c)."""
        statistic, table = RunningError(transform="p"), ScoreTable(len(losses))
        table.add(*statistic.columns)
        statistic.take(table, np.arange(len(losses)), np.array(losses, np.float32), np.zeros(len(losses), np.float32))
        odds = statistic.score(table, None).astype(np.float64)
        assert not odds.sum() or (odds / odds.sum() >= 1 / (2 * len(losses)) - 1e-6).all()

    def test_an_unseen_sample_counts_as_the_most_wrong(self) -> None:
        statistic, table = RunningError(), ScoreTable(3)
        table.add(*statistic.columns)
        for loss in (0.2, 1.4):
            statistic.take(table, np.array([0, 1]), np.array([0.1, loss], np.float32), np.zeros(2, np.float32))
        means = np.array([1 - np.exp(-0.1), 1 - (np.exp(-0.2) + np.exp(-1.4)) / 2])
        expected = np.array([*means, means.max()])
        assert statistic.score(table, None) == pytest.approx(expected + expected.mean(), rel=1e-5)


class TestRecentLoss:
    def test_unseen_first_then_the_highest_and_a_share_at_random(self) -> None:
        run = methods.build("recent_loss", keep=0.5).start(100, epochs=10, seed=1)
        assert [run.phase(epoch) for epoch in range(4)] == ["random", "random", "method", "method"]
        rng, last = np.random.default_rng(0), np.full(100, np.nan)
        for epoch in range(10):
            assert run.wanted(epoch) is None
            selection = run.select(epoch)
            assert selection is not None and selection.ids.size == 50 and selection.weights is None
            if selection.phase == "method":
                first = np.argsort(-np.where(np.isnan(last), np.inf, last), kind="stable")[:35]
                assert np.isin(first, selection.ids).all()
            last[selection.ids] = losses = rng.random(50, np.float32)
            run.record(selection.ids, losses, epoch=epoch)

    def test_a_warm_up_can_be_counted_in_epochs_or_as_a_share(self) -> None:
        for warmup, random in ((3, 3), (0.5, 5), (0.0, 0), (1.0, 1)):
            phases = methods.build("p_sgd", warmup=warmup).phases
            assert [phases.phase(epoch, 10) for epoch in range(10)].count("random") == random
        with pytest.raises(UserError, match=r"warmup=1.5: expected whole epochs"):
            methods.build("recent_loss", warmup=1.5)


class TestControls:
    @given(n=st.integers(100, 500), keep=st.floats(0.02, 1))
    def test_rs2_knows_its_smallest_and_its_largest_selection(self, n: int, keep: float) -> None:
        method = methods.build("rs2", keep=keep)
        run = method.start(n, epochs=20, seed=4)
        sizes = {run.select(epoch).ids.size for epoch in range(min(20, -(-n // method.kept(n, 0, 20))))}  # type: ignore[union-attr]
        assert max(sizes) == method.samples_in(0, 20, n)
        assert min(sizes) >= method.selector.least(method.kept(n, 0, 20), n)  # type: ignore[operator]

    @pytest.mark.parametrize(("n", "keep"), [(50, 0.3), (10, 0.5), (7, 1.0), (9, 0.12)])
    def test_rs2_serves_every_sample_once_in_each_pass(self, n: int, keep: float) -> None:
        run = methods.build("rs2", keep=keep).start(n, epochs=60, seed=4)
        slices = math.ceil(n / round(keep * n))
        passes = []
        for first in range(0, 60 - slices, slices):
            parts = [chosen(run, epoch) for epoch in range(first, first + slices)]
            assert np.sort(np.concatenate(parts)).tolist() == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            passes.append([part.tolist() for part in parts])
        assert slices == 1 or passes[0] != passes[1]

    def test_srd_keeps_a_geometric_share_and_ends_on_all_data(self) -> None:
        run = methods.build("srd", gamma=0.95).start(1000, epochs=4)
        assert [chosen(run, epoch).size for epoch in range(4)] == [1000, 950, 902, 1000]

    def test_srd_must_fill_a_batch_in_the_epochs_that_it_prunes(self) -> None:
        words = ["--config", str(ROOT / "rn_configs/cifar10_srd.yaml"), "--train.epochs=42", "--prune.gamma=0.95"]
        check_batches(config.load([*words, "--train.batch_size=128"]), 1000)  # 0.95^40 · 1000 = 128.5
        with pytest.raises(UserError, match="keeps 128 of 1000 samples, less than one batch of 129"):
            check_batches(config.load([*words, "--train.batch_size=129"]), 1000)

    def test_bls_forgets_as_slowly_as_its_authors_code(self) -> None:
        assert methods.build("bls").values["decay"] == 0.9

    def test_bls_knows_batches_only(self) -> None:
        run = methods.build("bls", decay=0.75).start(4, epochs=20)
        chosen(run, 0)
        run.record([0, 1], np.array([1, 3], np.float32), epoch=0)
        run.record([2, 3], np.array([4, 8], np.float32), epoch=0)
        assert run.scores() == pytest.approx([0.5, 0.5, 1.5, 1.5])
        run.record([0, 2], np.array([2, 2], np.float32), epoch=0)
        assert run.scores() == pytest.approx([0.875, 0.5, 1.625, 1.5])


class TestNull:
    def test_scores_are_shuffled_and_all_else_stays(self) -> None:
        losses = np.random.default_rng(0).random(200).astype(np.float32)
        plain, null = (methods.build("uncertainty", keep=0.3, null=on).start(200, epochs=40) for on in (False, True))
        found = []
        for epoch in (0, 10):
            for run in (plain, null):
                run.record(None, losses, epoch=epoch)
            highest, ids = chosen(plain, epoch), chosen(null, epoch)
            assert ids.size == highest.size == 60
            assert 5 < np.intersect1d(highest, ids).size < 35  # 18 by chance
            found.append(ids.tolist())
        assert found[0] != found[1]
        assert null.method.label == "uncertainty+null"

    def test_samples_without_a_loss_keep_their_place(self) -> None:
        run = methods.build("recent_loss", null=True, random_share=0.0, warmup=0.1).start(100, epochs=10)
        seen = chosen(run, 0)
        run.record(seen, np.random.default_rng(0).random(50).astype(np.float32), epoch=0)
        assert (chosen(run, 1) == np.setdiff1d(np.arange(100), seen)).all()

    @pytest.mark.parametrize("name", [name for name, method in methods.PRESETS.items() if method.prunes])
    def test_every_method_has_its_twin(self, name: str) -> None:
        assert methods.build(name, null=True).label.startswith(f"{name}+null")
