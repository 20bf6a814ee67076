"""Methods that choose in batches: their rules by hand, in a loop of one's own, and on the way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffcv_prune import PrunedLoader, Pruner, methods
from ffcv_prune.config import load
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import train_pipelines
from ffcv_prune.methods.presets.selective_backprop import HISTORY, chance_by_history, odds_by_rank
from ffcv_prune.scoring.batch_forward import BatchChooser
from ffcv_prune.tasks import Classification
from tests.betons import Beton, write_beton, write_run
from tests.nets import SmallNet

N, BATCH = 203, 16


class TestComposer:
    @pytest.mark.parametrize(
        ("keep", "expected"),
        [
            (0.5, [0.0625, 0.1875, 0.3125, 0.4375]),
            (0.25, [0.002, 0.0544, 0.252, 0.6915]),
            (0.75, [0.1649, 0.2378, 0.2819, 0.3154]),
        ],
    )
    def test_odds_and_first_draws(self, keep: float, expected: list[float]) -> None:
        """(a)."""
        assert odds_by_rank(4, keep) == pytest.approx(expected, abs=1e-4)
        losses = np.array([0.3, 0.9, 0.1, 0.7], np.float32)  # ranks 1, 3, 0, 2
        counts, draws = np.zeros(4), 2000
        state = methods.build("selective_backprop", keep=0.25, start=0.0, end=1.0, interrupt=0).start(4, epochs=draws)
        for epoch in range(1, draws):
            counts[state.choose(np.arange(4), losses, epoch=epoch, batch=0)] += 1
        assert counts / draws == pytest.approx(np.array([0.0544, 0.6915, 0.002, 0.252]), abs=0.04)

    def test_when_it_chooses(self) -> None:
        """(d), (e): twenty batches of a hundred; at keep 1 all samples of all of them."""
        state = methods.build("selective_backprop").start(64, epochs=10)
        chosen = {
            (epoch, batch)
            for epoch in range(10)
            for batch in range(10)
            if len(state.choose(np.arange(8), np.arange(8, dtype=np.float32), epoch=epoch, batch=batch)) == 4
        }
        assert chosen == {(epoch, batch) for epoch in (5, 6, 7, 8) for batch in (0, 2, 4, 6, 8)}
        whole = methods.build("selective_backprop", keep=1.0, start=0.0, end=1.0, interrupt=0).start(64, epochs=10)
        for epoch in range(10):
            rows = whole.choose(np.arange(8), np.ones(8, np.float32), epoch=epoch, batch=0)
            assert rows.tolist() == list(range(8))

    @pytest.mark.parametrize(("start", "end"), [(0.5, 0.9), (0.0, 1.0), (0.3, 0.7), (0.25, 0.33), (0.4, 0.4)])
    def test_it_chooses_while_the_elapsed_share_lies_between_start_and_end(self, start: float, end: float) -> None:
        """As Composer compares them; never in the first epoch."""
        phases = methods.build("selective_backprop", start=start, end=end, interrupt=0).phases
        for epochs in range(1, 101):
            found = [epoch for epoch in range(epochs) if phases.chooses(epoch, 0, epochs)]
            assert found == [epoch for epoch in range(1, epochs) if start <= epoch / epochs < end], epochs

    def test_rows_are_places_in_the_batch(self) -> None:
        state = methods.build("selective_backprop", keep=0.25, start=0, end=1, interrupt=0).start(99, epochs=400)
        ids, losses = np.array([40, 7, 98, 13]), np.array([0, 0, 50, 0], np.float32)
        found = [state.choose(ids, losses, epoch=1, batch=batch).tolist() for batch in range(200)]
        assert sum(rows == [2] for rows in found) > 100 and {len(rows) for rows in found} == {1}

    def test_null_shuffles_within_the_batch(self) -> None:
        parameters: dict[str, Any] = {"keep": 0.25, "start": 0, "end": 1, "interrupt": 0, "null": True}
        state = methods.build("selective_backprop", **parameters).start(8, epochs=400)
        counts = np.zeros(4)
        for batch in range(800):
            losses = np.array([1, 2, 50, 3], np.float32)
            counts[state.choose(np.array([3, 1, 7, 2]), losses, epoch=1, batch=batch)] += 1
        assert counts / 800 == pytest.approx([0.25] * 4, abs=0.06)


class TestJiang:
    def test_chances(self) -> None:
        """(b)."""
        losses = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
        assert chance_by_history(losses, losses, 1).tolist() == [0, 0.25, 0.5, 0.75]
        assert chance_by_history(losses, losses, 2).tolist() == [0, 0.0625, 0.25, 0.5625]

    def test_the_history_holds_the_latest_losses_and_the_lowest_is_never_taken(self) -> None:
        state = methods.build("selective_backprop", form="jiang", start=0, end=1, interrupt=0).start(500, epochs=9)
        rng, seen = np.random.default_rng(0), np.zeros(0, np.float32)
        for batch in range(30):
            ids, losses = rng.permutation(500)[:100], rng.random(100, np.float32)
            rows = state.choose(ids, losses, epoch=1, batch=batch)
            seen = np.concatenate([seen, losses])[-HISTORY:]
            history = state.table.columns["history"]
            assert np.sort(history[~np.isnan(history)]).tolist() == np.sort(seen).tolist()
            assert losses.argmin() not in rows or losses.min() > seen.min()

    def test_a_batch_as_large_as_the_history(self) -> None:
        state = methods.build("selective_backprop", form="jiang", start=0, end=1).start(3000, epochs=9)
        losses = np.random.default_rng(0).random(3000).astype(np.float32)
        state.choose(np.arange(3000), losses, epoch=1, batch=0)
        assert np.sort(state.table.columns["history"]).tolist() == np.sort(losses[-HISTORY:]).tolist()


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    return write_beton(tmp_path_factory.mktemp("batches") / "train.beton", n=N)


def make_loader(beton: Beton, batch_size: int = BATCH, **options: Any) -> PrunedLoader:
    pipelines = train_pipelines(check_beton(beton.path), "pad_crop_flip", 16, torch.device("cpu"), fill=(0, 0, 0))
    return PrunedLoader(beton.path, batch_size, 1, pipelines=pipelines, shuffle=True, **options)


def train(
    pruner: Pruner, epochs: range, model: torch.nn.Module, stop: int | None = None, state: dict[str, Any] | None = None
) -> list[list[int]]:
    """Plain SGD; returns the ids of each step. After batch `stop` it leaves the pruner's state in `state`."""
    made = []
    for epoch in epochs:
        pruner.begin_epoch(epoch, model)
        model.train()
        for number, (images, labels, ids) in enumerate(pruner.loader):
            chosen = pruner.choose(model, images, labels, ids)
            if chosen is not None:
                images, labels, ids = chosen
                losses = F.cross_entropy(model(images), labels, reduction="none")
                pruner.batch_loss(losses, ids).backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.05 * parameter.grad
                        parameter.grad = None
                made.append(ids.tolist())
            if number == stop and state is not None:
                state |= copy.deepcopy(pruner.state_dict())
                return made
    return made


SELECTIVE: dict[str, Any] = {"start": 0.0, "end": 1.0, "interrupt": 0}


class TestLoop:
    @pytest.mark.parametrize("form", ["composer", "jiang"])
    def test_selection_leaves_the_model_as_it_is(self, beton: Beton, form: str) -> None:
        """(c): batch norms are as before, and so is the mode."""
        pruner = Pruner(make_loader(beton, with_ids=True), None, "selective_backprop", epochs=4, form=form, **SELECTIVE)
        model = SmallNet()
        train(pruner, range(1), model)
        pruner.begin_epoch(1, model)
        before = copy.deepcopy(model.state_dict())
        model.train()
        images, labels, ids = next(iter(pruner.loader))
        pruner.choose(model, images, labels, ids)
        assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert pruner.values.costs["forwards"] >= BATCH

    def test_keep_1_is_plain_training(self, beton: Beton) -> None:
        """(e), bit by bit."""
        ends = []
        for name, parameters in (("full", {}), ("selective_backprop", {"keep": 1.0, **SELECTIVE})):
            torch.manual_seed(0)
            model = SmallNet()
            train(Pruner(make_loader(beton, with_ids=True), None, name, epochs=3, **parameters), range(3), model)
            ends.append(model.state_dict())
        assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())

    def test_the_queue_fills_batches(self, beton: Beton) -> None:
        pruner = Pruner(
            make_loader(beton, with_ids=True), None, "selective_backprop", epochs=4, form="jiang", **SELECTIVE
        )
        made = train(pruner, range(4), SmallNet())
        assert {len(ids) for ids in made} == {BATCH}
        batches = N // BATCH
        assert batches < len(made) < 4 * batches - 5  # the first epoch whole, about half of the others

    @pytest.mark.parametrize("form", ["composer", "jiang"])
    @pytest.mark.parametrize("stop", [0, 6])
    def test_resuming_within_an_epoch_equals_never_having_stopped(self, beton: Beton, form: str, stop: int) -> None:
        def make() -> Pruner:
            loader = make_loader(beton, with_ids=True)
            return Pruner(loader, None, "selective_backprop", epochs=3, form=form, **SELECTIVE)

        torch.manual_seed(0)
        model = SmallNet()
        expected = train(make(), range(3), model)
        torch.manual_seed(0)
        stopped = SmallNet()
        pruner, state = make(), {}
        found = train(pruner, range(1), stopped) + train(pruner, range(1, 2), stopped, stop, state)
        resumed = make()
        resumed.load_state_dict(state)
        assert found + train(resumed, range(1, 3), stopped) == expected
        assert all(torch.equal(model.state_dict()[name], value) for name, value in stopped.state_dict().items())


def test_a_queue_goes_where_the_inputs_are() -> None:
    """After a resume it is on the CPU; the inputs are on the training device."""
    state = methods.build("selective_backprop", form="jiang").start(8, epochs=3)
    chooser = BatchChooser(state, Classification(), None, 1)
    chooser.load_state_dict(
        {"queue": (torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), torch.arange(3)), "forwards": 0}
    )
    device = torch.device("meta")
    batch = torch.ones(2, 2, device=device), torch.zeros(2, dtype=torch.int64, device=device), torch.arange(3, 5)
    made = chooser._full_batch(batch, 5)
    assert made is not None and [part.device.type for part in made] == ["meta", "meta", "cpu"]
    assert made[2].tolist() == [0, 1, 2, 3, 4]


def test_a_queue_of_batches_of_other_sizes_is_refused() -> None:
    ids = torch.arange(4)
    state = methods.build("selective_backprop", form="jiang").start(8, epochs=3)
    chooser = BatchChooser(state, Classification(), None, 1)

    def waits(side: int) -> Any:
        return chooser._full_batch((torch.zeros(4, 3, side, side), torch.zeros(4, dtype=torch.int64), ids), 9)

    assert waits(8) is None
    with pytest.raises(UserError, match="batches of different sizes cannot wait in one queue: set form=composer"):
        waits(16)
    assert waits(8) is None  # what waits is as before
    made = chooser._full_batch((torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64), ids[:1]), 9)
    assert made is not None and made[0].shape == (9, 3, 8, 8)


def test_a_queue_is_refused_beside_sides_that_grow(beton: Beton, tmp_path: Path) -> None:
    data = "augment: random_resized_crop, size: 64, size_ramp: [32, 64, 0.25, 0.5]"
    path = write_run(tmp_path / "run.yaml", beton, data=data, prune="method: selective_backprop, form: jiang")
    message = r"^prune\.form=jiang .*: set prune\.form=composer, or leave data\.size_ramp out$"
    with pytest.raises(UserError, match=message):
        load(["--config", str(path)])
    assert load(["--config", str(path), "--prune.form=composer"]).data.size_ramp


def test_a_loader_without_ids_is_refused_at_once(beton: Beton) -> None:
    with pytest.raises(UserError, match="go by sample: build the training loader with with_ids=True"):
        Pruner(make_loader(beton), None, "selective_backprop", epochs=4)


def test_a_batch_before_the_first_epoch_is_refused(beton: Beton) -> None:
    pruner = Pruner(make_loader(beton, with_ids=True), None, "selective_backprop", epochs=4)
    with pytest.raises(UserError, match="call begin_epoch before the first batch"):
        pruner.choose(SmallNet(), torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64), torch.arange(2))


def test_a_queue_is_for_one_process() -> None:
    state = methods.build("selective_backprop", form="jiang").start(8, epochs=3)
    with pytest.raises(UserError, match="train with one process, or set form=composer"):
        BatchChooser(state, Classification(), None, 2)


def test_choosing_is_for_methods_that_choose_in_batches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="selects before an epoch"):
        methods.build("ucb").start(8, epochs=3).choose(np.arange(2), np.ones(2, np.float32), epoch=0, batch=0)
