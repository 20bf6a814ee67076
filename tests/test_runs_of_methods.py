"""Methods put together from the keys of a configuration, and whole runs of those that `test_trainer` leaves out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ffcv_prune.scoring.values
from ffcv_prune import config
from ffcv_prune.errors import UserError
from ffcv_prune.methods.table import ScoreTable
from ffcv_prune.pruner import Pruner
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.run_log import RunResult
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_run

pytestmark = pytest.mark.usefixtures("unpainted")

BATCH = 32
INFOBATCH = {"method": "infobatch"}

Configure = Callable[..., config.Config]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, beton: Beton, test_beton: Beton) -> Path:
    return write_run(tmp_path_factory.mktemp("methods") / "small.yaml", beton, test_beton)


@pytest.fixture
def configure(config_file: Path, tmp_path: Path) -> Configure:
    """The small config with changes of prune, and of train.epochs."""

    def make(epochs: int = 4, **prune: Any) -> config.Config:
        options = [f"--prune.{name}={value}" for name, value in prune.items()]
        return config.load(
            ["--config", str(config_file), f"--run.out={tmp_path / 'runs'}", f"--train.epochs={epochs}", *options]
        )

    return make


def read(result: RunResult) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The log and the selections of a run."""
    rows = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    return rows, [np.load(path) for path in sorted((result.folder / "selections").iterdir())]


@pytest.mark.parametrize("unbiased", ["false", "true"])
def test_an_infobatch_run_tells_the_truth(
    unbiased: str, configure: Configure, loaders: Loaders, beton: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    monkeypatch.setattr(ffcv_prune.scoring.values, "score_dataset", lambda *args, **options: scored.append(args))
    result = train(configure(epochs=8, **INFOBATCH, ratio=0.6, unbiased=unbiased), loaders)
    rows, selections = read(result)
    n, seen = len(beton), 0
    assert [row["phase"] for row in rows] == ["method"] * 7 + ["full"]
    assert len(selections) == 8
    for row, ids in zip(rows, selections, strict=True):
        assert row["keep"] == pytest.approx(len(ids) / n, abs=1e-6)
        assert row["steps"] == len(ids) // BATCH
        seen += row["steps"] * BATCH
        assert row["samples_seen"] == seen
    pruned = [len(ids) for ids in selections[1:7]]
    assert all(n / 4 < k < 0.9 * n for k in pruned) and len(set(pruned)) > 1
    assert len(selections[0]) == len(selections[7]) == n
    assert rows[0]["mean_weight"] == rows[7]["mean_weight"] == 1
    assert [row["nonfinite_losses"] for row in rows] == [0] * len(rows)
    for row in rows[1:7]:  # the kept weigh, in expectation, as much as all would
        assert row["mean_weight"] * (1 if unbiased == "true" else row["keep"]) == pytest.approx(1, abs=0.2)
    assert result.keep == pytest.approx(np.mean([row["keep"] for row in rows[:7]]), abs=1e-5)
    assert result.samples_seen == seen
    assert not scored
    with (result.folder / "result.csv").open(newline="") as file:
        (in_table,) = csv.DictReader(file)
    assert (in_table["method"], float(in_table["keep"])) == ("infobatch", result.keep)


def test_weights_change_the_training_and_a_ratio_of_0_is_training_on_all_data(
    configure: Configure, loaders: Loaders
) -> None:
    def weights(**prune: Any) -> dict[str, torch.Tensor]:
        return torch.load(train(configure(**prune), loaders).folder / "weights.pt", weights_only=True)

    full, none_dropped = weights(), weights(**INFOBATCH, ratio=0)
    assert all(torch.equal(full[name], none_dropped[name]) for name in full)
    original, unbiased = weights(**INFOBATCH), weights(**INFOBATCH, unbiased="true")
    assert any(not torch.equal(original[name], unbiased[name]) for name in full)


class Passes:
    """Scoring passes of a run: which samples each one served, and the losses it found."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.served: list[np.ndarray] = []
        real = ffcv_prune.scoring.values.score_dataset

        def score(model: nn.Module, loader: Any, **options: Any) -> np.ndarray:
            ids = options.get("ids")
            self.served.append(np.arange(loader.num_samples) if ids is None else ids)
            return real(model, loader, **options)

        monkeypatch.setattr(ffcv_prune.scoring.values, "score_dataset", score)


def test_both_sources_pass_over_what_was_not_trained_on(
    configure: Configure, loaders: Loaders, beton: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, tables = Passes(monkeypatch), []
    real = ScoreTable.update

    def update(self: ScoreTable, losses: Any, ids: Any = None, *most: float) -> int:
        if self.n == len(beton):  # not a table of the warm-up
            tables.append(np.arange(self.n) if ids is None else np.array(ids))
        return real(self, losses, ids, *most)

    monkeypatch.setattr(ScoreTable, "update", update)
    trained: list[set[int]] = []
    real_begin = Pruner.begin_epoch

    def begin_epoch(self: Any, epoch: int, model: nn.Module) -> Any:
        made = real_begin(self, epoch, model)
        order = self.loader.next_traversal_order()
        trained.append(set(order[: len(self.loader) * BATCH].tolist()))
        return made

    monkeypatch.setattr(Pruner, "begin_epoch", begin_epoch)
    train(configure(epochs=6, method="ucb", keep=0.5, period=2, score_source="both"), loaders)
    everything = set(range(len(beton)))
    rests = [everything, everything - trained[0] - trained[1], everything - trained[2] - trained[3]]
    assert [set(ids.tolist()) for ids in passes.served] == rests
    taken = [set(ids.tolist()) for ids in tables]
    assert taken == [rests[0], everything - rests[1], rests[1], everything - rests[2], rests[2]]
    assert loaders.score.selection.size == len(beton)


def test_training_losses_alone_cost_no_pass(
    configure: Configure, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = configure(method="ucb", keep=0.5, period=1, score_source="training", warmup=1, warmup_mode="full")
    made = Loaders(own)
    passes = Passes(monkeypatch)
    result = train(own, made)
    made.close()
    rows, selections = read(result)
    assert not passes.served and "score" not in vars(made)
    assert [row["phase"] for row in rows] == ["full", "method", "method", "method"]
    assert any((selections[1] != later).any() for later in selections[2:])


@pytest.mark.parametrize("source", ["training", "both"])
def test_runs_scored_by_training_repeat_bit_by_bit(source: str, configure: Configure, loaders: Loaders) -> None:
    def run() -> dict[str, torch.Tensor]:
        own = configure(method="ema", keep=0.5, period=1, score_source=source, warmup=1, warmup_mode="full")
        return torch.load(train(own, loaders).folder / "weights.pt", weights_only=True)

    first, again = run(), run()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_guards_hold_for_the_selections_of_a_run(configure: Configure, loaders: Loaders, beton: Beton) -> None:
    keys = {"method": "ucb", "keep": 0.4, "period": 2}
    result = train(configure(**keys, class_floor=1, loss_cap=0.1, random_share=0.25), loaders)
    assert result.method == "ucb+random(0.25)+loss_cap(0.1)+class_quota(1)"
    counts = np.bincount(beton.labels)
    for ids in read(result)[1]:
        assert (np.abs(np.bincount(beton.labels[ids], minlength=10) - 0.4 * counts) < 1).all()
    unguarded = read(train(configure(**keys), loaders))[1]
    assert (np.abs(np.bincount(beton.labels[unguarded[0]], minlength=10) - 0.4 * counts) > 1).any()


def test_the_cap_leaves_out_the_highest_losses_of_each_class(configure: Configure, beton: Beton) -> None:
    method = configure(method="ucb", keep=81 / len(beton), class_floor=1, loss_cap=0.1).prune
    state = method.start(len(beton), groups=beton.labels)
    losses = (np.random.default_rng(0).gamma(1, 1, len(beton)) + 5 * beton.labels).astype(np.float32)
    state.record(None, losses, epoch=0)
    selection = state.select(0)
    assert selection is not None
    for label in range(10):
        members = np.flatnonzero(beton.labels == label)
        highest = members[np.argsort(losses[members])[-round(0.1 * len(members)) :]]
        assert not np.isin(highest, selection.ids).any()
        assert np.isin(members, selection.ids).any()


@pytest.mark.parametrize(
    ("name", "value"),
    [("keep", 0.5), ("period", 10), ("score_source", "pass"), ("final", 1), ("random_share", 0.1), ("loss_cap", 0.1)],
)
def test_what_is_not_infobatch_is_refused(name: str, value: Any, configure: Configure) -> None:
    with pytest.raises(UserError, match=rf"prune\.{name} \(command line\): method infobatch takes no {name}"):
        configure(**INFOBATCH | {name: value})


def test_methods_that_cannot_work_are_refused_before_anything_is_written(
    configure: Configure, loaders: Loaders
) -> None:
    with pytest.raises(UserError, match=r"none before its first selection.*warmup=1"):
        configure(method="ucb", keep=0.5, score_source="training")
    own = configure(**INFOBATCH, ratio=0.8)
    with pytest.raises(UserError, match=r"method infobatch possibly keeps 12 of 203.*drop fewer"):
        train(own, loaders)
    assert not Path(own.run.out).exists()


FIELD: dict[str, dict[str, Any]] = {
    "recent_loss": {"keep": 0.5, "warmup": 1},
    "kakurenbo": {"fraction": 0.4, "confidence": 0.1},
    "repb": {"ratio": 0.5},
    "selective_backprop": {"start": 0, "end": 1, "interrupt": 0},
    "proxy_batch": {"window": 64, "proxy_model": "resnet_tiny", "proxy_lr": 0.02, "stride": 2, "proxy_size": 8},
}


@pytest.mark.parametrize("name", FIELD)
def test_runs_of_the_field_repeat_and_count_their_costs(
    name: str, configure: Configure, loaders: Loaders, beton: Beton
) -> None:
    def run() -> tuple[RunResult, dict[str, torch.Tensor]]:
        result = train(configure(method=name, **FIELD[name]), loaders)
        return result, torch.load(result.folder / "weights.pt", weights_only=True)

    result, first = run()
    again, second = run()
    assert all(torch.equal(first[key], second[key]) for key in first) and again.cost == result.cost
    rows, selections = read(result)
    n, cost = len(beton), result.cost
    assert rows[-1]["cost"] == cost
    if name == "selective_backprop":
        served = rows[0]["steps"] * BATCH
        assert cost["forwards"] == 3 * served
        assert result.samples_seen == served + 3 * served // 2
        assert [row["keep"] for row in rows] == [1.0, 0.5, 0.5, 0.5] and len(selections) == 1
    elif name == "proxy_batch":
        windows = -(-n // 64)
        assert cost["proxy_forwards"] == cost["decoded"] == 4 * n and cost["proxy_steps"] == -(-4 * windows // 2)
        assert cost["forwards"] == 0 and {len(ids) for ids in selections} == {3 * 32 + round((n - 192) / 2)}
    elif name == "kakurenbo":
        hidden = [n - len(ids) for ids in selections]
        assert hidden[0] == 0 and max(hidden) > 10
        assert cost["forwards"] == cost["decoded"] == sum(hidden[:-1])
        rates = [row["lr"] for row in rows]
        raised = 0.2 * 0.02 * n / (n - int(0.4 * n))  # past a milestone; the fraction falls from epoch 1.2 on
        assert rates[:2] == pytest.approx([0.02, raised])
    else:
        assert not any(cost.values())
    with (result.folder / "result.csv").open(newline="") as file:
        (in_table,) = csv.DictReader(file)
    assert {key: int(in_table[key]) for key in cost} == cost


@pytest.mark.parametrize("form", ["composer", "jiang"])
def test_epochs_without_a_step_are_warned_about_and_logged(
    form: str, configure: Configure, loaders: Loaders, capsys: pytest.CaptureFixture[str]
) -> None:
    """Composer's form keeps int(0.03 * 32) of a batch; Jiang's rule with a high power takes next to nothing."""
    never: dict[str, Any] = {"keep": 0.03} if form == "composer" else {"form": form, "beta": 1e6}
    options = never | {"start": 0, "end": 1, "interrupt": 0}
    with pytest.warns(UserWarning, match="epoch 1 made no step: of its 6 batches, method selective_backprop chose"):
        result = train(configure(epochs=3, method="selective_backprop", **options), loaders)
    rows, _ = read(result)
    assert [row["train_loss"] is None for row in rows] == [False, True, True]
    assert [row["keep"] for row in rows] == [1, 0, 0] and rows[2]["samples_seen"] == rows[0]["samples_seen"]
    assert "no step  test" in capsys.readouterr().out
    assert (result.folder / "report.html").exists()


def test_a_proxy_needs_a_net_and_a_window_that_fits(configure: Configure, loaders: Loaders) -> None:
    with pytest.raises(UserError, match=r"prune\.method=proxy_batch needs prune\.proxy_model"):
        configure(method="proxy_batch")
    own = configure(method="proxy_batch", proxy_model="basic_cnn")
    with pytest.raises(UserError, match="window=1024 is larger than the data set of 203 samples"):
        train(own, loaders)
    assert not Path(own.run.out).exists()
