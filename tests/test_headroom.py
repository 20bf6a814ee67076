"""Headroom: the gradient norms of the tasks, what is told of their spread, and where a run says it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ffcv_prune import config, tasks
from ffcv_prune.scoring.forward import score_dataset
from ffcv_prune.scoring.headroom import headroom_of
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.loop import Trainer
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_run

pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, beton: Beton, test_beton: Beton) -> Path:
    return write_run(tmp_path_factory.mktemp("config") / "small.yaml", beton, test_beton, 6)


def expected_norms(task: tasks.Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """By the formulas of the three losses."""
    outputs = outputs.float()
    if isinstance(task, tasks.Classification):
        wanted = torch.nn.functional.one_hot(targets, outputs.shape[1]).float()
        smooth = task.label_smoothing
        return (outputs.softmax(1) - (1 - smooth) * wanted - smooth / outputs.shape[1]).norm(dim=1)
    if isinstance(task, tasks.MultiLabel):
        return (outputs.sigmoid() - targets).norm(dim=1) / outputs.shape[1]
    return 2 * (outputs - targets).norm(dim=1) / outputs.shape[1]


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        (tasks.Classification(), torch.arange(5) % 3),
        (tasks.Classification(0.2), torch.arange(5) % 3),
        (tasks.MultiLabel(), (torch.arange(15).view(5, 3) % 2).float()),
        (tasks.Regression(), torch.arange(15.0).view(5, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_norms_are_those_of_the_loss(task: tasks.Task, targets: Tensor, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        outputs = (torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
        found = task.gradient_norms(outputs, targets)
        torch.testing.assert_close(found, expected_norms(task, outputs, targets))
    assert not found.requires_grad


def test_one_number_a_sample() -> None:
    found = tasks.Regression().gradient_norms(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
    assert found.tolist() == [2.0, 4.0]


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=200), st.integers(1, 500))
def test_the_spread_equals_its_twin(values: list[float], trained: int) -> None:
    norms = np.array(values, np.float32)
    found = headroom_of(norms, 2 * len(values), trained)
    assert found is not None
    ordered = sorted((float(value) for value in norms), reverse=True)
    total = sum(ordered)
    if total == 0:
        ordered, total = [1.0] * len(values), len(values)
    for percent in (10, 30, 50):
        share = sum(ordered[: round(percent / 100 * len(values))]) / total
        assert getattr(found, f"highest_{percent}") == pytest.approx(share, abs=1e-9)
    mean, square = total / len(values), sum(value**2 for value in ordered) / len(values)
    assert found.variance_reduction == pytest.approx(1 - mean**2 / square, abs=1e-6)
    assert 1 <= found.batch_gain <= len(values) * (1 + 1e-6) and found.scored == 0.5
    assert found.batch_gain_needed == pytest.approx(1 + len(values) / (3 * trained))


def test_the_gain_is_what_drawing_by_the_norms_takes_from_the_second_moment() -> None:
    """With p proportional to the norms and weights 1 / (n p), by simulation; equal draws then need a larger batch."""
    rng = np.random.default_rng(0)
    norms = rng.exponential(size=500).astype(np.float32)
    gradients = norms[:, None] * np.eye(500, dtype=np.float32)  # so that their mean is next to nothing
    p = norms / norms.sum(dtype=np.float64)
    found = headroom_of(norms, 500, 100)
    assert found is not None and 1.5 < found.batch_gain < 2.5

    def error(batch: int, chances: np.ndarray) -> float:
        drawn = rng.choice(500, (4000, batch), p=chances / chances.sum())
        weights = 1 / (500 * chances[drawn])
        estimates = np.zeros((4000, 500))
        np.add.at(estimates, (np.arange(4000)[:, None], drawn), weights * norms[drawn] / batch)
        return float(np.square(estimates - gradients.mean(0)).sum(1).mean())

    even = np.full(500, 1 / 500)
    assert error(50, p) == pytest.approx(error(round(50 * found.batch_gain), even), rel=0.03)
    assert error(1, p) / error(1, even) == pytest.approx(1 - found.variance_reduction, rel=0.03)


def test_the_gain_is_larger_where_gradients_agree() -> None:
    """Their mean is no noise: what is left of the second moments after it differs by a larger factor."""
    norms = np.random.default_rng(0).exponential(size=500)
    found = headroom_of(norms.astype(np.float32), 500, 100)
    assert found is not None
    for cosine in (0.0, 0.5, 0.9):  # of each gradient and one direction
        mean = (cosine * norms.mean()) ** 2
        assert (np.square(norms).mean() - mean) / (norms.mean() ** 2 - mean) >= found.batch_gain * (1 - 1e-6)


def test_equal_norms_leave_no_headroom_and_one_sample_all_of_it() -> None:
    flat = headroom_of(np.full(100, 0.5, np.float32), 100, 1000)
    assert flat is not None and flat.is_little
    assert (flat.highest_30, flat.batch_gain) == (pytest.approx(0.3), pytest.approx(1.0))
    assert "hold 30% of the gradient" in flat.in_words() and "cannot pay yet" in flat.in_words()
    single = headroom_of(np.eye(1, 100, dtype=np.float32)[0], 100, 1000)
    assert single is not None and not single.is_little
    assert (single.highest_10, single.batch_gain) == (1.0, pytest.approx(100.0))


def test_a_part_of_the_samples_cannot_tell_that_there_is_little() -> None:
    part = headroom_of(np.full(100, 0.5, np.float32), 101, 1000)
    assert part is not None and not part.is_little


def test_norms_that_are_not_finite_do_not_count() -> None:
    assert headroom_of(np.array([np.nan, np.inf], np.float32), 2, 1) is None
    found, alone = (headroom_of(np.array(values, np.float32), 3, 3) for values in ([1, np.nan, 3], [1, 3]))
    assert found is not None and alone is not None
    assert found.variance_reduction == alone.variance_reduction


def test_a_pass_returns_the_norms_below_the_losses(loaders: Loaders) -> None:
    torch.manual_seed(0)
    model = loaders.build_model("basic_cnn", 0, {})
    plain = score_dataset(model, loaders.score)
    both = score_dataset(model, loaders.score, certainty=True, gradients=True)
    assert both.shape == (4, plain.size)
    np.testing.assert_array_equal(both[0], plain)
    # of C classes with the correct one at p, the norm lies between 1 - p and sqrt(2) (1 - p)
    wrong = 1 - np.exp(-both[0])
    assert (both[3] >= wrong - 1e-5).all() and (both[3] <= math.sqrt(2) * wrong + 1e-5).all()


def test_a_run_logs_the_headroom_of_each_pass_and_says_once_that_it_is_little(
    settings: Callable[..., config.Config], loaders: Loaders, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(settings(prune__method="ucb", prune__keep=0.5, prune__period=2), loaders).folder
    rows: list[dict[str, Any]] = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["headroom"] is not None for row in rows] == [True, False] * 3
    first = rows[0]["headroom"]
    assert 20 / 203 - 1e-4 <= first["highest_10"] <= first["highest_30"] <= first["highest_50"] <= 1
    assert first["batch_gain_needed"] == pytest.approx(1 + 203 / (3 * 2 * 102), abs=1e-4)
    told = capsys.readouterr().out.splitlines()
    little = [row["headroom"]["batch_gain"] < row["headroom"]["batch_gain_needed"] for row in rows[::2]]
    assert little[0]  # an untrained model finds all samples equally hard
    times = sum(now and (i == 0 or not little[i - 1]) for i, now in enumerate(little))
    assert sum("pruning cannot pay yet" in line for line in told) == times


def test_a_resumed_run_does_not_say_it_again(
    settings: Callable[..., config.Config], loaders: Loaders, capsys: pytest.CaptureFixture[str]
) -> None:
    first, resumed = (Trainer(settings(prune__method="ucb", prune__period=2), loaders) for _ in range(2))
    first.pruner.begin_epoch(0, first.stepper.model)
    for _ in range(2):
        first._tell_headroom(0)
    assert capsys.readouterr().out.count("pruning cannot pay yet") == 1
    resumed.load_state_dict(first.state_dict())
    resumed._tell_headroom(0)
    assert "pruning" not in capsys.readouterr().out


def test_a_pass_is_paid_for_by_the_epochs_of_its_selection(
    settings: Callable[..., config.Config], loaders: Loaders
) -> None:
    keys = {"keep": 0.5, "period": 5, "final": 2, "final_mode": "full"}
    prune = {f"prune__{name}": value for name, value in keys.items()}
    folder = train(settings(prune__method="ucb", **prune), loaders).folder
    first = json.loads((folder / "log.jsonl").read_text().splitlines()[0])["headroom"]
    assert first["batch_gain_needed"] == pytest.approx(1 + 203 / (3 * 4 * 102), abs=1e-4)


def test_a_method_without_passes_has_none(settings: Callable[..., config.Config], loaders: Loaders) -> None:
    folder = train(settings(prune__method="random", prune__keep=0.5), loaders).folder
    assert '"headroom": null' in (folder / "log.jsonl").read_text()
