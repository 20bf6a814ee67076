"""Whole runs on small data: every method, the run folder, determinism, evaluation, interruption."""

from __future__ import annotations

import csv
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from ffcv_prune import config, methods, tasks
from ffcv_prune.errors import UserError
from ffcv_prune.models import build_model
from ffcv_prune.training import checkpoint, pruning
from ffcv_prune.training.dataset import open_dataset
from ffcv_prune.training.epoch import Stepper, evaluate
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_run
from tests.nets import in_a_step

pytestmark = pytest.mark.usefixtures("unpainted")

METHODS = ["random", "uncertainty", "ema", "epsilon_greedy", "ucb", "static_random"]
BATCH, EPOCHS, KEEP = 32, 4, 0.5
HALF = {"prune__keep": KEEP, "prune__period": 2}

Settings = Callable[..., config.Config]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, beton: Beton, test_beton: Beton) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    return write_run(path, beton, test_beton, EPOCHS, data="augment: pad_crop_flip")


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def selections(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path) for path in sorted((folder / "selections").iterdir())}


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "loader" in thread.name]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_two_selections_for_every_method(
    method: str, settings: Settings, loaders: Loaders, beton: Beton
) -> None:
    result = train(settings(prune__method=method, **HALF), loaders)
    k = round(KEEP * len(beton))
    steps = k // BATCH
    rows = read_log(result.folder)
    assert [row["epoch"] for row in rows] == list(range(EPOCHS))
    assert [row["selected"] for row in rows] == [True, False, True, False]
    assert [row["steps"] for row in rows] == [steps] * EPOCHS
    assert [row["samples_seen"] for row in rows] == [steps * BATCH * e for e in range(1, EPOCHS + 1)]
    assert result.samples_seen == steps * BATCH * EPOCHS
    for row in rows:
        assert row["keep"] == pytest.approx(k / len(beton), abs=1e-6)
        assert row["pruning_rate"] == pytest.approx(1 - row["keep"])
        parts = {name: seconds for name, seconds in row["seconds"].items() if name != "total"}
        assert set(parts) == {"load", "score", "select", "swap", "train", "eval", "save"}
        assert all(seconds >= 0 for seconds in parts.values())
        assert sum(parts.values()) <= row["seconds"]["total"]
        assert (row["seconds"]["score"] > 0.001) == (row["selected"] and "random" not in method)
    made = selections(result.folder)
    assert list(made) == ["epoch_0000.npy", "epoch_0002.npy"]
    for ids, row in zip(made.values(), rows[::2], strict=True):
        assert ids.dtype == np.int64
        assert len(np.unique(ids)) == k
        assert (np.diff(ids) > 0).all()
        of_class = {
            int(name): share * (beton.labels == int(name)).sum() for name, share in row["class_fraction"].items()
        }
        assert {c: round(n) for c, n in of_class.items()} == dict(
            enumerate(np.bincount(beton.labels[ids], minlength=10))
        )
    if method == "random":  # the others train on what is hard: their loss may rise
        assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert result.metrics == {"accuracy": rows[-1]["test_accuracy"], "top5": rows[-1]["test_top5"]}
    assert result.method == method
    assert not loader_threads()


def test_the_run_folder_is_complete_and_can_be_used_again(settings: Settings, loaders: Loaders) -> None:
    settings_of_run = settings(prune__method="ucb", **HALF)
    folder = train(settings_of_run, loaders).folder
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "dataset.json",
        "log.jsonl",
        "machine.json",
        "report.html",
        "result.csv",
        "selections",
        "status.json",
        "weights.pt",
    }
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert config.load(["--config", str(folder / "config.yaml")]) == settings_of_run
    machine = json.loads((folder / "machine.json").read_text())
    assert {"cpu", "cores", "torch", "ffcv", "commit", "date"} <= machine.keys()
    model = build_model("basic_cnn", 10, loaders.dataset.mean, loaders.dataset.std)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    rows = read_log(folder)
    with (folder / "result.csv").open(newline="") as file:
        (result,) = csv.DictReader(file)
    assert float(result["accuracy"]) == pytest.approx(rows[-1]["test_accuracy"], abs=1e-6)
    last_save = float(result["total_seconds"]) - sum(row["seconds"]["total"] for row in rows)
    assert -1e-3 <= last_save <= float(result["save_seconds"])
    metrics, _ = evaluate(model, loaders.test, tasks.Classification(), None)
    top1, top5 = metrics.values()
    assert (top1, top5) == (rows[-1]["test_accuracy"], rows[-1]["test_top5"])


def test_a_folder_is_never_overwritten(settings: Settings, loaders: Loaders) -> None:
    names = [train(settings(train__epochs=1, train__eval_every=9), loaders).folder.name for _ in range(3)]
    assert names == ["small", "small_2", "small_3"]


def test_full_data_needs_neither_selections_nor_a_scoring_loader(settings: Settings) -> None:
    result = train(settings(train__epochs=2, train__eval_every=2))
    rows = read_log(result.folder)
    assert [(row["phase"], row["keep"], row["selected"]) for row in rows] == [("full", 1.0, False)] * 2
    assert [row["test_accuracy"] is None for row in rows] == [True, False]
    assert set(rows[0]["class_fraction"].values()) == {1.0}
    assert not selections(result.folder)
    assert result.method == "full"


def test_scores_are_only_paid_for_by_policies_that_use_them(settings: Settings) -> None:
    made = Loaders(settings())
    train(settings(prune__method="random", prune__keep=KEEP, train__epochs=1), made)
    assert "score" not in vars(made)


def test_warm_up_and_final_phase_with_the_learning_rate_on_the_true_number_of_steps(
    settings: Settings, loaders: Loaders, beton: Beton
) -> None:
    result = train(
        settings(
            prune__method="ucb",
            prune__keep=KEEP,
            prune__warmup=1,
            prune__warmup_mode="full",
            prune__final=1,
            prune__final_mode="random",
            prune__period=1,
            train__lr_milestones="0.25,0.5",
            train__lr_factor=0.1,
        ),
        loaders,
    )
    rows = read_log(result.folder)
    full, pruned = len(beton) // BATCH, round(KEEP * len(beton)) // BATCH
    assert [row["phase"] for row in rows] == ["full", "method", "method", "random"]
    assert [row["steps"] for row in rows] == [full, pruned, pruned, pruned]
    assert [row["lr"] for row in rows] == pytest.approx([0.02, 0.002, 0.0002, 0.0002])
    assert rows[-1]["samples_seen"] == (full + 3 * pruned) * BATCH
    assert [row["seconds"]["score"] > 0.001 for row in rows] == [False, True, True, False]


def test_the_same_seed_repeats_the_run_bit_by_bit(settings: Settings, loaders: Loaders) -> None:
    def run(seed: int) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor], list[float]]:
        folder = train(settings(prune__method="epsilon_greedy", **HALF, run__seed=seed), loaders).folder
        weights = torch.load(folder / "weights.pt", weights_only=True)
        return selections(folder), weights, [row["train_loss"] for row in read_log(folder)]

    (ids, weights, losses), (ids_again, weights_again, losses_again), (other_ids, other_weights, _) = (
        run(0),
        run(0),
        run(1),
    )
    assert losses == losses_again
    for name in ids:
        np.testing.assert_array_equal(ids[name], ids_again[name])
        assert (ids[name] != other_ids[name]).any()
    for name in weights:
        assert torch.equal(weights[name], weights_again[name])
    assert any(not torch.equal(weights[name], other_weights[name]) for name in weights)


def test_evaluation_counts_each_test_sample_once(loaders: Loaders, test_beton: Beton) -> None:
    torch.manual_seed(0)
    model = build_model("basic_cnn", 10, loaders.dataset.mean, loaders.dataset.std)
    metrics, by_class = evaluate(model, loaders.test, tasks.Classification(), None, classes=11)
    top1, top5 = metrics.values()
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(test_beton.images).permute(0, 3, 1, 2))
    best = logits.argsort(dim=1, descending=True)[:, :5].numpy() == test_beton.labels[:, None]
    assert top1 == pytest.approx(best[:, 0].mean())
    assert top5 == pytest.approx(best.any(axis=1).mean())
    assert by_class == [*(pytest.approx(best[test_beton.labels == c, 0].mean()) for c in range(10)), None]


def test_ctrl_c_in_an_epoch_leaves_a_readable_folder_and_no_threads(settings: Settings, loaders: Loaders) -> None:
    own = settings()  # six batches an epoch: more than are decoded ahead
    log = Path(own.run.out) / "small" / "log.jsonl"

    def begun() -> int:
        assert loaders._train is not None
        return loaders._train.ring.workers.submitted()

    def interrupt(module: torch.nn.Module, images: tuple[torch.Tensor]) -> None:
        if in_a_step(module) and len(log.read_text().splitlines()) == 2:
            assert begun()
            raise KeyboardInterrupt

    with torch.nn.modules.module.register_module_forward_pre_hook(interrupt), pytest.raises(KeyboardInterrupt):
        train(own, loaders)
    assert not loader_threads()
    assert not begun()
    assert [row["epoch"] for row in read_log(log.parent)] == [0, 1]
    status = json.loads((log.parent / "status.json").read_text())
    assert (status["status"], status["epochs"]) == ("interrupted", 2)


@pytest.mark.parametrize(("amp", "remedy"), [("off", ""), ("bf16", ", or set train.amp=off")])
def test_a_diverged_model_stops_the_run_with_an_error(
    amp: str, remedy: str, settings: Settings, loaders: Loaders
) -> None:
    own = settings(train__lr=1e30, train__amp=amp, run__save_every=0)
    with pytest.raises(UserError, match=rf"diverged; begin a new run with a lower train\.lr{remedy}$"):
        train(own, loaders)
    run = Path(own.run.out) / "small"
    assert json.loads((run / "status.json").read_text())["status"] == "failed"
    saved = checkpoint.load(run, own, loaders.dataset.fingerprints)
    assert math.isfinite(saved["ranks"][0]["loss_sum"])
    assert all(tensor.isfinite().all() for tensor in saved["stepper"]["model"].values())


def test_momentum_begins_at_zero_when_the_loss_scaler_skips_the_first_step(loaders: Loaders) -> None:
    factors = iter([math.inf, 0.0])

    def batch_loss(losses: torch.Tensor, *_: Any) -> torch.Tensor:
        return losses.mean() * next(factors, 1.0)

    momenta = []

    def after_step() -> None:
        momenta.append([state["momentum_buffer"].clone() for state in stepper.optimizer.state.values()])

    model = build_model("basic_cnn", 10, loaders.dataset.mean, loaders.dataset.std)
    stepper = Stepper(model, config.Train(epochs=1, lr=0.01, weight_decay=0.0), torch.float16)
    torch.use_deterministic_algorithms(True)  # fills what is not initialised with NaN
    try:
        with tqdm(disable=True) as bar:
            stepper.train_epoch(loaders.train(0), 0, batch_loss, bar, after_step)
    finally:
        torch.use_deterministic_algorithms(False)
    assert stepper.scaler.get_scale() < 2**16  # the first step was skipped
    for first, second, third in zip(*momenta[:3], strict=True):
        assert not first.any()
        assert not second.any()
        assert third.any()
        assert third.isfinite().all()


def test_a_run_saved_in_another_precision_goes_on_in_fp16() -> None:
    """It has no state of a loss scaler, which `torch.amp.GradScaler` refuses to load."""
    of_run, here = (
        Stepper(torch.nn.Linear(2, 2), config.Train(epochs=1, lr=0.01), dtype) for dtype in (None, torch.float16)
    )
    scale = here.scaler.get_scale()
    here.load_state_dict(of_run.state_dict())
    assert here.scaler.get_scale() == scale


def test_a_selection_that_loses_classes_warns_once(
    settings: Settings,
    loaders: Loaders,
    beton: Beton,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_class = methods.build("static", keep=KEEP, period=1)  # keeps the highest classes whole
    made = (by_class, beton.labels.astype(np.float32), 0.0)
    monkeypatch.setattr(pruning, "with_static_scores", lambda *_: made)
    warning = r"epoch 0: .* of 10 classes hold less than 20 %.*least: 0\.00 % of 0,"
    with pytest.warns(UserWarning, match=warning) as caught:
        train(settings(prune__method="ucb", prune__keep=KEEP, train__epochs=3), loaders)
    assert sum("classes hold less" in str(warning.message) for warning in caught) == 1


def test_a_finished_run_is_gone_on_from(settings: Settings, loaders: Loaders, tmp_path: Path) -> None:
    first = train(settings(train__lr=1e-9, train__weight_decay=0), loaders).folder
    options = ["--init-from", str(first), "--run.seed=5", "--prune.method=random", f"--prune.keep={KEEP}"]
    second = train(config.load([*options, "--prune.period=1"]), loaders).folder
    assert second == first.with_name("small_2")
    before, after = (torch.load(folder / "weights.pt") for folder in (first, second))
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)  # of another seed, but for its beginning


def test_a_run_of_other_weights_is_refused(settings: Settings, tmp_path: Path) -> None:
    torch.save(build_model("resnet_tiny", 10, [0.5] * 3, [0.5] * 3).state_dict(), tmp_path / "other.pt")
    refuse(settings(model__weights=tmp_path / "other.pt"), "of another network")


def test_loaders_of_other_settings_are_refused(settings: Settings, loaders: Loaders) -> None:
    with pytest.raises(ValueError, match="other data settings"):
        train(settings(train__batch_size=16), loaders)


def refuse(own: config.Config, match: str) -> None:
    """The run is refused with this message before anything is written."""
    with pytest.raises(UserError, match=match):
        train(own)
    assert not Path(own.run.out).exists()


def test_what_does_not_fit_together_is_refused_before_anything_is_written(settings: Settings, tmp_path: Path) -> None:
    refuse(
        settings(prune__method="ucb", prune__keep=0.1),
        r"keeps 20 of 203 samples.*batch of 32.*raise prune\.keep",
    )
    refuse(settings(train__batch_size=204), r"batch of 204")
    refuse(settings(model__classes=7), r"labels from 0 to 9.*model\.classes")
    refuse(settings(model__name="resnet19"), "resnet18")
    refuse(settings(data__test=tmp_path / "none.beton"), r"none\.beton")
    refuse(settings(train__device="cuda:99"), "cuda:99")
    refuse(settings(train__amp="fp16"), "fp16")


def test_a_file_without_a_manifest_is_used_with_one_notice(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_dataset(settings().data, 0)
    assert dataset.classes == [str(c) for c in range(10)]
    assert dataset.mean == [0.485, 0.456, 0.406]
    assert capsys.readouterr().err.count("\n") == 1
    assert len(open_dataset(settings().data, 12).classes) == 12
