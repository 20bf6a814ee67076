"""Trackers get each row of the log, and the scores of each selection; the real packages where they are installed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ffcv_prune import RunWriter
from ffcv_prune.config import Config
from ffcv_prune.errors import UserError
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.run_folder import RunFolder
from ffcv_prune.training.trackers import TRACKERS, numbers, require_tracker
from ffcv_prune.training.trainer import train
from tests import test_run_writer
from tests.betons import Beton, write_run
from tests.test_run_writer import N, make_pruner

pytestmark = pytest.mark.usefixtures("unpainted")

UCB = {"prune__method": "ucb", "prune__keep": 0.5, "prune__period": 2}


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, beton: Beton, test_beton: Beton) -> Path:
    return write_run(tmp_path_factory.mktemp("config") / "small.yaml", beton, test_beton, 4)


class Notebook:
    """A tracker of somebody's own."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.scores: list[NDArray[np.float32] | None] = []
        self.closed = 0

    def log(self, row: Mapping[str, Any], scores: NDArray[np.float32] | None) -> None:
        self.rows.append(dict(row))
        self.scores.append(scores)

    def close(self) -> None:
        self.closed += 1


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_tracker_of_one_s_own_gets_what_the_log_gets(tmp_path: Path) -> None:
    pruner, notebook = make_pruner("ucb", keep=0.5, period=2, random_share=0.5), Notebook()
    with RunWriter(tmp_path / "mine", pruner, 500, tracker=notebook) as run:
        test_run_writer.train(run, pruner)
    assert notebook.rows == read_log(run.path)
    assert [None if scores is None else len(scores) for scores in notebook.scores] == [N, None, N, None]
    assert notebook.closed == 1
    first, second = (np.load(run.path / "selections" / f"epoch_000{epoch}.npy") for epoch in (0, 2))
    shared = np.isin(second, first).sum() / len(second)
    assert 0 < shared < 1
    assert [row["overlap"] for row in notebook.rows] == [None, None, pytest.approx(shared, abs=1e-6), None]


def test_a_loop_that_fails_closes_its_tracker(tmp_path: Path) -> None:
    notebook = Notebook()
    with pytest.raises(ZeroDivisionError), RunWriter(tmp_path / "mine", make_pruner("full"), 500, tracker=notebook):
        raise ZeroDivisionError
    assert notebook.closed == 1


def test_the_last_selection_before_the_epoch_counts(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    for epoch, ids in ((2, [0, 1, 2]), (10_000, [1, 2, 3, 4]), (10_005, [9])):  # the last is of a run before a resume
        folder.save_selection(epoch, np.array(ids))
    folder.close()
    with closing(RunFolder(folder.path)) as reopened:
        assert reopened.overlap(10_003, np.array([1, 4, 7, 8])) == 0.5
    with closing(RunFolder(folder.path)) as reopened:
        assert reopened.overlap(2, np.array([0])) is None


def test_a_running_loop_does_not_read_its_selections_again(tmp_path: Path) -> None:
    with closing(RunFolder.create(tmp_path, "run")) as folder:
        found = []
        for epoch, ids in ((0, [0, 1]), (1, [1, 2]), (4, [1, 2]), (5, [7, 8])):
            folder.save_selection(epoch, np.array(ids))
            found.append(folder.overlap(epoch, np.array(ids)))
            for file in (folder.path / "selections").iterdir():
                file.unlink()
        assert found == [None, 0.5, 1.0, 0.0]


def test_numbers_of_a_row() -> None:
    row = {"epoch": 3, "phase": "full", "selected": True, "a": None, "b": float("nan"), "c": {"x": 0.5, "y": None}}
    assert dict(numbers(row)) == {"epoch": 3, "selected": 1, "c/x": 0.5}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_said_before_anything_is_written(
    name: str, settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Hidden(name), *sys.meta_path])
    message = rf'run.tracker={name}: {name} is not installed; pip install "ffcv_prune\[{name}\]"'
    with pytest.raises(UserError, match=message):
        train(settings(run__tracker=name))
    with pytest.raises(UserError, match=message):
        RunWriter(tmp_path / "mine", make_pruner("full"), 500, tracker=name)
    assert not list(tmp_path.iterdir())


class Hidden:
    """An import that fails as that of a package which is not there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_folder_of_the_package_s_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio").mkdir()
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if not (Path(p) / "trackio").exists())])
    with pytest.raises(UserError, match="trackio is not installed"):
        require_tracker("trackio")
    del sys.modules["trackio"]  # the folder


def test_an_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'run\.tracker="tensorbord"; did you mean "tensorboard"'):
        RunWriter(tmp_path / "mine", make_pruner("full"), 500, tracker="tensorbord")
    assert not list(tmp_path.iterdir())


def test_an_object_that_is_no_tracker(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the tracker is of type dict: give its name, or an object with log\(row"):
        RunWriter(tmp_path / "mine", make_pruner("full"), 500, tracker={})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_nothing_is_imported_that_is_not_asked_for() -> None:
    script = f"import sys, ffcv_prune.training.trainer; print(sorted(set({list(TRACKERS)}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, timeout=100)
    assert done.stdout == "[]\n", done.stderr


def test_tensorboard(settings: Callable[..., Config], loaders: Loaders) -> None:
    reader = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(reader, reason="needs tensorboard").EventAccumulator
    folder = train(settings(run__tracker="tensorboard", **UCB), loaders).folder
    events = accumulator(str(folder / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    for row in read_log(folder):
        for name, value in numbers(row):
            (seen,) = [event.value for event in events.Scalars(name) if event.step == row["epoch"]]
            assert seen == pytest.approx(value, rel=1e-6)
    assert [event.step for event in events.Histograms("scores")] == [0, 2]
    assert events.Histograms("scores")[0].histogram_value.num == 203
    assert "class_fraction/3" in events.Tags()["scalars"]


def test_mlflow(settings: Callable[..., Config], loaders: Loaders, mlflow_client: Any) -> None:
    folder = train(settings(run__tracker="mlflow", **UCB), loaders).folder
    experiment = mlflow_client.get_experiment_by_name("ffcv_prune")
    (run,) = mlflow_client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["prune.method"] == "ucb"
    for name, value in numbers(read_log(folder)[-1]):
        assert run.data.metrics[name] == pytest.approx(value)
    assert [file.path for file in mlflow_client.list_artifacts(run.info.run_id, "scores")] == [
        "scores/epoch_0000.json",
        "scores/epoch_0002.json",
    ]
    TRACKERS["mlflow"](folder, {}).close()  # as a run that is resumed
    assert len(mlflow_client.search_runs([experiment.experiment_id])) == 1


@pytest.fixture
def mlflow_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def test_wandb(settings: Callable[..., Config], loaders: Loaders, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = train(settings(run__tracker="wandb", **UCB), loaders).folder
    (saved,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = saved.read_bytes()
    assert b"class_fraction" in content and b"histogram" in content


def test_trackio(
    settings: Callable[..., Config], loaders: Loaders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="needs trackio")
    folder = train(settings(run__tracker="trackio", **UCB), loaders).folder
    with closing(sqlite3.connect(tmp_path / "trackio" / "ffcv_prune.db")) as store:
        saved = store.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    assert [step for step, _ in saved] == [0, 1, 2, 3]
    for row, (_, content) in zip(read_log(folder), saved, strict=True):
        shown = json.loads(content)
        assert ("scores" in shown) == row["selected"]
        assert {name: shown[name] for name, _ in numbers(row)} == pytest.approx(dict(numbers(row)))
