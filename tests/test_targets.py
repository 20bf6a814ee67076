"""Targets that are no classes: found in the file, trained on, scored and tested."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import FloatField, IntField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter

from ffcv_prune import commands, config, tasks
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.targets import Target, find_target
from ffcv_prune.training import static_scores
from ffcv_prune.training.dataset import open_dataset
from tests.betons import Beton, write_targets

VECTOR = NDArrayField(np.dtype(np.float32), (3,))


def brightness(beton: Beton) -> np.ndarray:
    """float64[n], easy to learn: 0 is a mean image."""
    return (beton.images.mean(axis=(1, 2, 3)) - 128) / 40


def bright_channels(beton: Beton) -> np.ndarray:
    """float32[n, 3]: which of red, green and blue are bright."""
    return (beton.images.mean(axis=(1, 2)) > 128).astype(np.float32)


@pytest.fixture(scope="module")
def numbers(beton: Beton, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_targets(tmp_path_factory.mktemp("targets") / "numbers.beton", beton, brightness(beton), FloatField())


@pytest.fixture(scope="module")
def vectors(beton: Beton, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_targets(tmp_path_factory.mktemp("targets") / "vectors.beton", beton, bright_channels(beton), VECTOR)


def command_line(path: Path, out: Path, **changes: Any) -> list[str]:
    file = out / "small.yaml"
    file.write_text(
        f"""
data: {{train: {path}, test: {path}}}
model: {{name: resnet_tiny}}
train: {{epochs: 2, batch_size: 8, lr: 0.02, weight_decay: 0, device: cpu, amp: "off"}}
"""
    )
    options = [f"--{name.replace('__', '.')}={value}" for name, value in changes.items()]
    return ["--config", str(file), f"--run.out={out / 'runs'}", *options]


def run(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], out: Path
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The log's rows and the result of ``python train_imagenet.py``."""
    monkeypatch.setattr(sys, "argv", ["train_imagenet.py", *arguments])
    commands.train()
    rows = [json.loads(line) for line in (out / "runs/small/log.jsonl").read_text().splitlines()]
    with (out / "runs/small/result.csv").open(newline="") as file:
        (result,) = csv.DictReader(file)
    return rows, result


def test_a_number_is_learnt(
    numbers: Path,
    beton: Beton,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows, result = run(monkeypatch, command_line(numbers, tmp_path), tmp_path)
    assert rows[-1]["test_rmse"] < 0.7 * brightness(beton).std()
    assert rows[-1]["test_mae"] < rows[-1]["test_rmse"]
    assert rows[-1]["test_accuracy"] is None
    assert rows[-1]["class_fraction"] == {}
    assert float(result["rmse"]) == pytest.approx(rows[-1]["test_rmse"], abs=1e-6)
    assert result["accuracy"] == ""
    assert f"test rmse {rows[-1]['test_rmse']:.4f} after" in capsys.readouterr().out


def test_several_labels_are_learnt(
    vectors: Path, beton: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, result = run(monkeypatch, command_line(vectors, tmp_path, train__task="multi_label"), tmp_path)
    share = bright_channels(beton).mean(axis=0)
    assert rows[-1]["test_accuracy"] > np.maximum(share, 1 - share).mean() + 0.1  # better than the same for all
    assert rows[-1]["test_exact_match"] <= rows[-1]["test_accuracy"]
    assert float(result["exact_match"]) == pytest.approx(rows[-1]["test_exact_match"], abs=1e-6)


@pytest.mark.parametrize("task", ["regression", "multi_label"])
def test_what_is_no_class_is_pruned_too(
    task: str, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"prune__method": "ucb", "prune__keep": 0.5, "prune__period": 1, "train__task": task}
    rows, _ = run(monkeypatch, command_line(vectors, tmp_path, **options), tmp_path)
    assert [row["keep"] for row in rows] == pytest.approx([0.5, 0.5], abs=0.01)
    assert len(list((tmp_path / "runs/small/selections").iterdir())) == 2
    assert rows[-1]["nonfinite_losses"] == 0


def test_the_field_called_label_or_else_the_only_one(numbers: Path, vectors: Path, beton: Beton) -> None:
    assert find_target(check_beton(numbers), "auto") == Target("label", "regression", 1)
    assert find_target(check_beton(numbers), "regression") == Target("label", "regression", 1)
    assert find_target(check_beton(vectors), "multi_label") == Target("label", "multi_label", 3)
    assert find_target(check_beton(vectors), "regression") == Target("label", "regression", 3)
    assert find_target(check_beton(beton.path), "auto") == Target("label", "classification", 0)
    with pytest.raises(UserError, match=r'"label".*holds arrays: set train\.task=multi_label or regression'):
        find_target(check_beton(vectors), "auto")
    with pytest.raises(UserError, match=r"no NDArrayField: for train\.task=multi_label"):
        find_target(check_beton(numbers), "multi_label")
    with pytest.raises(UserError, match="no integer field"):
        find_target(check_beton(numbers), "classification")


def test_several_fields_that_could_be_it(beton: Beton, tmp_path: Path) -> None:
    def write(name: str, **others: Any) -> Any:
        fields = {"image": RGBImageField("raw"), **others}
        row = [
            {FloatField: 1.5, IntField: 2}.get(type(field), np.zeros((2, 2), np.float32)) for field in others.values()
        ]
        DatasetWriter(str(tmp_path / name), fields, num_workers=1).from_indexed_dataset([(beton.images[0], *row)] * 4)
        return check_beton(tmp_path / name)

    two = write("two", width=FloatField(), depth=FloatField())
    with pytest.raises(UserError, match="width, depth, none called label"):
        find_target(two, "regression")
    both = write("both", number=IntField(), age=FloatField())
    assert find_target(both, "auto").task == "classification"
    assert find_target(both, "regression") == Target("age", "regression", 1)
    named = write("named", number=IntField(), label=FloatField())
    assert find_target(named, "auto") == Target("label", "regression", 1)
    with pytest.raises(UserError, match=r"arrays \[2, 2\]: targets must be vectors"):
        find_target(write("square", label=NDArrayField(np.dtype(np.float32), (2, 2))), "regression")


def test_what_only_classes_have_is_refused_in_one_line(
    numbers: Path, vectors: Path, beton: Beton, tmp_path: Path
) -> None:
    own = config.load(command_line(numbers, tmp_path, data__score=beton.path))
    with pytest.raises(UserError, match=r"data\.score goes with classes"):
        open_dataset(own.data, 0)
    own = config.load(command_line(numbers, tmp_path))
    with pytest.raises(UserError, match=r"model\.classes goes with classes"):
        open_dataset(own.data, 10)
    dataset = open_dataset(own.data, 0)
    assert dataset.target.build_task(own.train) == tasks.Regression()
    own = config.load(command_line(numbers, tmp_path, train__label_smoothing=0.1))
    with pytest.raises(UserError, match=r"train\.label_smoothing=0\.1: regression has none"):
        dataset.target.build_task(own.train)
    own = config.load(command_line(numbers, tmp_path, data__test=vectors, train__task="regression"))
    with pytest.raises(UserError, match="different targets"):
        open_dataset(own.data, 0, "regression")
    options = {"prune__method": "static", "prune__scores": tmp_path / "s.npy", "static__epochs": 1}
    own = config.load(command_line(numbers, tmp_path, **options))
    with pytest.raises(UserError, match="static scores are made of classes"):
        static_scores.compute(own)
