"""The method that selects by a proxy net: its rule by hand, the net in a loop of one's own, and what goes wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffcv_prune import PrunedLoader, Pruner, methods
from ffcv_prune.errors import UserError
from ffcv_prune.scoring.proxy import Proxy
from tests.betons import Beton
from tests.nets import SmallNet
from tests.rules import assert_same
from tests.test_batch_methods import N, make_loader

WINDOW = 32


def make_proxy(net: torch.nn.Module, **options: Any) -> Proxy:
    return Proxy(net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), **options)


def proxy_of(pruner: Pruner) -> Proxy:
    assert pruner.values.proxy is not None
    return pruner.values.proxy


def failing_after(step: Callable[[torch.Tensor], None], steps: int) -> Callable[[torch.Tensor], None]:
    """`step`, which raises when it is called after so many times."""
    left = iter(range(steps))

    def call(loss: torch.Tensor) -> None:
        if next(left, None) is None:
            raise ZeroDivisionError
        step(loss)

    return call


def make_pruner(beton: Beton, stride: int = 4, epochs: int = 3, proxy: Proxy | None = None, **options: Any) -> Pruner:
    proxy = proxy or make_proxy(SmallNet(seed=1), **options)
    loaders = make_loader(beton, with_ids=True), make_loader(beton, WINDOW, drop_last=False)
    return Pruner(*loaders, "proxy_batch", epochs=epochs, proxy=proxy, window=WINDOW, stride=stride)


class TestProxyRule:
    def test_the_highest_of_each_window(self) -> None:
        """(a), (b): windows are as the losses came; the last one is shorter."""
        for losses, expected in (([0.1, 0.9, 0.3, 0.7], [1, 3]), ([1, 1, 1, 1], [0, 1])):
            state = methods.build("proxy_batch", keep=0.5, window=4).start(4, epochs=9)
            state.record(np.arange(4), np.array(losses, np.float32), epoch=0)
            selection = state.select(0)
            assert selection is not None and selection.ids.tolist() == expected
        state = methods.build("proxy_batch", keep=0.5, window=4).start(10, epochs=9)
        for epoch in range(9):
            wanted = state.wanted(epoch)
            assert wanted is not None and wanted.tolist() == list(range(10))
            order = np.random.default_rng(epoch).permutation(10)
            losses = np.random.default_rng(epoch + 50).integers(0, 4, 10).astype(np.float32)
            for first in range(0, 10, 5):  # how they are handed over does not matter
                state.record(order[first : first + 5], losses[order[first : first + 5]], epoch=epoch)
            selection = state.select(epoch)
            assert selection is not None
            expected = []
            for window in (order[:4], order[4:8], order[8:]):
                ranked = sorted(window.tolist(), key=lambda i: (-losses[i], i))
                expected += ranked[: round(0.5 * len(window))]
            assert selection.ids.tolist() == sorted(expected)
            assert selection.ids.size == state.method.kept(10, epoch, 9) == 5

    def test_a_window_larger_than_the_data_is_refused(self) -> None:
        with pytest.raises(UserError, match="window=1024 is larger than the data set of 10 samples"):
            methods.build("proxy_batch").start(10)


class TestProxy:
    def test_the_proxy_sees_what_the_main_net_will(self, beton: Beton) -> None:
        """(c), and batches are the kept part of windows: permute, then mask."""
        pruner = make_pruner(beton)
        pruner.begin_epoch(0, SmallNet())
        assert pruner.values.score_loader is not None
        windows = [(b.ids.tolist(), b.inputs.clone()) for b in pruner.values.score_loader.batches(0)]
        seen = {i: image for ids, images in windows for i, image in zip(ids, images, strict=True)}
        order = list(seen)
        served = []
        for images, _, ids in pruner.loader:
            assert all(torch.equal(seen[int(i)], image) for i, image in zip(ids, images, strict=True))
            served += ids.tolist()
        kept = [i for i in order if i in set(pruner.loader.selection.tolist())]
        assert served == kept[: len(served)]

    def test_all_epochs_first_or_one_before_each(self, beton: Beton) -> None:
        """(d): the proxy does not look at the main net."""
        one, other = make_pruner(beton), make_pruner(beton)
        first = [one.begin_epoch(epoch, SmallNet()) for epoch in range(3)]
        model, second = SmallNet(), []
        for epoch in range(3):
            second.append(other.begin_epoch(epoch, model))
            for images, labels, ids in other.loader:
                other.batch_loss(F.cross_entropy(model(images), labels, reduction="none"), ids).backward()
        assert all(
            a is not None and b is not None and (a.ids == b.ids).all() for a, b in zip(first, second, strict=True)
        )
        assert first[0].ids.tolist() != first[1].ids.tolist()  # type: ignore[union-attr]

    def test_it_steps_at_every_stride_and_is_part_of_the_state(self, beton: Beton) -> None:
        """(e)."""
        pruner = make_pruner(beton, stride=4)
        windows = -(-N // WINDOW)
        pruner.begin_epoch(0, SmallNet())
        proxy = pruner.values.proxy
        assert proxy is not None and (proxy.windows, proxy.steps) == (windows, 2) == (7, 2)
        pruner.begin_epoch(1, SmallNet())
        assert (proxy.steps, proxy.forwards) == (4, 2 * N)  # at windows 0, 4, 8, 12
        resumed = make_pruner(beton, stride=4)
        resumed.load_state_dict(copy.deepcopy(pruner.state_dict()))
        ends = [run.begin_epoch(2, SmallNet()) for run in (pruner, resumed)]
        assert (ends[0].ids == ends[1].ids).all()  # type: ignore[union-attr]

    def test_reduced_images_and_a_schedule(self, beton: Beton) -> None:
        rates: list[tuple[int, int, int]] = []

        def lr(*position: int) -> float:
            rates.append(position)
            return 0.1

        pruner = make_pruner(beton, size=8, lr=lr)
        pruner.begin_epoch(0, SmallNet())
        assert rates == [(0, window, 7) for window in range(7)]
        assert len(pruner.loader.selection) == 6 * 16 + round(0.5 * (N - 6 * WINDOW))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    def test_images_are_reduced_by_area_and_keep_their_dtype(self, dtype: torch.dtype) -> None:
        images = torch.randint(0, 256, (2, 3, 8, 4)).to(dtype)
        proxy = make_proxy(SmallNet(), size=4)
        expected = images.float().reshape(2, 3, 4, 2, 2, 2).mean((3, 5))
        reduced = proxy._reduced(images)
        assert reduced.dtype == dtype and reduced.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(reduced.float(), expected.round() if dtype == torch.uint8 else expected)
        assert proxy._reduced(reduced) is reduced

    def test_what_does_not_fit_is_refused(self, beton: Beton) -> None:
        net = SmallNet()
        proxy = Proxy(net, torch.optim.SGD(net.parameters(), lr=0.1))
        loader = make_loader(beton, with_ids=True)
        cases: list[tuple[PrunedLoader, Proxy | None, str, str]] = [
            (make_loader(beton, WINDOW, drop_last=False), None, "proxy_batch", "give proxy=Proxy"),
            (make_loader(beton, 20, drop_last=False), proxy, "proxy_batch", "give it batch_size=32"),
            (make_loader(beton, WINDOW, drop_last=True), proxy, "proxy_batch", "drop_last=False"),
            (make_loader(beton, WINDOW, drop_last=False, seed=3), proxy, "proxy_batch", "the same seed"),
            (make_loader(beton, WINDOW, drop_last=False), proxy, "random", "no proxy net"),
        ]
        for score_loader, given, name, message in cases:
            parameters = {"window": WINDOW} if name == "proxy_batch" else {}
            with pytest.raises(UserError, match=message):
                Pruner(loader, score_loader, name, epochs=3, proxy=given, **parameters)

    def test_a_proxy_that_diverges_is_an_error_and_the_selection_stays(self, beton: Beton) -> None:
        pruner = make_pruner(beton)
        pruner.begin_epoch(0, SmallNet())
        before = pruner.loader.selection.copy()
        proxy = pruner.values.proxy
        assert proxy is not None
        torch.nn.init.constant_(proxy.model.head.bias, float("nan"))  # type: ignore[arg-type, union-attr]
        with pytest.raises(UserError, match="the proxy diverged: lower its learning rate"):
            pruner.begin_epoch(1, SmallNet())
        assert (pruner.loader.selection == before).all() and pruner.state.table.updates == 1

    def test_what_the_proxy_draws_is_its_own(self, beton: Beton) -> None:
        """Dropout of the proxy: run first or between, the selections and the main net's draws are the same."""

        def selections(seed: int) -> list[list[int]]:
            net = torch.nn.Sequential(SmallNet(seed=1), torch.nn.Dropout(0.5))
            pruner, found = make_pruner(beton, proxy=make_proxy(net)), []
            for epoch in range(3):
                torch.manual_seed(seed + epoch)
                swap = pruner.begin_epoch(epoch, torch.nn.Identity())
                assert swap is not None
                found.append(swap.ids.tolist())
            return found

        assert selections(0) == selections(5)
        pruner = make_pruner(beton, proxy=make_proxy(torch.nn.Sequential(SmallNet(), torch.nn.Dropout(0.5))))
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        pruner.begin_epoch(0, torch.nn.Identity())
        assert torch.equal(torch.rand(4), expected)

    @pytest.mark.parametrize(("dtype", "enabled"), [(torch.float16, True), (torch.bfloat16, False), (None, False)])
    def test_losses_are_scaled_in_float16(self, beton: Beton, dtype: torch.dtype | None, enabled: bool) -> None:
        """The scale is part of the state, as it is the trainer's."""
        net = SmallNet()
        pruner = make_pruner(beton, proxy=make_proxy(net, amp_dtype=dtype))
        proxy = proxy_of(pruner)
        assert proxy.scaler.is_enabled() == enabled
        before = copy.deepcopy(net.state_dict())
        pruner.begin_epoch(0, SmallNet())
        assert not torch.equal(before["head.weight"], net.state_dict()["head.weight"])
        assert (proxy.state_dict()["scaler"] == {}) != enabled
        if enabled:
            proxy.scaler.update(64.0)
            resumed = make_pruner(beton, proxy=make_proxy(SmallNet(), amp_dtype=dtype))
            resumed.load_state_dict(copy.deepcopy(pruner.state_dict()))
            assert proxy_of(resumed).scaler.get_scale() == 64.0
            with torch.no_grad():  # a gradient that overflows is left out, and the scale lowered
                net.head.weight.fill_(60000.0)
            proxy.scaler.update(2.0**30)
            held = net.conv.weight.detach().clone()
            proxy._step(net.head.weight.sum() * 1e30)
            assert torch.equal(held, net.conv.weight) and proxy.scaler.get_scale() < 2.0**30


@pytest.mark.parametrize("fault", ["swap", "train"])
def test_a_selection_that_fails_leaves_the_proxy_as_it_was(
    beton: Beton, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call selects what it would have selected, and counts once."""
    pruner, other = make_pruner(beton), make_pruner(beton)
    for run in (pruner, other):
        run.begin_epoch(0, SmallNet())
    proxy, before = proxy_of(pruner), copy.deepcopy(pruner.state_dict())
    if fault == "swap":
        monkeypatch.setattr(pruner.loader, "batch_size", 150)
    else:  # after the first step
        monkeypatch.setattr(proxy, "_step", failing_after(proxy._step, 1))
    for _ in range(2):
        with pytest.raises((UserError, ZeroDivisionError)):
            pruner.begin_epoch(1, SmallNet())
        monkeypatch.undo()
        assert_same(pruner.state_dict()["values"], before["values"])
        if fault == "swap":
            monkeypatch.setattr(pruner.loader, "batch_size", 150)
        else:
            monkeypatch.setattr(proxy, "_step", failing_after(proxy._step, 1))
    monkeypatch.undo()
    for epoch in (1, 2):
        made, expected = (run.begin_epoch(epoch, SmallNet()) for run in (pruner, other))
        assert made is not None and expected is not None and (made.ids == expected.ids).all()
    assert_same(pruner.state_dict()["values"], other.state_dict()["values"])


def test_the_state_of_another_net_or_optimiser_is_refused_whole(beton: Beton) -> None:
    pruner = make_pruner(beton)
    pruner.begin_epoch(0, SmallNet())
    state = copy.deepcopy(pruner.state_dict())
    own = make_pruner(beton)
    net = proxy_of(own).model
    others: list[tuple[Proxy, str]] = [
        (make_proxy(SmallNet(classes=11)), "^the pruner's state is of another proxy net than this SmallNet: give"),
        (make_proxy(torch.nn.Sequential(net)), "another proxy net than this Sequential"),
        (Proxy(net, torch.optim.Adam(net.parameters())), "another proxy optimiser than this Adam"),
    ]
    for proxy, message in others:
        other = make_pruner(beton, proxy=proxy)
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(UserError, match=message):
            other.load_state_dict(state)
        assert_same(other.state_dict(), before)
    with pytest.raises(UserError, match="another score source"):
        own.load_state_dict({**state, "values": {**state["values"], "proxy": None}})
    own.load_state_dict(state)
    assert_same(own.state_dict(), state)
