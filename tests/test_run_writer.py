"""A loop of one's own writes a run folder, and the report reads it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from ffcv_prune import Pruner, RunWriter, TorchLoader
from ffcv_prune.analysis.runs import read_run
from ffcv_prune.errors import UserError
from ffcv_prune.training import run_folder

N, EPOCHS = 120, 4


def make_pruner(method: str, **parameters: object) -> Pruner:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % 3
    data = TensorDataset(torch.randn(N, 5, generator=generator), labels)
    data.targets = labels  # as torchvision's data sets state their classes
    loader = TorchLoader(data, batch_size=16, num_workers=0, shuffle=True, drop_last=True, with_ids=True)
    scoring = TorchLoader(data, batch_size=50, num_workers=0, shuffle=False, drop_last=False)
    return Pruner(loader, scoring, method, epochs=EPOCHS, **parameters)  # type: ignore[arg-type]


def train(run: RunWriter, pruner: Pruner) -> None:
    model = torch.nn.Linear(5, 3)
    for epoch in range(EPOCHS):
        swap = pruner.begin_epoch(epoch, model)
        run.log(epoch, swap, test_accuracy=0.2 * epoch if epoch % 2 else None, train_loss=1.5)


def test_a_loop_of_one_s_own_gets_a_report(tmp_path: Path) -> None:
    pruner = make_pruner("ucb", keep=0.5, period=2, seed=3, random_share=1.0)
    with RunWriter(tmp_path / "runs" / "mine", pruner, 500, ["cat", "dog", "owl"]) as run:
        train(run, pruner)
    read = read_run(run.path)
    assert (read.name, read.method, read.seed, read.selections) == ("mine", "ucb", 3, 2)
    assert read.samples_seen == EPOCHS * 3 * 16  # 60 samples are 3 whole batches
    assert read.accuracy == pytest.approx(0.6)
    assert read.counts is not None and read.counts.sum() == 2 * 60
    assert [row["selected"] for row in read.rows] == [True, False] * 2
    assert list(read.rows[0]["class_fraction"]) == ["cat", "dog", "owl"]
    assert np.mean(list(read.rows[0]["class_fraction"].values())) == pytest.approx(0.5)
    assert read.rows[0]["seconds"]["total"] >= read.rows[0]["seconds"]["score"] > 0
    assert read.dataset["test_samples"] == 500
    page = (run.path / "report.html").read_text()
    assert "mine" in page and "60.00 %" in page
    assert json.loads((run.path / "status.json").read_text())["status"] == "finished"


def test_samples_that_were_chosen_in_batches_are_counted(tmp_path: Path) -> None:
    pruner = make_pruner("selective_backprop", keep=0.5)
    model, trained = torch.nn.Linear(5, 3), [0] * EPOCHS
    with RunWriter(tmp_path / "runs" / "mine", pruner, 500) as run:
        for epoch in range(EPOCHS):
            swap = pruner.begin_epoch(epoch, model)
            for batch in pruner.loader.batches(epoch):
                chosen = pruner.choose(model, batch.inputs, batch.targets, batch.ids)
                trained[epoch] += 0 if chosen is None else len(chosen[2])
            run.log(epoch, swap)
    rows = read_run(run.path).rows
    assert [row["samples_seen"] for row in rows] == np.cumsum(trained).tolist() and trained[-2] < 112
    assert [row["keep"] for row in rows] == pytest.approx([count / 112 for count in trained], abs=1e-6)


def test_all_data_and_a_loop_that_fails(tmp_path: Path) -> None:
    pruner = make_pruner("full")
    with pytest.raises(ZeroDivisionError), RunWriter(tmp_path / "full", pruner, 500) as run:
        train(run, pruner)
        raise ZeroDivisionError("oh")
    read = read_run(run.path)
    assert not read.pruned and read.samples_seen == EPOCHS * 7 * 16
    status = json.loads((run.path / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("failed", "oh")
    with RunWriter(tmp_path / "full", pruner, 500) as again:
        assert again.path == tmp_path / "full_2"


def test_class_names_must_suffice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 class_names for labels up to 2"):
        RunWriter(tmp_path / "run", make_pruner("full"), 500, ["cat", "dog"])
    assert not list(tmp_path.iterdir())


def test_the_commit_is_that_of_this_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect: of a package in a .venv, the commit of the user's own repository around it was recorded."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=user", "-c", "user.email=user@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    module = tmp_path / ".venv" / "run_folder.py"
    module.parent.mkdir()
    shutil.copy(run_folder.__file__, module)
    (tmp_path / "train.py").write_text("")
    git("init"), git("add", "train.py"), git("commit", "-m", "mine")
    monkeypatch.setattr(run_folder, "__file__", str(module))
    assert run_folder.commit() == ""
    git("add", ".venv"), git("commit", "-m", "a checkout of the package")
    assert run_folder.commit() == git("rev-parse", "--short", "HEAD")
    module.write_text("")
    assert run_folder.commit() == git("rev-parse", "--short", "HEAD") + "+"
