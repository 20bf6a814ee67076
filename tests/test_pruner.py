from __future__ import annotations

import io
import itertools
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from ffcv.loader import Loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

import ffcv_prune.scoring.values
from ffcv_prune import PrunedLoader, Pruner, TorchLoader, methods, score_dataset
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.tasks import Classification, MultiLabel, Regression, Task
from tests.betons import Beton, write_beton
from tests.nets import SmallNet
from tests.rules import assert_same

N = 203


@pytest.fixture(scope="module")
def loaders(beton: Beton) -> tuple[PrunedLoader, PrunedLoader]:
    pipelines = score_pipelines(check_beton(beton.path))
    return (
        PrunedLoader(beton.path, 16, pipelines=pipelines, shuffle=True, with_ids=True),
        PrunedLoader(beton.path, 64, pipelines=score_pipelines(check_beton(beton.path)), drop_last=False),
    )


class MeanColour(nn.Module):
    """uint8[B, 3, H, W] images to logits [B, 10], without parameters."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((1, 2, 3))[:, None] * torch.arange(10.0)


def make_pruner(loaders: tuple[PrunedLoader, PrunedLoader], method: methods.Method | str, **options: object) -> Pruner:
    loaders[0].set_selection(None)
    loaders[0].set_epoch(0)
    options = {"keep": 0.3, "period": 2, "epochs": 6, "seed": 4} | options
    given = {name: value for name, value in options.items() if value is not None}
    return Pruner(*loaders, method, **given)  # type: ignore[arg-type]


def test_ucb_selects_the_samples_of_highest_loss(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    model = SmallNet()
    losses = score_dataset(model, loaders[1])
    pruner = make_pruner(loaders, "ucb")
    swap = pruner.begin_epoch(0, model)
    assert swap is not None
    assert swap.phase == "method"
    expected = np.sort(np.lexsort((np.arange(N), -losses))[:61])  # round(0.3 * 203), ties to the lower id
    np.testing.assert_array_equal(swap.ids, expected)
    np.testing.assert_array_equal(loaders[0].selection, expected)
    np.testing.assert_array_equal(pruner.state.table.mean, losses)
    assert len(loaders[0]) == 61 // 16
    assert pruner.begin_epoch(1, model) is None
    assert pruner.begin_epoch(2, model) is not None
    assert pruner.state.table.updates == 2


def test_random_never_scores(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    pruner = make_pruner((loaders[0], None), "random")  # type: ignore[arg-type]
    model = SmallNet()
    selections = [pruner.begin_epoch(epoch, model).ids for epoch in (0, 2, 4)]  # type: ignore[union-attr]
    assert all(len(ids) == 61 for ids in selections)
    assert (selections[0] != selections[1]).any()
    assert pruner.state.table.updates == 0


def test_phases(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    phases = {"warmup": 3, "warmup_mode": "random", "final": 2, "final_mode": "full"}
    pruner = make_pruner(loaders, "ema", epochs=7, **phases)
    seen = []
    for epoch in range(7):
        swap = pruner.begin_epoch(epoch, SmallNet())
        seen.append((swap.phase, len(swap.ids)) if swap else None)
    assert seen == [("random", 61), None, ("random", 61), ("method", 61), None, ("full", N), None]
    assert pruner.state.table.updates == 1


def test_the_same_seed_selects_the_same(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    def run(seed: int) -> list[np.ndarray]:
        pruner = make_pruner(loaders, "epsilon_greedy", epsilon=0.5, seed=seed)
        return [pruner.begin_epoch(epoch, SmallNet(seed=epoch)).ids for epoch in (0, 2, 4)]  # type: ignore[union-attr]

    first = run(4)
    for ids, again in zip(first, run(4), strict=True):
        np.testing.assert_array_equal(ids, again)
    assert any((ids != other).any() for ids, other in zip(first, run(5), strict=True))


RESUMED: list[dict[str, Any]] = [
    {"method": "ucb"},
    {"method": "epsilon_greedy", "epsilon": 0.4, "class_floor": 0.5},
    {"method": "ucb", "score_source": "both"},
    {"method": "ema", "score_budget": 0.4, "period": 1},
    {"method": "infobatch", "keep": None, "period": None},
]


@pytest.mark.parametrize("options", RESUMED, ids=lambda options: "-".join(map(str, options.values())))
def test_resuming_equals_never_having_stopped(
    loaders: tuple[PrunedLoader, PrunedLoader], options: dict[str, Any]
) -> None:
    """Stopped after some batches of an epoch: what is served, and what each batch weighs, go on bit by bit."""

    def train(pruner: Pruner, epoch: int, most: int | None = None) -> tuple[list[Any], dict[str, Any]]:
        pruner.begin_epoch(epoch, SmallNet(seed=epoch))
        served, batches = [], iter(loaders[0])
        for _, labels, ids in itertools.islice(batches, most):
            served.append((ids.tolist(), pruner.batch_loss(labels * 0.1 + epoch, ids).item()))
        return served, pruner.state_dict()  # here the epoch is still running

    whole = make_pruner(loaders, **options)
    expected = [train(whole, epoch)[0] for epoch in range(6)]

    @settings(max_examples=20, deadline=None)
    @given(stop=st.integers(0, 5), batch=st.integers(0, 3))
    def stop_and_resume(stop: int, batch: int) -> None:
        stopped, stored = make_pruner(loaders, **options), io.BytesIO()
        served = [train(stopped, epoch)[0] for epoch in range(stop)]
        first, state = train(stopped, stop, batch)
        torch.save(state, stored)
        stored.seek(0)
        resumed = make_pruner(loaders, **options)
        resumed.load_state_dict(torch.load(stored, weights_only=True))
        served.append(first + train(resumed, stop)[0])
        served += [train(resumed, epoch)[0] for epoch in range(stop + 1, 6)]
        assert served == expected

    stop_and_resume()


def test_foreign_state_is_refused(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    state = make_pruner(loaders, "ucb").state_dict()
    with pytest.raises(UserError, match="seed"):
        make_pruner(loaders, "ucb", seed=99).load_state_dict(state)
    with pytest.raises(UserError, match="is of method ucb, not random: go on with the method"):
        make_pruner(loaders, "random").load_state_dict(state)
    with pytest.raises(UserError, match=r"^not the state of a pruner: it holds model"):
        make_pruner(loaders, "ucb").load_state_dict({"model": 1})


def test_a_refused_state_changes_nothing(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    donor = make_pruner(loaders, "ucb")
    donor.begin_epoch(0, SmallNet())
    state = donor.state_dict()
    pruner = make_pruner(loaders, "ucb")
    damaged = {
        "method": {**state["method"], "table": {**state["method"]["table"], "alpha": 0.1}},
        "loader": {**state["loader"], "batch_size": 5},
        "values": {**state["values"], "recorded": {"batches": 0}},
    }
    for part, content in damaged.items():
        with pytest.raises(UserError):
            pruner.load_state_dict({**state, part: content})
        assert pruner.state.table.updates == 0
        assert len(loaders[0].selection) == N
    pruner.load_state_dict(state)
    assert pruner.state.table.updates == 1
    assert len(loaders[0].selection) == 61


@pytest.mark.filterwarnings("ignore:1 of 203 losses:RuntimeWarning")
def test_losses_that_are_not_finite_are_counted_and_the_count_resumed(
    loaders: tuple[PrunedLoader, PrunedLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    pruner = make_pruner(loaders, "ucb")
    rows = np.ones((2, N), np.float32)  # losses, and norms of gradients
    rows[0, 3] = np.inf
    monkeypatch.setattr(ffcv_prune.scoring.values, "score_dataset", lambda *args, **options: rows)
    made = pruner.begin_epoch(0, SmallNet())
    assert made is not None and made.nonfinite == pruner.state.nonfinite == 1
    resumed = make_pruner(loaders, "ucb")
    resumed.load_state_dict(pruner.state_dict())
    assert resumed.state.nonfinite == 1


@pytest.mark.filterwarnings("ignore:1 of 203 losses:RuntimeWarning")
def test_a_selection_without_new_losses_counts_none_that_are_not_finite() -> None:
    run = methods.build("ucb", period=1, final=1).start(N, epochs=2)
    run.record(None, np.append(np.ones(N - 1, np.float32), np.inf), epoch=0)
    assert run.select(0) is not None and run.nonfinite == 1
    assert run.select(1) is not None and run.nonfinite == 0


def test_a_diverged_model_is_an_error_and_the_selection_stays(
    loaders: tuple[PrunedLoader, PrunedLoader],
) -> None:
    pruner = make_pruner(loaders, "ucb")
    model = SmallNet()
    pruner.begin_epoch(0, model)
    before = loaders[0].selection.copy()
    torch.nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(UserError, match="diverged"):
        pruner.begin_epoch(2, model)
    np.testing.assert_array_equal(loaders[0].selection, before)


@pytest.mark.parametrize("source", ["pass", "both"])
def test_a_selection_that_the_loader_refuses_is_made_again(
    loaders: tuple[PrunedLoader, PrunedLoader], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    def train(pruner: Pruner, epoch: int) -> None:
        for _, _, ids in loaders[0]:
            pruner.batch_loss(ids.float() + epoch, ids)

    def run(refuse: bool) -> tuple[Pruner, list[int]]:
        pruner = make_pruner(loaders, "ucb", score_source=source, keep=0.5)
        for epoch in range(4):
            if refuse and epoch % 2 == 0:
                monkeypatch.setattr(loaders[0], "batch_size", 150)
                for _ in range(2):
                    with pytest.raises(UserError, match="do not fill one batch"):
                        pruner.begin_epoch(epoch, SmallNet(seed=epoch))
                monkeypatch.undo()
            pruner.begin_epoch(epoch, SmallNet(seed=epoch))
            if source == "both":
                train(pruner, epoch)
        return pruner, loaders[0].selection.tolist()

    refused, selection = run(refuse=True)
    expected, expected_selection = run(refuse=False)
    assert selection == expected_selection
    assert_same(refused.state.state_dict(), expected.state.state_dict())


def test_bad_arguments(loaders: tuple[PrunedLoader, PrunedLoader], tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match="keep"):
        make_pruner(loaders, "ucb", keep=1.5)
    with pytest.raises(UserError, match="period"):
        make_pruner(loaders, "ucb", period=0)
    with pytest.raises(UserError, match="give a score_loader"):
        make_pruner((loaders[0], None), "ucb")  # type: ignore[arg-type]
    other = write_beton(tmp_path_factory.mktemp("other") / "other.beton", n=30)
    pipelines = score_pipelines(check_beton(other.path))
    other_loader = PrunedLoader(other.path, 16, pipelines=pipelines, drop_last=False)
    with pytest.raises(UserError, match="30 samples, not 203: read the same data set"):
        make_pruner((loaders[0], other_loader), "ucb")
    pipelines = score_pipelines(check_beton(loaders[0].path))
    part = PrunedLoader(loaders[0].path, 16, pipelines=pipelines, indices=np.arange(100), drop_last=False)
    for both, what in (((part, loaders[1]), "training"), ((loaders[0], part), "scoring")):
        with pytest.raises(UserError, match=f"the {what} loader leaves samples out by its indices"):
            make_pruner(both, "random")
    with pytest.raises(UserError, match="do not fill one batch"):
        make_pruner(loaders, "random", keep=0.01).begin_epoch(0, SmallNet())


@pytest.mark.parametrize("place", [0, 1])
def test_another_loader_is_refused_in_one_line(loaders: tuple[PrunedLoader, PrunedLoader], place: int) -> None:
    role = ("training", "scoring")[place]
    pipelines = score_pipelines(check_beton(loaders[0].path))
    stock = Loader(str(loaders[0].path), 16, num_workers=1, pipelines=pipelines)
    for piece, found in ((stock, "of type Loader"), (PrunedLoader, "the class PrunedLoader")):
        pair: Any = (loaders[0], piece) if place else (piece, loaders[1])
        with pytest.raises(UserError, match=rf"^the {role} loader is {found}: give a PrunedLoader"):
            Pruner(*pair, "ucb", epochs=6)
    if place:
        with pytest.raises(UserError, match=r"^the scoring loader is of type Loader: give a PrunedLoader"):
            score_dataset(SmallNet(), cast(Any, stock))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": methods.Method}, "^the method is the class Method: give its name"),
        ({"method": 3}, "^the method is of type int: give its name"),
        (
            {"method": "ucb", "task": Classification},
            r"^the task is the class Classification: give .*Classification\(\)",
        ),
        ({"method": "ucb", "task": "classification"}, "^the task is of type str: give"),
        ({"method": "ucb", "epochs": "6"}, "^the number of epochs is of type str: give a whole number"),
        ({"method": "ucb", "seed": 0.5}, "^the seed is of type float: give a whole number"),
        ({"method": "ucb", "amp_dtype": "fp16"}, "^amp_dtype='fp16': give torch.float16"),
        (
            {"method": "proxy_batch", "window": 32, "proxy": SmallNet()},
            r"^the proxy is of type SmallNet: give a Proxy\(model",
        ),
        ({"method": "ucb", "class_names": ["a"]}, "^1 class_names for labels from 0 to 9: give one a class"),
    ],
)
def test_a_class_in_place_of_an_instance(
    loaders: tuple[PrunedLoader, PrunedLoader], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Pruner(*loaders, **{"epochs": 6} | options).begin_epoch(0, SmallNet())


@pytest.mark.parametrize("epoch", [0.0, None, SmallNet()])
def test_an_epoch_that_is_no_number(loaders: tuple[PrunedLoader, PrunedLoader], epoch: Any) -> None:
    with pytest.raises(UserError, match=f"^the epoch is of type {type(epoch).__name__}: give a whole number"):
        make_pruner(loaders, "ucb").begin_epoch(epoch, SmallNet())
    assert make_pruner(loaders, "ucb").begin_epoch(np.int64(0), SmallNet()) is not None  # type: ignore[arg-type]


def test_a_model_that_is_none(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    pruner = make_pruner(loaders, "ucb")
    with pytest.raises(UserError, match=r"^the model is the class SmallNet: give a torch\.nn.Module"):
        pruner.begin_epoch(0, cast(Any, SmallNet))
    with pytest.raises(UserError, match=r"^the model is of type function: give a torch\.nn.Module"):
        score_dataset(cast(Any, lambda images: images), loaders[1])


def test_a_model_without_parameters_is_scored_on_the_cpu(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    swap = make_pruner(loaders, "ucb").begin_epoch(0, MeanColour())
    assert swap is not None and len(swap.ids) == 61


def test_a_scoring_loader_over_another_file_of_as_many_samples(
    loaders: tuple[PrunedLoader, PrunedLoader], tmp_path: Path
) -> None:
    other = write_beton(tmp_path / "other.beton", n=N, seed=5)
    pipelines = score_pipelines(check_beton(other.path))
    other_loader = PrunedLoader(other.path, 16, pipelines=pipelines, drop_last=False)
    with pytest.raises(UserError, match="other labels: read the same data set"):
        make_pruner((loaders[0], other_loader), "ucb")


def test_epochs_that_are_not_counted_from_0(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    pruner = make_pruner(loaders, "ucb")
    with pytest.raises(UserError, match=r"^epoch 1 is the first.*from 0 on, or.*load_state_dict"):
        pruner.begin_epoch(1, SmallNet())
    with pytest.raises(UserError, match="call begin_epoch before the first batch"):
        pruner.batch_loss(torch.ones(2), torch.arange(2))
    for epoch in range(6):
        pruner.begin_epoch(epoch, SmallNet())
    with pytest.raises(UserError, match="epoch 6 is outside the run"):
        pruner.begin_epoch(6, SmallNet())
    assert loaders[0].next_epoch == 5  # as it was
    assert Pruner(*loaders, "full", epochs=6).begin_epoch(3, SmallNet()) is None  # never selects


def test_an_epoch_without_begin_epoch_is_warned_about_once(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    pruner = make_pruner(loaders, "ucb", period=1, epochs=3)
    warning = r"^the training loader begins epoch 0 without begin_epoch\(0, model\): it serves 203 of 203 samples"
    with pytest.warns(UserWarning, match=warning) as caught:
        for _ in loaders[0]:
            pass
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in loaders[0]:  # said once
            pass
        make_pruner(loaders, "full", keep=None, period=None)
        for _ in loaders[0]:  # prunes nothing
            pass
    pruner = make_pruner(loaders, "random", period=1, epochs=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(2):
            pruner.begin_epoch(epoch, SmallNet())
            for _ in loaders[0]:
                pass
        with pytest.raises(UserWarning, match=r"begins epoch 2 without begin_epoch\(2, model\): it serves 61 of 203"):
            iter(loaders[0])
        del pruner
        for _ in loaders[0]:  # nobody prunes it any more
            pass
    pruner = make_pruner(loaders, "random", period=1, epochs=1)
    loaders[0].set_epoch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # after the run, to test on the training set, say
            pruner.begin_epoch(0, SmallNet())
            for _ in loaders[0]:
                pass
            for _ in loaders[0]:
                pass


def test_a_loop_over_another_loader_is_warned_about_once(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    """Defect: where the loop was still over the user's old loader, nothing was pruned, in silence."""
    pruner = make_pruner(loaders, "random", period=1, epochs=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.begin_epoch(0, SmallNet())
        pruner.begin_epoch(0, SmallNet())
    warning = r"^the training loader has begun no epoch since begin_epoch\(0, model\).*: loop over the loader that was"
    with pytest.warns(UserWarning, match=warning) as caught:
        pruner.begin_epoch(1, SmallNet())
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.begin_epoch(2, SmallNet())  # said once
        full = make_pruner(loaders, "full", keep=None, period=None)
        for epoch in range(3):
            full.begin_epoch(epoch, SmallNet())  # prunes nothing


@pytest.mark.filterwarnings("error")
def test_a_loop_over_the_loader_is_not_warned_about(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    model, loader = SmallNet(), loaders[0]
    pruner = make_pruner(loaders, "random", period=1, epochs=12)
    pruner.begin_epoch(0, model)
    served = list(loader)
    pruner.begin_epoch(0, model)  # called again, after the loop
    pruner.begin_epoch(1, model)
    next(iter(loader))  # left after a batch
    pruner.begin_epoch(2, model)
    for batch in loader.batches(2, loader.selection):  # does not count as an epoch of the loader
        pruner.batch_loss(torch.ones(len(batch.ids)), batch.ids)
    pruner.begin_epoch(3, model)
    loader.set_epoch(4)  # left out
    pruner.begin_epoch(4, model)
    loader.on_epoch = None  # as where a loader around it has taken that
    list(loader)
    pruner.begin_epoch(5, model)
    state = pruner.state_dict()
    pruner.load_state_dict(state)
    pruner.begin_epoch(6, model)
    pruner.load_state_dict(state)
    pruner.begin_epoch(5, model)  # set back
    list(itertools.islice(loader, len(loader)))  # left at the last batch
    state = pruner.state_dict()
    resumed = make_pruner(loaders, "random", period=1, epochs=12)
    resumed.load_state_dict(state)
    resumed.begin_epoch(5, model)
    assert len(loader) == 0
    resumed.begin_epoch(6, model)  # as Lightning does: the rest of the epoch, which is empty, is not asked for
    assert len(served) == 61 // 16


def test_a_loader_that_begins_its_epoch_first_is_warned_about_for_that_alone(
    loaders: tuple[PrunedLoader, PrunedLoader],
) -> None:
    """As in a framework that asks for the batches of an epoch before it tells of the epoch."""
    pruner = make_pruner(loaders, "random", period=1, epochs=4)
    with pytest.warns(UserWarning, match="begins epoch 0 without begin_epoch"):
        batches = iter(loaders[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(4):
            pruner.begin_epoch(epoch, SmallNet())
            next(batches)
            batches = iter(loaders[0])


SELECTIVE: dict[str, Any] = {"keep": 0.5, "period": None, "end": 5 / 6}  # chooses in the epochs 3 and 4 of 6


def test_batches_that_nobody_chooses_from_are_refused(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    """Defect: a loop without `choose` was trained on all data, in silence."""
    model, loader = SmallNet(), loaders[0]
    pruner = make_pruner(loaders, "selective_backprop", **SELECTIVE)
    for epoch in range(4):
        pruner.begin_epoch(epoch, model)
        for _, labels, ids in loader:
            pruner.batch_loss(labels.float(), ids)
    for _ in range(2):
        with pytest.raises(UserError, match=r"^method selective_backprop .* of epoch 3.*: use pruner\.choose in your"):
            pruner.begin_epoch(4, model)
        assert loader.next_epoch == 4
    loader.set_epoch(3)
    for epoch in (3, 4):
        pruner.begin_epoch(epoch, model)
        for batch in loader:
            pruner.choose(model, *batch)
    pruner.begin_epoch(5, model)


@pytest.mark.filterwarnings("error")
def test_epochs_without_a_batch_to_choose_from_need_no_choice(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    model, loader = SmallNet(), loaders[0]
    whole = make_pruner(loaders, "selective_backprop", **SELECTIVE, interrupt=1)  # leaves every batch whole
    for epoch in range(6):
        whole.begin_epoch(epoch, model)
        list(loader)
    pruner = make_pruner(loaders, "selective_backprop", **SELECTIVE)
    pruner.begin_epoch(0, model)
    loader.set_epoch(3, len(loader))
    pruner.begin_epoch(3, model)
    assert not list(loader)  # the rest of an epoch that was left at its last batch
    pruner.begin_epoch(4, model)
    state = pruner.state_dict()
    next(iter(loader))
    pruner.load_state_dict(state)
    pruner.begin_epoch(5, model)


def test_batches_of_another_loader_are_warned_about_and_not_refused(
    loaders: tuple[PrunedLoader, PrunedLoader],
) -> None:
    pruner = make_pruner(loaders, "selective_backprop", **SELECTIVE)
    pruner.begin_epoch(0, SmallNet())
    with pytest.warns(UserWarning, match="has begun no epoch since"):
        pruner.begin_epoch(1, SmallNet())
    for epoch in range(2, 6):
        pruner.begin_epoch(epoch, SmallNet())


@pytest.mark.parametrize("low", [-1, N - 1])
def test_ids_out_of_range_are_refused_and_nothing_is_recorded(
    loaders: tuple[PrunedLoader, PrunedLoader], low: int
) -> None:
    pruner = make_pruner(loaders, "infobatch", keep=None, period=None)
    pruner.begin_epoch(0, SmallNet())
    with pytest.raises(UserError, match=f"^ids from {low} to {low + 1}, of a data set of 203 samples: hand over"):
        pruner.batch_loss(torch.ones(2), torch.arange(low, low + 2))
    with pytest.raises(UserError, match=r"^the ids are on meta: leave them on the CPU"):
        pruner.batch_loss(torch.ones(2), torch.arange(2, device="meta"))
    for losses, ids, message in (
        ([1.0], torch.arange(1), "^the argument losses is of type list: give a tensor, one loss a sample"),
        (torch.ones(1), [0], "^the argument ids is of type list: give the tensor that the loader gave"),
        (torch.ones(1), torch.zeros(1), r"^the ids are torch\.float32 \[1\], not torch\.int64 \[B\]"),
    ):
        with pytest.raises(UserError, match=message):
            pruner.batch_loss(cast(Any, losses), cast(Any, ids))
    with pytest.raises(UserError, match="no training losses came back"):
        pruner.begin_epoch(1, SmallNet())


@pytest.mark.parametrize("task", [Regression(), MultiLabel()])
def test_a_method_that_needs_correctness_is_refused_where_the_task_has_none(
    loaders: tuple[PrunedLoader, PrunedLoader], task: Task
) -> None:
    with pytest.raises(UserError, match=f"right, and tasks.{type(task).__name__} cannot tell: take another method"):
        make_pruner(loaders, "kakurenbo", keep=None, period=None, task=task)


def test_a_selection_that_starves_classes_warns_with_the_remedy(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    scores = np.asarray(loaders[0].labels, np.float32)  # the highest classes whole, nothing of the others
    pruner = make_pruner(loaders, "static", keep=0.5, period=1, final=1, scores=scores)
    warning = r"^epoch 0: 5 of 10 classes .*0\.00 % of 0, .*random_share=0\.5 or class_floor=1"
    with pytest.warns(UserWarning, match=warning) as caught:
        pruner.begin_epoch(0, SmallNet())
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(1, 5):
            list(loaders[0])
            pruner.begin_epoch(epoch, SmallNet())  # still: said once
        list(loaders[0])
    with pytest.warns(UserWarning, match="^epoch 5: no class is starved any more"):
        pruner.begin_epoch(5, SmallNet())  # the final phase is random
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_pruner(loaders, "static", keep=0.5, class_floor=1.0, scores=scores).begin_epoch(0, SmallNet())


def test_a_training_loader_that_does_not_shuffle_is_warned_about(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    with pytest.warns(UserWarning, match="does not shuffle: pass order=OrderOption.RANDOM"):
        Pruner(loaders[1], None, "random", epochs=3)


def test_a_method_that_scores_and_keeps_everything_says_so(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    with pytest.warns(UserWarning, match="method ucb keeps all 203 samples: .*prunes nothing; lower keep"):
        make_pruner(loaders, "ucb", keep=1.0)


class Counting(Dataset[tuple[Tensor, int]]):
    """Knows its labels only sample by sample."""

    served = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.served += 1
        return torch.ones(3), i % 4


def test_labels_that_cost_a_pass_over_the_data_are_not_asked_for() -> None:
    data = Counting()
    loader, scoring = (TorchLoader(data, batch_size=8, num_workers=0, shuffle=s, drop_last=s) for s in (True, False))
    Pruner(loader, scoring, "ucb", epochs=2)
    assert data.served <= 2  # a sample of each loader, to see what it is
